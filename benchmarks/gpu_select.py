"""Exact selection on a GPU: global, per segment, with a hint, on hard distributions; and the prune-and-regrow step. Beside topk, kthvalue, sort."""
import torch
from gpu_race import Case, Contender, Lab, Target, bits_of, equal

from sparsekern import ops
from sparsekern.testing import resnet50_shapes

TOPK, KTH, SORT = "torch topk + scatter", "torch kthvalue + compare", "torch sort + scatter"
KINDS = ("normal", "all equal", "two values", "sorted", "narrow", "1% NaN")


def distribution(lab: Lab, kind: str, n: int) -> torch.Tensor:
    x = lab.randn(n)
    if kind == "all equal":
        return torch.full_like(x, 1.5)
    if kind == "two values":
        return torch.where(x < 0, 1.0, 2.0)
    if kind == "sorted":
        return x.sort().values
    if kind == "narrow":
        return x.abs().fmod(1.0) * 3e-5 + 1
    return torch.where(lab.mask(n, density=0.01), torch.nan, x) if kind == "1% NaN" else x


def reference(scores, k, **options):
    return ops.implementations("topk_mask.int_k")["reference"](scores, k, **options)[0]


def selects(lab: Lab, label: str, scores, k: list[int], want, packed: bool = False, **options) -> dict:
    """Ours over a list of scores; the masks must be exactly the wanted ones."""
    elements = sum(x.numel() for x in scores)

    def make(f):
        def check(result):
            for got, expected in zip(result[0], want):
                equal(got, bits_of(expected) if packed else expected)
        return {"run": lambda: f(scores, k, packed=packed, **options), "check": check}
    # One read and the mask: what the fastest path can reach.
    return lab.ours(label, "topk_mask.int_k", make, hbm=(scores[0].itemsize + (0.125 if packed else 1)) * elements)


def flat(millions: float, percent: float, peers: bool, dtype: torch.dtype = torch.float32):
    def build(lab: Lab) -> dict:
        n = lab.size(int(millions * 1e6), 3001)
        x = lab.randn(n).to(dtype)
        k = max(1, round(n * percent / 100))
        want = reference([x], [k], global_=True)
        hint = torch.quantile(x[:100_000].abs().float(), 1 - percent / 100).view(1).to(dtype)
        rows = (selects(lab, "sparsekern", [x], [k], want, global_=True) | selects(lab, "sparsekern bits", [x], [k], want, True, global_=True)
                | selects(lab, "sparsekern with hint", [x], [k], want, global_=True, hint=hint))
        if not peers:
            return rows
        # Among equal scores at the threshold torch keeps what it likes, so the number is checked and not the places.
        def count(mask):
            assert abs(int(mask.sum()) - k) <= max(3, k // (1000 if dtype == torch.float32 else 4)), f"{int(mask.sum())} selected, expected {k}"

        def topk():
            return torch.zeros(n, dtype=torch.bool, device=x.device).scatter_(0, torch.topk(x.abs(), k, sorted=False).indices, True)

        def kth():
            values = x.abs()
            return values >= torch.kthvalue(values, n - k + 1).values

        def sort():
            return torch.zeros(n, dtype=torch.bool, device=x.device).scatter_(0, x.abs().sort(descending=True).indices[:k], True)

        return rows | {name: Contender(run, check=count, hbm=5 * n) for name, run in ((TOPK, topk), (KTH, kth), (SORT, sort))}
    return build


def segments(lab: Lab) -> dict:
    """The 54 weight tensors of a ResNet-50, each with its own k, in one call; and all of them together."""
    shapes = [s for s in resnet50_shapes() if len(s) > 1] if not lab.small else [(33, 5), (257,), (1025,)]
    scores = [lab.randn(*s) for s in shapes]
    k = [max(1, x.numel() // 10) for x in scores]
    apart, together = reference(scores, k), reference(scores, [sum(k)], global_=True)

    def one_by_one():
        masks = []
        for x, count in zip(scores, k):
            masks.append(torch.zeros(x.numel(), dtype=torch.bool, device=x.device).scatter_(0, torch.topk(x.abs().flatten(), count).indices, True))
        return masks

    return (selects(lab, "sparsekern segments", scores, k, apart) | selects(lab, "sparsekern global", scores, [sum(k)], together, global_=True)
            | {"torch topk + scatter, tensor by tensor": Contender(one_by_one, hbm=5 * sum(x.numel() for x in scores))})


def many(lab: Lab) -> dict:
    count = lab.size(10_000, 20)
    rows = lab.randn(count, 1024)
    scores, k = list(rows.unbind()), [102] * count
    want = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, rows.abs().sort(dim=1, descending=True, stable=True).indices[:, :102], True)

    def batched():
        return torch.zeros_like(want).scatter_(1, torch.topk(rows.abs(), 102, sorted=False).indices, True)

    return (selects(lab, "sparsekern", scores, k, list(want.unbind()))
            | {"torch topk + scatter, one tensor [10000, 1024]": Contender(batched, hbm=5 * rows.numel())})


def hard(lab: Lab) -> dict:
    n = lab.size(25_600_000, 3001)
    rows = {}
    for kind in KINDS:
        x = distribution(lab, kind, n)
        k = [n // 10]
        rows |= selects(lab, f"sparsekern {kind}", [x], k, reference([x], k, global_=True), global_=True)
    return rows


def regrow(lab: Lab) -> dict:
    shapes = [s for s in resnet50_shapes() if len(s) > 1] if not lab.small else [(33, 5), (257,), (1025,)]
    weights, grow = [lab.randn(*s) for s in shapes], [lab.randn(*s) for s in shapes]
    start = [lab.mask(*s, density=0.1) for s in shapes]
    k = [max(1, int(m.sum()) * 3 // 10) for m in start]
    elements = sum(w.numel() for w in weights)
    wanted = [m.clone() for m in start]
    ops.implementations("prune_regrow_.int_k")["reference"](wanted, [w.clone() for w in weights], grow, k, k)

    def make(packed: bool):
        def with_op(f):
            origin = [bits_of(m) for m in start] if packed else start
            masks = [m.clone() for m in origin]

            def check(_):
                for got, want in zip(masks, wanted):
                    equal(got, bits_of(want) if packed else want)
            return {"run": lambda: f(masks, weights, grow, k, k), "reset": lambda: torch._foreach_copy_(masks, origin), "check": check}
        return with_op

    masks = [m.clone() for m in start]

    def composition():
        for w, g, m, count in zip(weights, grow, masks, k):
            weight, score, mask = w.view(-1), g.view(-1), m.view(-1)
            inactive = ~mask
            drop = torch.topk(torch.where(mask, weight.abs(), torch.inf), count, largest=False).indices
            chosen = torch.topk(torch.where(inactive, score.abs(), -1.0), count).indices
            mask.scatter_(0, drop, False).scatter_(0, chosen, True)

    def check(_):
        assert all(int(m.sum()) == int(w.sum()) for m, w in zip(masks, wanted)), "another number of active weights"

    return (lab.ours("sparsekern bool", "prune_regrow_.int_k", make(False), hbm=10 * elements)
            | lab.ours("sparsekern bits", "prune_regrow_.int_k", make(True), hbm=8.25 * elements)
            | {"torch topk, topk, index": Contender(composition, check=check, reset=lambda: torch._foreach_copy_(masks, start), hbm=10 * elements)})


PEERS = (Target("sparsekern", ">=", 10.0, TOPK), Target("sparsekern", ">=", 10.0, KTH), Target("sparsekern", ">=", 15.0, SORT))
CASES = [
    Case("topk_mask", "25.6M global, k = 10%", flat(25.6, 10, True), rank=0,
         targets=(Target("sparsekern", "us", 66), Target("sparsekern with hint", "us", 42), *PEERS)),
    Case("topk_mask", "100M global, k = 10%", flat(100, 10, False), rank=0,
         targets=(Target("sparsekern", "us", 245), Target("sparsekern with hint", "us", 140))),
    Case("topk_mask", "ResNet-50, 54 segments, k = 10%", segments, rank=0,
         targets=(Target("sparsekern segments", "<=", 1.15, "sparsekern global"),)),
    Case("topk_mask", "25.6M global by distribution, k = 10%", hard, rank=0,
         targets=tuple(Target(f"sparsekern {kind}", "<=", 1.5, "sparsekern normal") for kind in KINDS[1:])),
    Case("topk_mask", "10,000 segments of 1K, k = 10%", many),
    Case("prune_regrow_", "ResNet-50, 54 tensors, 90% sparse, 30% exchanged", regrow),
    *[Case("topk_mask", f"25.6M global, k = {percent}%", flat(25.6, percent, True), rank=2, targets=PEERS) for percent in (1, 2, 50)],
    Case("topk_mask", "25.6M global, k = 10%, bf16", flat(25.6, 10, True, torch.bfloat16), rank=2, targets=PEERS[:1]),
]

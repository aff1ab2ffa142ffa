"""Conflict projection on a GPU: alone, fused with the update, and of several tasks; beside cat, foreach, a Python loop and torch.compile."""
import torch
from conflict_peers import cat_version, foreach_version, loop_version
from gpu_race import Case, Contender, Lab, Target, agrees, bits_of

from sparsekern import ops
from sparsekern.testing import double, resnet50_shapes

SCALARS = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4, "dampening": 0.0, "nesterov": False, "maximize": False, "is_first_step": False}
CAT, LOOP = "torch cat, dot, addcmul, split", "Python loop with .item()"


def _shapes(lab: Lab, shape: str) -> list[tuple[int, ...]]:
    if lab.small:
        return [(1000,), (33, 5), (2, 3, 5, 7)]
    return {"100M": [(2_000_000,)] * 50, "ResNet-50": resnet50_shapes(), "1000 x 1K": [(1024,)] * 1000}[shape]


class Pair:
    """Gradients well above or below 90 degrees to each other, and masks that keep half of them."""

    def __init__(self, lab: Lab, shape: str, conflict: bool):
        shapes = _shapes(lab, shape)
        self.conflict, self.a = conflict, [lab.randn(*s) for s in shapes]
        self.b = [lab.randn(*s) + (-0.1 if conflict else 0.1) * x for s, x in zip(shapes, self.a)]
        self.masks = [lab.mask(*s, density=0.5) for s in shapes]
        for b, mask in zip(self.b, self.masks):
            b.view(-1)[0], mask.view(-1)[0] = 100.0, True
        self.elements = sum(x.numel() for x in self.a)

    def own(self):
        """A copy of the first gradient, and what brings it back into conflict once it was projected (a few elements, untimed)."""
        mine = [x.clone() for x in self.a]
        heads = [x.view(-1)[:1] for x in mine]
        return mine, (lambda: torch._foreach_sub_(heads, 1000.0)) if self.conflict else None

    def projected(self, make, masks=None, peer: bool = False, **facts) -> dict:
        """`make(mine)` is the call; what it makes of a fresh copy is checked against the reference in float64."""
        mine, reset = self.own()
        if reset:
            reset()
        want = double(mine)
        ops.implementations("project_conflict_")["reference"](want, double(self.b), masks=masks, **facts)
        if reset:
            torch._foreach_add_([x.view(-1)[:1] for x in mine], 1000.0)      # the race resets before the first call, too

        def check(_):
            for index in {0, len(mine) - 1}:
                agrees(mine[index], want[index], length=16, peer=peer)
        return {"run": make(mine), "reset": reset, "check": check}


def projection(shape: str, conflict: bool, compiled: bool = False):
    def build(lab: Lab) -> dict:
        pair = Pair(lab, shape, conflict)
        bits, size, n = [bits_of(m) for m in pair.masks], 20 if conflict else 8, pair.elements

        def ours(label, mask_bytes=0.0, **options):
            return lab.ours(label, "project_conflict_", lambda f: pair.projected(lambda mine: lambda: f(mine, pair.b, **options), **options),
                            hbm=(size + (2 if conflict else 1) * mask_bytes) * n)

        def peer(version, **facts):
            return Contender(**pair.projected(lambda mine: version(mine, pair.b), peer=True), hbm=size * n, **facts)

        rows = ours("sparsekern")
        if compiled:
            return rows | {"torch.compile of the cat version": peer(lambda a, b: lab.compile(cat_version(a, b)))}
        return (rows | ours("sparsekern bool", 1, masks=pair.masks) | ours("sparsekern bits", 0.125, masks=bits)
                | ours("sparsekern per tensor", per_tensor=True)
                | {CAT: peer(cat_version), "torch foreach": peer(foreach_version), LOOP: peer(loop_version, graph=False)})
    return build


def fused(shape: str, conflict: bool, form: str):
    def build(lab: Lab) -> dict:
        pair = Pair(lab, shape, conflict)
        masks = {"bits": [bits_of(m) for m in pair.masks], "bool": pair.masks, "dense": [m.new_empty(0) for m in pair.masks]}[form]
        params = [lab.randn(*x.shape) for x in pair.a]
        mask_bytes, n = {"bits": 0.125, "bool": 1, "dense": 0}[form], pair.elements
        two_p, two_v = ([x.clone() for x in params], [torch.zeros_like(x) for x in params])
        mine, reset = pair.own()

        def two():
            ops.project_conflict_(mine, pair.b, masks=masks)
            ops.masked_sgd_(two_p, mine, two_v, masks, **SCALARS)

        wanted_p, wanted_g = double(params), double(pair.a)
        ops.implementations("project_conflict_sgd_")["reference"](wanted_p, wanted_g, double(pair.b), [torch.zeros_like(x) for x in wanted_p],
                                                                   masks, **SCALARS)

        def one(**options):
            def make(f):
                p, v = [x.clone() for x in params], [torch.zeros_like(x) for x in params]

                def check(_):
                    if not options:
                        agrees(p[0], wanted_p[0], length=16)
                        agrees(p[-1], wanted_p[-1], length=16)
                return {"run": lambda: f(p, pair.a, pair.b, v, masks, **SCALARS, **options), "check": check}
            return make

        moved = (32 + 2 * mask_bytes if conflict else 28 + 2 * mask_bytes) * n
        return (lab.ours("sparsekern fused", "project_conflict_sgd_", one(), hbm=moved)
                | lab.ours("sparsekern fused, per tensor", "project_conflict_sgd_", one(per_tensor=True), hbm=moved)
                | {"sparsekern two ops": Contender(two, reset=reset, implementation="both", hbm=(40 if conflict else 28) * n + 3 * mask_bytes * n)})
    return build


def combine(tasks: int):
    def build(lab: Lab) -> dict:
        shapes = _shapes(lab, "ResNet-50")
        grads = [[lab.randn(*s) for s in shapes] for _ in range(tasks)]
        order = torch.stack([torch.tensor([j for j in range(tasks) if j != i]) for i in range(tasks)]).to(lab.device)
        flat, visits = [g for task in grads for g in task], order.tolist()
        elements = sum(g.numel() for g in grads[0])

        def pairwise(items=grads, project=ops.project_conflict_):
            own = [[g.clone() for g in task] for task in items]
            for i, others in enumerate(visits):
                for j in others:
                    project(own[i], items[j])
            total = own[0]
            for more in own[1:]:
                torch._foreach_add_(total, more)
            return total

        joined = torch.stack([torch.cat([g.flatten() for g in task]) for task in grads]).double()
        gram = joined @ joined.T
        want = pairwise(double(grads), lambda a, b: ops.implementations("project_conflict_")["reference"](a, b))

        def check(result, peer=False):
            for index in {0, len(shapes) - 1}:
                agrees(result[index], want[index], length=256, peer=peer)

        def loop():
            total = None
            for i, others in enumerate(visits):
                mine = torch.cat([g.flatten() for g in grads[i]])
                for j in others:
                    other = torch.cat([g.flatten() for g in grads[j]])
                    d = torch.dot(mine, other).item()
                    if d < 0:
                        mine -= d / torch.dot(other, other).item() * other
                total = mine if total is None else total + mine
            return [part.view(s) for part, s in zip(total.split([g.numel() for g in grads[0]]), shapes)]

        return (lab.ours("sparsekern", "pcgrad_combine", lambda f: {"run": lambda: f(flat, tasks, order), "check": check},
                         hbm=(8 * tasks + 4) * elements)
                | lab.ours("sparsekern task_gram alone", "task_gram", lambda f: {"run": lambda: f(flat, tasks), "check": lambda got: agrees(
                    got, gram, elements, torch.float32)}, hbm=4 * tasks * elements)
                | {"sparsekern pairwise": Contender(pairwise, check=check, implementation="project_conflict_"),
                   "published PCGrad loop with .item()": Contender(loop, check=lambda got: check(got, True), graph=False)})
    return build


CASES = [
    *[Case("project_conflict_", f"100M as 50 x 2M, {'conflict' if c else 'no conflict'}", projection("100M", c), rank=0,
           targets=(Target("sparsekern", "share", 0.88), Target("sparsekern", ">=", 2.2, CAT), Target("sparsekern", ">=", 5.0, LOOP)))
      for c in (True, False)],
    *[Case("project_conflict_", f"ResNet-50, 161 tensors, {'conflict' if c else 'no conflict'}", projection("ResNet-50", c), rank=0,
           targets=(Target("sparsekern", ">=", 2.2, CAT), Target("sparsekern", ">=", 5.0, LOOP))) for c in (True, False)],
    Case("project_conflict_sgd_", "100M as 50 x 2M, bits, conflict", fused("100M", True, "bits"), rank=0,
         targets=(Target("sparsekern fused", ">=", 1.15, "sparsekern two ops"),)),
    Case("project_conflict_sgd_", "100M as 50 x 2M, bits, no conflict", fused("100M", False, "bits"), rank=0,
         targets=(Target("sparsekern fused", "<=", 1.0, "sparsekern two ops"),)),
    *[Case("project_conflict_sgd_", f"ResNet-50, 161 tensors, {form}, {'conflict' if c else 'no conflict'}", fused("ResNet-50", c, form),
           targets=(Target("sparsekern fused", *((">=", 1.15) if c else ("<=", 1.0)), "sparsekern two ops"),))
      for form in ("bits", "dense") for c in (True, False)],
    *[Case("pcgrad_combine", f"{tasks} tasks of ResNet-50's 161 tensors", combine(tasks), needs=("pcgrad_combine",), rank=1 if tasks == 8 else 2,
           targets=(Target("sparsekern", ">=", 3.0, "sparsekern pairwise"),) if tasks == 8 else ()) for tasks in (8, 4, 2)],
    *[Case("project_conflict_", f"1000 x 1K, {'conflict' if c else 'no conflict'}", projection("1000 x 1K", c), rank=2) for c in (True, False)],
    Case("project_conflict_ and torch.compile", "100M as 50 x 2M, conflict", projection("100M", True, compiled=True), rank=3),
]

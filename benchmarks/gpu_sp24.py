"""2:4 matrices on a GPU: packing beside a clone and torch's own calls, and the product beside cuSPARSELt, CUTLASS and a dense one."""
import torch
from gpu_race import Case, Contender, Lab, Target, agrees

from sparsekern import ops
from sparsekern.ops import _sp24_backends as backends

OURS, DENSE, LT, CUTLASS = "sparsekern", "torch dense", "torch cuSPARSELt, searched", "torch CUTLASS"
BF16 = torch.bfloat16


def reference(name: str):
    return ops.implementations(name)["reference"]


def same(got, want) -> None:
    for one, other in zip(got, want):
        wrong = int((one.view(torch.int16) != other.view(torch.int16)).sum())
        assert wrong == 0, f"{wrong} of {other.numel()} words differ"


def packing(side: int, both: bool):
    def build(lab: Lab) -> dict:
        n = lab.size(side, 128)
        x = lab.randn(n, n, dtype=BF16)
        mask = ops.nm_mask_transposable(x) if both else None
        want = reference("sp24_compress")(x, mask=mask, both=both)
        bytes_moved = (4.25 if both else 3.125) * x.numel()

        def make(**options):
            return lambda f: {"run": lambda: f(x, both=both, **options), "check": lambda got: same(got[:4 if both else 2], want)}

        rows = lab.ours(OURS, "sp24_compress", make(), hbm=bytes_moved)
        if both:
            rows |= lab.ours("sparsekern, bool mask", "sp24_compress", make(mask=mask), hbm=bytes_moved + x.numel())
            # Greedy, not the best pattern: another choice of elements, so nothing to compare with.
            rows["torch._sparse_semi_structured_tile"] = Contender(lambda: torch._sparse_semi_structured_tile(x, "", True), hbm=bytes_moved)
        else:
            # It takes what is masked already.
            dense = reference("sp24_decompress")(*want[:2], [n, n])
            rows["torch._cslt_compress"] = Contender(lambda: torch._cslt_compress(dense), hbm=bytes_moved)
        return rows | {"torch clone": Contender(x.clone, hbm=4 * x.numel())}
    return build


def unpacking(lab: Lab) -> dict:
    n = lab.size(8192, 128)
    v, e = reference("sp24_compress")(lab.randn(n, n, dtype=BF16))[:2]
    want = reference("sp24_decompress")(v, e, [n, n])
    return lab.ours(OURS, "sp24_decompress", lambda f: {"run": lambda: f(v, e, [n, n]), "check": lambda got: same([got], [want])},
                    hbm=3.125 * n * n) | {"torch clone": Contender(want.clone, hbm=4 * n * n)}


def product(rows: int, cols: int, n: int):
    def build(lab: Lab) -> dict:
        m, k, width = (lab.size(size, 64) for size in (rows, cols, n))
        w, b = lab.randn(m, k, dtype=BF16), lab.randn(k, width, dtype=BF16)
        v, e = reference("sp24_compress")(w)[:2]
        dense = reference("sp24_decompress")(v, e, [m, k])
        want = dense.float() @ b.float() if lab.device.type == "cuda" else dense.double() @ b.double()
        facts = {"hbm": 1.125 * m * k + 2 * (k + m) * width, "flops": m * k * width}            # half of a dense product's, at twice its rate half
        lt = backends.CuSparseLt()
        problem = backends.Problem(m, k, width, BF16, "sm80", BF16, lab.device)

        def check(got):
            agrees(got, want.double(), k, peer=True)

        return {OURS: Contender(lambda: ops.sp24_mm(v, e, b), check=check, **facts, implementation="chosen"),
                LT: Contender(lambda: lt.product(v, e, b, None, problem), check=check, **facts),
                CUTLASS: Contender(lambda: torch._sparse_semi_structured_mm(v, e, b), check=check, **facts),
                DENSE: Contender(lambda: dense @ b, check=check, hbm=2 * (m * k + (k + m) * width), flops=2 * m * k * width)}
    return build


def step(rows: int, cols: int, n: int):
    """Forward, gradient of the input, gradient of the weight, with the weight packed both ways anew, as training does."""
    def build(lab: Lab) -> dict:
        m, k, width = (lab.size(size, 64) for size in (rows, cols, n))
        w, x, grad = lab.randn(m, k, dtype=BF16), lab.randn(k, width, dtype=BF16), lab.randn(m, width, dtype=BF16)

        def ours():
            v, e, vt, et = ops.sp24_compress(w, both=True)
            return ops.sp24_mm(v, e, x), ops.sp24_mm(vt, et, grad), grad @ x.t()

        mask = ops.nm_mask_transposable(w)
        masked = torch.where(mask, w, 0).double()

        def check(got):
            agrees(got[0], masked @ x.double(), k, peer=True)
            agrees(got[1], masked.t() @ grad.double(), m, peer=True)

        return {OURS: Contender(ours, check=check, implementation="chosen", graph=False),
                DENSE: Contender(lambda: (w @ x, w.t() @ grad, grad @ x.t()), graph=False)}
    return build


def chosen(table) -> list[str]:
    m, k, n = (int(part) for part in table.shape.split(" ")[0].split("x"))
    choice = ops.sp24_backend(m, k, n, device="cuda" if torch.cuda.is_available() else "cpu")
    return [f"chosen: {choice.backend} ({choice.reason})"]


def _product(m: int, k: int, n: int, *targets: Target) -> Case:
    bounds = (Target(OURS, "<=", 1.0, DENSE), Target(OURS, "<=", 1.0, LT), *targets)
    return Case("sp24_mm", f"{m}x{k}x{n} bf16", product(m, k, n), bounds, notes=chosen, rank=0 if targets else 1)


CASES = [
    Case("sp24_compress", "8192^2 bf16", packing(8192, both=False), (Target(OURS, "share", 0.85),), rank=0),
    Case("sp24_compress, both ways", "8192^2 bf16", packing(8192, both=True), (Target("sparsekern, bool mask", "<=", 1.25, "torch clone"),
                                                                             Target(OURS, "<=", 1.25, "torch clone")), rank=0),
    Case("sp24_decompress", "8192^2 bf16", unpacking, (Target(OURS, "share", 0.85),)),
    _product(8192, 8192, 8192, Target(OURS, ">=", 1.2, DENSE)),
    _product(4096, 4096, 4096, Target(OURS, ">=", 1.15, DENSE)),
    *[_product(*shape) for shape in ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 1024, 44160), (4096, 11008, 16), (4096, 11008, 64),
                                     (4096, 11008, 128), (4096, 11008, 512), (4096, 11008, 4096))],
    Case("sp24 step, packing included", "ViT-L MLP 4096x1024x44160 bf16", step(4096, 1024, 44160), (Target(OURS, ">=", 1.25, DENSE),), rank=0),
]

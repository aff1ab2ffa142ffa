"""N:M sparsity on a GPU: choosing n of every m, in every form of the result, and packing, beside what one writes with torch."""
import torch
from gpu_csr import NAMES
from gpu_csr import peers as dense_peers
from gpu_race import Case, Contender, Lab, Target, agrees, bits_of, equal

from sparsekern import ops

RATIOS = [(2, 4), (1, 4), (2, 8), (4, 8), (1, 16), (8, 32)]


def topk_mask(x, n, m):
    """What one writes in torch, with a short last group filled up."""
    lines = torch.nn.functional.pad(x, (0, -x.shape[-1] % m)).unflatten(-1, (-1, m))
    kept = torch.zeros_like(lines, dtype=torch.bool).scatter_(-1, lines.abs().topk(n, dim=-1).indices, True)
    return kept.flatten(-2)[..., :x.shape[-1]]


def reference(op: str, *arguments, **options):
    """Operands and expected results do not rest on a kernel under test."""
    return ops.implementations(op)["reference"](*arguments, **options)


def mask(rows: int, cols: int, n: int, m: int, dtype: torch.dtype = torch.float32):
    def build(lab: Lab) -> dict:
        x = lab.randn(lab.size(rows, 32), lab.size(cols, 64 - cols % 2)).to(dtype)
        want, down, size, elements = reference("nm_mask", x, n, m), reference("nm_mask", x, n, m, dim=0), x.element_size(), x.numel()
        bits, applied, work = bits_of(want), torch.where(want, x, torch.zeros_like(x)), x.clone()

        def make(expected, **options):
            return lambda f: {"run": lambda: f(x, n, m, **options), "check": lambda got: equal(got, expected)}

        def apply(f):
            return {"run": lambda: f(work, n, m), "reset": lambda: work.copy_(x), "check": lambda _: equal(work, applied)}

        return (lab.ours("sparsekern", "nm_mask", make(want), hbm=(size + 1) * elements)
                | lab.ours("sparsekern packed", "nm_mask", make(bits, packed=True), hbm=(size + 0.125) * elements)
                | lab.ours("sparsekern along columns", "nm_mask", make(down, dim=0), hbm=(size + 1) * elements)
                | lab.ours("sparsekern nm_apply_", "nm_apply_", apply, hbm=2 * size * elements)
                | {"torch view, topk, scatter": Contender(lambda: topk_mask(x, n, m), lambda got: equal(got, want), hbm=(size + 1) * elements),
                   "torch clone": Contender(x.clone, hbm=2 * size * elements)})
    return build


def transposable(side: int):
    def build(lab: Lab) -> dict:
        x = lab.randn(lab.size(side, 32), lab.size(side, 64))
        want = reference("nm_mask_transposable", x)
        return (lab.ours("sparsekern", "nm_mask_transposable", lambda f: {"run": lambda: f(x), "check": lambda got: equal(got, want)},
                         hbm=5 * x.numel())
                | {"torch clone": Contender(x.clone, hbm=8 * x.numel())})
    return build


def pack(side: int, n: int, m: int, v: int):
    def build(lab: Lab) -> dict:
        rows, cols = lab.size(side, 32), lab.size(side, 64)
        kept = reference("nm_mask", lab.randn(rows // v, cols), n, m).repeat_interleave(v, 0)
        x = torch.where(kept, lab.randn(rows, cols), 0.0)
        want = reference("nm_pack", x, n, m, v=v)

        def check(got):
            for one, other in zip(got, want):
                equal(one, other)

        stored = x.numel() * n // m
        return (lab.ours("sparsekern", "nm_pack", lambda f: {"run": lambda: f(x, n, m, v=v), "check": check},
                         hbm=4 * x.numel() + (4 + 1 / v) * stored)
                | {"torch clone": Contender(x.clone, hbm=8 * x.numel())})
    return build


def product(side: int, width: int, n: int, m: int, v: int, dtype: torch.dtype):
    """The packed matrix times a dense one, beside the dense product, the same matrix in CSR form, and torch's 2:4."""
    def build(lab: Lab) -> dict:
        rows = cols = lab.size(side, 64)
        width_here, stored = lab.size(width, 24), rows * cols // m * n
        kept = reference("nm_mask", lab.randn(rows // v, cols), n, m).repeat_interleave(v, 0)
        x = torch.where(kept, lab.randn(rows, cols), 0.0).to(dtype)
        values, index = reference("nm_pack", x, n, m, v=v)
        b = lab.randn(cols, width_here, dtype=dtype)
        want, size = x.double() @ b.double(), b.element_size()
        crow = torch.arange(rows + 1, dtype=torch.int32, device=x.device) * (cols // m * n)
        col = (kept.nonzero()[:, 1]).int()

        def packed(f):
            return {"run": lambda: f(values, index, b, n, m, cols, v=v), "check": lambda got: agrees(got, want, cols)}

        def as_csr(f):
            return {"run": lambda: f(crow, col, values.flatten(), b, rows, cols), "check": lambda got: agrees(got, want, cols)}

        def peer(work, **facts) -> Contender:
            return Contender(work, lambda got: agrees(got, want, peer=True), **facts)

        hbm = stored * (size + 1 / v) + (rows + cols) * width_here * size
        rows_of = lab.ours("sparsekern", "nm_spmm", packed, hbm=hbm, **({"shared": stored * width_here * size} if v == 1 else {}))
        rows_of |= lab.ours("sparsekern csr_spmm", "csr_spmm", as_csr, triton=False, hbm=stored * (size + 4) + (rows + cols) * width_here * size)
        rows_of |= dense_peers(lambda: x @ b, want, dtype, 2 * rows * cols * width_here)
        if (n, m) == (2, 4) and dtype != torch.float32 and lab.device.type == "cuda":
            half = torch.sparse.to_sparse_semi_structured(x)
            rows_of["torch 2:4"] = peer(lambda: half @ b, graph=False)
        return rows_of
    return build


def products(ratios: list, dtype: torch.dtype, sides=((4096, 512),)) -> list[Case]:
    """`ratios`: (n, m, v, the bound against cuBLAS in the same type or None)."""
    dense = "dense fp32" if dtype == torch.float32 else f"dense {NAMES[dtype]}"
    return [Case("nm_spmm", f"{side}x{side}x{width}, {v}:{n}:{m}, {NAMES[dtype]}", product(side, width, n, m, v, dtype), rank=0 if bound else 1,
                 targets=(Target("sparsekern", ">=", bound, dense),) if bound else ()) for n, m, v, bound in ratios for side, width in sides]


FASTER = (Target("sparsekern", ">=", 10.0, "torch view, topk, scatter"),)
FULL = (Target("sparsekern", "share", 0.85), Target("sparsekern packed", "share", 0.85), *FASTER)
CASES = [
    *[Case("nm_mask", f"8192x8192, {n}:{m}, fp32", mask(8192, 8192, n, m), rank=0, targets=FULL) for n, m in RATIOS],
    Case("nm_mask", "8192x8192, 2:4, bf16", mask(8192, 8192, 2, 4, torch.bfloat16), rank=0, targets=FULL),
    *[Case("nm_mask", f"4096x4096, {n}:{m}, fp32", mask(4096, 4096, n, m), targets=FASTER) for n, m in RATIOS],
    *[Case("nm_mask", f"4096x4095, {n}:{m}, fp32", mask(4096, 4095, n, m), targets=FASTER) for n, m in RATIOS],
    Case("nm_mask_transposable", "8192x8192, fp32", transposable(8192)),
    Case("nm_pack", "8192x8192, 2:4, fp32", pack(8192, 2, 4, 1)),
    Case("nm_pack", "8192x8192, 2:16, 16 rows share, fp32", pack(8192, 2, 16, 16)),
    *products([(1, 8, 1, 1.5), (1, 16, 1, 1.5), (1, 4, 1, None), (2, 8, 1, None), (1, 8, 4, None), (2, 16, 64, None)], torch.float32),
    *products([(2, 16, 64, 1.5), (2, 16, 16, None), (1, 16, 1, None), (2, 4, 1, None)], torch.float16),
    *products([(2, 16, 64, None), (1, 16, 1, None)], torch.bfloat16),
    *products([(1, 8, 1, None), (2, 16, 64, None)], torch.float16, ((4096, 16), (4096, 4096), (8192, 512))),
]

"""CSR products and sampled products on a GPU beside their peers, by CUDA events; one JSON line per contender. Run by scripts/gpu.py bench.

Contenders of a case take turns in the same loop, the L2 cache is flushed before each, and every result is checked first: a wrong one
voids its row, and a peer that cannot run a case says why. dense_ratio: dense bf16 (for bf16) or tf32 time over the contender's.
"""
import json
import sys

import torch
import torch.nn.functional as F
from gpu_masked_sgd import copy_bandwidth, race

from sparsekern import ops
from sparsekern.testing import tolerance

SPARSITIES = (0.8, 0.9, 0.95, 0.98, 0.99)
PRODUCTS = [(4096, 4096, n) for n in (32, 128, 512, 1024, 4096)] + [(1024, 4096, 512), (11008, 4096, 512)]
SAMPLED = [(4096, 4096, n) for n in (128, 512, 2048)]
LAYERS = [(4096, 4096, 256), (4096, 1024, 2048)]                            # out, in, batch
BATCH, PLACES = 512, 1_000_000
PEER_ERROR = 1e-2                                                           # peers may round as they like: tf32, bf16 sums


class Matrix:
    """A random sparse matrix in every form a contender wants."""

    def __init__(self, rows: int, cols: int, sparsity: float, dtype: torch.dtype):
        self.rows, self.cols = rows, cols
        mask = torch.rand(rows, cols, device="cuda") >= sparsity
        self.dense = torch.where(mask, torch.randn(rows, cols, device="cuda"), 0).to(dtype)
        self.crow, self.col = torch.cat([mask.new_zeros(1), mask.sum(1).cumsum(0)]).int(), mask.nonzero()[:, 1].int()
        self.mask, self.val = mask, self.dense[mask]
        self.row_order, *self.transposed = ops.csr_plan(self.crow, self.col, rows, cols)
        crow_t, row_t, perm = self.transposed
        self.csr = torch.sparse_csr_tensor(self.crow, self.col, self.val, (rows, cols))
        self.csr_t = torch.sparse_csr_tensor(crow_t, row_t, self.val[perm], (cols, rows))


def tf32(work, allowed: bool = True):
    """The work with TF32 matrix products allowed or not, and as it was afterwards."""
    def run():
        before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, allowed
        try:
            return work()
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
    return run


def dense_peers(work, dtype: torch.dtype) -> dict:
    return {"dense bf16": work} if dtype == torch.bfloat16 else {"dense tf32": tf32(work), "dense fp32": tf32(work, False)}


def report(case: dict, contenders: dict, want: torch.Tensor, length: int) -> None:
    """Check each contender against `want` (float64), race those that agree, print a line for each."""
    able = {}
    for name, work in contenders.items():
        try:
            got = work().double().reshape(want.shape)
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            print(json.dumps(case | {"name": name, "void": str(error).splitlines()[0][:150]}))
            continue
        error = ((got - want).square().mean().sqrt() / want.square().mean().sqrt()).item()
        ours = tolerance(torch.bfloat16 if case["dtype"] == "bfloat16" else torch.float32, length)
        if error <= (ours if name.startswith("sparsekern") else PEER_ERROR):
            able[name] = work
        else:
            print(json.dumps(case | {"name": name, "void": f"wrong: relative error {error:.1e}"}))
    medians = race(able)
    reference = medians.get("dense bf16") or medians.get("dense tf32")
    for name, us in medians.items():
        print(json.dumps(case | {"name": name, "us": round(us, 1), "dense_ratio": reference and round(reference / us, 2)}))


def products(rows: int, cols: int, n: int, sparsity: float, dtype: torch.dtype) -> None:
    w = Matrix(rows, cols, sparsity, dtype)
    b, tall = torch.randn(cols, n, device="cuda").to(dtype), torch.randn(rows, n, device="cuda").to(dtype)
    turned = b.t().contiguous().t()
    case = {"shape": f"{rows}x{cols}x{n}", "sparsity": sparsity, "dtype": str(dtype)[6:]}
    ours = {"sparsekern": lambda: ops.csr_spmm(w.crow, w.col, w.val, b, rows, cols, row_order=w.row_order),
            "sparsekern column-major b": lambda: ops.csr_spmm(w.crow, w.col, w.val, turned, rows, cols, row_order=w.row_order),
            "sparsekern b transposed first": lambda: ops.csr_spmm(w.crow, w.col, w.val, turned.contiguous(), rows, cols, row_order=w.row_order)}
    report({"op": "csr_spmm"} | case, ours | {"torch CSR": lambda: w.csr @ b} | dense_peers(lambda: w.dense @ b, dtype),
           w.dense.double() @ b.double(), cols)
    report({"op": "csr_spmm_t"} | case, {"sparsekern": lambda: ops.csr_spmm_t(*w.transposed, w.val, tall, rows, cols),
                                         "torch CSR": lambda: w.csr_t @ tall} | dense_peers(lambda: w.dense.t() @ tall, dtype),
           w.dense.double().t() @ tall.double(), rows)


def sampled(rows: int, cols: int, n: int, sparsity: float, dtype: torch.dtype, layout: str) -> None:
    w = Matrix(rows, cols, sparsity, dtype)
    a, b = torch.randn(rows, n, device="cuda").to(dtype), torch.randn(cols, n, device="cuda").to(dtype)
    if layout == "column-major":
        a, b = (t.t().contiguous().t() for t in (a, b))
    case = {"op": "csr_sddmm", "shape": f"{rows}x{cols}x{n}", "sparsity": sparsity, "dtype": str(dtype)[6:], "layout": layout}
    ours = {f"sparsekern {algo}": lambda algo=algo: ops.csr_sddmm(w.crow, w.col, a, b, algo=algo) for algo in ("auto", "gather", "dense")}
    report(case, ours | {"torch sampled_addmm": lambda: torch.sparse.sampled_addmm(w.csr, a, b.t(), beta=0.0).values()}
           | dense_peers(lambda: (a @ b.t())[w.mask], dtype), (a.double() @ b.double().t())[w.mask], n)


def layer(rows: int, cols: int, batch: int, sparsity: float, dtype: torch.dtype) -> None:
    w = Matrix(rows, cols, sparsity, dtype)
    x, grad_y = torch.randn(batch, cols, device="cuda").to(dtype).requires_grad_(), torch.randn(batch, rows, device="cuda").to(dtype)
    val, dense = w.val.clone().requires_grad_(), w.dense.clone().requires_grad_()
    case = {"op": "csr_linear fwd + bwd", "shape": f"{rows}x{cols}x{batch}", "sparsity": sparsity, "dtype": str(dtype)[6:]}

    def both(y, *leaves):
        return torch.autograd.grad(y, (x, *leaves), grad_y)[0]

    report(case, {"sparsekern": lambda: both(ops.csr_linear(x, w.crow, w.col, val, *w.transposed, None, rows), val)}
           | dense_peers(lambda: both(F.linear(x, dense * w.mask), dense), dtype), grad_y.double() @ w.dense.double(), rows)


def places(sparsity: float, dtype: torch.dtype) -> None:
    a, b = (torch.randn(4096, BATCH, device="cuda").to(dtype) for _ in range(2))
    rows, cols = torch.randint(4096, (PLACES,), device="cuda").sort().values.int(), torch.randint(4096, (PLACES,), device="cuda").int()
    count = torch.tensor(PLACES, device="cuda")
    want = torch.cat([(a[r].double() * b[c].double()).sum(1) for r, c in zip(rows.split(50_000), cols.split(50_000))])
    report({"op": "coo_sddmm", "shape": f"{PLACES} places of 4096x4096x{BATCH}", "sparsity": sparsity, "dtype": str(dtype)[6:]},
           {"sparsekern": lambda: ops.coo_sddmm(rows, cols, count, a, b), "torch (a[rows] * b[cols]).sum(1)": lambda: (a[rows] * b[cols]).sum(1)}
           | dense_peers(lambda: (a @ b.t())[rows, cols], dtype), want, BATCH)


def activities() -> None:
    seed = torch.tensor(7, device="cuda")
    for name, x, window in (("2048x4096", torch.randn(2048, 4096, device="cuda"), {}),
                            ("128x64x32x32, 3x3", torch.randn(128, 64, 32, 32, device="cuda"), {"kernel_size": 3, "padding": 1})):
        wide = F.unfold(x.double(), 3, padding=1).transpose(1, 2).flatten(0, 1) if window else x.double()
        report({"op": "activity", "shape": name, "dtype": "float32"}, {
            "sparsekern": lambda x=x, window=window: ops.activity(x, **window),
            "torch": lambda x=x, window=window: (F.unfold(x, 3, padding=1) if window else x[:, :, None]).abs().sum((0, 2))},
            wide.abs().sum(0), len(wide))
        medians = race({"sparsekern signed": lambda x=x, window=window: ops.activity(x, signed=True, seed=seed, **window)})
        print(json.dumps({"op": "activity", "shape": name, "name": "sparsekern signed", "us": round(medians["sparsekern signed"], 1)}))


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("gpu_csr: no CUDA device")
    torch.manual_seed(0)
    print(json.dumps({"op": "copy", "gb_per_s": round(copy_bandwidth()), "device": torch.cuda.get_device_name()}))
    for dtype in (torch.float32, torch.bfloat16):
        for shape in LAYERS:
            for sparsity in (0.9, 0.95, 0.98):
                layer(*shape, sparsity, dtype)
        places(1 - PLACES / 4096**2, dtype)
        for shape in SAMPLED:
            for sparsity in SPARSITIES:
                for layout in ("row-major", "column-major"):
                    sampled(*shape, sparsity, dtype, layout)
        for shape in PRODUCTS:
            for sparsity in SPARSITIES:
                products(*shape, sparsity, dtype)
    activities()


if __name__ == "__main__":
    main()

"""Sparse times dense on the CPU: against torch's CSR product (MKL), scipy, and the dense products in fp32 and bf16."""
import contextlib
import math
import time
import warnings

import pytest
import torch

from sparsekern.ops import csr_plan, csr_spmm, csr_spmm_t
from sparsekern.testing import assert_close, random_csr

scipy_sparse = None
with contextlib.suppress(ImportError):
    import scipy.sparse as scipy_sparse

SHAPES = [(1024, 1024), (4096, 4096), (3072, 768), (2048, 512)]
WIDTHS, SPARSITIES = (128, 256, 512), (0.8, 0.9, 0.95, 0.98)


class Case:
    """One matrix in every form that a contender takes."""

    def __init__(self, rows, cols, sparsity, n):
        self.rows, self.cols, self.n = rows, cols, n
        self.crow, self.col, self.val = random_csr(rows, cols, sparsity)
        _, *self.transposed = csr_plan(self.crow, self.col, rows, cols)
        self.b, self.tall = torch.randn(cols, n), torch.randn(rows, n)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.torch_csr = torch.sparse_csr_tensor(self.crow, self.col, self.val, (rows, cols), check_invariants=False)
        self.flops = 2 * self.val.numel() * n

    def spmm(self):
        return csr_spmm(self.crow, self.col, self.val, self.b, self.rows, self.cols)

    def spmm_t(self):
        return csr_spmm_t(*self.transposed, self.val, self.tall, self.rows, self.cols)

    def verify(self):
        assert_close(self.spmm(), self.torch_csr @ self.b, reduction=self.cols)

    def verify_t(self):
        assert_close(self.spmm_t(), self.torch_csr.to_dense().t() @ self.tall, reduction=self.rows)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def bench_grid(race, shape):
    """Geometric means over N 128, 256, 512 and 80, 90, 95, 98 % sparsity."""
    cases = [Case(*shape, sparsity, n) for sparsity in SPARSITIES for n in WIDTHS]
    least = {}

    def mean(name, run):
        def contender():
            logs = 0.0
            for case in cases:
                start = time.perf_counter()
                run(case)
                seconds = time.perf_counter() - start
                least[name, case] = min(seconds, least.get((name, case), math.inf))
                logs += math.log(seconds)
            return math.exp(logs / len(cases))
        return contender

    def notes(_):
        ratios = [least["torch", case] / least["ours", case] for case in cases]
        rates = [case.flops / least["ours", case] / 1e9 / torch.get_num_threads() for case in cases[:9]]
        return [f"against torch CSR, case by case (minima): {min(ratios):.2f}x to {max(ratios):.2f}x",
                f"GFLOP/s per thread from 80 to 95 % (minima): {min(rates):.0f} to {max(rates):.0f}"]

    race("csr_spmm", f"[{shape[0]}, {shape[1]}], geometric mean over 12 cases, fp32", {
        "sparsekern": mean("ours", Case.spmm),
        "sparsekern, transposed": mean("ours_t", Case.spmm_t),
        "torch CSR": mean("torch", lambda case: case.torch_csr @ case.b),
    }, check={"sparsekern": cases[0].verify, "sparsekern, transposed": cases[0].verify_t}, notes=notes, rounds=8,
        # Of a flat matrix the transpose reads and writes other amounts of dense numbers, so only square ones are compared.
        targets=[("sparsekern", ">=", 3.0, "torch CSR")] + [("sparsekern, transposed", "<=", 1.15, "sparsekern")] * (shape[0] == shape[1]))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}x{s[1]}")
def bench_scipy(race, shape):
    if scipy_sparse is None:
        pytest.skip("scipy is not installed")
    case = Case(*shape, 0.9, 256)
    matrix = scipy_sparse.csr_matrix((case.val.numpy(), case.col.numpy(), case.crow.numpy()), shape=shape)
    b = case.b.numpy()
    race("csr_spmm", f"[{shape[0]}, {shape[1]}], 90%, N = 256, fp32", {
        "sparsekern": case.spmm, "scipy": lambda: matrix @ b, "torch CSR": lambda: case.torch_csr @ case.b,
    }, check={"sparsekern": case.verify}, targets=[("sparsekern", ">=", 3.0, "scipy")], rounds=8)


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.8, 0.9, 0.95, 0.98])
def bench_dense(race, sparsity):
    case = Case(4096, 4096, sparsity, 256)
    dense = case.torch_csr.to_dense()
    race("csr_spmm", f"[4096, 4096], {sparsity:.0%}, N = 256, fp32", {"sparsekern": case.spmm, "dense torch.mm": lambda: dense @ case.b},
         check={"sparsekern": case.verify}, targets=[("sparsekern", "<=", 1.0, "dense torch.mm")], rounds=8)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def bench_bf16(race, sparsity):
    case = Case(4096, 4096, sparsity, 128)
    dense, val, b = case.torch_csr.to_dense().bfloat16(), case.val.bfloat16(), case.b.bfloat16()

    def half(values):
        return csr_spmm(case.crow, case.col, values, b, 4096, 4096)

    race("csr_spmm", f"[4096, 4096], {sparsity:.0%}, N = 128, bf16", {
        "sparsekern bf16": lambda: half(val), "sparsekern bf16, fp32 values": lambda: half(case.val), "sparsekern fp32": case.spmm,
        "dense torch.mm bf16": lambda: dense @ b,
    }, check={"sparsekern bf16": lambda: assert_close(half(val), dense.float() @ b.float(), dtype=torch.bfloat16, reduction=4096)}, rounds=12,
        targets=[("sparsekern bf16", ">=", 3.0 if sparsity >= 0.9 else 1.0, "dense torch.mm bf16")])

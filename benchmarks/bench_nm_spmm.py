"""N:M sparse times dense on the CPU: what is not stored must not cost anything."""
import pytest
import torch

from sparsekern import ops
from sparsekern.ops.nm_spmm import nm_columns
from sparsekern.testing import assert_close

TARGETS = {(1, 4): 2.0, (2, 8): 2.0, (1, 8): 4.0, (1, 16): 7.0}


class Case:
    """One N:M matrix in every form that a contender takes."""

    def __init__(self, rows, cols, n, m, width, v=1, dtype=torch.float32):
        self.n, self.m, self.cols, self.v = n, m, cols, v
        kept = ops.nm_mask(torch.rand(rows // v, cols), n, m).repeat_interleave(v, 0)
        self.dense = torch.where(kept, torch.randn(rows, cols), 0.0).to(dtype)
        self.values, self.index = ops.nm_pack(self.dense, n, m, v=v)
        self.b = torch.randn(cols, width).to(dtype)

    def spmm(self):
        return ops.nm_spmm(self.values, self.index, self.b, self.n, self.m, self.cols, v=self.v)

    def verify(self):
        assert_close(self.spmm(), self.dense.double() @ self.b.double(), reduction=self.values.shape[1])


@pytest.mark.parametrize("width", [256, 512])
@pytest.mark.parametrize("n, m", TARGETS, ids=lambda k: str(k))
def bench_product(race, n, m, width):
    case = Case(4096, 4096, n, m, width)
    col = nm_columns(case.index, n, m).flatten()
    crow = torch.arange(4097, dtype=torch.int32) * case.values.shape[1]
    race("nm_spmm", f"[4096, 4096], {n}:{m}, N = {width}, fp32", {
        "sparsekern": case.spmm,
        "sparsekern csr_spmm": lambda: ops.csr_spmm(crow, col, case.values.flatten(), case.b, 4096, 4096),
        "dense torch.mm": lambda: case.dense @ case.b,
    }, check={"sparsekern": case.verify}, targets=[("sparsekern", ">=", TARGETS[n, m], "dense torch.mm"),
                                                   ("sparsekern", "<=", 1.1, "sparsekern csr_spmm")], rounds=8)


@pytest.mark.parametrize("n, m", [(1, 8), (1, 16)])
def bench_bf16(race, n, m):
    case = Case(4096, 4096, n, m, 256, dtype=torch.bfloat16)
    race("nm_spmm", f"[4096, 4096], {n}:{m}, N = 256, bf16", {"sparsekern": case.spmm, "dense torch.mm bf16": lambda: case.dense @ case.b},
         check={"sparsekern": case.verify}, targets=[("sparsekern", ">=", 1.0, "dense torch.mm bf16")], rounds=8)


def bench_shared_columns(race):
    case, plain = Case(4096, 4096, 2, 16, 256, v=64), Case(4096, 4096, 2, 16, 256)
    race("nm_spmm", "[4096, 4096], 64:2:16, N = 256, fp32", {
        "sparsekern": case.spmm, "sparsekern 2:16": plain.spmm, "dense torch.mm": lambda: case.dense @ case.b,
    }, check={"sparsekern": case.verify}, targets=[("sparsekern", ">=", 6.0, "dense torch.mm"), ("sparsekern", ">=", 1.5, "sparsekern 2:16")],
         rounds=8)


def bench_pack(race):
    case = Case(4096, 4096, 2, 4, 1)
    mask = case.dense != 0

    def by_mask():
        return case.dense[mask], (mask.nonzero()[:, 1] % 4).to(torch.uint8)

    def verify():
        for got, want in zip(ops.nm_pack(case.dense, 2, 4), by_mask()):
            assert torch.equal(got.flatten(), want), "another order"

    race("nm_pack", "[4096, 4096], 2:4, fp32", {"sparsekern": lambda: ops.nm_pack(case.dense, 2, 4), "x[mask], nonzero": by_mask},
         check={"sparsekern": verify}, targets=[("sparsekern", ">=", 2.0, "x[mask], nonzero")], rounds=8)

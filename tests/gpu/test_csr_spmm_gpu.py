"""The algorithms of csr_spmm on a GPU at the size of real layers: one result, also from a captured graph and where b is not finite."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern._native import native
from sparsekern.testing import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not native.cuda, reason="built without CUDA")]
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
ROWS, COLS = 4096, 4096


def matrix(sparsity, dtype):
    mask = torch.rand(ROWS, COLS, device="cuda") >= sparsity
    dense = torch.where(mask, torch.randn(ROWS, COLS, device="cuda"), 0).to(dtype)
    return torch.cat([mask.new_zeros(1), mask.sum(1).cumsum(0)]).int(), mask.nonzero()[:, 1].int(), dense[mask], dense


@pytest.mark.parametrize("n", [8, 500, 512, 4096])
@pytest.mark.parametrize("sparsity", [0.8, 0.99])
@pytest.mark.parametrize("types", [(F32, F32), (BF16, BF16), (F32, BF16), (F16, F16)], ids=str)
def test_every_algorithm_at_real_size(types, sparsity, n):
    crow, col, val, dense = matrix(sparsity, types[0])
    row_order, *transposed = ops.csr_plan(crow, col, ROWS, COLS)
    b = torch.randn(COLS, n, device="cuda").to(types[1])
    for operand in (b, b.t().contiguous().t()):
        want = dense.double() @ b.double()
        scalar, staged, densify, auto = (ops.csr_spmm(crow, col, val, operand, ROWS, COLS, row_order=row_order, algo=algo)
                                         for algo in ("scalar", "staged", "densify", "auto"))
        assert torch.equal(scalar, staged)
        for got in (scalar, densify, auto):
            assert_close(got, want, reduction=int((1 - sparsity) * COLS))
        for algo in ("scalar", "staged", "densify"):
            assert_close(ops.csr_spmm_t(*transposed, val, operand, ROWS, COLS, algo=algo), dense.t().double() @ b.double(),
                         reduction=int((1 - sparsity) * ROWS))


def test_a_captured_dense_product_gives_way_when_b_is_not_finite():
    crow, col, val, dense = matrix(0.9, BF16)
    b = torch.randn(COLS, 256, device="cuda").bfloat16()
    ops.csr_spmm(crow, col, val, b, ROWS, COLS, algo="densify")             # loads what a capture may not load
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = ops.csr_spmm(crow, col, val, b, ROWS, COLS, algo="densify")
    graph.replay()
    assert_close(got, dense.double() @ b.double(), reduction=410)
    b[17, 5], b[3000, 200] = math.inf, math.nan
    graph.replay()
    assert torch.equal(got.nan_to_num(), ops.csr_spmm(crow, col, val, b, ROWS, COLS, algo="scalar").nan_to_num())
    assert got.isnan().sum() == (col == 3000).sum()

"""csr_spmm and csr_spmm_t through their CUDA bindings against the float64 reference."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern.ops import csr_plan
from sparsekern.testing import assert_close, random_csr

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
TYPES = [(F32, F32), (BF16, BF16), (F16, F16), (F32, BF16), (F32, F16), (F64, F64)]             # of values, of the dense operand
ids = {"ids": lambda types: "-".join(str(t)[6:] for t in types)}
# (rows, cols, sparsity, N): columns that do not fill a group or a panel, tall and flat matrices, empty ones.
SHAPES = [(37, 53, 0.8, 70), (1, 1, 0.0, 1), (9, 64, 0.5, 16), (13, 17, 0.9, 33), (5, 300, 0.5, 128), (8, 40, 1.0, 24), (0, 5, 0.5, 7),
          (5, 0, 0.5, 7), (9, 11, 0.3, 0), (6, 21, 0.4, 3)]
ALGOS = ["auto", "scalar"]


def wide(op, *args, **kwargs):
    """The reference with every floating tensor in float64."""
    def double(t):
        return t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t
    return ops.implementations(op)["reference"](*map(double, args), **{key: double(value) for key, value in kwargs.items()})


def make(rows, cols, sparsity, dtype=F32, index64=False):
    crow, col, val = random_csr(rows, cols, sparsity, dtype=dtype, index64=index64)
    return (crow, col, val), csr_plan(crow, col, rows, cols)


def close(got, want, like):
    assert got.dtype == like.dtype and got.is_contiguous()
    assert_close(got.cpu(), want, reduction=16)


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("types", TYPES, **ids)
def test_agrees_with_the_reference(lane, types, algo):
    for rows, cols, sparsity, n in SHAPES:
        matrix, (row_order, *transposed) = make(rows, cols, sparsity, types[0], index64=n % 2 == 0)
        b, tall, bias = torch.randn(cols, n).to(types[1]), torch.randn(rows, n).to(types[1]), torch.randn(rows).to(types[0])
        spmm, spmm_t = lane.op("csr_spmm"), lane.op("csr_spmm_t")
        got = spmm(*lane.put([*matrix, b]), rows, cols, row_order=lane.put(row_order), bias=lane.put(bias), algo=algo)
        close(got, wide("csr_spmm", *matrix, b, rows, cols, bias=bias), b)
        assert torch.equal(got, spmm(*lane.put([*matrix, b]), rows, cols, bias=lane.put(bias), algo=algo))      # neither order nor run shows
        close(spmm_t(*lane.put([*transposed, matrix[2], tall]), rows, cols, algo=algo),
              wide("csr_spmm_t", *transposed, matrix[2], tall, rows, cols), b)

"""The Triton launchers of csr_spmm, csr_spmm_t and csr_linear against the reference in float64."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern.testing import assert_close, each_implementation, random_csr

pytestmark = pytest.mark.skipif("triton" not in each_implementation("csr_spmm"), reason="Triton runs on a GPU or in its interpreter")

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
TYPES = [(F32, F32), (BF16, BF16), (F16, F16), (F32, BF16), (F32, F16), (F64, F64)]                         # of values, of b
ids = {"ids": lambda types: "-".join(str(t)[6:] for t in types)}


def launch(op, *args, **kwargs):
    return ops.implementations(op)["triton"](*args, **kwargs)


def wide(op, *args, **kwargs):
    """The reference with every floating tensor in float64."""
    def double(t):
        return t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t
    return ops.implementations(op)["reference"](*map(double, args), **{key: double(value) for key, value in kwargs.items()})


def matrix(rows, cols, sparsity=0.8, **kind):
    crow, col, val = random_csr(rows, cols, sparsity, **kind)
    return crow, col, val, *ops.implementations("csr_plan")["reference"](crow, col, rows, cols)


# ---- the products ----

def test_by_hand():
    # W = [[0, 2, 0], [0, 0, 0], [1, 0, -3]]
    crow, col, val = torch.tensor([0, 1, 1, 3]).int(), torch.tensor([1, 0, 2]).int(), torch.tensor([2.0, 1.0, -3.0])
    b = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    assert launch("csr_spmm", crow, col, val, b, 3, 3).tolist() == [[4, 40], [0, 0], [-8, -80]]
    assert launch("csr_spmm", crow, col, val, b, 3, 3, bias=torch.tensor([1.0, 5.0, 0.0])).tolist() == [[5, 41], [5, 5], [-8, -80]]
    crow_t, row_t, perm = torch.tensor([0, 1, 2, 3]).int(), torch.tensor([2, 0, 2]).int(), torch.tensor([1, 0, 2]).int()
    assert launch("csr_spmm_t", crow_t, row_t, perm, val, b, 3, 3).tolist() == [[3, 30], [2, 20], [-9, -90]]


@pytest.mark.parametrize("index64", [False, True])
@pytest.mark.parametrize("types", TYPES, **ids)
def test_dtypes_agree_with_float64(types, index64):
    crow, col, val, row_order, *transposed = matrix(23, 90, dtype=types[0], index64=index64)
    b, tall, bias = torch.randn(90, 17).to(types[1]), torch.randn(23, 17).to(types[1]), torch.randn(23).to(types[0])
    got = launch("csr_spmm", crow, col, val, b, 23, 90, row_order=row_order, bias=bias)
    assert got.dtype == types[1]
    assert_close(got, wide("csr_spmm", crow, col, val, b, 23, 90, bias=bias), reduction=18)
    assert_close(launch("csr_spmm_t", *transposed, val, tall, 23, 90), wide("csr_spmm_t", *transposed, val, tall, 23, 90), reduction=5)


@pytest.mark.parametrize("rows, cols, n, sparsity", [
    (1, 300, 1, 0.3), (1, 1, 1, 0.0), (5, 7, 130, 0.5), (300, 1, 3, 0.5), (3, 64, 257, 0.0), (2, 5, 31, 1.0), (4, 4, 0, 0.5), (0, 4, 3, 0.5),
    (4, 0, 3, 0.5)])
def test_shapes(rows, cols, n, sparsity):
    # One row, one column, rows longer than the lanes, more columns of b than a block, no entries, empty sides.
    crow, col, val, row_order, *transposed = matrix(rows, cols, sparsity)
    b, tall = torch.randn(cols, n), torch.randn(rows, n)
    got = launch("csr_spmm", crow, col, val, b, rows, cols, row_order=row_order)
    assert got.is_contiguous()
    assert_close(got, wide("csr_spmm", crow, col, val, b, rows, cols), reduction=cols)
    assert_close(launch("csr_spmm_t", *transposed, val, tall, rows, cols), wide("csr_spmm_t", *transposed, val, tall, rows, cols), reduction=rows)


def test_empty_rows_are_the_bias_or_zero():
    crow, col, val = torch.tensor([0, 0, 2, 2]).int(), torch.tensor([0, 3]).int(), torch.ones(2)
    b = torch.full((4, 5), -1.0)
    assert launch("csr_spmm", crow, col, val, b, 3, 4)[[0, 2]].eq(0).all()
    assert launch("csr_spmm", crow, col, val, b, 3, 4, bias=torch.arange(3.0))[2].eq(2).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")             # the interpreter computes with numpy
def test_only_stored_entries_carry_nan_and_inf():
    crow, col, val = torch.tensor([0, 1, 3]).int(), torch.tensor([0, 0, 2]).int(), torch.tensor([1.0, 0.0, 2.0])
    b = torch.tensor([[1.0], [math.inf], [math.nan]])
    got = launch("csr_spmm", crow, col, val, b, 2, 3)
    assert got[0].item() == 1 and got[1].isnan().item()
    assert launch("csr_spmm", crow, col, val, torch.tensor([[math.inf], [0.0], [1.0]]), 2, 3)[1].isnan().item()     # a stored 0 times inf


def test_row_order_changes_no_bit():
    crow, col, val, row_order, *_ = matrix(19, 200, 0.5)
    b = torch.randn(200, 9)
    plain = launch("csr_spmm", crow, col, val, b, 19, 200)
    for order in (row_order, torch.randperm(19).int(), torch.arange(19).flip(0).int()):
        assert torch.equal(launch("csr_spmm", crow, col, val, b, 19, 200, row_order=order), plain)


def test_any_strides():
    crow, col, _, _, *transposed = matrix(11, 40)
    val = torch.randn(2 * col.numel())[::2]
    b, tall = torch.randn(40, 6), torch.randn(11, 6)
    want, want_t = launch("csr_spmm", crow, col, val, b, 11, 40), launch("csr_spmm_t", *transposed, val, tall, 11, 40)
    for turn in (lambda t: t.t().contiguous().t(), lambda t: torch.stack([t, t], 2)[:, :, 1], lambda t: torch.cat([t, t])[:len(t)]):
        assert torch.equal(launch("csr_spmm", crow, col, val, turn(b), 11, 40), want)
        assert torch.equal(launch("csr_spmm_t", *transposed, val, turn(tall), 11, 40), want_t)
    assert_close(launch("csr_spmm", crow, col, torch.ones(()).expand(col.numel()), b[:, :1].expand(40, 6), 11, 40),
                 wide("csr_spmm", crow, col, torch.ones(col.numel()), b[:, :1].expand(40, 6), 11, 40), reduction=8)


# ---- the layer ----

@pytest.mark.parametrize("types", TYPES, **ids)
def test_linear_and_its_gradients_agree_with_float64(types):
    crow, col, val, _, *transposed = matrix(21, 50, dtype=types[0])
    x, grad_y, bias = torch.randn(13, 50).to(types[1]), torch.randn(13, 21).to(types[1]), torch.randn(21).to(types[0])
    y = launch("csr_linear", x, crow, col, val, *transposed, bias, 21)
    assert y.dtype == types[1] and y.is_contiguous()
    assert_close(y, wide("csr_linear", x, crow, col, val, *transposed, bias, 21), reduction=10)
    got = launch("csr_linear_backward", x, grad_y, crow, col, val, *transposed, True, True, True)
    assert [t.dtype for t in got] == [types[1], types[0], types[0]]
    for mine, want, length in zip(got, wide("csr_linear_backward", x, grad_y, crow, col, val, *transposed, True, True, True), (5, 13, 13)):
        assert_close(mine, want, reduction=length)


def test_linear_gradients_that_are_not_wanted_are_empty():
    crow, col, val, _, *transposed = matrix(6, 9)
    x, grad_y = torch.randn(4, 9), torch.ones(()).expand(4, 6)              # the gradient of a sum has no strides
    full = launch("csr_linear_backward", x, grad_y, crow, col, val, *transposed, True, True, True)
    for wanted in range(3):
        got = launch("csr_linear_backward", x, grad_y, crow, col, val, *transposed, *(i == wanted for i in range(3)))
        assert torch.equal(got[wanted], full[wanted])
        assert all(t.numel() == 0 for i, t in enumerate(got) if i != wanted)
    assert full[2].tolist() == [4.0] * 6


@pytest.mark.parametrize("batch, rows, cols", [(0, 5, 4), (3, 0, 4), (3, 5, 0)])
def test_linear_of_empty_sides(batch, rows, cols):
    crow, col, val, _, *transposed = matrix(rows, cols, 0.5)
    x, grad_y = torch.randn(batch, cols), torch.randn(batch, rows)
    assert launch("csr_linear", x, crow, col, val, *transposed, None, rows).abs().sum() == 0
    grads = launch("csr_linear_backward", x, grad_y, crow, col, val, *transposed, True, True, True)
    assert [t.shape for t in grads] == [(batch, cols), (col.numel(),), (rows,)]


# ---- misuse ----

@pytest.mark.parametrize("change, error, words", [
    ({"crow": torch.zeros(4)}, TypeError, "csr_spmm: crow: expected int32 or int64, got torch.float32"),
    ({"col": torch.zeros(3, dtype=torch.int64)}, TypeError, "csr_spmm: col: expected int32, got torch.int64"),
    ({"crow": torch.zeros(3).int()}, ValueError, "csr_spmm: crow: expected 4 row pointers for 3 rows, got 3"),
    ({"col": torch.zeros(1, 3).int()}, ValueError, r"csr_spmm: col: expected one dimension, got shape \[1, 3\]"),
    ({"val": torch.ones(2)}, ValueError, r"csr_spmm: val: expected shape \[3\], got \[2\]"),
    ({"val": torch.ones(3).half()}, TypeError, "csr_spmm: val: expected torch.float32 beside torch.float32, got torch.float16"),
    ({"b": torch.ones(4, 2)}, ValueError, r"csr_spmm: b: expected shape \[3, N\], got \[4, 2\]"),
    ({"b": torch.ones(3, 2).int()}, TypeError, "csr_spmm: b: expected float32, bfloat16, float16 or float64, got torch.int32"),
    ({"bias": torch.ones(2)}, ValueError, r"csr_spmm: bias: expected shape \[3\], got \[2\]"),
    ({"row_order": torch.ones(3)}, TypeError, "csr_spmm: row_order: expected int32, got torch.float32"),
    ({"row_order": torch.ones(2).int()}, ValueError, r"csr_spmm: row_order: expected 3 positions, got shape \[2\]"),
    ({"algo": "fast"}, ValueError, "csr_spmm: algo: expected 'auto', got 'fast'"),
])
def test_misuse(change, error, words):
    arguments = {"crow": torch.tensor([0, 1, 1, 3]).int(), "col": torch.tensor([1, 0, 2]).int(), "val": torch.ones(3), "b": torch.ones(3, 2),
                 "rows": 3, "cols": 3} | change
    with pytest.raises(error, match=words):
        launch("csr_spmm", **arguments)


def test_linear_misuse():
    crow, col, val, _, crow_t, row_t, perm = matrix(4, 6, 0.5)
    x, grad_y = torch.ones(2, 6), torch.ones(2, 4)
    for error, words, arguments in (
            (ValueError, r"x: expected two dimensions, got shape \[6\]", (x[0], crow, col, val, crow_t, row_t, perm, None, 4)),
            (ValueError, "crow_t: expected 7 row pointers for 6 rows, got 5", (x, crow, col, val, crow, row_t, perm, None, 4)),
            (ValueError, "row_t: expected 12 entries like col, got 11", (x, crow, col, val, crow_t, row_t[1:], perm, None, 4)),
            (ValueError, "perm: expected 12 positions", (x, crow, col, val, crow_t, row_t, perm[1:], None, 4))):
        with pytest.raises(error, match=f"csr_linear: {words}"):
            launch("csr_linear", *arguments)
    for error, words, grad in ((TypeError, "grad_y: expected torch.float32 like x", grad_y.half()),
                               (ValueError, r"grad_y: expected shape \[2, 4\], got \[2, 5\]", torch.ones(2, 5))):
        with pytest.raises(error, match=f"csr_linear_backward: {words}"):
            launch("csr_linear_backward", x, grad, crow, col, val, crow_t, row_t, perm, True, True, True)

"""csr_linear and its backward pass through their CUDA bindings against the float64 reference."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern.testing import assert_close, random_csr

F32, F64 = torch.float32, torch.float64
TYPES = [(F32, F32), (torch.bfloat16, torch.bfloat16), (torch.float16, F32), (F64, F64)]                   # of activations, of values
# rows, cols, sparsity, batch: odd, one of everything, all, many rows, nothing stored, empty sides, empty batch.
SHAPES = [(37, 53, 0.8, 70), (1, 1, 0.0, 1), (17, 40, 0.0, 32), (200, 17, 0.9, 9), (40, 64, 1.0, 8), (0, 5, 0.5, 7), (5, 0, 0.5, 7), (9, 11, 0.3, 0)]
FLAGS = [(True, True, True), (True, False, False), (False, True, False), (False, False, True), (False, False, False)]


def make(rows, cols, sparsity, dtype=torch.float32):
    crow, col, val = random_csr(rows, cols, sparsity, dtype=dtype)
    return [crow, col, val, *ops.csr_plan(crow, col, rows, cols)[1:]]


def reference(op, *arguments):
    return ops.implementations(op)["reference"](*[t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in arguments])


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("types", TYPES, ids=str)
def test_agrees(lane, types, columns):
    for rows, cols, sparsity, batch in SHAPES:
        layer, bias = make(rows, cols, sparsity, types[1]), torch.randn(rows).to(types[1])
        x, grad_y = torch.randn(batch, cols).to(types[0]), torch.randn(batch, rows).to(types[0])
        given = [t.t().contiguous() if columns else t for t in lane.put([x, grad_y])]
        given_x, given_grad = (t.t() if columns else t for t in given)
        y = lane.op("csr_linear")(given_x, *lane.put(layer), lane.put(bias), rows).cpu()
        assert y.dtype == types[0] and y.is_contiguous()
        assert_close(y, reference("csr_linear", x, *layer, bias, rows), reduction=cols)
        for flags in FLAGS:
            got = [t.cpu() for t in lane.op("csr_linear_backward")(given_x, given_grad, *lane.put(layer), *flags)]
            want = reference("csr_linear_backward", x, grad_y, *layer, *flags)
            assert [t.dtype for t in got] == [types[0], types[1], types[1]]
            for mine, right, length in zip(got, want, (rows, batch, batch)):
                assert_close(mine, right, reduction=max(length, 1))


def test_hand_worked(lane):
    # W = [[1, 0, 2], [0, 0, 0], [3, 0, 0]]; what an input does that no weight uses stays there.
    crow, col, val = torch.tensor([0, 2, 2, 3]).int(), torch.tensor([0, 2, 0]).int(), torch.tensor([1.0, 2.0, 3.0])
    layer = lane.put([crow, col, val, *ops.csr_plan(crow, col, 3, 3)[1:]])
    x, grad_y = lane.put([torch.tensor([[1.0, math.nan, 2.0], [10.0, 7.0, 20.0]]), torch.tensor([[1.0, 5.0, 2.0], [0.0, 5.0, 1.0]])])
    assert lane.op("csr_linear")(x, *layer, lane.put(torch.tensor([0.5, -1.0, 0.0])), 3).tolist() == [[5.5, -1, 3], [50.5, -1, 30]]
    # grad_x = grad_y W; grad_val at (0, 0): 1*1 + 0*10, (0, 2): 1*2 + 0*20, (2, 0): 2*1 + 1*10.
    got = lane.op("csr_linear_backward")(x, grad_y, *layer, True, True, True)
    assert [t.tolist() for t in got] == [[[7, 0, 2], [3, 0, 0]], [1, 2, 12], [1, 10, 3]]


def test_gradients_of_a_sum_and_strided_activations(lane):
    """A gradient of zero strides, rows and columns out of wider tensors."""
    layer, wide = make(30, 40, 0.5), torch.randn(50, 130)
    spread = torch.ones(()).expand(20, 30)
    for x in (wide[:20, :40], wide[::2, 5:45][:20], wide[:20, :80:2], wide[0, :40].expand(20, 40)):
        there = x.to(lane.device)
        assert_close(lane.op("csr_linear")(there, *lane.put(layer), None, 30).cpu(), reference("csr_linear", x, *layer, None, 30), reduction=40)
        got = lane.op("csr_linear_backward")(there, spread.to(lane.device), *lane.put(layer), True, True, True)
        for mine, right in zip(got, reference("csr_linear_backward", x, spread, *layer, True, True, True)):
            assert_close(mine.cpu(), right, reduction=40)


LAYER = make(3, 3, 0.5)


@pytest.mark.parametrize("place, given, error, words", [
    (0, torch.ones(2, 4), ValueError, "csr_linear: crow_t: expected 5 row pointers for 4 rows, got 4"),
    (0, torch.ones(2, 1, 3), ValueError, "csr_linear: x: expected two dimensions, got shape"),
    (0, torch.ones(2, 3).int(), TypeError, "csr_linear: x: expected float32, bfloat16, float16 or float64, got"),
    (1, LAYER[0][:3], ValueError, "csr_linear: crow: expected 4 row pointers for 3 rows, got 3"),
    (3, LAYER[2][:2], ValueError, r"csr_linear: val: expected shape \[\d\], got"),
    (3, LAYER[2].half(), TypeError, "csr_linear: val: expected"),
    (4, LAYER[0][:3], ValueError, "csr_linear: crow_t: expected 4 row pointers for 3 rows, got 3"),
    (5, LAYER[4][:1], ValueError, r"csr_linear: (perm|row_t): expected"),
    (7, torch.ones(2), ValueError, r"csr_linear: bias: expected shape \[3\], got"),
])
def test_misuse(lane, place, given, error, words):
    arguments = [torch.ones(2, 3), *LAYER, torch.ones(3), 3]
    arguments[place] = given
    with pytest.raises(error, match=words):
        lane.op("csr_linear")(*lane.put(arguments))


def test_misuse_of_the_backward_pass(lane):
    x, layer = lane.put(torch.ones(2, 3)), lane.put(LAYER)
    with pytest.raises(ValueError, match=r"csr_linear_backward: grad_y: expected shape \[2, 3\], got"):
        lane.op("csr_linear_backward")(x, lane.put(torch.ones(2, 4)), *layer, True, True, True)
    with pytest.raises(TypeError, match="csr_linear_backward: grad_y: expected .* like x, got"):
        lane.op("csr_linear_backward")(x, x.double(), *layer, True, True, True)

"""SparseLinear: computes what nn.Linear with zeros computes, from its nonzeros; and how sparse layers begin."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsekern import ops
from sparsekern.nn import SparseLinear
from sparsekern.testing import assert_close

BACKENDS = ["csr", "dense"]
TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


# ---- worked examples ----

@pytest.mark.parametrize("backend", BACKENDS)
def test_worked_example(backend):
    # W = [[1, 0, 2], [0, 3, 0]]
    layer = SparseLinear(3, 2, torch.tensor([0, 2, 3], dtype=torch.int32), torch.tensor([0, 2, 1], dtype=torch.int32),
                         torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0]), backend=backend)
    x = torch.tensor([[1.0, 10.0, 100.0]], requires_grad=True)
    y = layer(x)
    assert y.tolist() == [[211.0, 50.0]]
    y.backward(torch.tensor([[1.0, -1.0]]))
    assert layer.values.grad.tolist() == [1.0, 100.0, -10.0] and layer.bias.grad.tolist() == [1.0, -1.0]
    assert x.grad.tolist() == [[1.0, -3.0, 2.0]]
    assert layer.to_dense().weight.tolist() == [[1, 0, 2], [0, 3, 0]]
    assert layer.nnz == 3 and layer.sparsity == 0.5
    assert "in_features=3, out_features=2, bias=True, nnz=3, sparsity=0.5" in repr(layer)


def test_worked_example_from_dense():
    dense = nn.Linear(3, 2)
    mask = torch.tensor([[False, True, True], [False, False, False]])
    layer = SparseLinear.from_dense(dense.eval(), mask)
    assert layer.crow.tolist() == [0, 2, 2] and layer.col.tolist() == [1, 2] and not layer.training
    assert torch.equal(layer.values, dense.weight[0, 1:]) and torch.equal(layer.bias, dense.bias) and layer.bias is not dense.bias
    assert torch.equal(layer.to_dense().weight, dense.weight * mask)


# ---- agreement ----

@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("lead", [(), (7,), (2, 3), (0,)], ids=str)
def test_agrees_with_dense(backend, dtype, lead):
    layer = SparseLinear.from_shape(37, 23, sparsity=0.85, seed=1, dtype=dtype, backend=backend)
    oracle = layer.to_dense().double()
    x = torch.randn(*lead, 37).to(dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    y, want = layer(x), oracle(wide)
    assert y.dtype == dtype and y.shape == want.shape
    assert_close(y, want, dtype=dtype, reduction=37)
    out = torch.randn(*lead, 23).to(dtype)
    y.backward(out)
    want.backward(out.double())
    places = oracle.weight.detach().flatten().nonzero().flatten()
    rows = max(1, math.prod(lead))
    for got, wanted in ((x.grad, wide.grad), (layer.bias.grad, oracle.bias.grad), (layer.values.grad, oracle.weight.grad.flatten()[places])):
        assert got.dtype == dtype
        assert_close(got, wanted, dtype=dtype, reduction=37 * rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_input_and_frozen_parts(backend):
    layer = SparseLinear.from_shape(16, 8, sparsity=0.5, bias=False, backend=backend)
    x = torch.randn(16, 5).t()
    assert_close(layer(x), layer.to_dense().double()(x.double()), reduction=16)
    layer.values.requires_grad_(False)
    free = torch.randn(5, 16, requires_grad=True)
    layer(free).sum().backward()
    assert layer.values.grad is None and free.grad is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_rows_and_no_weights(backend):
    layer = SparseLinear.from_dense(nn.Linear(5, 4), torch.zeros(4, 5, dtype=torch.bool), backend=backend)
    x = torch.randn(3, 5, requires_grad=True)
    y = layer(x)
    assert layer.nnz == 0 and layer.sparsity == 1.0 and torch.equal(y, layer.bias.expand(3, 4))
    y.sum().backward()
    assert layer.values.grad.shape == (0,) and not x.grad.any()
    one = torch.zeros(4, 5, dtype=torch.bool)
    one[2, 3] = True
    dense = nn.Linear(5, 4)
    assert_close(SparseLinear.from_dense(dense, one, backend=backend)(x), x.double() @ (dense.weight * one).double().t() + dense.bias, reduction=5)


# ---- properties ----

@given(rows=st.integers(1, 40), cols=st.integers(1, 40), sparsity=st.floats(0, 0.999), seed=st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_from_shape_is_exact(rows, cols, sparsity, seed):
    wanted = math.floor((1 - sparsity) * rows * cols + 0.5)
    if wanted == 0:
        with pytest.raises(ValueError, match="leaves none of the"):
            SparseLinear.from_shape(cols, rows, sparsity=sparsity, seed=seed)
        return
    layer, again = (SparseLinear.from_shape(cols, rows, sparsity=sparsity, seed=seed) for _ in range(2))
    assert layer.nnz == wanted
    ops.check_csr(layer.crow, layer.col, rows, cols, layer.values.detach())
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), again.state_dict().values()))
    fan_in = layer.crow.diff().clamp(min=1)
    bound = (3 / fan_in.double()).sqrt()
    assert (layer.values.detach().abs() <= bound.repeat_interleave(layer.crow.diff()) * (1 + 1e-6)).all()
    assert (layer.bias.detach().abs() <= bound * (1 + 1e-6)).all()


def test_from_shape_draws_uniformly_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    hits = torch.zeros(6, 5)
    for seed in range(2000):
        hits += SparseLinear.from_shape(5, 6, sparsity=0.7, seed=seed).to_dense().weight.detach() != 0
    torch.set_rng_state(before)
    # Each place is hit with p = 0.3: variance 420 in 2000 layers. chi-square of 30 places with a fixed sum: 29 degrees, p = 0.001 at 58.3.
    chi = ((hits - 600) ** 2 / 420).sum().item() * 29 / 30
    assert chi < 58.3
    assert torch.equal(before, torch.get_rng_state())
    SparseLinear.from_shape(50, 60, sparsity=0.7)
    assert torch.equal(before, torch.get_rng_state())
    layers = [SparseLinear.from_shape(50, 60, sparsity=0.9, seed=seed) for seed in (0, 1)]
    assert not torch.equal(layers[0].col, layers[1].col)


def test_from_shape_scale():
    layer = SparseLinear.from_shape(1000, 200, sparsity=0.9)
    y = layer(torch.randn(500, 1000)) - layer.bias
    assert 0.9 < y.detach().var() < 1.1                     # values have variance 1 / fan-in


@pytest.mark.parametrize("density", [0.3, 0.6, 1.0])
def test_from_shape_when_dense(density):
    layer = SparseLinear.from_shape(31, 29, sparsity=1 - density)
    assert layer.nnz == math.floor(density * 31 * 29 + 0.5)
    ops.check_csr(layer.crow, layer.col, 29, 31)


# ---- gradients ----

@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    layer = SparseLinear.from_shape(7, 5, sparsity=0.6, dtype=torch.float64, backend=backend)
    x = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)

    def run(x, values, bias):
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (x,))
    arguments = (x, layer.values, layer.bias)
    assert torch.autograd.gradcheck(run, arguments) and torch.autograd.gradgradcheck(run, arguments)


# ---- misuse ----

def test_misuse():
    with pytest.raises(ValueError, match=r"sparsity: expected a fraction of zeros in \[0, 1\), got 90; did you mean 0.9"):
        SparseLinear.from_shape(4, 4, sparsity=90)
    with pytest.raises(ValueError, match="leaves none of the 16 weights; lower it"):
        SparseLinear.from_shape(4, 4, sparsity=0.99)
    with pytest.raises(ValueError, match="either sparsity= or nnz=, got neither"):
        SparseLinear.from_shape(4, 4)
    with pytest.raises(ValueError, match="either sparsity= or nnz=, got both"):
        SparseLinear.from_shape(4, 4, sparsity=0.5, nnz=3)
    with pytest.raises(ValueError, match="nnz: expected 0 to 16"):
        SparseLinear.from_shape(4, 4, nnz=17)
    with pytest.raises(ValueError, match=r"mask: expected a bool tensor of the weight's shape \[4, 4\], got torch.bool \[4, 3\]"):
        SparseLinear.from_dense(nn.Linear(4, 4), torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask: expected a bool tensor"):
        SparseLinear.from_dense(nn.Linear(4, 4), torch.ones(4, 4))
    with pytest.raises(TypeError, match="expected an nn.Linear with its own forward, got Conv2d"):
        SparseLinear.from_dense(nn.Conv2d(1, 1, 1), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match='backend: expected "csr" or "dense", got \'fast\''):
        SparseLinear.from_shape(4, 4, sparsity=0.5, backend="fast")
    crow, col = torch.tensor([0, 1, 3], dtype=torch.int32), torch.tensor([0, 2, 1], dtype=torch.int32)
    with pytest.raises(ValueError, match="SparseLinear: col: expected columns that rise within a row, got 2 then 1 in row 1"):
        SparseLinear(3, 2, crow, col, torch.ones(3))
    with pytest.raises(ValueError, match="values: expected one floating-point number per column index"):
        SparseLinear(3, 2, crow, col, torch.ones(4))
    layer = SparseLinear.from_shape(4, 4, sparsity=0.5)
    with pytest.raises(ValueError, match="csr_linear"):
        layer(torch.randn(2, 5))

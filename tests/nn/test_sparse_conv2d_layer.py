"""SparseConv2d: computes what nn.Conv2d with zeros computes, for every geometry, from its nonzeros."""
import warnings

import pytest
import torch
from torch import nn

from sparsekern import ops
from sparsekern.nn import SparseConv2d
from sparsekern.testing import assert_close

BACKENDS = ["csr", "dense"]
GEOMETRIES = [{}, {"padding": 1}, {"padding": (1, 2), "stride": 2}, {"dilation": 2, "padding": "same"}, {"groups": 2, "padding": "valid"},
              {"stride": (2, 1), "groups": 4, "padding": 1, "dilation": (1, 2)}]


def test_worked_example():
    # One 2x2 kernel [[1, 0], [0, 2]] over [[1, 2], [3, 4]]: 1 * 1 + 2 * 4 = 9, plus bias 0.5.
    layer = SparseConv2d(1, 1, 2, torch.tensor([0, 2], dtype=torch.int32), torch.tensor([0, 3], dtype=torch.int32), torch.tensor([1.0, 2.0]),
                         torch.tensor([0.5]))
    y = layer(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    assert y.tolist() == [[[[9.5]]]]
    y.sum().backward()
    assert layer.values.grad.tolist() == [1.0, 4.0] and layer.bias.grad.tolist() == [1.0]
    assert layer.to_dense().weight.tolist() == [[[[1, 0], [0, 2]]]] and layer.sparsity == 0.5


def oracle_of(layer):
    return layer.to_dense().double()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("kernel_size", [3, (2, 3), 1], ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_agrees_with_dense(backend, geometry, kernel_size):
    layer = SparseConv2d.from_shape(4, 8, kernel_size, sparsity=0.6, seed=2, backend=backend, **geometry)
    oracle, x = oracle_of(layer), torch.randn(3, 4, 9, 8, requires_grad=True)
    assert isinstance(oracle, nn.Conv2d) and oracle.padding == layer.padding
    wide = x.detach().double().requires_grad_()
    y, want = layer(x), oracle(wide)
    assert_close(y, want, reduction=layer.cols)
    out = torch.randn_like(y)
    y.backward(out)
    want.backward(out.double())
    places = oracle.weight.detach().flatten().nonzero().flatten()
    for got, wanted in ((x.grad, wide.grad), (layer.bias.grad, oracle.bias.grad), (layer.values.grad, oracle.weight.grad.flatten()[places])):
        assert_close(got, wanted, reduction=3 * 72)
    assert_close(layer(x[0]), oracle(wide[0]), reduction=layer.cols)                    # without a batch


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_types(backend, dtype):
    layer = SparseConv2d.from_shape(4, 8, 3, sparsity=0.5, dtype=dtype, padding=1, backend=backend)
    x = torch.randn(2, 4, 6, 6).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype == dtype
    assert_close(y, oracle_of(layer)(x.double()), dtype=dtype, reduction=36)
    y.sum().backward()
    assert x.grad.dtype == layer.values.grad.dtype == layer.bias.grad.dtype == dtype


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_from_dense(geometry):
    dense = nn.Conv2d(4, 8, 3, **geometry)
    mask = torch.rand_like(dense.weight) < 0.4
    layer = SparseConv2d.from_dense(dense, mask)
    assert layer.nnz == mask.sum() and torch.equal(layer.to_dense().weight, dense.weight * mask)
    assert_close(layer(torch.ones(1, 4, 9, 9)), layer.to_dense().double()(torch.ones(1, 4, 9, 9).double()), reduction=36)
    last = torch.randn(2, 4, 9, 9).to(memory_format=torch.channels_last)
    assert_close(layer(last), layer.to_dense().double()(last.double()), reduction=36)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_weights(backend):
    layer = SparseConv2d.from_dense(nn.Conv2d(2, 3, 3), torch.zeros(3, 2, 3, 3, dtype=torch.bool), backend=backend)
    x = torch.randn(2, 2, 5, 5, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, layer.bias[:, None, None].expand_as(y))
    y.sum().backward()
    assert layer.values.grad.shape == (0,) and not x.grad.any()


def test_from_shape_is_exact_and_repeatable():
    first, again, other = (SparseConv2d.from_shape(6, 10, (3, 5), sparsity=0.9, seed=seed, groups=2) for seed in (5, 5, 6))
    assert first.nnz == 45
    ops.check_csr(first.crow, first.col, 10, 45)
    assert torch.equal(first.col, again.col) and torch.equal(first.values, again.values) and not torch.equal(first.col, other.col)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    layer = SparseConv2d.from_shape(2, 3, 3, sparsity=0.5, dtype=torch.float64, backend=backend, stride=2, padding=1)
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True)

    def run(x, values, bias):
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (x,))
    assert torch.autograd.gradcheck(run, (x, layer.values, layer.bias))


def test_misuse():
    with pytest.raises(ValueError, match='padding_mode: expected "zeros", got \'reflect\'; pad the input'):
        SparseConv2d.from_dense(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), torch.ones(2, 2, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match='"same" needs stride 1'):
        SparseConv2d.from_shape(2, 2, 3, sparsity=0.5, padding="same", stride=2)
    with pytest.raises(ValueError, match="padding: expected numbers"):
        SparseConv2d.from_shape(2, 2, 3, sparsity=0.5, padding="full")
    with pytest.raises(ValueError, match="groups: expected a divisor of 3 input and 2 output channels, got 2"):
        SparseConv2d.from_shape(3, 2, 3, sparsity=0.5, groups=2)
    with pytest.raises(ValueError, match="leaves none of the 36 weights"):
        SparseConv2d.from_shape(2, 2, 3, sparsity=0.999)
    with pytest.raises(TypeError, match="expected an nn.Conv2d with its own forward, got Linear"):
        SparseConv2d.from_dense(nn.Linear(2, 2), torch.ones(2, 2, dtype=torch.bool))

    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2
    with pytest.raises(TypeError, match="with its own forward, got Scaled"):
        SparseConv2d.from_dense(Scaled(2, 2, 3), torch.ones(2, 2, 3, 3, dtype=torch.bool))


def test_no_warning_for_an_even_kernel():
    layer = SparseConv2d.from_shape(2, 2, 2, sparsity=0.5, padding="same")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layer(torch.ones(1, 2, 4, 4)).shape == (1, 2, 4, 4)

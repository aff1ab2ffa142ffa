"""A sparse layer never makes a tensor of its dense weight's size, and the watcher that says so has eyes."""
import pytest
import torch
from torch import nn

from sparsekern import ops
from sparsekern.nn import SparseConv2d, SparseLinear
from sparsekern.ops._register import has_kernel
from sparsekern.testing import watch_allocations

MAKERS = {"linear": lambda **options: SparseLinear.from_shape(700, 900, sparsity=0.99, **options),
          "conv": lambda **options: SparseConv2d.from_shape(80, 96, 3, sparsity=0.99, padding=1, **options)}
INPUTS = {"linear": (4, 700), "conv": (1, 80, 5, 5)}


def fused(layer, momenta):
    ops.packed_sgd_([layer.values], [layer.values.grad], [momenta[0]], lr=0.1, momentum=0.9)
    ops.masked_sgd_([layer.bias], [layer.bias.grad], [momenta[1]], [None], lr=0.1, momentum=0.9)


@pytest.mark.parametrize("update", ["fused", "torch"])
@pytest.mark.parametrize("kind", MAKERS)
def test_no_dense_weight_anywhere_in_training(kind, update):
    if kind == "conv" and not has_kernel("sparse_conv2d", "CPU"):
        pytest.skip("the reference of sparse_conv2d forms the dense weight; the compiled kernel is not built")
    size = MAKERS[kind]().to_dense().weight.numel()
    x = torch.randn(INPUTS[kind], requires_grad=True)
    with watch_allocations(size) as watch:
        layer = MAKERS[kind]()
        momenta = [torch.zeros_like(layer.values), torch.zeros_like(layer.bias)]
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        before = layer.values.detach().clone()
        for _ in range(2):
            layer(x).square().sum().backward()
            fused(layer, momenta) if update == "fused" else optimizer.step()
            optimizer.zero_grad()
        other = MAKERS[kind](seed=1)
        layer.replace_topology(other.crow, other.col, other.values.detach())
        layer.load_state_dict(other.state_dict())
        layer(x)
    assert 0 < watch.largest < size and not torch.equal(before, layer.values)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_dense_product_is_seen(kind):
    layer = MAKERS[kind](backend="dense")
    with pytest.raises(AssertionError, match=r"made a tensor of shape .*: the limit is"), watch_allocations(layer.rows * layer.cols):
        layer(torch.randn(INPUTS[kind]))


def test_the_watcher_sees_what_kernels_keep_to_themselves():
    big = torch.rand(1000, 1000)
    with watch_allocations(10**6):                          # views and results in place are no new memory
        big.t().add_(1).t().view(-1)[3:].sum()
        torch.zeros(1).expand(1000, 1000)
    with pytest.raises(AssertionError, match="made a tensor of shape"), watch_allocations(10**6):
        big + 1
    with pytest.raises(AssertionError, match="a piece of .* bytes was allocated"), watch_allocations(10**6):
        big[:999].sort()[0].sum()                           # 999,000 floats: fewer elements than the limit, more bytes
    x = torch.rand(1000, 1000, requires_grad=True)
    with pytest.raises(AssertionError, match="made a tensor"), watch_allocations(10**6):
        x.sum().backward()


@pytest.mark.slow
def test_a_layer_that_could_not_be_dense():
    """200,000 x 200,000 at 99.99 %: 160 GB dense, 4 million weights."""
    torch.manual_seed(0)
    with watch_allocations(10**9):
        layer = SparseLinear.from_shape(200_000, 200_000, sparsity=0.9999)
        x = torch.randn(8, 200_000, requires_grad=True)
        y = layer(x)
        y.square().mean().backward()
        before = layer.values.detach().clone()
        ops.packed_sgd_([layer.values], [layer.values.grad], [torch.zeros_like(layer.values)], lr=1.0, momentum=0.9)
    assert layer.nnz == 4_000_000 and layer.values.grad.shape == x.grad.shape[:0] + (4_000_000,)
    assert 0.5 < y.var() < 2 and x.grad.isfinite().all() and not torch.equal(before, layer.values)
    row = 12_345                                            # one unit by hand
    places = slice(layer.crow[row], layer.crow[row + 1])
    want = x[:, layer.col[places].long()].double() @ before[places].double() + layer.bias[row].double()
    torch.testing.assert_close(y[:, row].double(), want, rtol=1e-4, atol=1e-4)


def test_from_shape_makes_less_than_the_layer_needs_in_training():
    with watch_allocations(10**9) as watch:
        layer = SparseLinear.from_shape(30_000, 40_000, sparsity=0.9995)
    assert watch.largest <= 8 * layer.nnz + 8 * 70_001      # nothing bigger than its keys: training has 24 bytes per nonzero
    assert isinstance(layer, nn.Module)

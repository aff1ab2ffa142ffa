"""NMConv2d: groups along the input channels of each tap; against dense masked convolutions, trained and packed."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sparsekern.nn import NMConv2d, PackedNMConv2d, nm_conv2d
from sparsekern.nn.nm_weight import GRADIENTS
from sparsekern.testing import assert_close

BACKENDS = ["csr", "dense"]
GEOMETRIES = [{}, {"padding": 1}, {"padding": (1, 2), "stride": 2}, {"dilation": 2, "padding": "same"}, {"padding": "valid"},
              {"stride": (2, 1), "padding": 1, "dilation": (1, 2)}, {"padding": "same"}]
even = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


# ---- the groups ----

def test_groups_lie_along_input_channels_and_span_no_taps():
    # One output, two channels, a 1 x 2 kernel. Tap 0 has channel weights (1, 2), tap 1 has (4, 3); 1:2 keeps 2 and 4.
    dense = nn.Conv2d(2, 1, (1, 2), bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.tensor([[[[1.0, 4.0]], [[2.0, 3.0]]]]))
    layer = NMConv2d.from_dense(dense, 1, 2)
    assert layer.current_mask().tolist() == [[[[False, True]], [[True, False]]]]
    x = torch.tensor([[[[1.0, 10.0]], [[100.0, 1000.0]]]])
    assert layer(x).item() == 2 * 100 + 4 * 10
    packed = layer.pack(backend="packed")
    assert packed.values.tolist() == [[2, 4]] and packed.index.tolist() == [[1, 0]]        # tap by tap
    assert packed(x).item() == 240 and packed.to_dense().weight.tolist() == [[[[0, 4]], [[2, 0]]]]
    layer(x).sum().backward()
    assert layer.weight.grad.tolist() == [[[[1, 10]], [[100, 1000]]]]


@pytest.mark.parametrize("n, m", [(1, 4), (2, 4), (1, 8)])
def test_exactly_n_per_group_of_every_tap(n, m):
    layer = NMConv2d(16, 5, (3, 2), n, m)
    assert layer.current_mask().unflatten(1, (-1, m)).sum(2).eq(n).all()
    assert layer.nnz == layer.current_mask().sum() == (layer.masked_weight() != 0).sum()


# ---- agreement ----

@even
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("kernel_size", [3, (2, 3), 1], ids=str)
def test_agrees_with_dense_masked(backend, gradient, geometry, kernel_size):
    layer = NMConv2d(8, 6, kernel_size, 1, 4, gradient=gradient, backend=backend, dtype=torch.float64, **geometry)
    mask = layer.current_mask()
    weight, bias = (layer.weight.detach() * mask).requires_grad_(), layer.bias.detach().clone().requires_grad_()
    x = torch.randn(3, 8, 9, 8, dtype=torch.float64, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    y, want = layer(x), F.conv2d(twin, weight, bias, layer.stride, layer.padding, layer.dilation)
    assert_close(y, want, reduction=18)
    incoming = torch.randn_like(y)
    y.backward(incoming)
    want.backward(incoming)
    d_weight = weight.grad * mask if gradient == "masked" else weight.grad
    if gradient == "sr_ste":
        d_weight = d_weight + 2e-4 * layer.weight.detach() * ~mask
    for got, wanted in ((x.grad, twin.grad), (layer.bias.grad, bias.grad), (layer.weight.grad, d_weight)):
        assert_close(got, wanted, reduction=216)


@even
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("kernel_size", [3, (2, 3), 1], ids=str)
@pytest.mark.parametrize("panel", [1, 1 << 18])                             # image by image, and all at once
def test_packed_agrees(geometry, kernel_size, panel, monkeypatch):
    monkeypatch.setattr(nm_conv2d, "_PANEL", panel)
    layer = NMConv2d(8, 6, kernel_size, 2, 8, dtype=torch.float64, **geometry).eval()
    x = torch.randn(3, 8, 9, 8, dtype=torch.float64)
    want, packed = layer.to_dense()(x), layer.pack(backend="packed")
    assert not list(packed.parameters())
    for backend in PackedNMConv2d.backends:
        packed.backend = backend
        assert_close(packed(x), want, reduction=18)
        assert packed(x).is_contiguous() and packed(x[:0]).shape == want[:0].shape
        assert_close(packed(x[0]), want[0], reduction=18)
        assert_close(packed(x.to(memory_format=torch.channels_last)), want, reduction=18)
    back = packed.unpack()
    assert torch.equal(back.masked_weight(), layer.masked_weight()) and torch.equal(back.mask, layer.current_mask())
    assert torch.equal(back(x), layer(x)) and not back.training
    assert torch.equal(packed.to_dense().weight, layer.to_dense().weight)


@given(channels=st.integers(1, 4), outputs=st.integers(1, 5), m=st.sampled_from([1, 2, 3, 4, 8]), high=st.integers(1, 3), wide=st.integers(1, 3),
       stride=st.integers(1, 3), padding=st.integers(0, 2), dilation=st.integers(1, 2), size=st.integers(5, 9), bias=st.booleans(),
       seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_packed_agrees_everywhere(channels, outputs, m, high, wide, stride, padding, dilation, size, bias, seed):
    torch.manual_seed(seed)
    layer = NMConv2d(channels * m, outputs, (high, wide), max(1, m // 2), m, bias, stride=stride, padding=padding, dilation=dilation)
    x = torch.randn(2, channels * m, size, size)
    want, packed = layer.to_dense().double()(x.double()), layer.pack(backend="packed")
    for backend in PackedNMConv2d.backends:
        packed.backend = backend
        assert_close(packed(x), want, reduction=layer.cols)


def test_gradients_pass_the_packed_forms():
    layer = NMConv2d(8, 6, 3, 1, 4, padding=1, dtype=torch.float64)
    packed = layer.pack(backend="packed")
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(layer(x).square().sum(), x)
    for backend in PackedNMConv2d.backends:
        packed.backend = backend
        assert_close(torch.autograd.grad(packed(x).square().sum(), x)[0], want, reduction=54)


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_last_weights_and_one_image(backend):
    layer = NMConv2d(8, 6, 3, 1, 4, refresh="fixed")
    x = torch.randn(8, 5, 5)
    want = layer.to_dense().double()(x.double())
    layer = layer.to(memory_format=torch.channels_last)
    layer.backend = backend
    y = layer(x)
    assert_close(y, want, reduction=18)
    y.sum().backward()
    assert layer.weight.grad.shape == layer.weight.shape
    assert_close(layer.pack(backend="packed")(x), want, reduction=18)


@pytest.mark.parametrize("backend", PackedNMConv2d.backends)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_input_beside_float32_values(backend, half):
    packed = NMConv2d(8, 6, 3, 1, 4).pack(backend=backend)
    x = torch.randn(2, 8, 5, 5).to(half)
    want = packed.to_dense().double()(x.double())
    assert packed(x).dtype == half
    assert_close(packed(x), want, dtype=half, reduction=18)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_training_lowers_the_loss(backend, gradient):
    torch.manual_seed(0)
    model = nn.Sequential(NMConv2d(8, 16, 3, 2, 8, padding=1, gradient=gradient, backend=backend), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(16, 4))
    x = torch.randn(32, 8, 6, 6)
    labels = x[:, :4].mean((2, 3)).argmax(1)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), []
    for _ in range(60):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert model[0].current_mask().unflatten(1, (-1, 8)).sum(2).eq(2).all()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_hidden_nan_never_shows(backend):
    layer = NMConv2d(4, 1, 1, 1, 4, bias=False, backend=backend)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([float("nan"), 2.0, -0.0, 1.0]).view(1, 4, 1, 1))
    x = torch.ones(1, 4, 2, 2, requires_grad=True)
    y = layer(x)
    assert y.tolist() == [[[[2.0, 2.0], [2.0, 2.0]]]]
    y.sum().backward()
    assert x.grad.isfinite().all() and layer.weight.grad.flatten().tolist() == [4.0] * 4


# ---- misuse ----

def by_shape(module, n, m):
    return NMConv2d(module.in_channels, module.out_channels, 3, n, m, groups=module.groups)


@pytest.mark.parametrize("kind", [NMConv2d.from_dense, by_shape])
def test_grouped_and_depthwise_are_refused(kind):
    with pytest.raises(ValueError, match="NMConv2d: groups: expected 1, got 2: a grouped convolution has no dense product along its input channels"):
        kind(nn.Conv2d(8, 8, 3, groups=2), 1, 4)
    with pytest.raises(ValueError, match="groups: expected 1, got 8: a depthwise convolution"):
        kind(nn.Conv2d(8, 8, 3, groups=8), 1, 4)


def test_misuse():
    with pytest.raises(ValueError, match="NMConv2d: 3 inputs cannot be split into groups of m = 4: leave this layer dense"):
        NMConv2d(3, 8, 3, 2, 4)
    with pytest.raises(ValueError, match='NMConv2d: padding_mode: expected "zeros", got \'reflect\''):
        NMConv2d.from_dense(nn.Conv2d(4, 4, 3, padding_mode="reflect", padding=1), 2, 4)
    with pytest.raises(TypeError, match="NMConv2d.from_dense: expected an nn.Conv2d with its own forward, got Linear"):
        NMConv2d.from_dense(nn.Linear(4, 4), 2, 4)
    packed = NMConv2d(8, 4, 3, 2, 4).pack(backend="packed")
    with pytest.raises(ValueError, match=r"PackedNMConv2d: x: expected shape \[N, 8, H, W\], got \[1, 4, 5, 5\]"):
        packed(torch.randn(1, 4, 5, 5))
    with pytest.raises(ValueError, match="PackedNMConv2d: backend: expected one of csr, packed, dense, got 'fast'"):
        packed.backend = "fast"
    with pytest.raises(ValueError, match=r"PackedNMConv2d: values: expected floating-point numbers of shape \[4, 36\]"):
        PackedNMConv2d(8, 4, 3, 2, 4, packed.values[:, :-1], packed.index)

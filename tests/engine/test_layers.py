"""Which weights are masked, and that modules compute with the masked weight without losing a parameter or a key."""
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsekern.sparsity.layers import Attached, find_layers
from sparsekern.testing import small_convnet


class Standardized(nn.Conv2d):
    """Reads its weight in a forward of its own."""
    def forward(self, x):
        w = self.weight
        return F.conv2d(x, (w - w.mean()) / (w.std() + 1e-5), self.bias, padding=self.padding)


def names(model, **options):
    return [layer.name for layer in find_layers(model, **options)]


def test_what_is_pruned():
    net = small_convnet()
    assert names(net) == ["3.weight", "6.weight", "11.weight"]
    assert names(net, skip_first=False) == ["0.weight", "3.weight", "6.weight", "11.weight"]
    assert names(net, skip_last=True) == ["3.weight", "6.weight"]
    assert names(net, only=r"^(3|6)\.", exclude="6") == ["3.weight"]
    assert names(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))) == ["0.weight", "2.weight"]     # no convolution: none is first
    depthwise = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1))
    assert names(depthwise, skip_depthwise=True) == ["2.weight"] and names(depthwise) == ["1.weight", "2.weight"]


def attach(model, density=0.4, **options):
    layers = find_layers(model, **options)
    masks = [torch.rand_like(layer.param) < density for layer in layers]
    attached = Attached(model, layers)
    attached.show(masks, masks, False)
    return layers, masks, attached


def reference(model, layers, masks, *inputs):
    """The same model with the weights themselves zeroed."""
    dense = copy.deepcopy(model)
    parameters = dict(dense.named_parameters())
    for layer, mask in zip(layers, masks):
        parameters[layer.name].data.mul_(mask)
    return dense(*inputs)


@pytest.mark.parametrize("make, shape", [
    (small_convnet, (5, 3, 8, 8)),
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Standardized(4, 6, 3, padding=1)), (2, 3, 6, 6)),
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular")), (2, 3, 6, 6)),
])
def test_forward_and_gradient_are_those_of_the_masked_weight(make, shape):
    net, x = make(), torch.randn(shape)
    layers = find_layers(net)
    keys, plain = list(net.state_dict()), copy.deepcopy(net)
    masks = [torch.rand_like(layer.param) < 0.4 for layer in layers]
    expected = reference(plain, layers, masks, x)
    attached = Attached(net, layers)
    attached.show(masks, masks, False)
    out = net(x)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    assert all((layer.param.grad[~mask] == 0).all() and (layer.param.grad[mask] != 0).any() for layer, mask in zip(layers, masks))
    masked = [layer.param.grad.clone() for layer in layers]
    net.zero_grad()
    attached.show(masks, masks, True)
    net(x).square().sum().backward()
    for layer, mask, before in zip(layers, masks, masked):
        assert (layer.param.grad[~mask] != 0).any()                     # the gradient of the effective weight, everywhere
        torch.testing.assert_close(layer.param.grad[mask], before[mask])
    assert list(net.state_dict()) == keys
    attached.remove()
    assert torch.equal(net(x), plain(x)) and not any("forward" in vars(module) for module in net.modules())


def test_a_copy_of_the_model_has_masks_of_its_own():
    net = small_convnet().eval()
    layers, masks, attached = attach(net)
    twin, x = copy.deepcopy(net), torch.randn(2, 3, 8, 8)
    before = net(x)
    attached.show([None] * 3, [None] * 3, False)
    assert torch.equal(twin(x), before) and not torch.equal(net(x), before)


def test_autocast_computes_in_its_type():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    layers, masks, _ = attach(net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(torch.randn(3, 8))
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(layer.param.grad.dtype == torch.float32 for layer in layers)


def test_tied_weights_are_masked_once_with_one_mask():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    (layer,), masks, _ = attach(net)
    assert layer.modules == [net[0], net[1]]
    x = torch.randn(2, 4)
    w = net[0].weight * masks[0]
    torch.testing.assert_close(net(x), F.linear(F.linear(x, w, net[0].bias), w, net[1].bias))


def test_weights_read_elsewhere_stay_dense_and_are_named():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    with pytest.warns(UserWarning, match="left dense.*self_attn.out_proj.weight"):
        layers = find_layers(encoder)
    assert [layer.name for layer in layers] == ["linear1.weight", "linear2.weight"]
    tied = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5), nn.Linear(5, 5))
    tied[1].weight = tied[0].weight
    with pytest.warns(UserWarning, match="left dense.*1.weight"):
        assert names(tied) == ["2.weight"]


@pytest.mark.filterwarnings("ignore:left dense")
def test_the_fused_inference_path_of_transformers_sees_the_masks():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    layers = find_layers(encoder)
    masks, x, activation = [torch.zeros_like(layer.param, dtype=torch.bool) for layer in layers], torch.randn(2, 3, 8), \
        encoder.activation_relu_or_gelu
    with torch.no_grad():
        expected = reference(encoder, layers, masks, x)
        attached = Attached(encoder, layers)
        attached.show(masks, masks, False)
        torch.testing.assert_close(encoder(x), expected)
    attached.remove()
    assert encoder.activation_relu_or_gelu == activation


def test_a_forward_set_on_the_instance_is_kept():
    net = nn.Linear(3, 3)
    original = net.forward
    net.forward = lambda x: original(x) + 1
    mine = net.forward
    layers, masks, attached = attach(net)
    x = torch.randn(2, 3)
    torch.testing.assert_close(net(x), F.linear(x, net.weight * masks[0], net.bias) + 1)
    attached.remove()
    assert net.forward is mine

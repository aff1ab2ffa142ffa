"""Slimming: the smaller net computes what the masked one computes."""
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lively import lively
from torch import nn

from sparsekern.sparsity.channel_groups import find_channel_groups
from sparsekern.sparsity.slim import recalibrate, slim
from sparsekern.training import build_model

MODELS = ["mlp", "small_cnn", "resnet20", "resnet20-b", "resnet18", "wrn-22-2", "vgg11", "mobilenet-v1"]


def images(count=4, size=32, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_keep(groups, seed=0, share=0.4):
    keep = {}
    for number, group in enumerate(groups):
        if not group.fixed:
            keep[group.name] = torch.rand(group.channels, generator=torch.Generator().manual_seed(seed + number)) < share
            keep[group.name][number % group.channels] = True
    return keep


@torch.no_grad()
def masked(model, groups, keep):
    """A copy with zeros where `keep` is False."""
    model = copy.deepcopy(model)
    for group in groups:
        if group.name in keep:
            for name in (*group.producers, *group.norms):
                module = model.get_submodule(name)
                module.weight[~keep[group.name]] = 0
                if module.bias is not None:
                    module.bias[~keep[group.name]] = 0
    return model


def assert_agrees(model, example, keep_share=0.4, bound=1e-5):
    groups = find_channel_groups(model, example[:1])
    keep = random_keep(groups, share=keep_share)
    assert keep
    big, small = masked(model, groups, keep), slim(model, groups, keep)
    for mode in (False, True):
        a, b = big.train(mode)(example), small.train(mode)(example)
        assert (a - b).abs().max() <= bound * max(1.0, a.detach().abs().max())
        assert a.std() > 1e-3
    a.square().sum().backward()
    b.square().sum().backward()
    for group in groups:                                            # and gradients
        rows = keep.get(group.name, torch.ones(group.channels, dtype=torch.bool))
        for name in group.norms:
            wide, narrow = (net.get_submodule(name).weight.grad for net in (big, small))
            torch.testing.assert_close(narrow, wide[rows], rtol=1e-3, atol=1e-4 * float(wide.abs().max()))
    return groups, keep, small


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_the_masked_net_computes(name):
    torch.manual_seed(0)
    assert_agrees(lively(build_model(name)), images())


@pytest.mark.parametrize("name", ["resnet50", "vgg16_bn", "mobilenet_v2"])
def test_torchvision_models(name):
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    model = models.get_model(name, num_classes=10)
    if name == "vgg16_bn":                                          # a narrower classifier behind the 7x7 maps, to save time
        model.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(), nn.Linear(64, 10))
    model = lively(model).double()                                  # batches of 2 leave norms of 8 values: ill-conditioned
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert_agrees(model, images(2, 64).double(), keep_share=0.7, bound=1e-9)


BLOCKS = ("conv", "depthwise", "identity", "projection", "preactivation", "bottleneck", "pool")


def _layers(kind, channels, width, out):
    def conv(inputs, outputs, size=3, groups=1):
        return nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=size == 1)
    norm = nn.BatchNorm2d
    if kind == "conv":
        return [conv(channels, out), norm(out)]
    if kind == "depthwise":
        return [conv(channels, channels, 3, channels), norm(channels)]
    if kind in ("identity", "projection"):
        return [conv(channels, width), norm(width), conv(width, out), norm(out), conv(channels, out, 1) if kind == "projection" else nn.Identity()]
    if kind == "preactivation":
        return [norm(channels), conv(channels, out)]
    if kind == "bottleneck":
        return [conv(channels, 3, 1), norm(3), conv(3, 3), norm(3), conv(3, out, 1), conv(channels, out, 1), norm(out)]
    return []


class Drawn(nn.Module):
    """A net of blocks in any order, all coupled as residual and depthwise nets are, before a flattened or a pooled map."""

    def __init__(self, blocks, widths, flatten):
        super().__init__()
        self.stem, channels = nn.Conv2d(3, widths[-1], 3, padding=1), widths[-1]
        self.blocks, self.layers, self.flatten = list(blocks), nn.ModuleList(), flatten
        for kind, width in zip(blocks, widths):
            out = channels if kind in ("depthwise", "identity", "preactivation", "pool") else width
            self.layers.append(nn.ModuleList(_layers(kind, channels, width, out)))
            channels = out
        size = 8 // 2 ** min(2, self.blocks.count("pool"))
        self.head = nn.Sequential(nn.Linear(channels * (size ** 2 if flatten else 1), 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 2))

    def forward(self, x):
        x, pools = self.stem(x), 0
        for kind, layers in zip(self.blocks, self.layers):
            if kind in ("conv", "depthwise"):
                x = torch.relu(layers[1](layers[0](x)))
            elif kind in ("identity", "projection"):
                out = layers[3](layers[2](torch.relu(layers[1](layers[0](x)))))
                x = torch.relu(out + layers[4](x))
            elif kind == "preactivation":
                x = x + layers[1](torch.relu(layers[0](x)))
            elif kind == "bottleneck":
                x = layers[6](layers[4](torch.relu(layers[3](layers[2](torch.relu(layers[1](layers[0](x))))))) + layers[5](x))
            elif pools < 2:
                x, pools = nn.functional.max_pool2d(x, 2), pools + 1
        return self.head(x.flatten(1) if self.flatten else x.mean((2, 3)))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=6), st.lists(st.integers(1, 9), min_size=6, max_size=6), st.booleans(),
       st.integers(0, 99))
def test_nets_of_any_blocks(blocks, widths, flatten, seed):
    torch.manual_seed(seed)
    model = lively(Drawn(blocks, widths, flatten), seed).double()
    example = images(6, 8, seed).double()
    groups = find_channel_groups(model, example)
    made = sorted(name for group in groups for name in group.producers)
    assert made == sorted(name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
    assert [group.name for group in groups if group.fixed] == ["head.3"]
    keep = random_keep(groups, seed, 0.5)
    big, small = masked(model, groups, keep), slim(model, groups, keep)
    for mode in (False, True):
        torch.testing.assert_close(small.train(mode)(example), big.train(mode)(example), rtol=1e-9, atol=1e-9)


def test_it_is_a_plain_module_of_the_sizes_kept():
    torch.manual_seed(0)
    model = lively(build_model("mobilenet-v1"))
    model.eval()
    before = copy.deepcopy(model.state_dict())
    groups = find_channel_groups(model, images(1))
    keep = {"stem.0": torch.arange(32) % 3 == 1, "blocks.0.3": torch.arange(64) < 10}
    small = slim(model, groups, keep)
    depthwise, pointwise = small.blocks[0][0], small.blocks[0][3]
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups, tuple(depthwise.weight.shape)) == (11, 11, 11, (11, 1, 3, 3))
    assert (pointwise.in_channels, pointwise.out_channels, tuple(pointwise.weight.shape)) == (11, 10, (10, 11, 1, 1))
    assert small.stem[1].num_features == 11 and small.blocks[0][4].running_var.shape == (10,)
    assert torch.equal(pointwise.weight, before["blocks.0.3.weight"][:10][:, 1::3]) and not small.training
    assert type(small) is type(model) and list(small.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    small.load_state_dict(copy.deepcopy(small).state_dict())


def test_a_flattened_map_loses_all_columns_of_a_channel():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    groups = find_channel_groups(net, torch.zeros(1, 3, 3, 3))
    small = slim(net, groups, {"0": torch.tensor([False, True, False, True])})
    assert small[3].in_features == 18
    assert torch.equal(small[3].weight, net[3].weight[:, [*range(9, 18), *range(27, 36)]])


def test_strides_and_frozen_parameters_stay():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    net[1].weight.requires_grad_(False)
    small = slim(net, find_channel_groups(net, images(1)), {"0": torch.arange(8) < 3})
    assert small[1].weight.is_contiguous(memory_format=torch.channels_last) and not small[1].weight.requires_grad
    assert small[0].weight.requires_grad and small[0].bias.shape == (3,)


@pytest.mark.parametrize("keep, words", [
    ({"nothing": torch.ones(8, dtype=torch.bool)}, "'nothing' is no channel group; they are 0, 1"),
    ({"0": torch.ones(8)}, r"0: expected a bool tensor of shape \[8\], got torch.float32 \[8\]"),
    ({"0": torch.ones(7, dtype=torch.bool)}, r"0: expected a bool tensor of shape \[8\], got torch.bool \[7\]"),
    ({"0": torch.zeros(8, dtype=torch.bool)}, "0: expected at least one channel"),
    ({"1": torch.arange(4) < 2}, r"1: expected all 4 channels, as this group must stay whole \(model output\), got 2"),
])
def test_bad_masks_are_refused(keep, words):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3))
    with pytest.raises(ValueError, match=words):
        slim(net, find_channel_groups(net, images(1)), keep)


def test_a_model_with_a_sparsifier_is_refused():
    from sparsekern.algorithms import build
    model = build_model("small_cnn")
    groups = find_channel_groups(model, images(1))
    sparsifier = build("static", model, torch.optim.SGD(model.parameters(), 0.1), total_steps=10)
    with pytest.raises(ValueError, match=r"call its remove\(\) first"):
        slim(model, groups, {})
    sparsifier.remove()
    assert slim(model, groups, {}) is not model


def test_statistics_measured_anew():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.9))
    net[2].eval()
    batches = [images(8, 6, seed) for seed in range(3)]
    net[1].running_mean.fill_(7.0)
    assert recalibrate(net, batches) == 3
    outputs = [net[0](batch).detach() for batch in batches]
    torch.testing.assert_close(net[1].running_mean, torch.stack([out.mean((0, 2, 3)) for out in outputs]).mean(0))
    torch.testing.assert_close(net[1].running_var, torch.stack([out.var((0, 2, 3)) for out in outputs]).mean(0))
    assert net[1].momentum == 0.1 and net.training and net[1].training and not net[2].training
    before = net[1].running_mean.clone()
    assert recalibrate(net, []) == 0 and torch.equal(net[1].running_mean, before)

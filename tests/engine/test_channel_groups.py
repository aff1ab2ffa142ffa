"""Groups of coupled channels: by hand on small nets, on the project's models, and what is refused."""
import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsekern.sparsity.channel_groups import ChannelGroup, find_channel_groups
from sparsekern.training import build_model

IMAGES = torch.zeros(1, 3, 32, 32)


def groups_of(model, example=IMAGES, **options):
    return {group.name: group for group in find_channel_groups(model, example, **options)}


def test_a_sequential_net_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 6, 3), nn.ReLU(),
                        nn.Flatten(), nn.Linear(6 * 14 * 14, 5), nn.ReLU(), nn.Linear(5, 2))
    assert find_channel_groups(net, IMAGES) == [
        ChannelGroup("0", 8, ("0",), ("1",), (("4", 1),)), ChannelGroup("4", 6, ("4",), (), (("7", 196),)),
        ChannelGroup("7", 5, ("7",), (), (("9", 1),)), ChannelGroup("9", 2, ("9",), (), (), "model output")]


def test_the_model_is_left_as_it_was():
    model = build_model("resnet20")
    model.stages[0].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    find_channel_groups(model, IMAGES)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert all(param.grad is None for param in model.parameters())


def test_a_projected_shortcut_joins_the_stage():
    stage = groups_of(build_model("resnet18"))["stages.1.0.conv2"]
    assert stage.producers == ("stages.1.0.conv2", "stages.1.0.downsample.0", "stages.1.1.conv2")
    assert stage.norms == ("stages.1.0.bn2", "stages.1.0.downsample.1", "stages.1.1.bn2")
    assert stage.consumers == (("stages.1.1.conv1", 1), ("stages.2.0.conv1", 1), ("stages.2.0.downsample.0", 1))
    assert stage.channels == 128 and not stage.fixed


def test_zero_padded_shortcuts_keep_their_stages_whole():
    groups = groups_of(build_model("resnet20"))
    whole = {name for name, group in groups.items() if group.fixed}
    assert whole == {"conv1", "stages.1.0.conv2", "stages.2.0.conv2", "fc"}
    assert groups["conv1"].fixed == "pad in stages.1.0 adds channels of zeros"
    assert groups["stages.1.0.conv2"].channels == 32 and len(groups) == 13


def test_norms_before_convolutions():
    groups = groups_of(build_model("wrn-22-2"))
    stage = groups["blocks.0.shortcut"]
    assert stage.producers == ("blocks.0.shortcut", "blocks.0.conv2", "blocks.1.conv2", "blocks.2.conv2")
    assert stage.norms == ("blocks.1.bn1", "blocks.2.bn1", "blocks.3.bn1")
    assert groups["blocks.6.shortcut"].norms[-1] == "bn" and groups["blocks.6.shortcut"].consumers[-1] == ("fc", 1)
    assert [name for name, group in groups.items() if group.fixed] == ["fc"]


def test_depthwise_convolutions_share_the_group_that_feeds_them():
    groups = groups_of(build_model("mobilenet-v1"))
    assert groups["stem.0"] == ChannelGroup("stem.0", 32, ("stem.0", "blocks.0.0"), ("stem.1", "blocks.0.1"), (("blocks.0.3", 1),))
    assert len(groups) == 15 and sum(len(group.producers) for group in groups.values()) == 28


@pytest.mark.parametrize("name, count, wide", [("vgg16_bn", 16, ("features.40", ("classifier.0", 49))),
                                               ("resnet50", 38, ("layer4.0.conv3", ("fc", 1))),
                                               ("mobilenet_v2", 26, ("features.18.0", ("classifier.1", 1)))])
def test_torchvision_models(name, count, wide):
    model = pytest.importorskip("torchvision").models.get_model(name)
    groups = groups_of(model, torch.zeros(1, 3, 64, 64))
    assert len(groups) == count and groups[wide[0]].consumers[-1] == wide[1]
    assert [group.fixed for group in groups.values() if group.fixed] == ["model output"]


@pytest.mark.parametrize("name", ["small_cnn", "resnet20", "wrn-22-2", "mobilenet-v1", "mlp"])
def test_every_layer_is_in_exactly_one_place(name):
    model = build_model(name)
    groups = groups_of(model).values()
    made = [module for group in groups for module in group.producers]
    taken = [module for group in groups for module, _ in group.consumers]
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert sorted(made) == sorted(layers)
    assert len(set(taken)) == len(taken)
    for group in groups:
        for module, per in group.consumers:
            weight = model.get_submodule(module).weight
            assert weight.shape[1] == group.channels * per


def test_keep_first():
    assert groups_of(build_model("wrn-22-2"), keep_first=True)["conv1"].fixed == "first convolution"
    joined = groups_of(build_model("resnet18"), keep_first=True)["conv1"]
    assert joined.fixed == "first convolution" and "stages.0.1.conv2" in joined.producers


class Made(nn.Module):
    """A net whose forward is given."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def conv(inputs=3, outputs=8, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


@pytest.mark.parametrize("forward, layers, words", [
    (lambda m, x: m.b(torch.cat([m.a(x), m.a(x)], 1)), {"a": conv(), "b": conv(16, 4)}, "cat in the model's forward: it joins or splits"),
    (lambda m, x: m.b(m.a(x)), {"a": conv(), "b": conv(8, 8, groups=2)}, r"b: a grouped convolution \(groups=2, 8 to 8"),
    (lambda m, x: m.b(m.a(x)), {"a": conv(), "b": conv(8, 16, groups=8)}, r"b: a grouped convolution \(groups=8, 8 to 16"),
    (lambda m, x: m.b(m.a(x).reshape(1, 4, 2, 1024)), {"a": conv(), "b": conv(4, 4)}, r"reshape .*: from \[1, 8, 32, 32\] to .* mixes"),
    (lambda m, x: m.a(x).permute(0, 2, 3, 1), {"a": conv()}, "permute in the model's forward: it is not followed"),
    (lambda m, x: m.b(m.a(x)), {"a": conv(), "b": nn.GroupNorm(2, 8)}, "b: GroupNorm is not followed"),
    (lambda m, x: m.b(m.a(x).flatten(1)), {"a": conv(), "b": nn.BatchNorm1d(8192)}, "b: BatchNorm1d works on channels that were flattened into"),
    (lambda m, x: m.b(m.a(x)[:, :4]), {"a": conv(), "b": conv(4, 4)}, "getitem .* takes some"),
    (lambda m, x: m.a(x).mean(1), {"a": conv()}, "mean .* reduces over samples or channels"),
    (lambda m, x: m.b(m.a(x).chunk(2, 1)[0]), {"a": conv(), "b": conv(4, 4)}, "chunk .* joins or splits"),
    (lambda m, x: m.a(x) * m.b.weight.flatten()[:1], {"a": conv(), "b": conv()}, "a tensor that is no layer's output"),
    (lambda m, x: m.a(x), {"a": nn.utils.parametrizations.weight_norm(conv())}, "a: its weight is computed from other parameters"),
    (lambda m, x: m.a(x) if x.sum() > 0 else x, {"a": conv()}, "the forward pass: torch.fx cannot trace"),
    (lambda m, x: m.b(m.a(x)), {"a": conv(), "b": nn.Linear(32, 2)}, r"b: a Linear over the last of 4 dimensions"),
])
def test_what_is_refused_is_named_and_a_way_out_is_offered(forward, layers, words):
    with pytest.raises(ValueError, match=words) as refused:
        find_channel_groups(Made(forward, **layers), IMAGES)
    assert 'backend="torch-pruning"' in str(refused.value)


@pytest.mark.parametrize("forward, layers, reason", [
    (lambda m, x: m.b(torch.sigmoid(m.a(x))), {"a": conv(), "b": conv(8, 4)}, "sigmoid in the model's forward moves zeros"),
    (lambda m, x: m.b(m.a(x) + 1), {"a": conv(), "b": conv(8, 4)}, "add in the model's forward moves zeros"),
    (lambda m, x: m.b(torch.add(m.a(x), other=0.5)), {"a": conv(), "b": conv(8, 4)}, "add in the model's forward moves zeros"),
    (lambda m, x: m.b(m.a(x) - x.size(0)), {"a": conv(), "b": conv(8, 4)}, "sub in the model's forward moves zeros"),
    (lambda m, x: m.b(m.a(x) / m.a(x).size(1)), {"a": conv(), "b": conv(8, 4)}, "truediv in the model's forward takes a size"),
    (lambda m, x: m.b(2 / m.a(x)), {"a": conv(), "b": conv(8, 4)}, "truediv in the model's forward moves zeros"),
    (lambda m, x: m.b(m.a(x) / m.a2(x)), {"a": conv(), "a2": conv(), "b": conv(8, 4)}, "truediv in the model's forward moves zeros"),
    (lambda m, x: m.b(m.a(x).view(-1, 8192)), {"a": conv(), "b": nn.Linear(8192, 4)}, "view in the model's forward asks for 8192 columns"),
    (lambda m, x: m.b(m.a(x)), {"a": nn.Sequential(conv(), nn.BatchNorm2d(8, affine=False)), "b": conv(8, 4)}, "batch norm a.1 has no scale"),
    (lambda m, x: m.b(m.a(x) + x), {"a": conv(3, 3), "b": conv(3, 4)}, "model input"),
    (lambda m, x: m.b(F.pad(m.a(x), (1, 1), value=2.0)), {"a": conv(), "b": conv(8, 4)}, "pad in the model's forward moves zeros"),
])
def test_what_would_not_be_exact_stays_whole(forward, layers, reason):
    found = find_channel_groups(Made(forward, **layers), IMAGES)[0]
    assert found.producers[0].startswith("a") and found.fixed.startswith(reason)


def test_what_passes():
    def forward(m, x):
        x = F.max_pool2d(F.relu(m.a(x)), 2) * 2
        x = F.pad(x[:, :, ::2, ::2], (0, 1, 0, 1))
        x = m.drop(x) + F.avg_pool2d(x, 1)
        x = F.adaptive_avg_pool2d(x, 2)
        return m.b(x.view(x.size(0), -1))
    group = find_channel_groups(Made(forward, a=conv(), b=nn.Linear(32, 4), drop=nn.Dropout(0.5)), IMAGES)[0]
    assert group == ChannelGroup("a", 8, ("a",), (), (("b", 4),))


def test_branches_meet_however_the_sum_is_written():
    for forward in (lambda m, x: m.c(torch.add(m.a(x), other=m.b(x))), lambda m, x: m.c(torch.add(m.a(x), m.b(x), alpha=2)),
                    lambda m, x: m.c(m.a(x).add_(m.b(x))), lambda m, x: m.c(m.a(x) * m.b(x)), lambda m, x: m.c(m.a(x) / 2 + m.b(x) * 3)):
        group = find_channel_groups(Made(forward, a=conv(), b=conv(), c=conv(8, 4)), IMAGES)[0]
        assert group == ChannelGroup("a", 8, ("a", "b"), (), (("c", 1),))


def test_a_layer_used_twice_and_a_weight_used_twice():
    twice = Made(lambda m, x: m.c(m.b(m.b(m.a(x)))), a=conv(), b=conv(8, 8), c=conv(8, 4))
    assert groups_of(twice)["a"] == ChannelGroup("a", 8, ("a", "b"), (), (("b", 1), ("c", 1)))
    tied = Made(lambda m, x: m.c(m.b(m.a(x))), a=conv(), b=conv(8, 8), c=conv(8, 8))
    tied.c.weight = tied.b.weight
    with pytest.raises(ValueError, match="c: its weight is that of b, too"):
        find_channel_groups(tied, IMAGES)


def test_an_unknown_backend():
    with pytest.raises(ValueError, match="backend: expected one of own, torch-pruning, got 'fx'"):
        find_channel_groups(build_model("mlp"), IMAGES, backend="fx")


def test_torch_pruning_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ValueError, match="pip install torch-pruning"):
        find_channel_groups(build_model("mlp"), IMAGES, backend="torch-pruning")


@pytest.mark.parametrize("name", ["small_cnn", "wrn-22-2", "mobilenet-v1"])
def test_torch_pruning_agrees(name):
    pytest.importorskip("torch_pruning")

    def plain(groups):
        return {(g.channels, frozenset(g.producers), frozenset(g.norms), frozenset(g.consumers), g.fixed) for g in groups}
    model = build_model(name)
    other = find_channel_groups(model, IMAGES, backend="torch-pruning", keep_first=True)
    assert plain(other) == plain(find_channel_groups(model, IMAGES, keep_first=True))
    assert all(param.grad is None for param in model.parameters())


def test_torch_pruning_gives_partial_members_whole():
    pytest.importorskip("torch_pruning")
    net = Made(lambda m, x: m.c(torch.cat([m.a(x), F.relu(m.b(F.relu(m.a(x))))], 1)), a=conv(), b=nn.Sequential(conv(8, 6), nn.ReLU(), conv(6, 4)),
               c=conv(12, 2))
    groups = {group.name: group for group in find_channel_groups(net, IMAGES, backend="torch-pruning")}
    assert groups["a"].fixed == groups["b.2"].fixed == "c has these channels among others" and groups["c"].fixed == "model output"
    assert groups["b.0"] == ChannelGroup("b.0", 6, ("b.0",), (), (("b.2", 1),))

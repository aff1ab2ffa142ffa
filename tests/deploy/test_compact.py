"""compact: what it gives computes what the masked net computes, for every pattern, model and fold."""
import copy
import json

import pytest
import torch
from lively import lively
from torch import nn
from torch.nn import functional as F

from sparsekern import ops
from sparsekern.deploy.compact import compact
from sparsekern.nn import PackedNM, SparseLinear, SparseWeight
from sparsekern.sparsity.channel_groups import find_channel_groups
from sparsekern.support.models import build_model

MODELS = ["mlp:64,32", "small_cnn", "resnet20", "resnet20-b", "resnet18", "wrn-22-2", "vgg11", "mobilenet-v1"]
CONVOLUTIONAL = MODELS[1:]


def quick(nets, rounds):
    """A timer by which every other form is twice as fast as dense."""
    return {name: 2.0 if name.startswith("dense") else 1.0 for name in nets}


def slow(nets, rounds):
    return {name: 1.0 if name == "dense" else 2.0 for name in nets}


def images(count=2, size=16, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def built(name, seed=0):
    """A model whose norms and biases are as after some training."""
    torch.manual_seed(seed)
    return lively(build_model(name, shape=(3, 16, 16)), seed).eval()


def random_masks(model, density=0.3, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.rand(parameter.shape, generator=draws) < density for name, parameter in model.named_parameters() if parameter.dim() > 1}


def nm_masks(model, n, m):
    return {f"{name}.weight": ops.nm_mask(module.weight.detach(), n, m, dim=1) for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.shape[1] % m == 0 and getattr(module, "groups", 1) == 1}


def channel_masks(model, share=0.4, seed=0):
    """Masks over every tensor of the groups that may lose channels, and how many channels of each group are kept."""
    masks, kept = {}, {}
    for number, group in enumerate(find_channel_groups(model, images(1))):
        if group.fixed:
            continue
        keep = torch.rand(group.channels, generator=torch.Generator().manual_seed(seed + number)) < share
        keep[number % group.channels] = True
        kept[group.name] = int(keep.sum())
        for name in (*group.producers, *group.norms):
            for key, parameter in model.get_submodule(name).named_parameters(recurse=False):
                masks[f"{name}.{key}"] = keep.view(-1, *[1] * (parameter.dim() - 1)).expand(parameter.shape).clone()
    return masks, kept


@torch.no_grad()
def masked(model, masks):
    model = copy.deepcopy(model).eval()
    for name, parameter in model.named_parameters():
        if name in masks:
            parameter[~masks[name]] = 0
    return model


@torch.no_grad()
def assert_same(net, reference, x, bound=1e-5):
    want, got = reference(x), net(x)
    assert want.std() > 1e-3
    assert (got - want).abs().max() <= bound * want.abs().max()


def assert_plain(net):
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in net.modules())
    x, twin = images(), copy.deepcopy(net)
    twin.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(twin(x), net(x))


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pattern", ["dense", "unstructured", "2:4", "channel"])
def test_it_computes_what_the_masked_net_computes(name, pattern, fold):
    model = built(name)
    masks = {"dense": dict, "unstructured": lambda: random_masks(model), "2:4": lambda: nm_masks(model, 2, 4),
             "channel": lambda: channel_masks(model)[0]}[pattern]()
    before = copy.deepcopy(model.state_dict())
    net, report = compact(model, masks, pattern, images(), fold=fold, timer=quick)
    assert_same(net, masked(model, masks), images())
    assert_plain(net)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert sorted([*report.folded, *report.left]) == (sorted(norms) if fold else [])
    kept = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert kept == [name for name in norms if name not in report.folded]
    if pattern != "dense":
        assert {"unstructured": "csr", "2:4": "packed", "channel": "slim"}[pattern] in {layer.form for layer in report}
        assert report.bytes < report.dense_bytes
        assert report.flops < report.dense_flops
    assert report.difference <= 1e-5


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_slimmed_layers_have_the_channels_that_are_left(name):
    model = built(name)
    masks, kept = channel_masks(model)
    net, report = compact(model, masks, "channel", images(), timer=quick)
    assert kept
    for group, count in kept.items():
        module = net.get_submodule(group)
        assert module.weight.shape[0] == count == getattr(module, "out_channels", count)
        assert report[group].form == "slim"
        assert report[group].nnz == module.weight.numel()
    assert report.bytes == sum(t.numel() * t.element_size() for t in net.state_dict().values())


def test_torch_pruning_may_follow_the_channels():
    pytest.importorskip("torch_pruning")
    model = built("resnet20-b")
    masks, kept = channel_masks(model)
    net, report = compact(model, masks, "channel", images(), groups="torch-pruning", timer=quick)
    assert {group: net.get_submodule(group).out_channels for group in kept} == kept
    assert_same(net, masked(model, masks), images())


def test_norms_that_follow_a_layer_are_folded_and_others_left():
    _, report = compact(built("wrn-22-2"), {}, "dense", images(), fold=True, timer=quick)
    inner = [name for name in report.folded if name.endswith(".bn2")]
    # conv1 -> bn2 in each block; bn1 follows a sum, but for the first, where the shortcut branches off behind it
    assert sorted(report.folded) == sorted([*inner, "blocks.0.bn1"])
    assert len(inner) == 9
    assert "blocks.1.bn1" in report.left
    assert "bn" in report.left
    assert "not the output of a convolution" in report.left["bn"]


def test_figures_of_an_mlp_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    mask = torch.zeros(8, 12, dtype=torch.bool)
    mask[:, :3] = True
    net, report = compact(model, {"1.weight": mask}, "unstructured", torch.randn(5, 3, 2, 2), timer=quick)
    assert isinstance(net[1], SparseLinear)
    assert isinstance(net[3], nn.Linear)
    assert (report.batch, report.pattern, report.device, report.dtype) == (5, "unstructured", "cpu", "float32")
    assert report.dense_flops == 2 * (96 + 16)
    assert report.flops == 2 * (24 + 16)
    assert report.dense_bytes == 4 * (96 + 8 + 16 + 2)
    assert report.bytes == 4 * (24 + 24 + net[1].crow.numel() * net[1].crow.element_size() // 4 + 8 + 16 + 2)
    assert (report.latency_ms, report.dense_latency_ms, report.speedup) == (1.0, 2.0, 2.0)
    assert (report["1"].form, report["1"].nnz, report["1"].shape) == ("csr", 24, (8, 12))
    assert report["3"].reason == "whole: no mask hides any of it"
    assert len(list(report)) == 2
    text = str(report)
    assert "2.0x as fast as dense" in text
    assert "batch 5" in text
    told = json.loads(json.dumps(report.to_dict()))
    assert told["layers"][0]["shape"] == [8, 12]
    assert told["speedup"] == 2.0


def test_an_inference_layer_computes_what_the_training_layer_does():
    layer = SparseLinear.from_shape(24, 16, sparsity=0.8)
    lean = copy.deepcopy(layer).for_inference()
    for shape in ((5, 24), (24,), (2, 3, 24), (0, 24)):
        x = torch.randn(shape)
        torch.testing.assert_close(lean(x), layer(x))
        assert lean(x).is_contiguous()
    assert set(dict(lean.named_buffers())) == {"crow", "col"}
    lean.load_state_dict(layer.state_dict())
    assert set(dict(lean.named_buffers())) == {"crow", "col"}
    x, other = (torch.randn(5, 24).requires_grad_() for _ in range(2))
    other.data.copy_(x.data)
    lean(x).square().sum().backward()
    layer(other).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(lean.values.grad, layer.values.grad)


# The choices, with a timer that says what the test wants.

def mlp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    return model, random_masks(model), torch.randn(3, 16)


def forms(net):
    return [type(module).__name__ for module in net if not isinstance(module, nn.ReLU)]


def test_a_layer_that_is_not_faster_stays_dense():
    model, masks, x = mlp()
    net, report = compact(model, masks, "unstructured", x, timer=slow)
    assert forms(net) == ["Linear"] * 3
    assert {layer.form for layer in report} == {"dense"}
    assert "csr takes 2.0x the time of dense, so dense is kept" in report["0"].reason
    assert report.latency_ms == report.dense_latency_ms
    assert_same(net, masked(model, masks), x)


def test_ties_stay_dense():
    model, masks, x = mlp()
    net, _ = compact(model, masks, "unstructured", x, timer=lambda nets, rounds: dict.fromkeys(nets, 1.0))
    assert forms(net) == ["Linear"] * 3


def test_layers_go_back_until_the_net_is_not_slower():
    model, masks, x = mlp()
    gains = iter([1.0, 3.0, 2.0])                               # layer by layer: csr takes so much less than dense

    def timer(nets, rounds):
        if "deployed" not in nets:
            return {"dense": 5.0, "csr": 5.0 - next(gains)}
        sparse = sum(isinstance(module, SparseWeight) for module in nets["deployed"][0])
        return {"dense": 10.0, "deployed": 12.0 if sparse > 1 else 9.0}

    net, report = compact(model, masks, "unstructured", x, timer=timer)
    assert forms(net) == ["Linear", "SparseLinear", "Linear"]   # the two that gain least go back at once
    assert "put back: the whole net took 1.20x the time of dense" in report["0"].reason
    assert (report["0"].form, report["0"].nnz, report["0"].ms) == ("dense", 256, 5.0)
    assert report["2"].form == "csr"
    assert report.latency_ms == 9.0
    assert "0, 4 put back to dense" in report.notes[0]
    assert_same(net, masked(model, masks), x)


def test_all_goes_back_where_nothing_helps():
    model, masks, x = mlp()

    def timer(nets, rounds):
        return {name: 2.0 if name == "dense" and "csr" in nets else 3.0 if name == "deployed" else 1.0 for name in nets}

    net, report = compact(model, masks, "unstructured", x, timer=timer)
    assert forms(net) == ["Linear"] * 3
    assert report.latency_ms == report.dense_latency_ms
    assert len(report.notes) == 2
    assert report.flops == report.dense_flops


def test_a_slimmed_net_that_is_slower_is_not_taken():
    model = built("small_cnn")
    masks, _ = channel_masks(model)
    for fold in (False, True):
        net, report = compact(model, masks, "channel", images(), fold=fold, timer=slow)
        assert {layer.form for layer in report} == {"dense"}
        assert "the masked dense net is kept" in report.notes[0]
        assert net.convs[1].weight.shape == model.convs[1].weight.shape
        assert report.flops == report.dense_flops
        assert_same(net, masked(model, masks), images())
    assert "slower than dense as a whole: 2.00x its time, as fold=True was asked for" in report.notes[-1]
    assert isinstance(net.norms[0], nn.Identity)


def test_a_form_that_was_asked_for_is_taken_and_its_price_told():
    model, masks, x = mlp()
    net, report = compact(model, masks, "unstructured", x, backend="csr", timer=slow)
    assert forms(net) == ["SparseLinear"] * 3
    assert 'but backend="csr" was asked for' in report["0"].reason
    assert "slower than dense as a whole" in report.notes[-1]
    net, report = compact(model, masks, "unstructured", x, backend="dense", timer=slow)
    assert forms(net) == ["Linear"] * 3
    assert report["0"].reason == 'backend="dense" was asked for'
    net, report = compact(model, masks, "unstructured", x, backend="packed", timer=quick)
    assert forms(net) == ["Linear"] * 3
    assert 'it has csr, and backend="packed" was asked for' in report["0"].reason


def test_memory_takes_the_smaller_form_within_its_slowdown():
    model, masks, x = mlp()
    net, report = compact(model, masks, "unstructured", x, prefer="memory", timer=slow)
    assert forms(net) == ["SparseLinear"] * 3
    assert "of the bytes" in report["0"].reason
    assert 'prefer="memory" was asked for' in report.notes[-1]
    net, report = compact(model, masks, "unstructured", x, prefer="memory",
                          timer=lambda nets, rounds: {name: 1.0 if name == "dense" else 2.1 for name in nets})
    assert forms(net) == ["Linear"] * 3
    assert "no form is smaller" in report["0"].reason
    full = {name: torch.ones_like(mask).index_fill_(0, torch.tensor([0]), False) for name, mask in masks.items()}
    net, _ = compact(model, full, "unstructured", x, prefer="memory", timer=quick)
    assert forms(net) == ["Linear"] * 3                         # quicker, says the timer, but larger


@pytest.mark.parametrize("wanted", ["csr", "packed"])
def test_the_quickest_of_several_forms_is_taken(wanted):
    model = built("small_cnn")
    masks = nm_masks(model, 1, 4)
    net, report = compact(model, masks, "1:4", images(), timer=lambda nets, rounds: {name: 1.0 if name in (wanted, "deployed") else 2.0
                                                                                     for name in nets})
    assert report["convs.1"].form == wanted == net.convs[1].backend
    assert report["convs.0"].form == "dense"                    # three input channels are no whole group
    assert report["classifier"].form == wanted
    assert_same(net, masked(model, masks), images())


def test_masks_that_are_no_whole_groups_stay_dense():
    model, masks, x = mlp()
    masks["0.weight"] = ops.nm_mask(model[0].weight.detach(), 2, 4, dim=1)
    net, report = compact(model, masks, "2:4", x, timer=quick)
    assert isinstance(net[0], PackedNM)
    assert forms(net)[1:] == ["Linear"] * 2
    assert "its mask is not 2:4: a group keeps" in report["2"].reason
    assert_same(net, masked(model, masks), x)


def test_a_form_that_cannot_run_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")

        def forward(self, x):
            return self.conv(x)

    net, report = compact(Odd(), {"conv.weight": torch.rand(4, 3, 3, 3) < 0.5}, "unstructured", images(), timer=quick)
    assert isinstance(net.conv, nn.Conv2d)
    assert 'padding_mode: expected "zeros"' in report["conv"].reason


def test_an_empty_mask_is_a_layer_of_its_bias():
    model, masks, x = mlp()
    masks["2.weight"] = torch.zeros(16, 16, dtype=torch.bool)
    net, report = compact(model, masks, "unstructured", x, timer=quick)
    assert report["2"].nnz == 0
    assert_same(net, masked(model, masks), x)


def test_other_types_and_memory_orders():
    model = built("resnet20")
    masks = random_masks(model)
    net, report = compact(model, masks, "unstructured", images().double(), dtype=torch.float64, fold=True, timer=quick)
    assert report.dtype == "float64"
    assert_same(net, masked(model, masks).double(), images().double(), 1e-12)
    net, report = compact(model, masks, "unstructured", images(), dtype=torch.bfloat16, timer=quick)
    assert_same(net, masked(model, masks).bfloat16(), images().bfloat16(), 0.1)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = images().contiguous(memory_format=torch.channels_last)
    for pattern, own in (("unstructured", masks), ("channel", channel_masks(model)[0])):
        net, _ = compact(last, own, pattern, x, timer=quick)
        assert_same(net, masked(model, own), x)
        assert_same(net, masked(model, own), F.pad(images(), (0, 1))[..., :-1])


def test_it_measures_by_itself():
    model, masks, x = mlp()
    net, report = compact(model, masks, "unstructured", x, rounds=2)
    assert report.latency_ms > 0
    assert all(layer.ms > 0 and layer.dense_ms > 0 for layer in report)
    assert_same(net, masked(model, masks), x)

"""compact: hidden channels that cannot go, norms that cannot be folded, and arguments that make no sense."""
import copy
import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsekern.deploy.compact import compact
from sparsekern.deploy.fold import fold_norms
from sparsekern.nn import NMConv2d, NMLinear, SparseConv2d, SparseLinear
from sparsekern.sparsity.layers import Attached, find_layers


def quick(nets, rounds):
    return {name: 2.0 if name == "dense" else 1.0 for name in nets}


class Net(nn.Module):
    """conv - norm - relu - conv - mean - linear."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.norm, self.two, self.out = nn.Conv2d(3, 6, 3, bias=True), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3), nn.Linear(4, 2)
        lively(self)
        self.eval()

    def forward(self, x):
        return self.out(F.relu(self.two(F.relu(self.norm(self.one(x))))).mean((2, 3)))


def lively(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_()


def images(count=3):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def hide(model, *names, channels=(1, 4)):
    own, masks = dict(model.named_parameters()), {}
    for name in names:
        masks[name] = torch.ones_like(own[name], dtype=torch.bool)
        masks[name][list(channels)] = False
    return masks


ALL = ("one.weight", "one.bias", "norm.weight", "norm.bias")


@torch.no_grad()
def assert_same(net, model, masks, x, bound=1e-5):
    model = copy.deepcopy(model).eval()
    for name, mask in masks.items():
        model.get_parameter(name)[~mask] = 0
    want = model(x)
    assert want.std() > 1e-4
    assert (net(x) - want).abs().max() <= bound * want.abs().max()


# Channels.

def test_hidden_channels_go():
    model = Net()
    net, report = compact(model, masks := hide(model, *ALL), "channel", images(), timer=quick)
    assert net.one.weight.shape[0] == net.norm.num_features == net.two.in_channels == 4
    assert torch.equal(net.one.weight, model.one.weight[[0, 2, 3, 5]])
    assert report["one"].reason == "cut to 4x3x3x3"
    assert not report.notes
    assert_same(net, model, masks, images())


@pytest.mark.parametrize("missing, behind", [("norm.bias", "norm"), ("one.bias", "one")])
def test_a_channel_that_is_a_constant_stays(missing, behind):
    model = Net()
    masks = hide(model, *(name for name in ALL if name != missing))
    net, report = compact(model, masks, "channel", images(), timer=quick)
    assert net.one.weight.shape[0] == 6
    assert f"{behind}: 2 hidden channels of one are a constant behind it" in report.notes[0]
    assert "masked dense net is kept" in report.notes[1]
    assert_same(net, model, masks, images())


def test_a_norm_that_is_not_hidden_makes_constants_of_its_mean():
    model = Net()
    masks = hide(model, "one.weight", "one.bias")
    net, report = compact(model, masks, "channel", images(), timer=quick)
    assert "scale and shift are not hidden" in report.notes[0]
    assert_same(net, model, masks, images())
    nn.init.zeros_(model.norm.bias)
    nn.init.zeros_(model.norm.running_mean)                     # of zeros it makes zeros
    net, report = compact(model, masks, "channel", images(), timer=quick)
    assert net.norm.num_features == 4
    assert_same(net, model, masks, images())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.out = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Conv2d(6, 4, 1)
        self.eval()

    def forward(self, x):
        x = F.relu(self.one(x))
        return self.out(x + F.relu(self.two(x))).mean((2, 3))


def test_rows_that_are_zero_in_one_branch_alone_stay_and_are_named():
    model = Residual()
    masks = hide(model, "one.weight", channels=(1, 4)) | hide(model, "two.weight", channels=(1, 2, 3))
    net, report = compact(model, masks, "channel", images(), timer=quick)
    assert net.one.weight.shape[0] == net.two.weight.shape[0] == 5
    assert any("one: 1 rows are zero here but not in two" in note for note in report.notes)
    assert any("two: 2 rows are zero here but not in one" in note for note in report.notes)
    assert_same(net, model, masks, images())


def test_what_must_stay_whole_says_why():
    model = Net()
    masks = hide(model, "out.weight", "out.bias", channels=(1,))
    net, report = compact(model, masks, "channel", images(), timer=quick)
    assert "out: 1 hidden channels stay, as the group must be whole (model output)" in report.notes[0]
    assert_same(net, model, masks, images())


def test_a_layer_that_loses_all_its_channels_keeps_one():
    model = Net()
    masks = hide(model, *ALL, channels=range(6))
    net, report = compact(model, masks, "channel", images(), timer=quick)
    assert net.one.weight.shape[0] == 1
    assert "one: every channel is hidden; the first one stays" in report.notes[0]
    with torch.no_grad():
        torch.testing.assert_close(net(images()), net(images() * 0))


class Branching(Net):
    def forward(self, x):
        return super().forward(x if x.sum() > 1e9 else -x)


def test_a_model_that_cannot_be_traced_stays_dense_and_unfolded():
    model = Branching()
    net, report = compact(model, masks := hide(model, *ALL), "channel", images(), fold=True, timer=lambda nets, rounds: dict.fromkeys(nets, 1.0))
    assert net.one.weight.shape[0] == 6
    assert "channels cannot be followed, so the masked dense net is kept" in report.notes[0]
    assert "torch.fx cannot trace" in report.left["norm"]
    assert_same(net, model, masks, images())


def test_a_slimmed_net_is_checked_on_the_example(monkeypatch):
    module = importlib.import_module("sparsekern.deploy.compact")       # the name in the package is the function
    model = Net()

    def wrong(plain, groups, keep):
        made = copy.deepcopy(plain)
        made.out.bias.data += 1
        return made

    monkeypatch.setattr(module, "slim", wrong)
    net, report = compact(model, hide(model, *ALL), "channel", images(), timer=quick)
    assert torch.equal(net.out.bias, model.out.bias)
    assert "the slimmed net would differ by" in report.notes[0]


# Folding.

def sequential(layer, norm):
    torch.manual_seed(1)
    model = nn.Sequential(layer, norm)
    lively(model)
    return model.eval().requires_grad_(False)


def assert_folds(model, x, bound=1e-5):
    want = model(x)
    folded, left = fold_norms(model, x)
    assert (folded, left) == (("1",), {})
    assert isinstance(model[1], nn.Identity)
    assert (model(x) - want).abs().max() <= bound * want.abs().max()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_norms_fold_into_every_kind_of_layer(bias, affine):
    x, flat, draws = torch.randn(2, 8, 6, 6), torch.randn(5, 8), torch.Generator().manual_seed(0)
    conv, linear = nn.Conv2d(8, 8, 3, bias=bias), nn.Linear(8, 8, bias=bias)
    mask, mask_flat = torch.rand(conv.weight.shape, generator=draws) < 0.3, torch.rand(8, 8, generator=draws) < 0.3
    for layer in (conv, nn.Conv2d(8, 8, 3, groups=8, bias=bias), SparseConv2d.from_dense(conv, mask), NMConv2d.from_dense(conv, 2, 4),
                  *(NMConv2d.from_dense(conv, 2, 4).pack(backend=name) for name in ("packed", "csr", "dense")),
                  SparseConv2d.from_dense(conv, mask, backend="dense")):
        assert_folds(sequential(layer, nn.BatchNorm2d(8, affine=affine)), x)
    for layer in (linear, SparseLinear.from_dense(linear, mask_flat), SparseLinear.from_dense(linear, mask_flat).for_inference(),
                  NMLinear.from_dense(linear, 2, 4), *(NMLinear.from_dense(linear, 2, 4).pack(backend=name) for name in ("packed", "dense"))):
        assert_folds(sequential(layer, nn.BatchNorm1d(8, affine=affine)), flat)


def test_norms_fold_into_half_values():
    conv = nn.Conv2d(8, 8, 3).bfloat16()
    assert_folds(sequential(conv, nn.BatchNorm2d(8).bfloat16()), torch.randn(2, 8, 6, 6).bfloat16(), 0.05)


class Odd(nn.Module):
    """A norm where one cannot be folded, by what `way` says."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.way, self.conv, self.norm = way, nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, track_running_stats=way != "batch")
        self.flat, self.norm1 = nn.Linear(6, 6), nn.BatchNorm1d(3)
        if way == "tied":
            self.other = nn.Conv2d(3, 3, 3, padding=1)
            self.other.weight = self.conv.weight
        elif way == "own":
            self.conv = Standardised(3, 3, 3, padding=1)
        elif way == "hooked":
            self.conv.register_forward_hook(lambda module, inputs, output: output + 1)
        lively(self)
        self.eval()

    def forward(self, x):
        y = self.conv(x)
        if self.way == "relu":
            return self.norm(F.relu(y))
        if self.way == "read":
            return self.norm(y) + y
        if self.way == "twice":
            return self.norm(self.conv(y))
        if self.way == "norm twice":
            return self.norm(self.norm(y))
        if self.way == "weight":
            return self.norm(y) * self.conv.weight.sum()
        if self.way == "tied":
            return self.other(self.norm(y))
        if self.way == "dimension":
            return self.norm1(self.flat(x[:, :, 0]))
        return self.norm(y)


class Standardised(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


@pytest.mark.parametrize("way, why", [
    ("relu", "not the output of a convolution"), ("read", "read elsewhere"), ("twice", "used in several places"), ("tied", "shares its parameters"),
    ("norm twice", "used in several places"), ("weight", "used in several places"), ("own", "forward of its own"), ("hooked", "hooks"),
    ("batch", "normalises by the batch"), ("dimension", "another dimension")])
@torch.no_grad()
def test_norms_that_cannot_be_folded_stay_and_are_named(way, why):
    model, x = Odd(way), torch.randn(2, 3, 6, 6)
    want = model(x)
    folded, left = fold_norms(model, x)
    name = "norm1" if way == "dimension" else "norm"
    assert name not in folded
    assert why in left[name]
    assert torch.equal(model(x), want)


# Input.

@pytest.mark.parametrize("change, words", [
    ({"pattern": "rows"}, "pattern: expected \"dense\""), ({"pattern": "4:2"}, "pattern: expected"), ({"pattern": None}, "pattern: expected"),
    ({"backend": "fast"}, "backend: expected one of auto"), ({"prefer": "size"}, "prefer: expected one of speed, memory"),
    ({"groups": "fx"}, "groups: expected one of own, torch-pruning"),
    ({"rounds": 0}, "rounds: expected"), ({"dtype": torch.int8}, "dtype: expected a floating type"), ({"device": "tpu"}, "device: expected"),
    ({"device": "meta"}, "there are no kernels"), ({"masks": {"three.weight": torch.ones(2).bool()}}, "'three.weight' is no parameter"),
    ({"masks": {"one.weight": torch.ones(6, 3, 3, 3)}}, "expected a bool tensor of shape"),
    ({"masks": {"one.weight": torch.ones(5, dtype=torch.bool)}}, r"got torch.bool \[5\]"), ({"masks": {"one.weight": None}}, "got NoneType"),
    ({"example": torch.zeros(0, 3, 8, 8)}, "at least one input"), ({"example": torch.zeros(2, 4, 8, 8)}, "the model does not take"),
    ({"example": torch.zeros(())}, "at least one input")])
def test_what_makes_no_sense_is_refused(change, words):
    model = Net()
    before = copy.deepcopy(model.state_dict())
    options = {"masks": {}, "pattern": "dense", "example": images()} | change
    with pytest.raises(ValueError, match=words):
        compact(model, timer=quick, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("change, words", [({"masks": None}, "masks: expected"), ({"example": [1]}, "example: expected a tensor"),
                                           ({"model": "resnet20"}, "model: expected a module")])
def test_other_types_are_refused(change, words):
    options = {"model": Net(), "masks": {}, "pattern": "dense", "example": images()} | change
    with pytest.raises(TypeError, match=words):
        compact(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_cuda_that_is_missing_is_named():
    with pytest.raises(ValueError, match="this torch .* (is built without CUDA|finds no GPU)"):
        compact(Net(), {}, "dense", images(), device="cuda")


def test_a_model_with_a_sparsifier_is_refused():
    model = Net()
    model.one.forward = model.one.forward
    with pytest.raises(ValueError, match="another forward is attached"):
        compact(model, {}, "dense", images())
    attached = Net()
    forwards = Attached(attached, find_layers(attached))
    with pytest.raises(ValueError, match="has a sparsifier already"):
        compact(attached, {}, "dense", images())
    forwards.remove()
    compact(attached, {}, "dense", images(), timer=quick)


def test_several_outputs_are_refused():
    class Two(Net):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(ValueError, match="expected one tensor as its output, got tuple"):
        compact(Two(), {}, "dense", images())


def test_tied_and_unreached_layers_stay_dense():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.never = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.two.weight = self.one.weight

        def forward(self, x):
            return self.two(self.one(x))

    mask = torch.rand(8, 8) < 0.5
    net, report = compact(Tied(), {"one.weight": mask, "two.weight": mask, "never.weight": mask}, "unstructured", torch.randn(3, 8), timer=quick)
    assert all(isinstance(module, nn.Linear) for module in (net.one, net.two, net.never))
    assert "tied" in report["one"].reason
    assert report["never"].reason == "the forward pass does not reach it"
    assert bool((net.two.weight[~mask] == 0).all())


def test_a_model_in_training_is_left_in_training():
    model = Net().train()
    net, _ = compact(model, {}, "dense", images(), timer=quick)
    assert model.training
    assert model.one.weight.requires_grad
    assert not net.training


def test_inputs_that_are_no_images():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(32, 4)).eval()
    mask = torch.rand(4, 32) < 0.5
    net, report = compact(model, {"2.weight": mask}, "unstructured", torch.randint(10, (5, 4)), timer=quick, dtype=torch.float64)
    assert isinstance(net[2], SparseLinear)
    assert report.flops is None
    assert "FLOPs are not counted" in report.notes[0]
    assert "not counted" in str(report)

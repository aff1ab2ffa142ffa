"""sparsify exchanges layers in place, meets the sparsity exactly, keeps the dense product where it is faster, and names what it left."""
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsekern
from sparsekern import ops
from sparsekern.nn import SparseConv2d, SparseLinear, SparseWeight, choose
from sparsekern.sparsity import sparsify
from sparsekern.sparsity.allocation import erdos_renyi
from sparsekern.testing import assert_close, small_convnet, toy_batch


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """Convolutions pretend to be faster sparse, linear layers dense. Yields the inputs that were measured."""
    inputs = []

    def timed(layer, x):
        inputs.append((type(layer).__name__, tuple(x.shape), x.dtype))
        return 0.001 if (layer.backend == "csr") == isinstance(layer, SparseConv2d) else 0.004
    monkeypatch.setattr(choose, "_forward_and_backward", timed)
    choose._measured.clear()
    yield inputs
    choose._measured.clear()


def sparse_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseWeight)}


# ---- worked example ----

def test_worked_example(measured):
    net = small_convnet()
    x, _ = toy_batch(0, size=6)
    statistics = net[1].running_mean.clone()
    report = sparsify(net, 0.8, example=x)
    assert isinstance(net[0], SparseConv2d) and isinstance(net[11], SparseLinear) and isinstance(net[1], nn.BatchNorm2d)
    assert [layer.name for layer in report] == ["0", "3", "6", "11"] and report.left_dense == {}
    sizes = [8 * 27, 16 * 72, 16 * 16, 4 * 64]
    assert report.nnz == sum(module.nnz for module in sparse_layers(net).values()) == int(0.2 * sum(sizes) + 0.5)
    # Erdos-Renyi over the flattened weights, kernel included in the fan-in
    assert [layer.nnz for layer in report] == erdos_renyi([(8, 27), (16, 72), (16, 16), (4, 64)], report.nnz)
    assert [layer.backend for layer in report] == ["csr", "csr", "csr", "dense"]
    assert report["11"].sparse_ms == 4.0 and report["11"].dense_ms == 1.0 and "the dense product is kept" in report["11"].reason
    assert {(kind, shape) for kind, shape, _ in measured} == {
        ("SparseConv2d", (6, 3, 8, 8)), ("SparseConv2d", (6, 8, 8, 8)), ("SparseConv2d", (6, 16, 3, 3)), ("SparseLinear", (6, 64))}
    assert torch.equal(net[1].running_mean, statistics) and net.training
    table = str(report)
    assert "sparsity 0.8" in table and "16x8x3x3" in table and "sparse takes 4.0x the time" in table


def test_it_trains():
    net = small_convnet()
    sparsify(net, 0.5, backend="csr")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(30):
        x, y = toy_batch(step)
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


# ---- what is kept ----

def test_random_keeps_nothing_and_repeats():
    net = small_convnet()
    same, other, dense = copy.deepcopy(net), copy.deepcopy(net), copy.deepcopy(net)
    for model, seed in ((net, 3), (same, 3), (other, 4)):
        sparsify(model, 0.7, backend="csr", seed=seed)
    states = [model.state_dict() for model in (net, same, other)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not torch.equal(states[0]["3.col"], states[2]["3.col"])
    weights = net[3].to_dense().weight
    assert not torch.equal(weights, dense[3].weight * (weights != 0))
    assert not torch.equal(net[0].col[:20], net[3].col[:20])        # each layer draws its own


@pytest.mark.parametrize("allocation", ["er", "erk", "uniform", "global"])
def test_magnitude_keeps_the_largest(allocation):
    net = small_convnet()
    dense = copy.deepcopy(net)
    report = sparsify(net, 0.6, allocation=allocation, keep="magnitude", backend="csr")
    assert report.nnz == int(0.4 * sum(dense[i].weight.numel() for i in (0, 3, 6, 11)) + 0.5)
    floor = []
    for index in (0, 3, 6, 11):
        kept = net[index].to_dense().weight.detach()
        assert torch.equal(kept, dense[index].weight * (kept != 0))
        smallest, largest_gone = net[index].values.abs().min(), dense[index].weight.abs().masked_fill(kept != 0, 0).max()
        assert smallest >= largest_gone
        floor.append((smallest, largest_gone))
    if allocation == "global":
        assert min(kept for kept, _ in floor) >= max(gone for _, gone in floor)
    if allocation == "uniform":
        assert all(abs(layer.sparsity - 0.6) < 0.01 for layer in report)
    x, _ = toy_batch(0)
    for index in (0, 3, 6, 11):
        dense[index].weight.data *= net[index].to_dense().weight != 0
    assert_close(net.eval()(x), dense.eval()(x).double(), reduction=72)


def test_given_masks():
    net = small_convnet()
    dense = copy.deepcopy(net)
    masks = {"3.weight": torch.rand_like(net[3].weight) < 0.3, "11.weight": torch.rand_like(net[11].weight) < 0.5}
    report = sparsify(net, masks=masks, backend="csr")
    assert [layer.name for layer in report] == ["3", "11"] and isinstance(net[0], nn.Conv2d)
    for name, mask in masks.items():
        index = int(name.split(".")[0])
        assert torch.equal(net[index].to_dense().weight, dense[index].weight * mask)


def test_frozen_eval_and_half_stay_so():
    net = nn.Sequential(nn.Linear(20, 10), nn.Conv2d(2, 2, 3)).to(torch.bfloat16)
    net[0].weight.requires_grad_(False)
    net[1].eval()
    sparsify(net, 0.5, backend="csr")
    assert net[0].values.dtype == torch.bfloat16 and not net[0].values.requires_grad and net[0].bias.requires_grad
    assert not net[1].training and net[0].training


# ---- where measurements are taken ----

def test_assumed_inputs(measured):
    report = sparsify(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 5)), 0.5)
    assert {shape for _, shape, _ in measured} == {(128, 3, 16, 16), (128, 36)}
    assert all("assumed input: pass example=" in layer.reason for layer in report)


@pytest.mark.parametrize("backend", ["csr", "dense"])
def test_asked_for(measured, backend):
    net = small_convnet()
    report = sparsify(net, 0.5, backend=backend)
    assert all(layer.backend == backend and layer.sparse_ms is None and "was asked for" in layer.reason for layer in report)
    assert not measured and {module.backend for module in sparse_layers(net).values()} == {backend}


def test_examples_of_every_kind(measured):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(2, 2)

        def forward(self, x, y=None):
            assert not self.training and not torch.is_grad_enabled()
            return self.a(x) + (self.a(x[:1]) if y is None else self.b(input=y))
    for example, inputs in ((torch.ones(3, 6), {(3, 6), (128, 6), (128, 2)}), ((torch.ones(3, 6), torch.ones(3, 6)), {(3, 6), (128, 2)}),
                            ({"x": torch.ones(2, 6), "y": torch.ones(2, 6).double().float()}, {(2, 6), (128, 2)})):
        measured.clear()
        choose._measured.clear()
        model = Two()
        model.b.eval()
        sparsify(model, 0.5, example=example)
        assert {shape for _, shape, _ in measured} == inputs
        assert model.training and model.a.training and not model.b.training


# ---- what is left dense ----

def test_what_cannot_be_exchanged_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.embedding = nn.MultiheadAttention(8, 2), nn.Embedding(9, 8)
            self.head, self.own = nn.Linear(8, 9), Doubled(8, 8)
            self.head.weight = self.embedding.weight
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
            self.second.weight = self.first.weight
            self.twice = self.again = nn.Linear(8, 8)
            self.plain, self.hooked = nn.Linear(8, 8), nn.Linear(8, 8)
            self.hooked.register_forward_hook(lambda module, inputs, output: output)

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)
    net = Net()
    report = sparsify(net, 0.5, backend="csr")
    assert [layer.name for layer in report] == ["plain"] and list(sparse_layers(net)) == ["plain"]
    assert report.left_dense == {
        "attention.out_proj.weight": "its weight is read outside its own forward", "head.weight": "its weight is read outside its own forward",
        "own.weight": "Doubled has a forward of its own", "first.weight": "tied: 2 modules share it",
        "twice.weight": "its module is used in several places", "hooked.weight": "hooks are registered on its module; remove them first"}
    assert "left dense: first.weight: tied" in str(report)


@pytest.mark.parametrize("options, names", [
    ({"skip_first": True}, ["3", "6", "11"]), ({"skip_last": True}, ["0", "3", "6"]), ({"only": r"^(3|6)\."}, ["3", "6"]),
    ({"exclude": "6"}, ["0", "3", "11"])])
def test_choice_of_layers(options, names):
    assert [layer.name for layer in sparsify(small_convnet(), 0.5, backend="csr", **options)] == names


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_in_inference(norm_first):
    """torch's fused inference paths would read weights that are not there."""
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=not norm_first)
    report = sparsify(encoder, 0.5, backend="csr")
    assert len(report) == 4 and len(report.left_dense) == 2
    x, padding = torch.randn(2, 5, 16), torch.tensor([[False] * 3 + [True] * 2, [False] * 5])
    encoder.eval()
    want = encoder(x, src_key_padding_mask=padding).detach()
    with torch.no_grad():
        assert_close(encoder(x, src_key_padding_mask=padding)[:, :3], want[:, :3].double(), reduction=32)
        assert encoder(x).shape == x.shape


# ---- misuse ----

@pytest.mark.parametrize("options, words", [
    ({"sparsity": 0.5, "allocation": "even"}, "allocation: expected one of er, erk, uniform, global, got 'even'"),
    ({"sparsity": 0.5, "keep": "some"}, "keep: expected one of random, magnitude"), ({"sparsity": 0.5, "backend": "gpu"}, "backend: expected one of"),
    ({}, "either sparsity or masks, got neither"), ({"sparsity": 0.5, "masks": {}}, "got both"),
    ({"sparsity": 80}, r"sparsity: expected a fraction of zeros in \[0, 1\), got 80; did you mean 0.8"),
    ({"sparsity": 0.5, "allocation": "global"}, 'needs keep="magnitude"'),
    ({"sparsity": 0.9995, "allocation": "uniform"}, "leaves 0.weight, .*without a weight; lower it, choose another allocation"),
    ({"sparsity": 0.5, "only": "nothing"}, "nothing to exchange"),
    ({"masks": {"2.weight": torch.ones(1)}}, "'2.weight' cannot be exchanged; expected names among 0.weight, 3.weight, 6.weight, 11.weight"),
    ({"masks": {"3.weight": torch.ones(1, dtype=torch.bool)}}, "mask: expected a bool tensor of the weight's shape"),
])
def test_misuse_changes_nothing(options, words):
    net = small_convnet()
    before, modules = copy.deepcopy(net.state_dict()), list(net.modules())
    with pytest.raises(ValueError, match=words):
        sparsify(net, **options)
    assert list(net.modules()) == modules and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_misuse_of_other_kinds():
    with pytest.raises(ValueError, match="the model is itself a Linear .* SparseLinear.from_shape"):
        sparsify(nn.Linear(3, 3), 0.5)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"))
    with pytest.raises(ValueError, match="padding_mode"):
        sparsify(net, 0.5)
    assert not sparse_layers(net)
    with pytest.raises(ValueError, match="nothing to exchange"):
        sparsify(nn.ReLU(), 0.5)


def test_front_page():
    assert sparsekern.sparsify is sparsify and sparsekern.nn.SparseLinear is SparseLinear and ops.csr_linear is not None

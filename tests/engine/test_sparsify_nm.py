"""sparsify_nm and pack_nm: which layers take an N:M mask, what is told of the others, and what a model computes before and after."""
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsekern.nn import NMConv2d, NMLinear, PackedNMConv2d, PackedNMLinear
from sparsekern.sparsity import NM, pack_nm, sparsify_nm
from sparsekern.testing import assert_close, small_convnet, toy_batch


def bits(model):
    return {key: (value.data_ptr(), value.clone()) for key, value in model.state_dict().items()}


def assert_unchanged(model, before):
    after = bits(model)
    assert after.keys() == before.keys()
    assert all(after[key][0] == address and torch.equal(after[key][1], value) for key, (address, value) in before.items())


@pytest.mark.parametrize("pattern, n, m", [("2:4", 2, 4), ("1:8", 1, 8), ("zeros 3:4", 1, 4), ("zeros 7:8", 1, 8), (NM(4, 8), 4, 8)])
def test_layers_are_exchanged_and_parameters_stay(pattern, n, m):
    model = small_convnet()
    parameters, keys = dict(model.named_parameters()), list(model.state_dict())
    report = sparsify_nm(model, pattern, backend="dense")
    assert [type(model[i]) for i in (0, 3, 6, 11)] == [nn.Conv2d, NMConv2d, NMConv2d, NMLinear]
    assert [(layer.name, layer.shape, layer.backend) for layer in report] == [
        ("3", (16, 8, 3, 3), "dense"), ("6", (16, 16, 1, 1), "dense"), ("11", (4, 64), "dense")]
    assert report.nnz == (16 * 8 * 9 + 16 * 16 + 4 * 64) * n // m and report["6"].nnz == 256 * n // m and report["6"].sparsity == 1 - n / m
    assert report["3"].reason == 'backend="dense" was asked for' and report["3"].dense_ms is None
    assert dict(report.left_dense) == {"0.weight": f"its 3 inputs do not divide into groups of {m}"}
    assert list(model.state_dict()) == keys and all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert all((model[i].n, model[i].m) == (n, m) for i in (3, 6, 11))


def test_what_is_left_dense_says_why():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 16, 1),
                          nn.Flatten(), nn.Linear(16, 8))
    report = sparsify_nm(model, "1:8", backend="dense", skip_last=True)
    assert [layer.name for layer in report] == ["2"]
    assert dict(report.left_dense) == {
        "0.weight": "a depthwise convolution (8 groups of channels) has no dense product along its input channels",
        "1.weight": "a grouped convolution (2 groups of channels) has no dense product along its input channels",
        "3.weight": "its 12 inputs do not divide into groups of 8"}
    assert "left dense: 3.weight: its 12 inputs" in str(report)


def test_measured_where_asked_for():
    model, example = small_convnet(), toy_batch(0)[0]
    report = sparsify_nm(model, "1:8", example=example)
    assert all(layer.sparse_ms > 0 and layer.dense_ms > 0 for layer in report)
    assert all(layer.backend == ("csr" if layer.sparse_ms < layer.dense_ms else "dense") for layer in report)
    assert report["11"].reason.startswith("input [32, 64]: sparse ") and "assumed" not in report["11"].reason
    assert [model[i].backend for i in (3, 6, 11)] == [layer.backend for layer in report]
    packed = pack_nm(model, example=example)
    assert [model[i].backend for i in (3, 6, 11)] == [layer.backend for layer in packed]
    assert all(layer.backend == "dense" or layer.sparse_ms < layer.dense_ms for layer in packed)
    assert "(an assumed input: pass example= to measure at yours)" in sparsify_nm(small_convnet(), "1:8", only="^11")["11"].reason


@pytest.mark.parametrize("backend", ["csr", "dense"])
@pytest.mark.parametrize("gradient", ["straight_through", "sr_ste", "masked"])
def test_a_model_trains_is_packed_and_computes_the_same(backend, gradient):
    torch.manual_seed(0)
    model = small_convnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)                 # before the exchange: it goes on
    sparsify_nm(model, "2:8", gradient=gradient, backend=backend)
    losses = []
    for step in range(40):
        x, labels = toy_batch(step)
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    x, size = toy_batch(99)[0], sum(value.nbytes for value in model.state_dict().values())
    want, masked = model.eval()(x), model[3].masked_weight()
    report = pack_nm(model, backend="packed")
    assert [type(model[i]) for i in (3, 6, 11)] == [PackedNMConv2d, PackedNMConv2d, PackedNMLinear] and len(report) == 3
    assert torch.equal(model[3].to_dense().weight, masked)
    assert_close(model(x), want.double(), reduction=64)
    assert sum(value.nbytes for value in model.state_dict().values()) < 0.7 * size
    other = small_convnet()
    sparsify_nm(other, "2:8", backend="dense")
    pack_nm(other, backend="dense")
    other.load_state_dict(model.state_dict())
    assert_close(other.eval()(x), want.double(), reduction=64)


def test_an_encoder_computes_with_its_masks():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    model, x = nn.TransformerEncoder(copy.deepcopy(layer), 1), torch.randn(2, 5, 16)
    report = sparsify_nm(model.eval(), "1:4", backend="dense")
    assert {"layers.0.linear1", "layers.0.linear2"} == {row.name for row in report}
    assert "read outside its own forward" in report.left_dense["layers.0.self_attn.out_proj.weight"]
    with torch.no_grad():                                   # the fused path would read the dense weights
        layer.linear1.weight.copy_(model.layers[0].linear1.masked_weight())
        layer.linear2.weight.copy_(model.layers[0].linear2.masked_weight())
        for name, value in layer.state_dict().items():
            if not name.startswith("linear"):
                value.copy_(model.layers[0].state_dict()[name])
        assert_close(model(x), layer(x).double(), reduction=64)
        pack_nm(model, backend="packed")
        assert_close(model(x), layer(x).double(), reduction=64)


def test_a_module_in_two_places_is_packed_once():
    shared = NMLinear(8, 8, 1, 4)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU()), "b": nn.Sequential(shared)})
    assert len(pack_nm(model, backend="packed")) == 1
    assert isinstance(model["a"][0], PackedNMLinear) and model["a"][0] is model["b"][0]


@pytest.mark.parametrize("options, words", [
    ({"pattern": "8:2"}, "expected 1 to 2 weights kept"), ({"pattern": "2/4"}, "expected n:m"), ({"pattern": "1:65"}, "expected groups of 1 to 64"),
    ({"backend": "packed"}, "sparsify_nm: backend: expected one of auto, csr, dense"), ({"gradient": "ste"}, "gradient: expected one of"),
    ({"lambda_w": 0.1}, "lambda_w: expected"), ({"refresh": "never"}, "refresh: expected one of"),
    ({"only": "nothing"}, "sparsify_nm: nothing to exchange"), ({"pattern": "1:13"}, "no nn.Linear or nn.Conv2d takes 1:13; 0.weight: its 3 inputs")])
def test_misuse_leaves_the_model_alone(options, words):
    model = small_convnet()
    before, kinds = bits(model), [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=words):
        sparsify_nm(model, **options)
    assert_unchanged(model, before)
    assert [type(module) for module in model.modules()] == kinds


def test_misuse_of_pack():
    model = small_convnet()
    with pytest.raises(ValueError, match="pack_nm: nothing to exchange: the model has no NMLinear or NMConv2d; sparsify_nm makes them"):
        pack_nm(model)
    with pytest.raises(ValueError, match="pack_nm: backend: expected one of auto, packed, dense, got 'csr'"):
        pack_nm(model, backend="csr")
    with pytest.raises(ValueError, match=r"the model is itself an NMLinear and cannot be exchanged in place; use its pack\(\)"):
        pack_nm(NMLinear(8, 8, 1, 4))
    with pytest.raises(ValueError, match="sparsify_nm: the model is itself a Linear .* use NMLinear.from_dense"):
        sparsify_nm(nn.Linear(8, 8))

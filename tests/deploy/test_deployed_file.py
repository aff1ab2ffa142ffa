"""A deployed net as one file: what is loaded computes what was saved, and nothing else than such a file is taken."""
import json
import struct

import pytest
import torch
from torch import nn

from sparsekern.deploy import load_deployed, save_deployed
from sparsekern.deploy.deployed_file import FORMAT, read_deployed
from sparsekern.nn import NMConv2d, NMLinear, PackedNMConv2d, SparseConv2d, SparseLinear
from sparsekern.sparsity.channel_groups import find_channel_groups
from sparsekern.sparsity.slim import slim
from sparsekern.sparsity.sparsify import sparsify
from sparsekern.support.models import build_model, outline
from sparsekern.support.tensor_file import load_tensors, save_tensors

SHAPE = (1, 8, 8)


def facts(name):
    return {"name": name, "classes": 10, "shape": SHAPE}


def images(count):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(count))


def fresh(name):
    torch.manual_seed(0)
    model = build_model(name, shape=SHAPE).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    return model


def slimmed(name):
    model = fresh(name)
    groups = [group for group in find_channel_groups(model, images(1)) if not group.fixed]
    return slim(model, groups, {group.name: torch.arange(group.channels) % 4 < 3 for group in groups})


def sparse(name, backend="csr"):
    model = fresh(name)
    sparsify(model, 0.8, keep="magnitude", allocation="global", backend=backend)
    return model


def packed(name):
    """Every layer that 2:4 fits, each with another product."""
    model, count = fresh(name), 0
    for layer_name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.weight.shape[1] % 4 == 0:
            kind = NMLinear if isinstance(layer, nn.Linear) else NMConv2d
            form = kind.from_dense(layer, 2, 4).pack(backend="packed")
            form.backend = form.backends[count % len(form.backends)]
            model.set_submodule(layer_name, form)
            count += 1
    return model.eval()


def folded(name):
    """A norm is gone and its convolution has a bias."""
    model = slimmed(name)
    conv = model.convs[1]
    conv.bias = nn.Parameter(torch.linspace(-1, 1, conv.out_channels))
    model.norms[1] = nn.Identity()
    return model


@pytest.mark.parametrize("name, make", [
    ("small_cnn", fresh), ("small_cnn", slimmed), ("small_cnn", sparse), ("small_cnn", packed), ("small_cnn", folded), ("resnet20", slimmed),
    ("resnet20-b", sparse), ("mlp:16,8", packed), ("mlp:16,8", sparse), ("mobilenet-v1", slimmed), ("mobilenet-v1", sparse), ("wrn-22-2", slimmed),
])
def test_loaded_equals_saved(tmp_path, name, make):
    saved = make(name)
    path = save_deployed(saved, None, tmp_path / "net.safetensors", model=facts(name), subnet="s90")
    loaded = load_deployed(path)
    assert not loaded.training and list(tmp_path.iterdir()) == [path] and read_deployed(path)["facts"] == {"subnet": "s90"}
    assert [type(module) for module in loaded.modules()] == [type(module) for module in saved.modules()]
    assert [repr(module) for module in loaded.modules()] == [repr(module) for module in saved.modules()]
    assert {key: value.dtype for key, value in loaded.state_dict().items()} == {key: value.dtype for key, value in saved.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(loaded(images(3)), saved(images(3)))
    again = load_deployed(path, model=build_model(name, shape=SHAPE))
    assert torch.equal(again(images(3)), saved(images(3)))


def test_the_file_holds_only_what_is_there(tmp_path):
    dense, less = (save_deployed(net, None, tmp_path / name, model=facts("small_cnn")).stat().st_size
                   for name, net in (("a", fresh("small_cnn")), ("b", sparse("small_cnn"))))
    assert less < 0.45 * dense                              # 20 % of the weights, twice 4 bytes each


def test_a_net_for_sparse_tensor_cores_comes_back(tmp_path):
    net = nn.Sequential(NMLinear.from_dense(nn.Linear(32, 16), 2, 4).half().pack(backend="sp24")).eval()
    loaded = load_deployed(save_deployed(net, None, tmp_path / "net"), nn.Sequential(nn.Linear(32, 16)))
    assert loaded[0].backend == "sp24" and torch.equal(loaded[0].v, net[0].v) and torch.equal(loaded[0].e, net[0].e)


def test_inference_only_layers_stay_so(tmp_path):
    net = nn.Sequential(SparseLinear.from_shape(8, 6, sparsity=0.5).for_inference()).eval()
    loaded = load_deployed(save_deployed(net, None, tmp_path / "net"), nn.Sequential(nn.Linear(8, 6)))
    x = torch.rand(3, 8)
    assert loaded[0].inference_only and "perm" not in loaded[0]._buffers and torch.equal(loaded(x), net(x))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_channels_last_and_half_precision_come_back(tmp_path):
    saved = slimmed("small_cnn").to(memory_format=torch.channels_last).half()
    loaded = load_deployed(save_deployed(saved, None, tmp_path / "net", model=facts("small_cnn")))
    assert loaded.convs[1].weight.stride() == saved.convs[1].weight.stride() and loaded.convs[1].weight.dtype == torch.float16
    assert torch.equal(loaded.convs[1].weight, saved.convs[1].weight)


class Report:
    def to_dict(self):
        return {"pattern": "unstructured", "latency_ms": 1.5, "difference": float("nan")}


def test_a_net_that_is_one_layer(tmp_path):
    layer = SparseLinear.from_dense(nn.Linear(8, 4), torch.rand(4, 8) > 0.5).for_inference()
    save_deployed(layer, None, tmp_path / "net")
    loaded, x = load_deployed(tmp_path / "net", nn.Linear(8, 4)), torch.rand(3, 8)
    assert type(loaded) is SparseLinear and torch.equal(loaded(x), layer(x)) and not loaded.values.requires_grad


def test_the_report_travels_with_the_net(tmp_path):
    path = save_deployed(sparse("mlp:8"), Report(), tmp_path / "net", model=facts("mlp:8"))
    assert load_deployed(path).deployment == {"pattern": "unstructured", "latency_ms": 1.5, "difference": None}


def test_a_net_of_ones_own(tmp_path):
    own = nn.Sequential(SparseConv2d.from_shape(2, 6, 3, sparsity=0.5, groups=2, padding="same"), nn.Flatten(), SparseLinear.from_shape(
        96, 5, sparsity=0.9, bias=False)).eval()
    path = save_deployed(own, None, tmp_path / "net")
    with pytest.raises(ValueError, match="net: it names no architecture; pass model="):
        load_deployed(path)
    loaded = load_deployed(path, nn.Sequential(nn.Conv2d(2, 6, 3, groups=2, padding="same"), nn.Flatten(), nn.Linear(96, 5, bias=False)))
    x = torch.rand(2, 2, 4, 4)
    assert torch.equal(loaded(x), own(x)) and loaded[0].groups == 2 and loaded[2].bias is None


@pytest.mark.parametrize("other, words", [
    ("resnet20", "no such layer"), ("mlp:8", "expected widths of 1 to 8, got 16|expected at most"), ("mlp:16,16", "missing")])
def test_another_architecture_is_named(tmp_path, other, words):
    path = save_deployed(sparse("mlp:16"), None, tmp_path / "net", model=facts("mlp:16"))
    with pytest.raises(ValueError, match=f"^net: .*({words})"):
        load_deployed(path, build_model(other, shape=SHAPE))
    with pytest.raises(ValueError, match=words):
        save_deployed(sparse("mlp:16"), None, tmp_path / "other", model=facts(other))
    assert [file.name for file in tmp_path.iterdir()] == ["net"]


def test_layers_without_a_form_are_refused(tmp_path):
    with pytest.raises(ValueError, match="0: HeldBack has no form in a file"):
        save_deployed(nn.Sequential(type("HeldBack", (SparseLinear,), {}).from_shape(4, 4, sparsity=0.5)), None, tmp_path / "net")
    assert not list(tmp_path.iterdir())


# ---- damaged and hostile files ----

def forged(path, change):
    """The file again after `change(tensors, meta)`, with a right checksum."""
    tensors, meta = load_tensors(path, FORMAT, "")
    change(tensors, meta)
    return save_tensors(path, FORMAT, tensors, meta)


def form(**values):
    return lambda tensors, meta: meta["layers"]["hidden.0"].update(values)


def model(**values):
    return lambda tensors, meta: meta["model"].update(values)


def entry(name, at, value):
    def change(tensors, meta):
        tensors[name][at] = value
    return change


def put(name, tensor):
    return lambda tensors, meta: tensors.update({name: tensor})


@pytest.mark.parametrize("change, words", [
    (entry("hidden.0.col", 0, 99), "col: expected columns in"), (entry("hidden.0.col", 0, -1), "col: expected columns in"),
    (entry("hidden.0.crow", 0, 3), "crow"), (entry("hidden.0.crow", -1, 1 << 30), "crow"),
    (lambda t, m: t.pop("hidden.0.col"), "col: expected a tensor"), (lambda t, m: t.pop("classifier.bias"), "classifier.bias: missing"),
    (put("hidden.0.col", torch.zeros(3)), "expected"), (put("more", torch.zeros(1)), "more: the architecture has no place"),
    (put("hidden.0.values", torch.zeros(2, 2)), "values: expected one floating"),
    (form(widths=[1 << 60, 16]), "expected widths of 1 to 64"), (form(widths=[64, 0]), "expected widths of 1 to 16"),
    (form(widths=[True, 16]), "widths"),
    (form(widths=[64.0, 16]), "widths"), (form(widths="no"), "widths"), (form(widths=None), "sound"),
    (form(backend="rm"), 'expected "csr" or "dense"'),
    (form(backend=["csr"]), "backend|sound"),
    (form(kind="eval"), "expected one of SparseLinear"), (form(kind="Identity"), "expected one of SparseLinear"), (form(kind=[]), "expected|sound"),
    (form(kind="SparseConv2d"), "expected a form of Linear"), (form(kind="PackedNMLinear"), "sound"),
    (form(kind="PackedNMLinear", n=2, m=4), "values: expected"), (form(kind="PackedNMLinear", n=1 << 40, m=1 << 50), "m: expected a group"),
    (lambda t, m: m["layers"].update({"a.b": {"kind": "Identity"}}), "a.b: the architecture has no such layer"),
    (lambda t, m: m["layers"].update({"": {"kind": "Identity"}}), "expected one of"), (lambda t, m: m.update(layers=[1]), "sound"),
    (lambda t, m: m.update(layers=None), "sound"), (lambda t, m: m.pop("layers"), "sound"), (lambda t, m: m.update(model=[1]), "sound"),
    (model(name=f"mlp:{1 << 45},{1 << 45}"), "sound|hidden"),
    (model(name="mlp:" + "1," * 5000 + "1"), "at most 256 letters"), (model(name=7), "at most 256 letters"),
    (model(name="../x"), "model: expected one of"),
    (model(classes=-1), "positive"), (model(classes="10"), "positive"),
    (model(shape=[1, 8]), "three"), (model(shape=[1, 8, 8.5]), "positive"), (model(shape=8), "sound"),
])
def test_hostile_files_are_refused(tmp_path, change, words):
    path = forged(save_deployed(sparse("mlp:16"), None, tmp_path / "net", model=facts("mlp:16")), change)
    with pytest.raises(ValueError, match=f"(?s)^net: .*({words})") as caught:
        load_deployed(path)
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_packed_positions_are_checked(tmp_path):
    net = packed("small_cnn")
    name = next(name for name, layer in net.named_modules() if isinstance(layer, PackedNMConv2d))
    path = forged(save_deployed(net, None, tmp_path / "net", model=facts("small_cnn")), entry(f"{name}.index", (0, 0), 200))
    with pytest.raises(ValueError, match="index: expected 2 rising positions below 4"):
        load_deployed(path)


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_a_changed_byte_is_seen(tmp_path, place):
    path = save_deployed(sparse("mlp:4"), None, tmp_path / "net", model=facts("mlp:4"))
    content = bytearray(path.read_bytes())
    at = len(content) * place // 100
    content[at] ^= 0x41
    path.write_bytes(content)
    with pytest.raises(ValueError, match="^net: "):
        load_deployed(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "net"
    with pytest.raises(ValueError, match="^net: "):
        load_deployed(path)
    for content in (b"", b"x" * 100, struct.pack("<Q", 1 << 60), struct.pack("<Q", 2) + b"{}", json.dumps({}).encode()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="^net: "):
            load_deployed(path)
    save_tensors(path, "another-1", {"a": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="net: not a deployed net of sparsekern .format 'another-1'"):
        load_deployed(path)


@pytest.mark.parametrize("wide", [{"name": "mlp:6000000,6000000"}, {"classes": 1 << 40}, {"shape": [1, 1 << 20, 1 << 20]}])
def test_a_name_in_the_file_costs_no_memory(tmp_path, wide):
    """What is read is a narrower net of that architecture: that of the tensors."""
    net = sparse("mlp:16,16")
    path = forged(save_deployed(net, None, tmp_path / "net", model=facts("mlp:16,16")), model(**wide))
    assert all(parameter.is_meta for parameter in outline(read_deployed(path)["model"], net.parameters()).parameters())
    loaded = load_deployed(path)
    assert sum(tensor.numel() for tensor in loaded.state_dict().values()) == sum(tensor.numel() for tensor in net.state_dict().values())
    assert torch.equal(loaded(images(2)), net(images(2)))

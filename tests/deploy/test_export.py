"""What leaves the house computes what the net computes: ONNX and torch.export files are run and compared before they get their names."""
import subprocess
import sys

import pytest
import torch
from torch import nn

from sparsekern.deploy import densify, export_onnx, export_program
from sparsekern.deploy import export as export_module
from sparsekern.deploy.export import ExportError
from sparsekern.nn import NMConv2d, NMLinear, SparseConv2d, SparseLinear
from sparsekern.sparsity.channel_groups import find_channel_groups
from sparsekern.sparsity.slim import slim
from sparsekern.sparsity.sparsify import sparsify
from sparsekern.support.models import build_model

SHAPE = (1, 8, 8)


def images(count, shape=SHAPE):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(count))


def slimmed(name="small_cnn", shape=SHAPE):
    torch.manual_seed(0)
    model = build_model(name, shape=shape).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    groups = [group for group in find_channel_groups(model, images(1, shape)) if not group.fixed]
    return slim(model, groups, {group.name: torch.arange(group.channels) % 3 < 2 for group in groups})


def sparse(name="small_cnn", backend="csr"):
    torch.manual_seed(0)
    model = build_model(name, shape=SHAPE).eval()
    sparsify(model, 0.8, keep="magnitude", allocation="global", backend=backend)
    return model


@pytest.mark.parametrize("name", ["small_cnn", "resnet20", "mlp:16,8"])
def test_onnx_file_computes_what_the_slimmed_net_computes(tmp_path, capfd, name):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = slimmed(name)
    assert any(layer.weight.shape != other.weight.shape for layer, other in
               zip(layers(model), layers(build_model(name, shape=SHAPE))))
    path = export_onnx(model.train(), images(4), tmp_path / "net.onnx")
    assert model.training and list(tmp_path.iterdir()) == [path]
    session = onnxruntime.InferenceSession(str(path))
    for count in (1, 3, 9):
        wanted = model.eval()(images(count)).detach()
        got = torch.from_numpy(session.run(["scores"], {"images": images(count).numpy()})[0])
        assert got.shape == (count, 10) and (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert capfd.readouterr() == ("", "")


def layers(model):
    return [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def test_onnx_from_a_batch_of_one_has_a_free_batch_size(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    session = onnxruntime.InferenceSession(str(export_onnx(slimmed("mlp:4"), images(1), tmp_path / "net.onnx")))
    assert session.run(None, {"images": images(5).numpy()})[0].shape == (5, 10)


def test_onnx_refuses_sparse_layers_by_name_and_takes_the_densified_net(tmp_path):
    pytest.importorskip("onnxscript")
    model = sparse()
    with pytest.raises(ExportError, match=r"convs\.0: a SparseConv2d has no ONNX form; densify\(module\)"):
        export_onnx(model, images(2), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())
    assert export_onnx(densify(model), images(2), tmp_path / "net.onnx").stat().st_size > 4 * sum(
        layer.weight.numel() for layer in layers(densify(model)))


def test_densify_is_a_copy_with_the_same_outputs():
    torch.manual_seed(1)
    model = nn.Sequential(NMConv2d.from_dense(nn.Conv2d(4, 8, 3, padding=1, bias=False), 2, 4).pack(backend="packed"), nn.ReLU(),
                          SparseConv2d.from_shape(8, 4, 3, sparsity=0.5, stride=2), nn.Flatten(), SparseLinear.from_shape(36, 8, sparsity=0.8),
                          NMLinear.from_dense(nn.Linear(8, 8), 1, 4).pack(backend="packed"), NMLinear(8, 4, 2, 4)).eval()
    dense, x = densify(model), images(3, (4, 8, 8))
    assert [type(layer) for layer in dense if not isinstance(layer, nn.ReLU | nn.Flatten)] == [
        nn.Conv2d, nn.Conv2d, nn.Linear, nn.Linear, nn.Linear]
    torch.testing.assert_close(dense(x), model(x))
    assert isinstance(model[4], SparseLinear) and int((dense[4].weight != 0).sum()) == model[4].nnz
    assert isinstance(densify(model[4]), nn.Linear)


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ExportError, match=r"^export_onnx: onnxruntime not found: pip install 'sparsekern\[export\]'$"):
        export_onnx(slimmed("mlp:4"), images(2), tmp_path / "net.onnx")


class Drifts(nn.Linear):
    """An exporter sees another net than the one that runs."""

    def forward(self, x):
        return super().forward(x) * (1.001 if torch.compiler.is_compiling() else 1.0)


class Undecided(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_a_file_with_other_outputs_gets_no_name(tmp_path, export):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path, net = tmp_path / "net", Drifts(4, 3)
    path.write_text("the former file")
    with pytest.raises(ExportError, match=r"the file's outputs differ from the net's by 1.0e-03 of the largest one, expected at most 0.0001"):
        export(net, images(2, (4,)), path)
    assert path.read_text() == "the former file" and list(tmp_path.iterdir()) == [path] and net.training


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_a_net_that_cannot_be_traced_is_one_sentence(tmp_path, export):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with pytest.raises(ExportError, match="the net cannot be written: .+") as caught:
        export(Undecided(), images(2, (4,)), tmp_path / "net")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("example", [torch.zeros(0, 1, 8, 8), torch.tensor(1.0), torch.zeros(0)])
@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_no_example_no_file(tmp_path, export, example):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="example: expected a batch of inputs"):
        export(slimmed("mlp:4"), example, tmp_path / "net")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("net", ["slimmed", "csr", "dense", "nm"])
def test_program_computes_what_the_net_computes(tmp_path, capfd, net):
    if net == "nm":
        model = nn.Sequential(NMConv2d.from_dense(nn.Conv2d(1, 8, 3), 1, 1).pack(backend="csr"), nn.Flatten(),
                              NMLinear.from_dense(nn.Linear(288, 10), 2, 4).pack(backend="packed"))
    else:
        model = slimmed() if net == "slimmed" else sparse(backend=net)
    path = export_program(model, images(4), tmp_path / "net.pt2")
    loaded = torch.export.load(path).module()
    for count in (1, 3, 9):
        torch.testing.assert_close(loaded(images(count)), model.eval()(images(count)), rtol=1e-5, atol=1e-6)
    assert list(tmp_path.iterdir()) == [path] and capfd.readouterr() == ("", "")


def test_a_program_with_our_ops_runs_after_the_import(tmp_path):
    path, model = tmp_path / "net.pt2", sparse("mlp:16")
    export_program(model, images(4), path)
    code = f"import torch, sparsekern; print(torch.export.load({str(path)!r}).module()(torch.ones(3, 1, 8, 8)).sum().item())"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=100)
    assert float(done.stdout) == pytest.approx(model(torch.ones(3, 1, 8, 8)).sum().item(), abs=1e-4), done.stderr


def test_program_refuses_a_convolution_in_pieces(tmp_path):
    model = nn.Sequential(nn.Identity(), NMConv2d.from_dense(nn.Conv2d(4, 8, 3), 2, 4).pack(backend="packed"))
    with pytest.raises(ExportError, match=r'1: a PackedNMConv2d with backend="packed" works in pieces .* set its backend to "dense"'):
        export_program(model, images(2, (4, 8, 8)), tmp_path / "net.pt2")
    model[1].backend = "dense"
    assert export_program(model, images(2, (4, 8, 8)), tmp_path / "net.pt2").exists()

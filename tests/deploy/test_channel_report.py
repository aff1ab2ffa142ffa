"""The end of a channel run: the slimmed net on disk, its figures in the report; and the start from weights that are there."""
import copy
import json
from types import SimpleNamespace

import pytest
import torch
from channel_runs import Small, hand_table, make, train
from safetensors.torch import load_file, save_file
from torch import nn

from sparsekern.cli import main
from sparsekern.deploy.channel_report import MEASURED, channel_report, describe, load_slim
from sparsekern.sparsity.latency import LatencyTable, layer_widths
from sparsekern.support.models import build_model
from sparsekern.testing import toy_batch
from sparsekern.training.html import _cards

TINY = ["--model", "small_cnn", "--subset", "64", "--batch-size", "16", "--epochs", "1", "--threads", "1", "--device", "cpu", "--progress", "none",
        "--eval-batch", "500"]


@pytest.fixture(autouse=True)
def light(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr("sparsekern.training.report.render", lambda report: "page")
    yield
    torch.set_num_threads(before)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.json"
    hand_table(build_model("small_cnn", shape=(1, 8, 8)), path, shape=(1, 8, 8))
    return path


@pytest.mark.parametrize("command", [["halp"], ["iee", "--pattern", "channel", "--end", "3", "--h-steps", "1", "--j-steps", "1", "--q-steps", "1"]])
def test_a_channel_run_leaves_a_slimmed_net(tmp_path, capsys, table, command):
    out = tmp_path / "run"
    assert main(["train", *command, "--latency", "0.55", "--table", str(table), *TINY, "--out", str(out)]) == 0
    assert "slimmed net: predicted" in capsys.readouterr().out
    slim = json.loads((out / "report.json").read_text())["slim"]
    full = LatencyTable.load(table).full_ms
    assert slim["predicted_full_ms"] == full and 0.3 * full < slim["predicted_ms"] <= 0.55 * full
    assert slim["measured_ms"] > 0 and slim["measured_full_ms"] > 0 and 0 < slim["speedup_10"] <= slim["speedup"] <= slim["speedup_90"]
    assert slim["fps"] == pytest.approx(1000 * 32 / slim["measured_ms"]) and slim["difference"] < 1e-5
    whole = build_model("small_cnn", shape=(1, 8, 8))
    assert slim["parameters"] < 0.7 * sum(parameter.numel() for parameter in whole.parameters())
    assert slim["file_bytes"] == (out / slim["file"]).stat().st_size
    assert LatencyTable.load(table).total_ms(layer_widths(load_slim(whole, out / slim["file"]))) == pytest.approx(slim["predicted_ms"])


def test_the_page_shows_the_slimmed_net(tmp_path, table):
    report = train_halp(tmp_path, table)
    page = _cards(report)
    assert "measured, " in page and "images/s" in page and f"{report['slim']['parameters']:,}" in page
    assert f"{report['slim']['speedup_10']:.2f} to {report['slim']['speedup_90']:.2f} in eight rounds" in page
    for name in ("speedup", "speedup_10", "speedup_90"):
        del report["slim"][name]                # as older runs have it
    assert "measured, " in _cards(report) and "eight rounds" not in _cards(report)
    report["slim"]["measured_ms"] = None
    assert "measured, " not in _cards(report) and "predicted latency" in _cards(report)


def train_halp(tmp_path, table) -> dict:
    assert main(["train", "halp", "--table", str(table), *TINY, "--out", str(tmp_path / "run")]) == 0
    return json.loads((tmp_path / "run/report.json").read_text())


def test_other_runs_end_as_before(tmp_path, capsys):
    assert main(["train", "static", *TINY, "--out", str(tmp_path / "run")]) == 0
    assert "slim" not in json.loads((tmp_path / "run/report.json").read_text()) and "slimmed" not in capsys.readouterr().out


def test_a_table_of_another_machine_is_not_measured_against(tmp_path, table, capsys):
    found = LatencyTable.load(table)
    found.fingerprint["device"] = "Abacus"
    found.save(table)
    command = ["train", "halp", "--table", str(table), *TINY]
    assert main([*command, "--out", str(tmp_path / "a")]) == 2
    assert "device was 'Abacus'" in capsys.readouterr().err
    assert main([*command, "--other-machine", "--out", str(tmp_path / "b")]) == 0
    assert json.loads((tmp_path / "b/report.json").read_text())["slim"].items() >= dict.fromkeys(MEASURED).items()
    assert "not measured here" in capsys.readouterr().out


def test_the_line_that_is_printed():
    slim = {"predicted_ms": 5.0, "predicted_full_ms": 10.0, "measured_ms": 6.0, "measured_full_ms": 12.0, "speedup": 2.04, "speedup_10": 1.9,
            "speedup_90": 2.25, "fps": 1000.4, "parameters": 12345, "file_bytes": 50_000, "file": "slim.safetensors"}
    assert describe(slim) == ("slimmed net: predicted 5.00 ms (2.00x), measured 6.00 ms (2.04x, 1.90 to 2.25x in eight rounds of ten), 1000 "
                              "images/s; 12,345 parameters, 0.05 MB in slim.safetensors")
    assert "not measured here; 12,345" in describe(slim | dict.fromkeys(MEASURED))


def test_a_slimmed_net_comes_back_from_its_file(tmp_path):
    net, _, sparsifier = make(tmp_path / "t.json", "halp", prunings=3, every=2)
    train(net, sparsifier, range(8))
    slimmed = sparsifier.slim().eval()
    save_file(slimmed.state_dict(), tmp_path / "s.safetensors")
    again = load_slim(Small(), tmp_path / "s.safetensors").eval()
    images, _ = toy_batch(0, 4)
    with torch.no_grad():
        assert torch.equal(again(images), slimmed(images))
    assert layer_widths(again) == layer_widths(slimmed) and again.depthwise.groups == again.depthwise.in_channels
    for wrong, words in ((build_model("small_cnn"), "is of another model"), (slimmed, None)):
        if words:
            with pytest.raises(ValueError, match=words):
                load_slim(wrong, tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match="cannot read"):
        load_slim(Small(), tmp_path / "none.safetensors")
    for name, value in (("conv1.weight", slimmed.conv1.weight[:, :, :1]), ("bn1.bias", slimmed.bn1.bias[:1]), ("out.weight", torch.zeros(0, 3)),
                        ("skip.bias", torch.tensor(1.0))):
        save_file(slimmed.state_dict() | {name: value.detach().contiguous()}, tmp_path / "w.safetensors")
        untouched = Small()
        with pytest.raises(ValueError, match=f"of another model: {name.split('.')[0]}"):
            load_slim(untouched, tmp_path / "w.safetensors")
        assert untouched.conv1.weight.shape == Small().conv1.weight.shape


def test_grouped_convolutions_stay_grouped(tmp_path):
    net, again = (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 1, groups=8), nn.Flatten(), nn.Linear(8, 2)) for _ in range(2))
    save_file(net.state_dict(), tmp_path / "s.safetensors")
    images = torch.randn(2, 4, 3, 3)
    assert torch.equal(load_slim(again, tmp_path / "s.safetensors")(images), net(images)) and again[0].groups == 2


class Twice(Small):
    """A module under two names."""

    def __init__(self):
        super().__init__()
        self.classifier = self.out


def test_a_module_of_two_names_is_written_once_for_each(tmp_path):
    run = SimpleNamespace(model=Twice(), out=tmp_path)
    _, _, run.sparsifier = make(tmp_path / "t.json", "halp", net=run.model, prunings=3, every=2)
    train(run.model, run.sparsifier, range(8))
    slim = channel_report(run, rounds=1)["slim"]
    assert slim["difference"] < 1e-5 and {"out.weight", "classifier.weight"} <= set(load_file(tmp_path / slim["file"]))


# ---- init_from ----

def test_a_run_starts_from_the_weights_of_a_file(tmp_path):
    from sparsekern.training import TrainConfig
    from sparsekern.training.trainer import Run
    torch.manual_seed(5)
    wanted = build_model("small_cnn", shape=(1, 8, 8)).state_dict()
    save_file(wanted, tmp_path / "w.safetensors")
    settings = {"model": "small_cnn", "subset": 64, "batch_size": 16, "epochs": 1, "device": "cpu", "threads": 1, "progress": "none", "lr": 0.0}
    run = Run(TrainConfig(**settings, out=str(tmp_path / "a"), init_from=str(tmp_path / "w.safetensors")), torch.device("cpu"))
    assert all(torch.equal(value, wanted[name]) for name, value in run.model.state_dict().items())
    run.run()
    checkpoint = next((tmp_path / "a/checkpoints").iterdir())
    trained = load_file(checkpoint)
    other = Run(TrainConfig(**settings, out=str(tmp_path / "b"), init_from=str(checkpoint)), torch.device("cpu"))
    assert all(torch.equal(value, trained[f"model/{name}"]) for name, value in other.model.state_dict().items())


@pytest.mark.parametrize("spoil, words", [
    (lambda path, state: None, "init_from: cannot read"), (lambda path, state: path.write_bytes(b"rubbish"), "init_from: cannot read"),
    (lambda path, state: save_file({name: value for name, value in state.items() if "classifier" not in name}, path),
     "it lacks classifier.bias, classifier.weight"),
    (lambda path, state: save_file(state | {"more": torch.zeros(1)}, path), "it has more, which this model does not"),
    (lambda path, state: save_file(state | {"classifier.bias": torch.zeros(3)}, path), "classifier.bias is [3] torch.float32, the model has [10]")])
def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, capsys, spoil, words):
    path = tmp_path / "w.safetensors"
    spoil(path, copy.deepcopy(build_model("small_cnn", shape=(1, 8, 8)).state_dict()))
    assert main(["train", "dense", *TINY, "--init-from", str(path), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert words in said and str(path) in said and said.count("\n") == 1

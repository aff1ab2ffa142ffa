"""From a training to files of its sub-nets by the command line alone: train, report, deploy, and what is loaded computes the same."""
import json

import pytest
import torch

from sparsekern.cli import main
from sparsekern.deploy import SubnetBank, load_deployed
from sparsekern.nn import PackedNM, SparseWeight

QUICK = ["--threads", "1", "--batch", "8"]
REPORT = [*QUICK, "--rounds", "2", "--progress", "none"]


def train(out, *settings, epochs=1):
    assert main(["train", *settings, "--subset", "96", "--batch-size", "16", "--epochs", str(epochs), "--threads", "1", "--device", "cpu",
                 "--progress", "none", "--out", str(out)]) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Banks by name, trained once."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsekern.training.report.render", lambda report: "page")
        train(out / "ast-gc", "ast-gc", "--model", "small_cnn", "--sparsity", "0,0.8,0.95")
        train(out / "nm", "ast-gc", "--model", "mlp:32", "--pattern", "nm", "--nm", "1:4,2:4")
        train(out / "gse", "gse", "--model", "mlp:32,16", "--sparsity", "0.9")
        train(out / "cocktail", "sparse-cocktail", "--model", "small_cnn", "--stages", "2", "--nm", "2:4", "--nm-stages", "2",
              "--channel-rate", "0.4", "--holdout", "0.2", epochs=6)
    return {name: out / name / "bank.safetensors" for name in ("ast-gc", "nm", "gse", "cocktail")}


def images(bank, count=5):
    return torch.rand(count, *bank.meta["model"]["shape"], generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same(net, bank, name):
    """As the bank's own plain sub-net, to 1e-4 of the largest output."""
    wanted, got = bank.plain(name)(images(bank)), net(images(bank))
    assert wanted.abs().max() > 1e-3 and (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_training_writes_the_bank(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sparsekern.training.report.render", lambda report: "page")
    train(tmp_path / "run", "ast-gc", "--model", "mlp:8", "--sparsity", "0.5,0.8")
    said = capsys.readouterr().out
    report = json.loads((tmp_path / "run/report.json").read_text())["bank"]
    size = (tmp_path / "run/bank.safetensors").stat().st_size
    assert report["subnets"] == 2 and report["file_bytes"] == size
    assert f"bank: 2 sub-nets in bank.safetensors, {size / 1e6:.2f} MB" in said
    bank = SubnetBank.load(tmp_path / "run/bank.safetensors")
    assert bank.meta["model"] == {"name": "mlp:8", "classes": 10, "shape": [1, 8, 8]} and bank.meta["algorithm"] == "ast-gc"


def test_a_run_whose_bank_finds_no_room_keeps_its_report(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("sparsekern.training.report.render", lambda report: "page")
    monkeypatch.setattr("sparsekern.deploy.bank.save_tensors", full)
    train(tmp_path / "run", "ast-gc", "--model", "mlp:8", "--sparsity", "0.5,0.8")
    assert "no bank was written: [Errno 28] No space left" in capsys.readouterr().err
    assert "bank" not in json.loads((tmp_path / "run/report.json").read_text())


@pytest.mark.parametrize("run", ["ast-gc", "nm", "gse", "cocktail"])
@pytest.mark.parametrize("options", [[], ["--fold", "--prefer", "memory"], ["--backend", "csr"], ["--backend", "packed"]])
def test_every_subnet_deployed_and_loaded_is_the_same(runs, tmp_path, capsys, run, options):
    bank = SubnetBank.load(runs[run])
    for name in bank.names():
        out = tmp_path / f"{name}.safetensors"
        assert main(["deploy", str(runs[run]), "--subnet", name, *QUICK, *options, "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"{name} of {bank.meta['model']['name']}: {bank.subnet(name).pattern}, ") and f"wrote {out}, " in said
        assert all(layer in said for layer in ("classifier", "dense ms", "batch 8, 1 thread: "))
        loaded = load_deployed(out)
        assert_same(loaded, bank, name)
        assert loaded.deployment["batch"] == 8 and loaded.deployment["layers"]
        kind = {("csr", "unstructured"): SparseWeight, ("packed", "2:4"): PackedNM}.get((options[-1] if options else "", bank.subnet(name).pattern))
        assert kind is None or any(isinstance(layer, kind) for layer in loaded.modules())


@pytest.mark.parametrize("run, name", [("ast-gc", "net.onnx"), ("nm", "net.onnx"), ("ast-gc", "net.pt2"), ("nm", "net.pt2")])
def test_other_formats_go_by_the_name_of_the_file(runs, tmp_path, capfd, run, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    bank, out = SubnetBank.load(runs[run]), tmp_path / name
    subnet = bank.names()[-1]
    assert main(["deploy", str(runs[run]), "--subnet", subnet, *QUICK, "--out", str(out)]) == 0
    said, errors = capfd.readouterr()
    if name.endswith("onnx"):
        session = onnxruntime.InferenceSession(str(out))
        assert_same(lambda given: torch.from_numpy(session.run(None, {"images": given.numpy()})[0]), bank, subnet)
        assert "% of the weights in it are zeros" in said and " MB, onnx" in said
    else:
        assert_same(torch.export.load(out).module(), bank, subnet)
        assert " MB, torch-export" in said
    assert errors == "" and [file.name for file in tmp_path.iterdir()] == [name]


def test_a_slimmed_subnet_goes_to_onnx_without_its_channels(runs, tmp_path, capfd):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    bank, sizes = SubnetBank.load(runs["cocktail"]), {}
    assert [bank.subnet(name).pattern for name in bank.names()] == ["dense", "unstructured", "unstructured", "channel", "channel", "2:4"]
    for name in ("dense", "c2"):
        out = tmp_path / f"{name}.onnx"
        assert main(["deploy", str(runs["cocktail"]), "--subnet", name, *QUICK, "--fold", "--out", str(out)]) == 0
        session = onnxruntime.InferenceSession(str(out))
        assert_same(lambda given, session=session: torch.from_numpy(session.run(None, {"images": given.numpy()})[0]), bank, name)
        sizes[name] = out.stat().st_size
    assert sizes["c2"] < 0.55 * sizes["dense"] and "cut to " in capfd.readouterr().out    # 0.36 of the channels on both sides of a layer


def test_list_and_table_only(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bank = SubnetBank.load(runs["ast-gc"])
    assert main(["deploy", str(runs["ast-gc"]), "--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in bank.names()) and "sparsity" in said
    assert main(["deploy", str(runs["ast-gc"]), "--subnet", bank.names()[0], *QUICK]) == 0
    assert "classifier" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_report_and_fit(runs, tmp_path, capsys):
    file = tmp_path / "bank.safetensors"
    file.write_bytes(runs["ast-gc"].read_bytes())
    bank = SubnetBank.load(file)
    assert main(["deploy", str(file), "--latency-ms", "1000", *QUICK]) == 2
    assert "sparsekern report BANK" in capsys.readouterr().err
    assert main(["report", str(file), *REPORT]) == 0
    said = capsys.readouterr().out
    assert f"wrote {tmp_path}/bank.report.json and {tmp_path}/bank.report.html" in said and all(name in said for name in bank.names())
    rows = json.loads((tmp_path / "bank.report.json").read_text())["subnets"]
    assert [row["name"] for row in rows] == list(bank.names())
    best = max(rows, key=lambda row: row["accuracy"])["accuracy"]
    for limit in (["--latency-ms", "100000"], ["--memory-mb", "100000"], ["--memory-mb", "100000", "--latency-ms", "100000"]):
        assert main(["deploy", str(file), *limit, *QUICK]) == 0
        name = capsys.readouterr().out.split(" of ")[0]
        assert bank.subnet(name).accuracy == best
    for wrong, words in ((["--latency-ms", "0.0000001", *QUICK], "no sub-net measured keeps"),
                         (["--latency-ms", "1000", *QUICK, "--batch", "9", "--no-fold"],
                          "another setting: batch was 8, now 9, fold was True, now False; measure this one: sparsekern report bank.safetensors "
                          "--batch 9 --no-fold --device cpu")):
        assert main(["deploy", str(file), *wrong]) == 2
        said = capsys.readouterr().err
        assert said.startswith("sparsekern: error: deploy: ") and words in said and said.count("\n") == 1


def test_a_net_that_now_takes_longer_is_said(runs, capsys, monkeypatch):
    name = SubnetBank.load(runs["nm"]).names()[0]
    monkeypatch.setattr("sparsekern.deploy.bank_report.fit", lambda bank, **limits: name)
    for limit, told in (("1e-9", True), ("1e9", False)):
        assert main(["deploy", str(runs["nm"]), "--latency-ms", limit, *QUICK]) == 0
        assert (f"above the limit of {float(limit):g} ms this time" in capsys.readouterr().out) is told


def test_a_bank_is_not_overwritten_by_one_of_its_subnets(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = runs["nm"].read_bytes()
    (tmp_path / "bank.safetensors").write_bytes(content)
    name = SubnetBank.load(runs["nm"]).names()[0]
    assert main(["deploy", "bank.safetensors", "--subnet", name, *QUICK, "--out", str(tmp_path / "bank.safetensors"), "--overwrite"]) == 2
    assert "is the bank itself" in capsys.readouterr().err and (tmp_path / "bank.safetensors").read_bytes() == content


def test_report_of_some_subnets_elsewhere(runs, tmp_path, capsys):
    name = SubnetBank.load(runs["nm"]).names()[0]
    assert main(["report", str(runs["nm"]), *REPORT, "--only", name, "--out", str(tmp_path), "--fold"]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bank.report.html", "bank.report.json"]
    assert [row["name"] for row in json.loads((tmp_path / "bank.report.json").read_text())["subnets"]] == [name]
    assert main(["report", str(runs["nm"]), *REPORT, "--only", "nobody", "--out", str(tmp_path)]) == 2
    assert "expected names among" in capsys.readouterr().err


@pytest.mark.parametrize("options, words", [
    (["--subnet", "nobody"], "unknown sub-net 'nobody'; there are "), (["--subnet", "FIRST", "--device", "tpu"], "device: "),
    (["--subnet", "FIRST", "--out", "taken"], "out: taken exists; add --overwrite"), (["--subnet", "FIRST", "--latency-ms", "-1", "--list"], None),
    (["--latency-ms", "-1"], "limit in ms: expected a number of 0 or more"), (["--latency-ms", "nan"], "limit in ms: expected"),
])
def test_mistakes_are_one_line(runs, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    first = SubnetBank.load(runs["gse"]).names()[0]
    code = main(["deploy", str(runs["gse"]), *[first if option == "FIRST" else option for option in options], *QUICK])
    said = capsys.readouterr()
    if words is None:                                       # --list asks for nothing else
        assert code == 0 and said.err == ""
    else:
        assert code == 2 and words in said.err and said.err.count("\n") == 1 and said.err.startswith("sparsekern: error: deploy: ")
    assert (tmp_path / "taken").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("command", [["deploy", "--subnet", "x"], ["deploy", "--list"], ["report"]])
def test_foreign_files_are_refused(tmp_path, capsys, command):
    path = tmp_path / "bank.safetensors"
    path.write_bytes(b"no bank at all")
    assert main([command[0], str(path), *command[1:]]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sparsekern: error: {command[0]}: ") and "bank.safetensors" in said and said.count("\n") == 1


def test_overwrite_replaces_and_interrupt_leaves(runs, tmp_path, capsys, monkeypatch):
    out, name = tmp_path / "net", SubnetBank.load(runs["gse"]).names()[0]
    out.write_text("old")

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr("sparsekern.deploy.SubnetBank.deploy", interrupted)
        assert main(["deploy", str(runs["gse"]), "--subnet", name, *QUICK, "--out", str(out), "--overwrite"]) == 130
    assert out.read_text() == "old" and capsys.readouterr().err == "sparsekern: stopped\n"
    with monkeypatch.context() as patch:
        patch.setattr("sparsekern.deploy.bank_report.report_bank", interrupted)
        assert main(["report", str(runs["gse"])]) == 130
    assert "--resume" in capsys.readouterr().err
    assert main(["deploy", str(runs["gse"]), "--subnet", name, *QUICK, "--out", str(out), "--overwrite"]) == 0
    assert load_deployed(out).deployment["pattern"] == "unstructured"


def test_a_bank_without_a_model_is_told_how(runs, tmp_path, capsys):
    bank = SubnetBank.load(runs["gse"])
    bank.meta["model"] = None
    assert main(["deploy", str(bank.save(tmp_path / "own.safetensors")), "--subnet", bank.names()[0]]) == 2
    assert "own.safetensors does not say which model it is of; from Python: SubnetBank.load(...).deploy(name, model=...)" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["deploy", "report"])
def test_help_lists_the_settings(capsys, command):
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"--{setting}" in said for setting in ("batch", "device", "threads", "fold"))
    assert main(["--help"]) == 0
    assert f"{command} BANK" in capsys.readouterr().out

"""The command line: every mistake is one line, every setting can be given three ways, and the doctor tells the truth."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from sparsekern import doctor as doctor_module
from sparsekern import ops
from sparsekern.cli import main
from sparsekern.cli.train import _parse_train, field_help
from sparsekern.training import TrainConfig

TINY = ["--model", "mlp:8", "--subset", "64", "--batch-size", "16", "--epochs", "2", "--threads", "1", "--device", "cpu",
        "--progress", "plain"]


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr("sparsekern.training.report.render", lambda report: "page")


def test_train_report_and_overwrite(tmp_path, capsys):
    out = str(tmp_path / "run")
    command = ["train", "ast-gc", *TINY, "--sparsity", "0.5,0.8", "--gc", "false", "--delta-t", "2", "--out", out]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "epoch 1/2 loss" in said and "80.0000%" in said and f"wrote {out}/report.json" in said
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["config"]["options"]["gc"] is False and [row["target_sparsity"] for row in report["subnets"]] == [0.5, 0.8]
    assert main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*command, "--overwrite"]) == 0
    assert main(["report", out]) == 0


def test_the_dumped_configuration_repeats_the_run(tmp_path):
    assert main(["train", "ast-gc", *TINY, "--sparsity", "0.5,0.8", "--seed", "3", "--out", str(tmp_path / "a")]) == 0
    assert main(["train", "ast-gc", "--config", str(tmp_path / "a/config.yaml"), "--out", str(tmp_path / "b")]) == 0
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in "ab")
    assert one["subnets"] == two["subnets"] and one["config"]["seed"] == two["config"]["seed"] == 3
    dumps = [yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in "ab"]
    assert {**dumps[0], "out": 0} == {**dumps[1], "out": 0}


@pytest.mark.parametrize("text, wanted", [("sparsity: [0.5, 0.8]", (0.5, 0.8)), ("sparsity: 0.5,0.8", (0.5, 0.8)),
                                          ("sparsity: 0.9", (0.9,)),
                                          ("sparsity: [0.5]\nlr: 1e-3\ngc: false", (0.5,))])
def test_settings_in_yaml(tmp_path, text, wanted):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    values = _parse_train("ast-gc", ["--config", str(path), "--seed", "7", "--resume"])
    assert values["sparsity"] == wanted and values["seed"] == 7 and values["resume"] is True and values["overwrite"] is False
    assert values["lr"] == (1e-3 if "lr" in text else 0.1) and values["gc"] is ("gc" not in text)


def test_settings_of_an_algorithm_are_not_hidden_by_those_of_the_run(tmp_path, capsys):
    values = _parse_train("gse", ["--gamma", "2.5", "--lr-gamma", "0.2", "--distribution", "grabo", "--sparsity", "0.9"])
    assert values["gamma"] == 2.5 and values["lr_gamma"] == 0.2 and values["distribution"] == "grabo" and values["storage"] == "csr"
    assert main(["train", "rigl", "--storage", "csr", "--model", "mlp:8", "--out", str(tmp_path / "run"), "--device", "cpu"]) == 2
    assert "RigL ranks the gradient of every connection" in capsys.readouterr().err


def test_the_demo_settings_are_valid():
    values = _parse_train("ast-gc", ["--config", "examples/demo.yaml"])
    assert values["sparsity"] == (0.8, 0.9, 0.95) and values["data"] == "digits"


def test_print_config(capsys):
    assert main(["train", "ast-gc", "--print_config"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["batch_size"] == 128 and shown["gc"] is True and shown["algorithm"] == "ast-gc"


@pytest.mark.parametrize("command, words", [
    (["fly"], "unknown command 'fly'; expected one of train, report, deploy, latency-table, doctor"),
    (["train"], "train: expected an algorithm, one of ast-gc"),
    (["train", "ast"], "unknown algorithm 'ast'; expected one of ast-gc"),
    (["train", "ast-gc", "--nope", "1"], "unrecognized arguments: --nope"),
    (["train", "ast-gc", "--epochs", "x"], "epochs"), (["train", "ast-gc", "--sparsity", "90"], "write 0.9 for 90 %"),
    (["train", "ast-gc", "--sparsity", "a,b"], "sparsity"),
    (["train", "ast-gc", "--epochs", "-1"], "epochs: expected a positive integer, got -1"),
    (["train", "ast-gc", "--config", "nowhere.yaml"], "nowhere.yaml"),
    (["train", "dense", "--sparsity", "0.5"], "dense has no setting sparsity"),
    (["train", "ast-gc", "--data", "cifar10"], "no data directory given; add --data-dir"),
    (["train", "ast-gc", "--data", "cifar10", "--data-dir", "nowhere"], "nothing found in nowhere"),
    (["train", "ast-gc", "--model", "resnet21"], "model: expected one of"),
    (["train", "ast-gc", "--algorithm", "dense"], "are those of 'dense'"),
    (["train", "ast-gc", "--gc-mode", "x", "--epochs", "30"], "gc_mode: expected"), (["report"], "expected one argument"),
    (["report", "nowhere"], "nowhere/report.json does not exist"), (["report", "nowhere", "--fold"], "nowhere: the settings are those of a bank"),
    (["report", "nowhere.safetensors"], "report: nowhere.safetensors does not exist"), (["report", "a", "b"], "unrecognized arguments: b"),
    (["report", "a", "--batch", "x"], "invalid int value: 'x'"),
    (["report", "--threads", "0", "x.safetensors"], "threads: expected at least 1, got 0"),
    (["deploy"], "deploy: the following arguments are required: bank"), (["deploy", "b"], "expected either --subnet NAME (--list lists them), or"),
    (["deploy", "b", "--subnet", "s", "--latency-ms", "3"], "expected either --subnet NAME"),
    (["deploy", "b", "--subnet", "s", "--batch", "0"], "deploy: batch: expected at least 1, got 0"),
    (["deploy", "b", "--subnet", "s", "--format", "tflite"], "invalid choice: 'tflite'"),
    (["deploy", "b", "--subnet", "s", "--out", "missing/net.onnx"], "out: expected a file in a directory that exists, got missing/net.onnx"),
    (["deploy", "b", "--subnet", "s", "--backend", "csr", "--out", "net.onnx"], "backend: ONNX has dense layers only, got csr"),
    (["deploy", "b", "--subnet", "s", "--threads", "0"], "threads: expected at least 1, got 0"), (["deploy", "b", "--list"], "deploy: b: "),
    (["doctor", "--fast"], "takes no arguments"),
])
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, command, words):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.err.startswith("sparsekern: error: ")


def test_every_setting_has_a_help_text(capsys):
    from sparsekern.training.config import train_fields
    assert all(field_help(TrainConfig).get(name) for name in train_fields())
    assert main(["train", "ast-gc", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "images per step; the last, short batch of an epoch is left out" in shown and "correct conflicting gradients" in shown


def test_interrupt_and_resume_from_a_shell(tmp_path):
    command = [sys.executable, "-m", "sparsekern.cli", "train", "ast-gc", *TINY, "--epochs", "2000", "--sparsity", "0.5,0.8",
               "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    for line in process.stdout:
        if line.startswith("epoch 3/"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "--resume" in errors and "Traceback" not in errors
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 2


def test_doctor_checks_every_op(capsys):
    started = time.perf_counter()
    assert main(["doctor"]) == 0
    assert time.perf_counter() - started < 5
    said = capsys.readouterr().out
    assert "C++ kernels" in said and "Triton" in said and "nvcc" in said and "all agree" in said
    assert said.count(" ms, dense ") == 3 and 'sparsify(backend="auto")' in said
    assert "no self-test" not in said and set(doctor_module.MAKERS) == set(ops.op_names())


def test_doctor_finds_a_wrong_kernel(monkeypatch, capsys):
    real = ops.implementations

    def broken(name):
        found = real(name)
        if name == "pack_mask" and "cpu" in found:
            found["cpu"] = lambda mask: found["reference"](mask) + 1
        elif name == "masked_weight" and "cpu" in found:
            found["cpu"] = lambda weight, mask: found["reference"](weight, mask) * 1.01
        return found
    if "cpu" not in real("pack_mask"):
        pytest.skip("no compiled kernels")
    monkeypatch.setattr(ops, "implementations", broken)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert said.count("DISAGREES") == 2 and "2 disagree with the reference" in said


@pytest.mark.gpu
def test_a_run_on_the_gpu(tmp_path):
    from sparsekern.training import train
    settings = {"algorithm": "ast-gc", "sparsity": (0.5, 0.8), "epochs": 3, "batch_size": 64, "device": "cuda", "progress": "none"}
    reports = [train(TrainConfig(out=tmp_path / name, **settings)) for name in "ab"]
    assert reports[0]["subnets"] == reports[1]["subnets"] and reports[0]["device"]["type"] == "cuda"
    assert torch.cuda.is_available()

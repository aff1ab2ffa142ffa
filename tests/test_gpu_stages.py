"""The stages of scripts/gpu.py without a GPU: what is skipped and why, and with a pretended one what is run, left out and written."""
import importlib.util
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("gpu_stages", ROOT / "scripts/gpu.py")
gpu = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gpu)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_every_stage_says_what_it_skips(tmp_path):
    command = [sys.executable, ROOT / "scripts/gpu.py", "test", "sanitize", "bench", "train", "--data", tmp_path]
    before = sorted((ROOT / "results").glob("gpu-*.json"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for stage in ("test", "sanitize", "bench"):
        assert any(line.split()[:3] == [stage, stage, "skipped"] and "nvidia-smi" in line for line in lines), done.stdout
    assert sum("CIFAR-10" in line and "no CIFAR-10 in the folder" in line for line in lines) == 3
    assert sorted((ROOT / "results").glob("gpu-*.json")) == before


def test_an_unknown_stage_is_named():
    done = subprocess.run([sys.executable, ROOT / "scripts/gpu.py", "tests"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and "unknown stage 'tests': expected some of build, test" in done.stderr


def test_families_are_those_of_the_race():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu_race
    assert gpu.FAMILIES == gpu_race.FAMILIES and gpu.LEFT_OUT == gpu_race.LEFT_OUT


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """A GPU by name, two standalone programs (the second one fails), compilers and sanitizers that only write down their calls."""
    log = tmp_path / "log"
    # The "compiler" copies a program that says one line of JSON and fails where its name says so.
    program = script(tmp_path / "program", """echo '{"op": 1}'\ncase "$0" in *bad*) exit 1;; esac""")
    tools = {"nvcc": script(tmp_path / "nvcc", f'echo nvcc >> {log}\nfor last; do :; done\ncp {program} "$last"'),
             "compute-sanitizer": script(tmp_path / "sanitizer", f'echo "$2" >> {log}\nfor last; do :; done\nexec "$last"')}
    monkeypatch.setattr(gpu, "BUILD", tmp_path / "build")
    monkeypatch.setattr(gpu, "STAMP", tmp_path / "build/stamp.json")
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "PROGRAMS", [tmp_path / "tests/native/good_check.cu", tmp_path / "tests/native/bad_check.cu"])
    monkeypatch.setattr(gpu, "gpu", lambda: "NVIDIA Pretended, 9.0")
    monkeypatch.setattr(gpu, "query", lambda fields: "1980 MHz")
    monkeypatch.setattr(gpu, "find", lambda name: str(tools[name]))
    monkeypatch.setattr(gpu, "evidence", lambda: {"commit": "abc", "device": gpu.gpu()})
    (tmp_path / "setup.py").write_text("")
    (tmp_path / "sparsekern").mkdir()
    (tmp_path / "sparsekern/_C.abi3.so").write_text("")
    real = gpu.attempt

    def attempt(name, clock, *command, **kwargs):
        return real(name, clock, *(["true"] if name == "extension" else command), **kwargs)
    monkeypatch.setattr(gpu, "attempt", attempt)
    return Namespace(seconds=60, data=tmp_path / "data", epochs=1, log=log, folder=tmp_path)


def verdicts(rows):
    return {row["name"]: "skipped" if "skipped" in row else row["ok"] for row in rows}


def test_build_is_done_once(pretended):
    rows = gpu.perform("build", pretended)
    assert verdicts(rows) == {"extension": True, "good_check": True, "bad_check": True}
    assert pretended.log.read_text().count("nvcc") == 2
    assert gpu.perform("build", pretended) == [{"name": "build", "skipped": "up to date"}]
    (pretended.folder / "setup.py").write_text("changed")
    assert not gpu.built()


def test_a_build_that_fails_is_tried_once(pretended, monkeypatch):
    monkeypatch.setattr(gpu, "find", lambda name: {"nvcc": "false"}.get(name, "true"))
    bad = [row for row in gpu.perform("sanitize", pretended) if row["name"] == "bad_check"]
    assert [row.get("ok", row.get("skipped", "")[:9]) for row in bad] == [False, "not built"]
    again = gpu.perform("bench", pretended)
    assert not gpu.built() and not any(row["name"] in ("extension", "bad_check") and "ok" in row for row in again)


def test_sanitize_builds_first_runs_every_tool_and_is_written(pretended):
    rows = gpu.perform("sanitize", pretended)
    found = verdicts(rows)
    assert found == {"extension": True, "good_check": True, "bad_check": True} | {
        f"{name}_check {tool}": name == "good" for name in ("good", "bad") for tool in gpu.SANITIZERS}
    record = json.loads((pretended.folder / "results/gpu-sanitize.json").read_text())
    assert (record["stage"], record["commit"], record["clocks_after"]) == ("sanitize", "abc", "1980 MHz") and len(record["rows"]) == len(rows)


def test_what_does_not_fit_is_left_out(pretended):
    gpu.perform("build", pretended)
    pretended.seconds = 1
    rows = gpu.perform("sanitize", pretended)
    assert {row.get("skipped") for row in rows} == {gpu.LEFT_OUT} and len(rows) == 8
    assert not (pretended.folder / "results/gpu-sanitize.json").exists()


def test_a_command_that_takes_too_long_fails_and_the_others_go_on():
    rows = [gpu.attempt(name, gpu.Clock(60), *command, limit=1) for name, command in (("slow", ("sleep", "30")), ("quick", ("true",)))]
    assert [row["ok"] for row in rows] == [False, True] and "stopped after 1 s" in rows[0]["output"] and rows[0]["seconds"] < 10


def test_bench_keeps_what_programs_and_races_measured(pretended, monkeypatch):
    def race(family, clock, seconds):
        return {"name": f"race {family}", "ok": True, "output": ""}, {"tables": [{"op": family}], "yardsticks": {"copy_gb_per_s": 4300.0}}
    monkeypatch.setattr(gpu, "race", race)
    gpu.perform("bench", pretended)
    record = json.loads((pretended.folder / "results/gpu-bench.json").read_text())
    assert [table["op"] for table in record["tables"]] == list(gpu.FAMILIES) and record["yardsticks"] == {"copy_gb_per_s": 4300.0}
    assert next(row for row in record["rows"] if row["name"] == "good_check --bench")["measured"] == [{"op": 1}]


def test_a_race_that_crashes_leaves_what_it_had(pretended, monkeypatch, capsys):
    found = {"yardsticks": {}, "tables": [
        {"op": "csr_spmm", "shape": "64", "rows": [{"name": "torch CSR", "void": "no bf16"}], "notes": [],
         "verdicts": ["MISSED: a: 0.5x", "met: b: 2x"]},
        {"op": "later", "shape": "", "rows": [], "verdicts": ["not run on a GPU yet: c"], "notes": [gpu.LEFT_OUT]}]}
    (pretended.folder / "benchmarks").mkdir()
    (pretended.folder / "benchmarks/gpu_race.py").write_text(
        f"import pathlib, sys\npathlib.Path(sys.argv[sys.argv.index('--report') + 1]).write_text({json.dumps(found)!r})\nsys.exit(1)\n")
    row, tables = gpu.race("csr", gpu.Clock(60), 30)
    assert not row["ok"] and row["note"] == "1 met, 1 MISSED, 1 not run, 1 tables left out (time)" and tables == found
    said = capsys.readouterr().out
    assert "csr_spmm, 64: torch CSR: no bf16" in said and "csr_spmm, 64: MISSED: a: 0.5x" in said and "met: b" not in said


def test_tests_run_file_by_file_and_some_must_run(pretended, monkeypatch):
    folder = pretended.folder / "tests"
    folder.mkdir()
    (folder / "test_one.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_a(): pass\ndef test_b(): assert 0\n")
    (folder / "test_two.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_a(): pytest.skip('no device')\n")
    (folder / "test_three.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_a(): assert 1 == 2\n")
    (pretended.folder / "conftest.py").write_text("def pytest_addoption(parser): parser.addoption('--seconds')\n"
                                                  "def pytest_configure(config): config.addinivalue_line('markers', 'gpu: x')\n")
    rows = {row["name"]: row for row in gpu.perform("test", pretended)}
    assert rows["tests/test_one.py"]["ok"] and rows["tests/test_one.py"]["counts"] == {"tests": 1, "failures": 0, "errors": 0, "skipped": 0}
    assert rows["tests/test_two.py"]["ok"] and rows["tests/test_two.py"]["note"] == "1 tests, 0 failures, 0 errors, 1 skipped"
    assert not rows["tests/test_three.py"]["ok"] and rows["tests/test_three.py"]["counts"]["failures"] == 1 and "pytest -m gpu" not in rows
    for name in ("test_one.py", "test_three.py"):
        (folder / name).unlink()
    rows = {row["name"]: row for row in gpu.perform("test", pretended)}
    assert not rows["pytest -m gpu"]["ok"] and "does torch see the GPU" in rows["pytest -m gpu"]["output"]


def test_late_tests_are_left_out():
    command = [sys.executable, "-m", "pytest", ROOT / "tests/test_layering.py", "-q", "-p", "no:cacheprovider", "--seconds=-1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0 and "left out (time)" in done.stdout and "passed" not in done.stdout, done.stdout + done.stderr


def test_short_training_run_reports_its_accuracy(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("safetensors")
    config = {"algorithm": "ast-gc", "data": "digits", "model": "mlp:16", "epochs": 2, "sparsity": [0.5, 0.8], "device": "cpu", "batch_size": 32}
    done = subprocess.run([sys.executable, ROOT / "scripts/gpu_train.py", json.dumps(config)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    result = gpu.measurements(done.stdout)[-1]
    assert set(result["accuracy"]) == {"0.5", "0.8"} and result["words"].startswith("accuracy 0.5: ") and result["sparsity"]["0.8"] > 0.79

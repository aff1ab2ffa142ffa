"""The table of a bank's report: which sub-net fits, damaged files, and the table for people."""
import copy
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bank_toys import hand_made, report
from hypothesis import given
from hypothesis import strategies as st

from sparsekern.deploy.bank_figures import read_report
from sparsekern.deploy.bank_report import check_report, fit, report_path

# ---- the choice ----

def test_the_most_accurate_that_fits(bank):
    found = report(bank)
    path = report_path(bank)
    for source in (found, path, str(path), bank, SimpleNamespace(path=bank)):
        assert fit(source, latency_ms=8) == "u0.5" and fit(source, latency_ms=3) == "u0.9"
    assert fit(found, latency_ms=1.4) == "c0.5"                                        # of unknown accuracy: only where nothing else fits
    assert fit(found, memory_mb=1e6) == "u0.5"
    slim = next(row for row in found["subnets"] if row["name"] == "c0.5")
    assert fit(found, latency_ms=10, memory_mb=slim["memory_bytes"] / 1e6) == "c0.5"
    with pytest.raises(ValueError, match="no sub-net measured keeps 0.1 ms; the fastest, c0.5, takes 1 ms"):
        fit(found, latency_ms=0.1)
    with pytest.raises(ValueError, match="keeps 1 ms and 0 MB; the fastest, c0.5, takes 1 ms; the smallest, c0.5, takes 0.00"):
        fit(found, latency_ms=1, memory_mb=0)


@pytest.mark.parametrize("limits, words", [({}, "got no limit"), ({"latency_ms": float("nan")}, "got nan"), ({"memory_mb": -1}, "got -1"),
                                           ({"latency_ms": True}, "got True"), ({"latency_ms": "9"}, "got '9'"), ({"memory_mb": 10**400}, "number")])
def test_limits_that_are_none(bank, limits, words):
    found = report(bank)
    with pytest.raises(ValueError, match=words):
        fit(found, **limits)


@pytest.mark.parametrize("setup, words", [
    ({"batch": 3}, "batch was 2, now 3; measure this one: sparsekern report toy.safetensors --batch 3"),
    ({"batch": 2, "fold": False}, "fold was True, now False; .* --batch 2 --no-fold$"), ({"device": "cuda"}, "device was 'cpu', now 'cuda'"),
    ({"fold": True, "device": "cpu", "batch": 2}, None)])
def test_tables_of_other_settings_are_refused(bank, setup, words):
    found = report(bank, fold=True)
    if words is None:
        assert fit(found, latency_ms=1e6, setup=setup) == fit(found, latency_ms=1e6)
    else:
        with pytest.raises(ValueError, match=words):
            fit(found, latency_ms=1e6, setup=setup)


def test_tables_of_other_machines_and_banks_are_refused(bank, tmp_path):
    found = report(bank)
    other = copy.deepcopy(found)
    other["machine"]["name"] = "abacus"
    with pytest.raises(ValueError, match="another machine or setting: name was 'abacus', .*sparsekern report toy.safetensors"):
        fit(other, latency_ms=9)
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="threads was 1, now 2"):
        fit(found, latency_ms=9)
    torch.set_num_threads(1)
    bank.write_bytes(b"bank, another")
    for source in (bank, report_path(bank)):
        with pytest.raises(ValueError, match="another bank than toy.safetensors is now"):
            fit(source, latency_ms=9)
    bank.unlink()
    assert fit(report_path(bank), latency_ms=9) == "u0.5"                              # the table alone still tells
    with pytest.raises(ValueError, match="does not exist"):
        fit(bank, latency_ms=9)
    with pytest.raises(ValueError, match="make one: sparsekern report BANK"):
        fit(tmp_path / "none.safetensors", latency_ms=9)
    with pytest.raises(ValueError, match="lies in no file"):
        fit(SimpleNamespace(path=None), latency_ms=9)


FIGURE = st.sampled_from([0.5, 1.0, 2.0, 3.0])


@given(st.lists(st.tuples(st.none() | st.sampled_from([0.0, 0.5, 0.9]), FIGURE, FIGURE), min_size=1, max_size=8), FIGURE, st.none() | FIGURE)
def test_what_is_chosen_fits_and_nothing_better_does(rows, latency, memory):
    table = [{"name": f"n{place}", "pattern": "dense", "sparsity": 0.0, "nnz": 1, "accuracy": accuracy, "file_form": "whole", "forms": {},
              "layers": [], "notes": [], "difference": None, "times": [[ms, 1.0]], "parameters": 1, "flops": 1.0, "file_bytes": 1,
              "weight_bytes": 1, "peak_bytes": 1, "memory_bytes": size * 1e6} for place, (accuracy, ms, size) in enumerate(rows)]
    made = hand_made(table)
    fitting = [row for row in table if row["times"][0][0] <= latency and (memory is None or row["memory_bytes"] <= memory * 1e6)]
    if not fitting:
        with pytest.raises(ValueError, match="no sub-net measured keeps"):
            fit(made, latency_ms=latency, memory_mb=memory)
        return
    name = fit(made, latency_ms=latency, memory_mb=memory)
    chosen = next(row for row in fitting if row["name"] == name)

    def worth(row):
        return (-1 if row["accuracy"] is None else row["accuracy"]), -row["times"][0][0], -table.index(row)
    assert all(worth(row) <= worth(chosen) for row in fitting)


# ---- files that are damaged, foreign or hostile ----

@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"7", b'{"format": 3}', b'{"format": "other"}', b"[" * 100000,
                                     b'{"format": "sparsekern-bank-report-1"}', b'{"a": NaN}', b'{"a": ' + b"9" * 5000 + b"}"])
def test_files_that_are_no_report(tmp_path, content):
    path = tmp_path / "x.report.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="bank report: .*x.report.json is") as error:
        read_report(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("place, value", [
    (("subnets", 0, "name"), "\x1b[2J"), (("subnets", 0, "name"), ""), (("subnets", 0, "name"), "n1"), (("subnets", 0, "times"), []),
    (("subnets", 0, "times"), [[1.0, 0.0]]), (("subnets", 0, "times"), [[1e300, 1.0]]), (("subnets", 0, "times"), [[1.0]]),
    (("subnets", 0, "accuracy"), 2), (("subnets", 0, "accuracy"), "1"), (("subnets", 0, "sparsity"), -0.1), (("subnets", 0, "nnz"), True),
    (("subnets", 0, "file_bytes"), 10**400), (("subnets", 0, "forms"), {"csr": -1}), (("subnets", 0, "forms"), []),
    (("subnets", 0, "layers"), [{"layer": "x"}]), (("subnets", 0, "layers"), 5), (("subnets", 0), None), (("subnets",), 4), (("dense",), None),
    (("dense", "latency_ms"), 0), (("machine",), []), (("machine", "name"), None), (("setup", "batch"), 0), (("setup", "shape"), "3x3"),
    (("bank", "file"), "../../etc/passwd"), (("bank", "sha256"), 5), (("bank", "model"), {"name": 1}), (("complete",), "yes"),
    (("commit",), 5), (("versions",), {"torch": {}}), (("subnets", 0, "notes"), [1]), (("rounds",), 0)])
def test_wrong_values_are_named(place, value):
    row = {"name": "n0", "pattern": "dense", "sparsity": 0.0, "nnz": 1, "accuracy": 0.5, "file_form": "whole", "forms": {}, "layers": [],
           "notes": [], "difference": 0.0, "times": [[1.0, 1.0]], "parameters": 1, "flops": 1.0, "file_bytes": 1, "weight_bytes": 1,
           "peak_bytes": 1, "memory_bytes": 2}
    made = json.loads(json.dumps(hand_made([row, row | {"name": "n1"}])))
    assert check_report(made, "it")["complete"]
    spot = made
    for key in place[:-1]:
        spot = spot[key]
    spot[place[-1]] = value
    with pytest.raises(ValueError, match="bank report: it is damaged") as error:
        check_report(made, "it")
    assert len(str(error.value)) < 300 and str(error.value).isprintable()


def test_missing_entries_are_named(bank):
    found = report(bank)
    for key in found:
        if key != "format":
            with pytest.raises(ValueError, match=f"is damaged \\(no '{key}'\\)"):
                check_report({name: value for name, value in found.items() if name != key}, "it")


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_bytes(b" " * 100)
    monkeypatch.setattr("sparsekern.deploy.bank_figures._LARGEST_FILE", 99)
    with pytest.raises(ValueError, match="expected at most"):
        read_report(path)


# ---- the table of results/ ----

def script():
    spec = importlib.util.spec_from_file_location("bank_table", Path(__file__).parents[2] / "scripts/bank_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_markdown_table(bank, tmp_path, capsys):
    folder = tmp_path / "results"
    folder.mkdir()
    report(bank)
    report_path(bank).rename(folder / "toy-seed0.bank.report.json")
    device = {"name": "abacus", "threads": 1, "isa": "none"}
    run = {"algorithm": "toy", "model": "toy", "train_images": 10, "test_images": 5, "epochs": 1, "steps_per_epoch": 2, "device": device,
           "versions": {"torch": "2"}, "commit": "0123456789abc", "training_flops": 1.0, "dense_training_flops": 2.0, "subnets": [
               {"name": "u0.9", "pattern": "unstructured", "sparsity": 0.9, "accuracy": 0.8, "accuracy_before": 0.7, "accuracy_of_stage": 0.75},
               {"name": "2:4", "pattern": "2:4", "sparsity": 0.5, "accuracy": 0.6, "accuracy_before": None}]}
    for seed in (0, 1):
        (folder / f"toy-seed{seed}.json").write_text(json.dumps(run))
    (folder / "latency.json").write_text("{}")
    table = script()
    assert table.main([str(folder), "--plot", str(tmp_path / "plot.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (tmp_path / "plot.png").stat().st_size > 1000 and "![Accuracy over latency](plot.png)" in lines
    row = next(line for line in lines if line.startswith("| u0.9 |"))
    assert "| 75.00 | 70.00 | 80.00 |" in row and "| 2.00 | 4.00 (4.00-4.00) | yes |" in row and row.endswith("| 1 csr |")
    assert row.count("|") == lines[lines.index(row) - 4].count("|") == next(line for line in lines if line.startswith("| the net whole")).count("|")
    assert "| toy | 1 | 2 | - | 80.00 ± 0.00 | 60.00 ± 0.00 | - | -, 70.00 ± 0.00, -, - | 0.50 |" in lines
    assert any("Measured by `sparsekern report toy.safetensors" in line for line in lines) and any("abacus" in line for line in lines)
    (tmp_path / "none").mkdir()
    assert table.main([str(tmp_path / "none")]) == 2

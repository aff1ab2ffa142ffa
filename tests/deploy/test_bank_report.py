"""The report of a bank: what is measured, kept and refused, and which sub-net fits."""
import copy
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsekern.deploy import bank_measure, bank_page, bank_report
from sparsekern.deploy.bank_figures import by_pattern, pareto, partial_path, read_report, sha256
from sparsekern.deploy.bank_report import check_report, fit, machine, report_bank, report_path, text_table
from sparsekern.deploy.timing import time_inference

FIGURES = bank_page._figures
MS = {"dense": 8.0, "u0.5": 4.0, "u0.9": 2.0, "2:4": 10.0, "c0.5": 1.0}                       # what the fake clock shows
ACCURACY = {"dense": 0.9, "u0.5": 0.91, "u0.9": 0.8, "2:4": 0.89, "c0.5": None}


def net(tag: str, width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 4)).eval()
    made.tag = tag
    return made


class FakeBank:
    """A bank of five sub-nets of a small net; unstructured ones run in "csr", the channel one is narrow."""
    meta = {"model": {"name": "toy", "classes": 4, "shape": [1, 4, 4]}}
    forms = {"dense": "dense", "u0.5": "dense", "u0.9": "csr", "2:4": "packed", "c0.5": "slim"}
    deployed: list[str] = []

    @classmethod
    def load(cls, path):
        if path.read_bytes()[:4] != b"bank":
            raise ValueError(f"{path.name}: not a bank")
        cls.deployed = []
        return cls()

    def names(self):
        return tuple(MS)

    def subnet(self, name):
        pattern = {"u": "unstructured", "c": "channel"}.get(name[0], name)
        return SimpleNamespace(name=name, pattern=pattern, sparsity=0.0 if name == "dense" else 0.5, nnz=100, accuracy=ACCURACY[name], masks={})

    def plain(self, name, model=None):
        made = net(name)
        if name != "dense":
            with torch.no_grad():
                made[3].weight[:, ::2] = 0
        return made

    def deploy(self, name, device="cpu", batch=128, *, model=None, example=None, fold=False):
        assert example.shape == (batch, 1, 4, 4)
        self.deployed.append(name)
        made = net(name, 4 if name == "c0.5" else 8)
        layer = SimpleNamespace(name="3", form=self.forms[name], reason="<because> it is & was", ms=0.1, dense_ms=None)
        made.deployment = SimpleNamespace(layers=(layer,), notes=("a note",), difference=0.0)
        return made


@pytest.fixture
def bank(tmp_path, monkeypatch):
    path = tmp_path / "toy.safetensors"
    path.write_bytes(b"bank of a toy")
    monkeypatch.setattr(bank_report, "SubnetBank", FakeBank)
    monkeypatch.setattr(bank_page, "_figures", lambda report: "")           # plots take long
    return path


@pytest.fixture
def drawn(bank, monkeypatch):
    """A bank whose page has its plots."""
    monkeypatch.setattr(bank_page, "_figures", FIGURES)
    return bank


class Clock:
    """Shows MS under a drift that grows with every look: ratios of neighbours hardly feel it."""
    def __init__(self, drift: float = 0.0, stop: int | None = None):
        self.looks, self.drift, self.stop = 0, drift, stop

    def __call__(self, one, images):
        self.looks += 1
        if self.looks == self.stop:
            raise KeyboardInterrupt
        return MS[one.tag] * (1 + self.drift * self.looks)


def report(bank, **options) -> dict:
    return report_bank(bank, **{"batch": 2, "rounds": 4, "progress": "none", "timer": Clock()} | options)


# ---- what is measured ----

def test_every_subnet_has_a_row_with_all_figures(bank):
    found = report(bank)
    rows = {row["name"]: row for row in found["subnets"]}
    assert list(rows) == list(MS) and found["complete"] and found["bank"]["sha256"] == sha256(bank)
    assert rows["u0.9"]["latency_ms"] == 2 and rows["u0.9"]["speedup"] == 4 and rows["u0.9"]["faster"] == "yes"
    assert rows["2:4"]["speedup"] == 0.8 and rows["2:4"]["faster"] == "no" and rows["dense"]["faster"] == "unclear"
    assert rows["u0.9"]["forms"] == {"csr": 1} and len(rows["u0.9"]["times"]) == 4 and found["dense"]["latency_ms"] == 8
    assert rows["dense"]["flops"] == 2 * (9 * 8 * 16 + 8 * 16 * 4) and rows["u0.5"]["flops"] == 2 * (9 * 8 * 16 + 8 * 16 * 2)
    assert rows["c0.5"]["flops"] == rows["dense"]["flops"] / 2 and rows["c0.5"]["parameters"] == 9 * 4 + 4 * 16 * 4 + 4
    assert rows["u0.5"]["parameters"] == 9 * 8 + 8 * 16 * 2 + 4
    assert rows["u0.5"]["file_bytes"] == 4 * (9 * 8 + 8 * 16 * 2 + 4) + 4 * 512 // 32 and rows["u0.5"]["file_form"] == "nonzeros and their places"
    assert rows["dense"]["file_bytes"] == 4 * (9 * 8 + 8 * 16 * 4 + 4) == rows["dense"]["weight_bytes"] and rows["dense"]["file_form"] == "whole"
    assert rows["c0.5"]["file_form"] == "tensors of the deployed net" and rows["c0.5"]["file_bytes"] == rows["c0.5"]["weight_bytes"]
    assert all(row["memory_bytes"] == row["weight_bytes"] + row["peak_bytes"] for row in found["subnets"])
    assert found["command"].startswith("sparsekern report toy.safetensors --batch 2 --device cpu") and found["machine"] == machine("cpu")


def test_the_files_are_the_report(bank, tmp_path):
    found = report(bank, out=tmp_path / "deep" / "er")
    path = tmp_path / "deep" / "er" / "toy.report.json"
    assert path == report_path(bank, tmp_path / "deep" / "er") and read_report(path) == found == check_report(found, "here")
    assert "NaN" not in path.read_text() and str(tmp_path) not in path.read_text()
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["toy.report.html", "toy.report.json"]
    report(bank)
    assert read_report(bank.with_name("toy.report.json"))["complete"]


def test_drift_of_the_machine_cancels(bank):
    rows = {row["name"]: row for row in report(bank, rounds=9, timer=Clock(drift=0.05))["subnets"]}
    assert rows["u0.9"]["latency_ms"] > 6 and rows["u0.9"]["speedup"] == pytest.approx(4, rel=0.05)
    assert rows["2:4"]["faster"] == "no" and rows["u0.5"]["speedup_low"] > 1.8


def test_rounds_that_disagree_are_called_unclear():
    assert bank_measure.timings([[1.0, 2.0], [1.0, 0.5]] * 5)["faster"] == "unclear"
    assert bank_measure.timings([[1.0, 2.0]])["faster"] == "yes" and bank_measure.timings([[2.0, 1.0]])["speedup"] == 0.5
    found = bank_measure.timings([[float(ms), 10.0] for ms in range(1, 12)])
    assert (found["latency_low_ms"], found["latency_ms"], found["latency_high_ms"]) == (2.0, 6.0, 10.0)


def test_a_real_clock_and_real_memory():
    dense, images = net("dense", 64), torch.rand(8, 1, 4, 4)
    assert 1 <= bank_measure.repeats_for(dense, images, time_inference) <= 25
    assert all(ms > 0 for ms in bank_measure.pair(dense, dense, images, 3, 1, time_inference))
    first = bank_measure.peak_bytes(dense, images)
    assert first >= 2 * 8 * 64 * 16 * 4 and first == bank_measure.peak_bytes(dense, images)        # input and output of the ReLU at once
    assert bank_measure.peak_bytes(nn.ReLU(inplace=True), images) == 0
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    tied[1].weight = tied[0].weight
    tied.register_buffer("view", tied[0].weight.detach()[1:])
    assert bank_measure.held_bytes(tied) == 64


def test_quick_nets_run_several_times():
    assert bank_measure.repeats_for(None, None, lambda *_: 0.5) == 10
    assert bank_measure.repeats_for(None, None, lambda *_: 50.0) == 1 and bank_measure.repeats_for(None, None, lambda *_: 0.0) == 25
    shown = iter([9.0, 3.0, 1.0, 2.0, 9.0, 6.0, 8.0, 7.0])
    assert bank_measure.pair("net", "dense", None, 3, 0, lambda *_: next(shown)) == [2.0, 7.0]
    calls = []
    bank_measure.pair("net", "dense", None, 1, 1, lambda one, _: calls.append(one) or 1.0)
    assert calls == ["dense", "dense", "net", "net"]


def test_csr_is_the_smallest_file_of_a_very_sparse_net():
    plain = nn.Linear(1000, 10, bias=False)
    with torch.no_grad():
        plain.weight.zero_()[0, :3] = 1
    assert bank_measure.file_size(plain, plain) == (3 * 8 + 4 * 11, "nonzeros and their places")
    empty = nn.Module()
    empty.register_buffer("steps", torch.tensor(5))
    assert bank_measure.file_size(empty, empty) == (8, "whole")


# ---- stopping and going on ----

def test_a_stopped_run_goes_on_where_it_was(bank, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        report(bank, timer=Clock(stop=50))
    partial = partial_path(report_path(bank))
    stopped = read_report(partial)
    assert not stopped["complete"] and not report_path(bank).exists()
    times = {row["name"]: len(row["times"]) for row in stopped["subnets"]}
    assert sorted(times.values()) == [2, 2, 2, 2, 3]
    with pytest.raises(ValueError, match="not finished"):
        fit(partial.rename(partial.with_suffix(".json")), latency_ms=9)
    partial.with_suffix(".json").rename(partial)
    clock = Clock()
    found = report(bank, resume=True, timer=clock)
    assert clock.looks == 2 + 4 * (5 * 4 - sum(times.values())) and all(len(row["times"]) == 4 for row in found["subnets"])
    assert not partial.exists() and found["complete"]


def test_a_finished_report_measures_nothing_again_and_grows(bank):
    assert [row["name"] for row in report(bank, only=["c0.5", "u0.9"])["subnets"]] == ["u0.9", "c0.5"]
    assert FakeBank.deployed == ["u0.9", "c0.5"]
    assert len(report(bank, resume=True)["subnets"]) == 5 and FakeBank.deployed == ["dense", "u0.5", "2:4"]
    before = json.loads(report_path(bank).read_text())["subnets"]
    assert report(bank, resume=True, only=["dense"])["subnets"] == before and FakeBank.deployed == []
    assert len(report(bank, only=["dense"])["subnets"]) == 5 and FakeBank.deployed == ["dense"]


def test_one_subnet_measured_again_leaves_the_others(bank):
    before = {row["name"]: row for row in report(bank)["subnets"]}
    after = {row["name"]: row for row in report(bank, only=["u0.9"], rounds=2)["subnets"]}
    assert list(after) == list(before) and len(after["u0.9"]["times"]) == 2 and FakeBank.deployed[-1] == "u0.9"
    assert all(after[name] == row for name, row in before.items() if name != "u0.9")
    assert [row["name"] for row in report(bank, only=["u0.9"], batch=3)["subnets"]] == ["u0.9"]       # rows of another setting are none of it


def test_a_net_of_another_dtype_is_measured_in_it(bank, monkeypatch):
    plain, deploy = FakeBank.plain, FakeBank.deploy
    monkeypatch.setattr(FakeBank, "plain", lambda *given: plain(*given).double())
    monkeypatch.setattr(FakeBank, "deploy", lambda *given, example, **options: deploy(*given, example=example.float(), **options).to(example.dtype))
    found = report(bank)
    assert found["dense"]["weight_bytes"] == sum(value.nbytes for value in net("dense").double().state_dict().values())


def test_a_stopped_run_counts_more_than_an_old_report(bank):
    report(bank)
    bank.write_bytes(b"bank, another")
    with pytest.raises(KeyboardInterrupt):
        report(bank, timer=Clock(stop=50))
    assert len(report(bank, resume=True)["subnets"]) == 5 and not partial_path(report_path(bank)).exists()


def test_other_forms_are_measured_from_the_start(bank, monkeypatch):
    report(bank, rounds=2)
    monkeypatch.setattr(FakeBank, "forms", FakeBank.forms | {"u0.9": "dense"})
    clock = Clock()
    rows = {row["name"]: row for row in report(bank, resume=True, rounds=3, timer=clock)["subnets"]}
    assert clock.looks == 2 + 4 * (4 * 1 + 3) and rows["u0.9"]["forms"] == {"dense": 1} and len(rows["u0.9"]["times"]) == 3


@pytest.mark.parametrize("options, words", [({"batch": 3}, "batch was 2, now 3"), ({"fold": False}, "fold was True, now False"),
                                            ({"threads": 2}, "threads was 1, now 2")])
def test_another_setting_is_not_resumed(bank, options, words):
    report(bank)
    before = report_path(bank).read_bytes()
    with pytest.raises(ValueError, match=words):
        report(bank, resume=True, **options)
    assert report_path(bank).read_bytes() == before and torch.get_num_threads() == 1


def test_another_bank_is_not_resumed(bank):
    report(bank)
    bank.write_bytes(b"bank, another")
    with pytest.raises(ValueError, match="of something else: bank was"):
        report(bank, resume=True)


@pytest.mark.parametrize("options, words", [
    ({"batch": 0}, "batch: expected an integer of at least 1, got 0"), ({"rounds": True}, "rounds: .* got True"), ({"threads": -1}, "threads: "),
    ({"only": ["nope"]}, "only: expected names among dense, u0.5, .*'nope'"), ({"only": []}, "got none"), ({"device": "mps"}, "device: "),
    ({"device": "no"}, "device: "), ({"shape": (3, 0)}, "shape: expected the sizes of one sample")])
def test_settings_that_cannot_work(bank, options, words):
    with pytest.raises(ValueError, match=words):
        report(bank, **options)
    assert not report_path(bank).exists()


def test_a_bank_that_names_no_model(bank, monkeypatch):
    monkeypatch.setattr(FakeBank, "meta", {"model": None})
    with pytest.raises(ValueError, match="shape: .* got None"):
        report(bank)
    found = report(bank, shape=[1, 4, 4], model=net("mine"))
    assert found["bank"]["model"] is None and found["setup"]["shape"] == [1, 4, 4] and "toy.safetensors: 5 sub-nets<" in bank_report_page(bank)


def test_a_foreign_bank_is_refused(bank):
    bank.write_bytes(b"something")
    with pytest.raises(ValueError, match="not a bank"):
        report(bank)


def test_a_subnet_that_cannot_be_deployed_leaves_nothing(bank, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("pass model=")
    monkeypatch.setattr(FakeBank, "deploy", refuse)
    with pytest.raises(ValueError, match="pass model="):
        report(bank)
    assert list(bank.parent.iterdir()) == [bank]


# ---- the page and the table ----

def test_the_page_has_rows_plots_forms_and_what_is_slower(drawn):
    found = report(drawn)
    page = bank_report_page(drawn)
    assert without_images(page) == without_images(bank_page.render(found)) and page.count("data:image/svg+xml") == 2
    assert "Slower than the dense net here: 2:4 (0.80x)." in page and "&lt;because&gt; it is &amp; was" in page
    assert [name for name in re.findall(r"<tr><td>([^<]*)</td>", page) if name in MS or name == "the net whole"] == [
        "the net whole", "dense", "u0.5", "u0.9", "2:4", "c0.5"]


def without_images(page: str) -> str:
    return re.sub(r'src="[^"]*"', "", page)


def bank_report_page(bank) -> str:
    return report_path(bank).with_suffix(".html").read_text()


def test_without_matplotlib_there_are_numbers_and_a_sentence(drawn, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report(drawn)
    page = bank_report_page(drawn)
    assert "The plots need matplotlib" in page and "u0.9" in page and "svg" not in page


def test_without_accuracies_there_is_no_plot(drawn, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ACCURACY", dict.fromkeys(ACCURACY))
    page = bank_page.render(report(drawn))
    assert "knows no accuracies" in page and "svg" not in page


def test_the_text_table(bank):
    lines = text_table(report(bank)).splitlines()
    assert lines[0].split()[:2] == ["sub-net", "pattern"] and lines[1].startswith("(the net whole)")
    assert [line.split()[0] for line in lines[2:7]] == ["dense", "u0.5", "u0.9", "2:4", "c0.5"]
    assert "4.00" in lines[4] and "80.00%" in lines[4] and lines[4].endswith("1 csr")
    assert lines[7:] == ["Slower than the dense net here: 2:4 (0.80x)."]


def test_the_front_and_the_order():
    rows = [{"name": name, "pattern": pattern, "latency_ms": ms, "accuracy": accuracy} for name, pattern, ms, accuracy in (
        ("a", "channel", 3, 0.5), ("b", "2:4", 1, 0.4), ("c", "dense", 4, 0.5), ("d", "odd", 1, 0.3), ("e", "unstructured", 2, None))]
    assert [row["name"] for row in pareto(rows)] == ["b", "a"]
    assert [row["name"] for row in by_pattern(rows)] == ["c", "e", "b", "a", "d"]


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


def hand_made(rows: list[dict]) -> dict:
    dense = {"latency_ms": 1.0, "latency_low_ms": 1.0, "latency_high_ms": 1.0, "parameters": 1, "flops": 1.0, "file_bytes": 1, "weight_bytes": 1,
             "peak_bytes": 1, "memory_bytes": 2, "file_form": "whole"}
    return {"format": bank_report.FORMAT, "complete": True, "machine": machine("cpu"), "setup": {"batch": 1, "shape": [4], "fold": False},
            "rounds": 1, "bank": {"file": "b.safetensors", "sha256": "0" * 64, "bytes": 1, "subnets": [row["name"] for row in rows], "model": None},
            "versions": {}, "command": "sparsekern report", "finished": "now", "commit": None, "uncommitted_changes": None, "dense": dense,
            "subnets": rows}


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
    assert "| toy | 2 | - | 80.00 ± 0.00 | 60.00 ± 0.00 | - | -, 70.00 ± 0.00, -, - | 0.50 |" in lines
    assert any("Measured by `sparsekern report toy.safetensors" in line for line in lines) and any("abacus" in line for line in lines)
    (tmp_path / "none").mkdir()
    assert table.main([str(tmp_path / "none")]) == 2

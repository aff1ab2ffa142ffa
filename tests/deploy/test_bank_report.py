"""The report of a bank: what is measured, kept and refused."""
import json
import re
import sys

import bank_toys
import pytest
import torch
from bank_toys import ACCURACY, MS, Clock, FakeBank, net, report
from torch import nn

from sparsekern.deploy import bank_measure, bank_page
from sparsekern.deploy.bank_figures import by_pattern, pareto, partial_path, read_report, sha256
from sparsekern.deploy.bank_report import check_report, fit, machine, report_path, text_table
from sparsekern.deploy.timing import time_inference

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
    monkeypatch.setattr(bank_toys, "ACCURACY", dict.fromkeys(ACCURACY))
    page = bank_page.render(report(drawn))
    assert "knows no accuracies" in page and "svg" not in page


def test_the_text_table(bank):
    lines = text_table(report(bank)).splitlines()
    assert lines[0].split()[:2] == ["sub-net", "pattern"] and lines[1].startswith("(the net whole)")
    assert [line.split()[0] for line in lines[2:7]] == ["dense", "u0.5", "u0.9", "2:4", "c0.5"]
    assert "4.00" in lines[4] and "80.00%" in lines[4] and lines[4].endswith("1 csr")
    assert lines[7:] == ["Slower than the dense net here: 2:4 (0.80x).",
                         "No layer of u0.5 is faster sparse here: they run as dense nets, and gain what the dense net gains when it is deployed the "
                         "same way.", "The dense net deployed the same way: 1.00x."]


def test_the_front_and_the_order():
    rows = [{"name": name, "pattern": pattern, "latency_ms": ms, "accuracy": accuracy} for name, pattern, ms, accuracy in (
        ("a", "channel", 3, 0.5), ("b", "2:4", 1, 0.4), ("c", "dense", 4, 0.5), ("d", "odd", 1, 0.3), ("e", "unstructured", 2, None))]
    assert [row["name"] for row in pareto(rows)] == ["b", "a"]
    assert [row["name"] for row in by_pattern(rows)] == ["c", "e", "b", "a", "d"]

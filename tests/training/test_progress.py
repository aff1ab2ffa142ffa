"""What a run shows, on a terminal and elsewhere."""
import sys

import pytest

from sparsekern.training import progress as module
from sparsekern.training.progress import Bar, Lines, clock, make_progress, table

ROW = {"epoch": 1, "train_loss": 1.25, "subnets": {"0.9": {"accuracy": 0.5, "sparsity": 0.9}}}
LIVE = {"subnet": "0.9", "loss": 1.0, "accuracy": 0.5, "sparsities": [0.9]}


def test_lines_outside_a_terminal(capsys, monkeypatch):
    shown = make_progress("auto", total=20, per_epoch=10)
    assert type(shown) is Lines
    with shown:
        shown.begin(0)
        for step in range(1, 11):
            shown.step(step, lambda: pytest.fail("read back from the device for nothing"))
        shown.epoch(ROW)
        monkeypatch.setattr(module, "PLAIN_SECONDS", 0.0)
        shown.step(11, lambda: LIVE)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("epoch 1/2 loss 1.250 0.9 50.00% (90.0% sparse) left 0:0")
    assert said[1].startswith("  step 11/20 loss 1.000 0.9 accuracy 50.0% left")


def test_lines_before_the_first_evaluation(capsys, monkeypatch):
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.0)
    with make_progress("plain", total=20, per_epoch=10) as shown:
        shown.begin(0)
        shown.step(3, lambda: LIVE | {"accuracy": None})
    assert capsys.readouterr().out.startswith("  step 3/20 loss 1.000 0.9 left")


def test_a_bar_shows_loss_accuracy_and_sparsities(capsys):
    with make_progress("rich", total=20, per_epoch=10) as shown:
        assert type(shown) is Bar
        shown.begin(5)
        shown.step(20, lambda: LIVE)
        shown.epoch(ROW)
        state = shown.bar.tasks[0]
        assert state.completed == 20 and state.fields["live"] == "loss 1.000  0.9 50.0%  sparsity 90.0%" and state.fields["epoch"] == "2/2"
    assert "epoch 1: loss 1.250" in capsys.readouterr().out


def test_without_rich_there_are_lines(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert type(make_progress("rich", 10, 5)) is Lines


def test_none_is_silent(capsys):
    with make_progress("none", 10, 5) as shown:
        shown.begin(0)
        shown.step(1, lambda: pytest.fail("read back"))
        shown.epoch(ROW)
    assert capsys.readouterr().out == ""


def test_clock_and_table():
    assert [clock(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]
    text = table([{"name": "0.9", "pattern": "unstructured", "target_sparsity": 0.9, "sparsity": 0.90001, "nnz": 12345, "accuracy": 0.5,
                   "loss": None, "forward_flops": 1.5e6}])
    head, _, row = text.splitlines()
    assert head.split()[0] == "sub-net"
    assert row.split() == ["0.9", "unstructured", "90.0000%", "90.0010%", "12,345", "50.00%", "-", "1.5e+06"]

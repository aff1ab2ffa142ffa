"""Stages, the images held out, and what is chosen at the end: measured where it should be, stopped anywhere and gone on with bit for bit."""
import dataclasses
import json
import math
import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from staged import STAGES, Keep, KeepEnd, Staged, assert_same, build, without_time

from sparsekern.sparsity.timeline import ALL, Phase, Timeline, View
from sparsekern.training import CheckpointError, ConfigError, Interrupted, TrainConfig, TrainingError, evaluation, train
from sparsekern.training.data import hold_out, load_dataset
from sparsekern.training.learning_rate import describe_spans, find_spans, learning_rate

EPOCH = 6                                                  # 128 images, 32 of them held out; 96 in batches of 16
EVALUATIONS = 2 * 3 * 2                                    # merges, alphas, sub-nets


def config(out, **changes):
    settings = {"algorithm": "ast-gc", "model": "small_cnn", "subset": 128, "batch_size": 16, "epochs": 3, "lr": 0.05, "device": "cpu",
                "threads": 1, "progress": "none", "out": out}
    return TrainConfig(**settings | changes)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch, request):
    if "page" not in request.node.name:
        monkeypatch.setattr("sparsekern.training.report.render", lambda report: "")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.set_num_threads(1)
    keep = Keep()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsekern.training.report.render", lambda report: "")
        report = train(config(tmp_path_factory.mktemp("runs") / "whole"), keep, build)
    return report, keep


# ---- the learning rate ----

def cyclic(epochs=150, **changes):
    return TrainConfig(schedule="cyclic", lr=0.1, epochs=epochs, **changes)


@pytest.mark.parametrize("step, wanted", [(0, 0.1), (25, 0.001 + 0.099 * (0.5 + math.sqrt(0.125))), (50, 0.0505), (100, 0.01), (105, 0.0055),
                                          (110, 0.01), (145, 0.0055), (149, 0.001 + 0.009 * 0.5 * (1 + math.cos(0.9 * math.pi)))])
def test_cyclic_by_hand_with_the_shares_of_the_paper(step, wanted):
    assert learning_rate(cyclic(), step, total=150, per_epoch=1) == pytest.approx(wanted, rel=1e-12)


def test_cyclic_with_every_setting_by_hand():
    settings = cyclic(8, lr_cycle_init=2, lr_cycle=1, lr_restart=0.02, lr_min=0.01, warmup_epochs=1)
    rates = [learning_rate(settings, step, total=16, per_epoch=2) for step in range(16)]
    decay = [0.1, 0.01 + 0.045 * (1 + math.sqrt(0.5)), 0.055, 0.01 + 0.045 * (1 - math.sqrt(0.5))]
    assert rates == pytest.approx([0.05, 0.1, *decay, *[0.02, 0.015] * 5])


@given(st.sampled_from(["cosine", "step", "constant", "cyclic"]), st.integers(1, 40), st.integers(1, 5), st.data())
def test_every_rate_lies_between_zero_and_the_peak(schedule, epochs, per_epoch, data):
    settings = TrainConfig(schedule=schedule, lr=0.1, epochs=epochs, warmup_epochs=data.draw(st.integers(0, epochs - 1)))
    total = epochs * per_epoch
    rates = [learning_rate(settings, step, total, per_epoch) for step in range(total)]
    low = settings.lowest_lr if schedule == "cyclic" and not settings.warmup_epochs else 0
    assert all(low <= rate <= 0.1 + 1e-15 for rate in rates)
    peak = rates[round(settings.warmup_epochs * per_epoch)]             # unless a milestone, a share of all steps, came before
    assert schedule == "step" or peak == pytest.approx(0.1)


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant", "cyclic"])
def test_every_stage_has_the_whole_schedule(tmp_path, schedule):
    keep, settings = Keep(), config(tmp_path / "run", schedule=schedule, warmup_epochs=1 / 3, epochs=3)
    report = train(settings, keep, build)
    stage = [learning_rate(settings, step, EPOCH, EPOCH) for step in range(EPOCH)]
    assert stage[0] == pytest.approx(0.025) and stage[1] == 0.05
    assert [keep.rates[step] for step in range(3 * EPOCH)] == stage * 3 and [row["lr"] for row in report["history"]] == stage[-1:] * 3


@pytest.mark.parametrize("changes, words", [
    ({"lr_min": 0.001}, "lr_min: belongs to schedule='cyclic', got 0.001 with schedule='cosine'"),
    ({"lr_cycle": 10, "schedule": "step"}, "lr_cycle: belongs to schedule='cyclic'"),
    ({"lr_cycle_init": 0.0, "schedule": "cyclic"}, "lr_cycle_init: expected a positive number of epochs, got 0.0"),
    ({"lr_cycle": float("nan"), "schedule": "cyclic"}, "lr_cycle: expected a positive number of epochs, got nan"),
    ({"lr_restart": -1, "schedule": "cyclic"}, "lr_restart: expected a learning rate of at least 0, got -1"),
    ({"lr_min": 0.05, "lr_restart": 0.01, "schedule": "cyclic"}, "lr_restart: expected lr_min <= lr_restart <= lr, got 0.05, 0.01 and 0.1"),
    ({"holdout": 1.0}, r"holdout: expected a share of the training images in \[0, 1\), got 1.0"),
    ({"holdout": float("nan")}, "holdout: expected a share"), ({"holdout": -0.1}, "holdout: expected a share"),
])
def test_settings_that_cannot_work(changes, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**changes)


@pytest.mark.parametrize("changes, words", [
    ({"warmup_epochs": 1}, "warmup_epochs: expected fewer than the 1 epochs of the shortest stage, got 1"),
    ({"schedule": "cyclic", "lr_cycle_init": 1.5}, "lr_cycle_init: expected, with the warm-up, at most the 1 epochs of the shortest stage, got 1.5"),
    ({"epochs": 1, "batch_size": 32}, "epochs: ast-gc needs 4 steps, got 1 epochs of 3; set --epochs 2"),
    ({"holdout": 0.0}, "holdout: ast-gc chooses among its nets at the end.*expected a share above 0, such as 0.05, got 0"),
    ({"holdout": 0.05}, "holdout: 0.05 of 128 training images are 6, expected at least one batch of 16; raise holdout"),
    ({"holdout": 0.9}, "holdout: 0.9 of 128 training images leaves 13 to train on, expected at least one batch of 16; lower holdout"),
])
def test_settings_that_do_not_fit_the_stages(tmp_path, changes, words, monkeypatch):
    monkeypatch.setattr(Staged, "span", lambda self, step: (step // self.span_steps * self.span_steps, self.span_steps), raising=False)
    monkeypatch.setattr(Staged, "span_steps", 4 if changes.get("epochs") == 1 else EPOCH, raising=False)
    with pytest.raises(ConfigError, match=words):
        train(config(tmp_path / "run", **changes), build=build)


def test_spans_are_told_and_checked():
    settings = TrainConfig(epochs=6, algorithm="x")
    unequal = find_spans(lambda step: (0, 4) if step < 4 else (4, 8), settings, 2)
    assert unequal == [(0, 4), (4, 8)] and describe_spans(unequal, 2) == "2 stages of 2, 4 epochs each, 12 steps in all"
    assert describe_spans(find_spans(lambda step: (step // 4 * 4, 4), settings, 2), 2) == "3 stages of 2 epochs each, 12 steps in all"
    assert describe_spans(find_spans(lambda step: (0, 12), settings, 2), 2) is None
    with pytest.raises(ValueError, match="span.4.: expected a stretch that begins there, got 4 steps from 0 on"):
        find_spans(lambda step: (0, 4), settings, 2)


# ---- the hold-out ----

@given(st.floats(0.0, 1.0, exclude_max=True), st.integers(1, 60))
def test_the_last_images_are_held_out_and_nothing_else_changes(share, batch):
    data = DIGITS
    held = math.floor(share * 100 + 0.5)
    if share and (held < batch or 100 - held < batch):
        with pytest.raises(ValueError, match=f"holdout: .* of 100 training images.*expected at least one batch of {batch}"):
            hold_out(data, share, batch)
        return
    kept, out = hold_out(data, share, batch)
    images, labels = out or (data.train_images[:0], data.train_labels[:0])
    assert len(labels) == (held if share else 0)
    assert torch.equal(torch.cat([kept.train_images, images]), data.train_images)
    assert torch.equal(torch.cat([kept.train_labels, labels]), data.train_labels)
    unchanged = [f.name for f in dataclasses.fields(data) if not f.name.startswith("train_")]
    assert all(getattr(kept, name) is getattr(data, name) for name in unchanged)


DIGITS = load_dataset("digits", subset=100)


def test_the_split_of_the_paper():
    labels = torch.zeros(45_000, dtype=torch.int64)
    data = dataclasses.replace(DIGITS, train_images=torch.zeros(45_000, 1, 1, 1, dtype=torch.uint8), train_labels=labels)
    kept, (_, held) = hold_out(data, 0.05, 128)
    assert (len(kept.train_labels), len(held)) == (42_750, 2_250)


def test_it_is_what_the_algorithm_asks_for_or_the_setting(tmp_path, whole):
    report, keep = whole
    images = load_dataset("digits", subset=128).train_images
    assert report["train_images"] == 96 and report["holdout_images"] == 32 and report["steps_per_epoch"] == EPOCH
    assert torch.equal(keep.run.held_out[0], images[96:]) and torch.equal(keep.run.batches.data.train_images, images[:96])
    dense = train(config(tmp_path / "run", algorithm="dense", epochs=1, holdout=0.5))
    assert dense["train_images"] == dense["holdout_images"] == 64 and dense["steps"] == 4
    assert train(config(tmp_path / "none", algorithm="dense", epochs=1))["holdout_images"] == 0


# ---- what is chosen at the end ----

def test_choosing_sees_the_images_held_out_and_training_images_as_they_are(tmp_path, monkeypatch):
    asked, real = [], evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda run, name, images, *rest: asked.append(images) or real(run, name, images, *rest))
    keep = Keep()
    train(config(tmp_path / "run"), keep, build)
    run = keep.run
    held = run.held_out[0]                                 # at the end of every stage, of the run, and after choosing
    assert [images is held for images in asked] == [False] * 2 * STAGES + [False] * 2 + [True] * EVALUATIONS + [False] * 2
    assert all(images is run.data.test_images for images in asked if images is not held)
    batch = run.data.normalise(run.data.train_images[:16])
    assert len(run.sparsifier.seen) == 2 and all(torch.equal(first, batch) for first in run.sparsifier.seen)


def test_a_stage_is_measured_while_its_weights_are_there(tmp_path, whole, monkeypatch):
    """What an algorithm does for the next stage, in the last step of one, comes after it."""
    report, _ = whole
    assert [(stage["stage"], stage["step"]) for stage in report["stages"]] == [("stage 1/3", 6), ("stage 2/3", 12), ("stage 3/3", 18)]
    assert [row["subnets"] for row in report["history"][:2]] == [stage["subnets"] for stage in report["stages"][:2]]
    assert report["stages"][2]["subnets"] == report["history"][2]["before_finalize"]
    store = Staged.on_phase_end

    def store_and_forget(self, moment):
        store(self, moment)
        if (self.steps + 1) % self.length == 0 and self.steps + 1 < self.config.total_steps:
            torch._foreach_zero_(self.weights)
    monkeypatch.setattr(Staged, "on_phase_end", store_and_forget)
    forgotten = train(config(tmp_path / "run"), build=build)
    assert forgotten["stages"][0] == report["stages"][0] and forgotten["history"][0]["subnets"] == report["history"][0]["subnets"]
    assert forgotten["stages"][1] != report["stages"][1]


def test_only_the_sub_nets_of_a_stage_are_measured_in_it(tmp_path, monkeypatch):
    def timeline(self):
        alone = Phase("dense", 6, View(ALL, ALL))
        return Timeline((Phase("half", 1, View("half", "half")),), lead=(alone,))
    monkeypatch.setattr(Staged, "make_timeline", timeline)
    report = train(config(tmp_path / "run", subset=96, epochs=9, eval_every=2), build=build)         # four steps an epoch, twelve a stage
    assert report["steps_per_epoch"] == 4 and [list(stage["subnets"]) for stage in report["stages"]] == [["dense", "half"], ["half"], ["half"]]
    assert [list(row["subnets"]) for row in report["history"]] == [[], ["dense", "half"], ["dense", "half"], ["half"], [], ["half"], [], ["half"],
                                                                   ["dense", "half"]]
    assert report["subnets"][0]["accuracy_of_stage"] == report["stages"][0]["subnets"]["dense"]["accuracy"]


def test_a_stage_may_end_inside_an_epoch(tmp_path, capsys):
    keep, first, second = Keep(), Keep(8), Keep()
    report = train(config(tmp_path / "whole", epochs=4, progress="plain"), keep, build)
    assert "3 stages of 1.33 epochs each, 24 steps in all" in capsys.readouterr().out
    assert [stage["step"] for stage in report["stages"]] == [8, 16, 24]
    assert [(row["step"], row["stage"]) for row in report["history"]] == [(6, "stage 1/3"), (12, "stage 2/3"), (18, "stage 3/3"), (24, "stage 3/3")]
    assert keep.rates[8] == keep.rates[16] == 0.05 and keep.rates[7] == keep.rates[23] < 0.01
    with pytest.raises(Interrupted):
        train(config(tmp_path / "run", epochs=4), first, build)
    again = train(config(tmp_path / "run", epochs=4, resume=True), second, build)
    assert without_time(again) == without_time(report)
    assert_same(second, keep)


def test_a_stage_file_that_is_damaged_at_the_end_is_told(tmp_path):
    def cut(run):
        if run.step == 3 * EPOCH - 1:
            (tmp_path / "run/stages/1.safetensors").write_bytes(b"x")
    with pytest.raises(TrainingError, match="after the last step: "):
        train(config(tmp_path / "run"), cut, build)


def test_the_history_keeps_before_and_after(whole):
    report, keep = whole
    assert [row["stage"] for row in report["history"]] == ["stage 1/3", "stage 2/3", "stage 3/3"]
    *others, last = report["history"]
    assert last["finalized"] is True and not any("finalized" in row or "before_finalize" in row for row in others)
    assert last["before_finalize"].keys() == last["subnets"].keys() == {"dense", "half"}
    assert [row["accuracy"] for row in report["subnets"]] == [last["subnets"][name]["accuracy"] for name in ("dense", "half")]
    assert [row["accuracy_before"] for row in report["subnets"]] == [last["before_finalize"][name]["accuracy"] for name in ("dense", "half")]
    assert last["before_finalize"] != last["subnets"] and len(keep.run.sparsifier.alphas) == STAGES - 1
    assert report["pattern_accuracy"] == {"dense": report["subnets"][0]["accuracy"], "unstructured": report["subnets"][1]["accuracy"]}
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_at_every_evaluation_and_gone_on_with(tmp_path, whole, monkeypatch, number):
    """A net that chose among three of the alphas chooses them again, an alpha that is known stays."""
    real, calls = evaluation.evaluate, []
    limit = 0

    def stop_at(run, name, *rest):
        if run.step == 3 * EPOCH and "before_finalize" not in run.history[-1:][0] and len(run.history) == 3:
            calls.append(name)
            if len(calls) == limit:
                os.kill(os.getpid(), number)
        return real(run, name, *rest)
    monkeypatch.setattr(evaluation, "evaluate", stop_at)
    out, keep = tmp_path / "run", Keep()
    for limit in range(1, EVALUATIONS // 2 + 1):           # one more each time: the first merge is done with the sixth
        calls.clear()
        with pytest.raises(Interrupted, match=f"stopped after step {3 * EPOCH} of {3 * EPOCH}") as caught:
            train(config(out, resume=limit > 1), keep, build)
        assert caught.value.code == 128 + number and len(calls) == limit and not (out / "report.json").exists()
    limit = EVALUATIONS // 2 + 1                           # the sixth evaluation itself was stopped, so the merge is made once more
    calls.clear()
    with pytest.raises(Interrupted):
        train(config(out, resume=True), keep, build)
    for limit in range(1, EVALUATIONS // 2 + 1):           # the second merge alone
        calls.clear()
        with pytest.raises(Interrupted):
            train(config(out, resume=True), keep, build)
        assert len(calls) == limit
    limit = 0
    last = KeepEnd()
    report = train(config(out, resume=True), build=build, on_end=last)
    assert without_time(report) == without_time(whole[0]) and last.run.sparsifier.alphas == whole[1].run.sparsifier.alphas
    assert_same(last, whole[1])


@pytest.mark.parametrize("stop", [3, 6, 14, 20, 25, 26])
def test_interrupted_between_batches_of_the_norms_and_in_the_last_evaluation(tmp_path, whole, monkeypatch, stop):
    """Every place that asks whether a signal came, from the first merge to the tests after it."""
    from sparsekern.training.trainer import Run
    real, count = Run.stop_if_asked, 0

    def asked(run):
        nonlocal count
        if run.step == 3 * EPOCH and len(run.history) == 3:
            count += 1
            if count == stop:
                run.signal = signal.SIGTERM
        real(run)
    monkeypatch.setattr(Run, "stop_if_asked", asked)
    with pytest.raises(Interrupted):
        train(config(tmp_path / "run"), build=build)
    last = KeepEnd()
    report = train(config(tmp_path / "run", resume=True), build=build, on_end=last)
    assert count > EVALUATIONS + 2 * EPOCH and without_time(report) == without_time(whole[0])
    assert_same(last, whole[1])


@pytest.mark.parametrize("stop", [1, 6, 7, 13])
def test_stages_resume_bit_for_bit(tmp_path, whole, stop):
    first, second = Keep(stop), Keep()
    with pytest.raises(Interrupted):
        train(config(tmp_path / "run"), first, build)
    report = train(config(tmp_path / "run", resume=True), second, build)
    assert first.losses | second.losses == whole[1].losses and without_time(report) == without_time(whole[0])
    assert_same(second, whole[1])


def test_files_of_the_stages(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(config(out), Keep(8), build)
    note = out / "stages/notes.txt"
    note.write_text("mine")
    (out / "stages/.2.safetensors.partial").write_text("half")
    (out / "stages/1.safetensors").rename(tmp_path / "kept.safetensors")
    with pytest.raises(CheckpointError, match=r"checkpoint of step 8 does not fit this run: stages: .*stages/1.safetensors is missing"):
        train(config(out, resume=True), build=build)
    for path in [*(out / "checkpoints").iterdir(), out / "config.yaml"]:
        path.unlink()
    with pytest.raises(ConfigError, match="already holds a run .*partial.*--overwrite"):
        train(config(out), build=build)
    with pytest.raises(Interrupted):
        train(config(out, overwrite=True), Keep(1), build)
    assert list((out / "stages").iterdir()) == [note]


def test_the_hold_out_is_part_of_what_a_checkpoint_agrees_with(tmp_path):
    with pytest.raises(Interrupted):
        train(config(tmp_path / "run"), Keep(2), build)
    with pytest.raises(CheckpointError, match=r"holdout was 0.25, now 0.5"):
        train(config(tmp_path / "run", resume=True, holdout=0.5), build=build)
    assert train(config(tmp_path / "run", resume=True, holdout=0.25), build=build)["steps"] == 3 * EPOCH


# ---- what is counted and shown ----

def test_flops_of_the_teacher(whole):
    report, keep = whole
    dense, half = (keep.run.forward_flops(name) for name in ("dense", "half"))
    per_step = (3 * dense + 3 * half + dense) / 2          # Cocktail's formula: 1/2 * 3 zeta_D + 1/2 * (3 zeta_P + zeta_D)
    assert half < dense and report["training_flops"] == pytest.approx(per_step * 16 * 3 * EPOCH, rel=1e-12)


def test_progress_tells_the_stages(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sparsekern.training.progress.PLAIN_SECONDS", 0.0)
    train(config(tmp_path / "run", progress="plain"), build=build)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "3 stages of 1 epochs each, 18 steps in all"
    assert said[1].startswith("  step 1/18 stage 1/3 loss ") and "epoch 2/3 stage 2/3 loss " in "\n".join(said)
    assert "  finalizing 1/2: stage 2" in said and "  finalizing 2/2: stage 3" in said and "finalized: dense " in said[-1]

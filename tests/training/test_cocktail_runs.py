"""Sparse Cocktail through the training loop: its stages, the merge on the images held out, stopped anywhere and gone on with bit for bit."""
import os
import signal

import pytest
import torch
from staged import Keep, KeepEnd, assert_same, without_time

from sparsekern.sparsity.interpolation import POOL
from sparsekern.sparsity.stage_store import StageStore
from sparsekern.training import CheckpointError, ConfigError, Interrupted, TrainConfig, evaluation, train
from sparsekern.training.learning_rate import learning_rate
from sparsekern.training.trainer import Run

NETS = ["dense", "u1", "u2", "c1", "c2", "2:4"]
STEPS = 18                                                 # six a stage; 128 images, 32 of them held out
EVALUATIONS = len(POOL) * len(NETS)                        # of the one merge of two stages


def config(out, **changes):
    settings = {"algorithm": "sparse-cocktail", "model": "small_cnn", "subset": 128, "holdout": 0.25, "batch_size": 16, "epochs": 3, "lr": 0.05,
                "schedule": "cyclic", "device": "cpu", "threads": 1, "progress": "none", "out": out,
                "options": {"stages": 2, "nm": "2:4", "rate": 0.4, "channel_rate": 0.2}}
    return TrainConfig(**settings | changes)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr("sparsekern.training.report.render", lambda report: "")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(report, what the run left behind, how often it asked after its last step whether a signal came)."""
    torch.set_num_threads(1)
    keep, ask, asked = Keep(), Run.stop_if_asked, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsekern.training.report.render", lambda report: "")
        patch.setattr(Run, "stop_if_asked", lambda run: asked.append(is_over(run)) or ask(run))
        report = train(config(tmp_path_factory.mktemp("runs") / "whole"), keep)
    return report, keep, sum(asked)


def is_over(run):
    return run.step == STEPS and len(run.history) == 3


def test_the_report_of_a_run(whole):
    report, keep, _ = whole
    settings = config("unused")
    assert [row["name"] for row in report["subnets"]] == NETS and report["holdout_images"] == 32
    assert [stage["step"] for stage in report["stages"]] == [6, 12, 18]
    assert [sorted(stage["subnets"]) for stage in report["stages"]] == [["dense"], ["c1", "dense", "u1"], ["2:4", "c2", "dense", "u2"]]
    assert report["pattern_accuracy"].keys() == {"dense", "unstructured", "channel", "N:M"} and len(report["metrics"]["alphas"]) == 1
    last = report["history"][-1]
    assert last["before_finalize"].keys() == last["subnets"].keys() == set(NETS) and last["before_finalize"] != last["subnets"]
    stage = [learning_rate(settings, step, 6, 6) for step in range(6)]
    assert [keep.rates[step] for step in range(STEPS)] == stage * 3


def test_flops_follow_the_formula(whole):
    """1/2 * 3 zeta_D + 1/2 * (3 zeta_P + zeta_D), of whole turns of the patterns; stage 0 is dense."""
    report, keep, _ = whole
    dense, *sparse = (keep.run.forward_flops(name) for name in ("dense", "u1", "c1", "u2", "c2", "2:4"))
    taught = 12 / 2                                        # in stage 1 a third of the sparse steps has no n:m mask yet: all ones
    total = 3 * dense * (6 + 6 + 1) + taught * dense + 3 * sum(sparse)
    assert report["training_flops"] == pytest.approx(16 * total, rel=1e-12)
    assert report["metrics"]["training_flops"]["honest"]["per_sample"] == pytest.approx(report["training_flops_per_sample"], rel=1e-12)


@pytest.mark.parametrize("stop", [6, 9, 17])
def test_it_resumes_at_any_step_of_any_stage(tmp_path, whole, stop):
    first, second = Keep(stop), Keep()
    with pytest.raises(Interrupted):
        train(config(tmp_path / "run"), first)
    report = train(config(tmp_path / "run", resume=True), second)
    assert first.losses | second.losses == whole[1].losses and without_time(report) == without_time(whole[0])
    assert_same(second, whole[1])


def test_the_merge_is_interrupted_again_and_again(tmp_path, whole, monkeypatch):
    real, calls, limit = evaluation.evaluate, [], 0

    def stop_at(run, name, images, *rest):
        if run.held_out is not None and images is run.held_out[0]:
            calls.append(name)
            if len(calls) == limit:
                os.kill(os.getpid(), signal.SIGTERM)
        return real(run, name, images, *rest)
    monkeypatch.setattr(evaluation, "evaluate", stop_at)
    for limit in [1, *range(5, EVALUATIONS, 11), EVALUATIONS]:             # every sub-net, small and large alphas, the last one
        calls.clear()
        with pytest.raises(Interrupted):
            train(config(tmp_path / "run", resume=limit > 1))
        assert len(calls) == limit
    limit, last = 0, KeepEnd()
    calls.clear()
    report = train(config(tmp_path / "run", resume=True), on_end=last)
    assert len(calls) == EVALUATIONS and without_time(report) == without_time(whole[0])
    assert_same(last, whole[1])


@pytest.mark.parametrize("back", [1, 7, 42])
def test_interrupted_while_norms_are_measured(tmp_path, whole, monkeypatch, back):
    """`back` places before the end that ask whether a signal came: tests of every sub-net at last, before them six batches for each."""
    ask, asked = Run.stop_if_asked, 0

    def stop(run):
        nonlocal asked
        asked += is_over(run)
        if asked == whole[2] - back + 1:
            run.signal = signal.SIGTERM
        ask(run)
    monkeypatch.setattr(Run, "stop_if_asked", stop)
    with pytest.raises(Interrupted):
        train(config(tmp_path / "run"))
    monkeypatch.setattr(Run, "stop_if_asked", ask)
    last = KeepEnd()
    report = train(config(tmp_path / "run", resume=True), on_end=last)
    assert without_time(report) == without_time(whole[0])
    assert_same(last, whole[1])


def test_files_of_stages_later_than_the_checkpoint_are_written_again(tmp_path, whole):
    class Crash(Exception):
        pass

    def crash(run):
        if run.step == 14:
            raise Crash
    with pytest.raises(Crash):
        train(config(tmp_path / "run", checkpoint_every=5), crash)
    (tmp_path / "run/checkpoints/step-000000012.safetensors").unlink()
    digest = StageStore(tmp_path / "run/stages").digest("D1")             # of what it holds; safetensors orders its header as it likes
    (tmp_path / "run/stages/D1.safetensors").unlink()
    keep = Keep()
    report = train(config(tmp_path / "run", resume=True), keep)
    assert min(keep.losses) == 11 and without_time(report) == without_time(whole[0])
    assert StageStore(tmp_path / "run/stages").digest("D1") == digest
    assert_same(keep, whole[1])


def test_a_stage_that_is_missing_is_told(tmp_path):
    with pytest.raises(Interrupted):
        train(config(tmp_path / "run"), Keep(14))
    (tmp_path / "run/stages/D1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"the checkpoint of step 14 does not fit this run: stages: .*D1.safetensors is missing"):
        train(config(tmp_path / "run", resume=True))


@pytest.mark.parametrize("changes, words", [
    ({"holdout": 0.0}, "holdout: sparse-cocktail chooses among its nets at the end"),
    ({"holdout": None}, "holdout: 0.05 of 128 training images are 6, expected at least one batch of 16"),
    ({"options": {"stages": 20}}, "sparse-cocktail: .*expected"),
])
def test_refusals(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        train(config(tmp_path / "run", **changes))

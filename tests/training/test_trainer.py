"""The loop: learns, reports what is true, stops on a signal and goes on bit for bit."""
import json
import math
import os
import signal

import pytest
import torch

from sparsekern.training import CheckpointError, ConfigError, Interrupted, TrainConfig, TrainingError, train
from sparsekern.training.learning_rate import learning_rate

EPOCH = 10                                                 # steps per epoch below: 160 images in batches of 16


def config(out, **changes):
    settings = {"algorithm": "ast-gc", "sparsity": (0.5, 0.8, 0.9), "model": "small_cnn", "subset": 160, "batch_size": 16, "epochs": 2,
                "lr": 0.05, "device": "cpu", "threads": 1, "progress": "none", "out": out}
    return TrainConfig(**settings | changes)


class Watch:
    """Keeps the run and what every step left behind; sends a signal after chosen steps."""

    def __init__(self, stop_after=None, number=signal.SIGTERM):
        self.stop_after, self.number, self.steps = stop_after, number, {}

    def __call__(self, run):
        self.run = run
        self.steps[run.step] = run.loss_sums.tolist()
        if run.step == self.stop_after:
            os.kill(os.getpid(), self.number)

    def state(self):
        run = self.run
        tensors = {f"model/{name}": value for name, value in run.model.state_dict().items()}
        parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
        states = [run.optimizer.state.get(parameter, {}) for parameter in parameters]
        tensors |= {f"momentum/{i}": state["momentum_buffer"] for i, state in enumerate(states) if state}
        tensors |= {f"sparsifier/{name}": value for name, value in run.sparsifier.state_dict()["tensors"].items()}
        return {name: value.detach().clone() for name, value in tensors.items()}


def same(one, other):
    """Equal bits, NaN included."""
    return one.dtype == other.dtype and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def without_time(report):
    kept = {key: report[key] for key in ("subnets", "training_flops", "metrics", "steps")}
    return kept | {"history": [{key: value for key, value in row.items() if key != "seconds"} for row in report["history"]]}


@pytest.fixture(autouse=True)
def no_plots(monkeypatch, request):
    """Drawing takes longer than these runs; one test looks at the page."""
    if request.node.name not in ("test_files_of_a_run", "test_the_page_of_a_net_in_sparse_layers", "test_the_page_of_a_net_that_explores"):
        monkeypatch.setattr("sparsekern.training.report.render", lambda report: "")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    watch = Watch()
    torch.set_num_threads(1)
    report = train(config(tmp_path_factory.mktemp("runs") / "whole"), watch)
    return report, watch.steps, watch.state()


# The first step, inside a group of three, at the end of a group, at the end of an epoch, the last but one.
@pytest.mark.parametrize("stops", [(1,), (7,), (9,), (EPOCH,), (14, 15), (2 * EPOCH - 1,)])
def test_resume_is_exact_to_the_bit(tmp_path, unbroken, stops):
    report, steps, state = unbroken
    seen = {}
    for count, stop in enumerate([*stops, None]):
        watch = Watch(stop)
        settings = config(tmp_path / "run", resume=count > 0)
        if stop is None:
            again = train(settings, watch)
        else:
            with pytest.raises(Interrupted, match=f"stopped after step {stop} of {2 * EPOCH}.*--resume") as caught:
                train(settings, watch)
            assert caught.value.code == 143
        seen |= watch.steps
    assert seen == steps                                   # the loss of every single step: same data, same weights
    restored = watch.state()
    assert restored.keys() == state.keys()
    assert [name for name in state if not same(state[name], restored[name])] == []
    assert without_time(again) == without_time(report)


def test_resume_with_checkpoints_every_few_steps(tmp_path, unbroken):
    class Crash(Exception):
        pass

    def crash(run):
        if run.step == 15:
            raise Crash
    with pytest.raises(Crash):
        train(config(tmp_path / "run", checkpoint_every=7), crash)
    files = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert files == ["step-000000010.safetensors", "step-000000014.safetensors"]
    watch = Watch()
    train(config(tmp_path / "run", resume=True), watch)
    assert min(watch.steps) == 15
    state = watch.state()
    assert all(same(value, state[name]) for name, value in unbroken[2].items())


@pytest.mark.parametrize("algorithm, options", [("gse", {"scope": "global", "distribution": "grabo", "delta_t": 3}),
                                                ("gse", {"storage": "masked", "delta_t": 4, "event_batches": 3}), ("rigl", {"delta_t": 3}),
                                                ("iee", {"h_steps": 1, "j_steps": 1, "q_steps": 2, "score": "mean_magnitude"})])
def test_nets_that_are_sparse_from_the_start_resume_exactly_too(tmp_path, algorithm, options):
    """Sparse layers change the number of their values between checkpoints; the third stop lies inside an event of several batches."""
    settings = {"algorithm": algorithm, "options": options, "sparsity": (0.8,)}
    whole = Watch()
    report = train(config(tmp_path / "whole", **settings), whole)
    seen = {}
    for stop in (2, 7, 10, None):
        watch = Watch(stop)
        if stop is None:
            again = train(config(tmp_path / "run", resume=True, **settings), watch)
        else:
            with pytest.raises(Interrupted):
                train(config(tmp_path / "run", resume=stop > 2, **settings), watch)
        seen |= watch.steps
    assert seen == whole.steps
    state, restored = whole.state(), watch.state()
    assert state.keys() == restored.keys() and all(same(value, restored[name]) for name, value in state.items())
    assert without_time(again) == without_time(report) and report["subnets"][0]["sparsity"] == pytest.approx(0.8, abs=1e-4)
    assert report["memory"]["peak"] > report["memory"]["parameters"] > 0 and len(report["metrics"]["events"]) > 1


def test_a_damaged_checkpoint_costs_only_the_way_from_the_one_before(tmp_path, unbroken, capsys):
    with pytest.raises(Interrupted):
        train(config(tmp_path / "run"), Watch(14))
    newest = tmp_path / "run/checkpoints/step-000000014.safetensors"
    newest.write_bytes(newest.read_bytes()[:-5000])
    watch = Watch()
    train(config(tmp_path / "run", resume=True), watch)
    said = capsys.readouterr().out
    state = watch.state()
    assert "passed over: step-000000014.safetensors: truncated or damaged" in said and "resumed after step 10 of 20" in said
    assert all(same(value, state[name]) for name, value in unbroken[2].items())


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_and_their_exit_codes(tmp_path, number, code):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        train(config(tmp_path / "run", model="mlp:8", algorithm="dense", sparsity=None), Watch(3, number))
    assert caught.value.code == code and (tmp_path / "run/checkpoints/step-000000003.safetensors").exists()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert not (tmp_path / "run/report.json").exists()


@pytest.mark.parametrize("changes, words", [({"lr": 0.06}, "lr was 0.05, now 0.06"), ({"epochs": 3}, "epochs was 2, now 3"),
                                            ({"options": {"gc": False}}, "gc was True, now False"),
                                            ({"model": "mlp:8"}, "model was 'small_cnn', now 'mlp:8'")])
def test_resume_refuses_a_checkpoint_of_other_settings(tmp_path, changes, words):
    with pytest.raises(Interrupted):
        train(config(tmp_path / "run"), Watch(2))
    with pytest.raises(CheckpointError, match=f"no usable checkpoint.*{words}"):
        train(config(tmp_path / "run", resume=True, **changes))


def test_report_is_true(unbroken):
    report, _, state = unbroken
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["steps"] == 2 * EPOCH and report["train_images"] == 160 and report["seed"] == 0
    assert {"torch", "python", "sparsekern"} <= report["versions"].keys() and report["device"]["type"] == "cpu"
    for row, target in zip(report["subnets"], (0.5, 0.8, 0.9)):
        assert row["target_sparsity"] == target and row["nnz"] == math.floor((1 - target) * report["prunable"] + 0.5)
        assert row["sparsity"] == pytest.approx(target, abs=1 / report["prunable"])
        assert sum(layer["nnz"] for layer in row["layers"].values()) == row["nnz"]
        assert 0 <= row["accuracy"] <= 1 and 0 < row["forward_flops"] < report["dense_forward_flops"]
    assert [row["epoch"] for row in report["history"]] == [1, 2]
    assert set(report["history"][0]["subnets"]) == {row["name"] for row in report["subnets"]}


def test_dense_flops_follow_the_formula(tmp_path):
    report = train(config(tmp_path / "run", algorithm="dense", sparsity=None, model="mlp:20"))
    assert [row["name"] for row in report["subnets"]] == ["dense"] and report["subnets"][0]["sparsity"] == 0
    assert report["dense_forward_flops"] == report["subnets"][0]["forward_flops"] == 2 * (64 * 20 + 20 * 10)
    assert report["training_flops"] == report["dense_training_flops"] == 3 * 2 * (64 * 20 + 20 * 10) * 2 * EPOCH * 16


def test_flops_count_the_products_that_each_phase_makes(tmp_path):
    """The exploration of IEE: dense forward and input gradient, weight gradient of what is not active."""
    options = {"h_steps": 2, "j_steps": 1, "q_steps": 2, "end": 15, "allocation": "uniform", "skip_first": True}
    counts = []
    report = train(config(tmp_path / "run", algorithm="iee", sparsity=(0.8,), options=options),
                   lambda run: counts.append((run.step, run.forward_flops(run.subnets[0]))))
    dense, full = report["dense_forward_flops"], report["subnets"][0]["forward_flops"]
    assert 0.2 < full / dense < 0.5                                # the first convolution is dense
    total, before = 0.0, full
    for step, after in counts:                                      # `before`: the net that this step used
        total += 3 * dense - before if (step - 1) % 5 > 2 and step <= 15 else 3 * before
        before = after
    assert report["training_flops"] == pytest.approx(16 * total, rel=1e-12)
    formula = report["metrics"]["training_flops"]
    assert formula["paper"]["per_sample"] == pytest.approx(3 / 4 * (3 * 3 * full + 2 * (2 * full + dense)) / 5 + 1 / 4 * 3 * full)
    assert formula["honest"]["per_sample"] == pytest.approx(report["training_flops_per_sample"], rel=0.05)      # a pruned net is smaller


def test_files_of_a_run(tmp_path):
    out = tmp_path / "run"
    report = train(config(out, model="mlp:8", epochs=1, eval_every=5))
    assert json.loads((out / "report.json").read_text()) == report
    page = (out / "report.html").read_text()
    assert "data:image/svg+xml;base64," in page and "http" not in page.split("</style>")[1] and "ast-gc on digits" in page
    import yaml
    dumped = yaml.safe_load((out / "config.yaml").read_text())
    assert dumped["algorithm"] == "ast-gc" and dumped["sparsity"] == [0.5, 0.8, 0.9] and "overwrite" not in dumped


def test_the_page_of_a_net_in_sparse_layers(tmp_path):
    settings = {"algorithm": "gse", "sparsity": (0.8,), "model": "mlp:8", "epochs": 1, "options": {"backend": "auto", "delta_t": 2}}
    report = train(config(tmp_path / "run", **settings))
    page = (tmp_path / "run/report.html").read_text()
    assert [entry["layer"] for entry in report["metrics"]["products"]] == ["hidden.0.weight", "classifier.weight"]
    assert "Sparse layers and memory" in page and "Growth" in page and report["metrics"]["products"][0]["reason"] in page
    assert report["prunable"] == 64 * 8 + 80 and report["parameters"] == 64 * 8 + 80 + 18


def test_the_page_of_a_net_that_explores(tmp_path):
    train(config(tmp_path / "run", algorithm="iee", sparsity=(0.8,), model="mlp:8", options={"q_steps": 2}))
    page = (tmp_path / "run/report.html").read_text()
    assert "Convergence of the net" in page and "Growth" in page and "of them by the formula of the paper" in page


def test_the_directory_of_another_run(tmp_path):
    out = tmp_path / "run"
    small = {"model": "mlp:8", "epochs": 1}
    train(config(out, **small))
    with pytest.raises(ConfigError, match=r"already holds a run \(config.yaml\); add --resume.*--overwrite"):
        train(config(out, **small))
    keep = out / "notes.txt"
    keep.write_text("mine")
    finished = train(config(out, resume=True, **small))
    again = train(config(out, overwrite=True, **small))
    assert without_time(finished) == without_time(again) and keep.exists()


def test_nothing_of_the_callers_state_changes(tmp_path):
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train(config(tmp_path / "run", model="mlp:8", epochs=1))
    assert torch.equal(before, torch.get_rng_state()) and torch.get_num_threads() == threads


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(TrainingError, match=r"loss is not finite in epoch 1.*Lower --lr|NaN in the weights"):
        train(config(tmp_path / "run", model="mlp:30", lr=1e30))


@pytest.mark.parametrize("schedule, wanted", [
    ("cosine", [0.5, 1.0, 1.0, 0.5 * (1 + math.cos(math.pi / 18))]), ("step", [0.5, 1.0, 1.0, 1.0]), ("constant", [0.5, 1.0, 1.0, 1.0])])
def test_learning_rate_is_a_pure_function_of_the_step(schedule, wanted):
    settings = TrainConfig(lr=1.0, epochs=20, warmup_epochs=2, schedule=schedule)
    rates = [learning_rate(settings, step, total=20, per_epoch=1) for step in range(20)]
    assert rates[:4] == pytest.approx(wanted)
    assert rates[-1] == pytest.approx({"cosine": 0.5 * (1 + math.cos(math.pi * 17 / 18)), "step": 0.01, "constant": 1.0}[schedule])
    if schedule == "step":
        assert [rates.count(pytest.approx(r)) for r in (0.1, 0.01)] == [5, 5]


@pytest.mark.parametrize("changes, words", [
    ({"sparsity": (0.9, 1.0)}, r"sparsity: expected shares of zeros in \[0, 1\), got 1"), ({"sparsity": 90}, "write 0.9 for 90 %"),
    ({"sparsity": -0.1}, "sparsity: expected"), ({"sparsity": ()}, "sparsity: expected at least one"),
    ({"sparsity": float("nan")}, "sparsity: expected"), ({"epochs": -1}, "epochs: expected a positive integer, got -1"),
    ({"epochs": 1.5}, "epochs: expected a positive integer"), ({"batch_size": 0}, "batch_size: expected"), ({"lr": -1}, "lr: expected"),
    ({"lr": float("nan")}, "lr: expected"), ({"momentum": 1.0}, r"momentum: expected a number in \[0, 1\)"),
    ({"data": "mnist"}, "data: expected"),
    ({"device": "tpu"}, "device: expected auto, cpu"), ({"schedule": "linear"}, "schedule: expected one of"),
    ({"warmup_epochs": 20}, "warmup_epochs: expected fewer"), ({"milestones": (1.5,)}, "milestones: expected"),
    ({"max_norm": 0}, "max_norm"),
    ({"nesterov": True, "momentum": 0.0}, "nesterov"), ({"resume": True, "overwrite": True}, "exclude each other"),
    ({"precision": "fp16"}, "precision: expected"), ({"progress": "loud"}, "progress: expected"), ({"subset": 0}, "subset: expected"),
])
def test_settings_that_cannot_work(changes, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig(**changes)


@pytest.mark.parametrize("changes, words", [
    ({"algorithm": "ast"}, "algorithm: expected one of .*ast-gc"), ({"algorithm": "dense"}, "dense has no setting sparsity; it has"),
    ({"options": {"speed": 3}}, "ast-gc has no setting speed"), ({"options": {"gc_mode": "x"}}, "ast-gc: gc_mode: expected"),
    ({"batch_size": 1000}, "batch_size: expected at most the 160"), ({"model": "resnet21"}, "model: expected one of"),
    ({"precision": "bf16"}, "bf16 needs a CUDA device"), ({"subset": 10**6}, "subset: expected"),
])
def test_settings_that_do_not_fit_together(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        train(config(tmp_path / "run", **changes))


def test_learns_the_digits(tmp_path):
    report = train(TrainConfig(algorithm="ast-gc", sparsity=(0.5, 0.7), model="mlp:100", batch_size=32, epochs=12, lr=0.1, augment=False,
                               out=tmp_path / "run", progress="none", threads=1, eval_every=12, device="cpu"))
    assert all(row["accuracy"] > 0.9 for row in report["subnets"])

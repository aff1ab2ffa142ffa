"""The page and the lines of a run with stages and with more sub-nets than there are colours."""
import json

import pytest
from matplotlib.colors import to_hex
from staged import Staged, build

from sparsekern.training import TrainConfig, plots, train
from sparsekern.training.html import render
from sparsekern.training.progress import describe, make_progress, table


def entry(name, pattern, sparsity, **more):
    return {"name": name, "pattern": pattern, "target_sparsity": sparsity, "sparsity": sparsity,
            "layers": {"conv.weight": {"nnz": 10, "numel": 20, "sparsity": 0.5}}, **more}


def many(count=10):
    """One dense net, `count` unstructured and channel nets each, three of n:m."""
    rows = [entry("dense", "dense", 0.0)]
    rows += [entry(f"u{k}", "unstructured", 1 - 0.8 ** k) for k in range(1, count + 1)]
    rows += [entry(f"c{k}", "channel", 1 - 0.9 ** k) for k in range(1, count + 1)]
    rows += [entry(name, name, 0.5) for name in ("1:2", "2:4", "4:8")]
    for index, row in enumerate(rows):
        row |= {"accuracy": 0.9 - 0.01 * index, "accuracy_before": 0.8, "accuracy_of_stage": 0.85}
    history = [{"epoch": epoch, "stage": f"stage {epoch // 3}/10", "train_loss_by_subnet": {},
                "subnets": {row["name"]: {"accuracy": row["accuracy"], "sparsity": row["sparsity"]} for row in rows}} for epoch in range(1, 5)]
    return {"subnets": rows, "history": history, "metrics": {"alphas": [0.5, 0.7, 1.0]}}


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


@pytest.mark.parametrize("draw", [plots.accuracy, plots.layers])
def test_many_sub_nets_have_the_colours_of_their_patterns(draw):
    figure = draw(many())
    lines = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) != 2 or line.get_xdata()[0] != line.get_xdata()[1]]
    names = [f"{name} (10, the sparser the paler)" for name in ("unstructured", "channel")] + ["N:M (3, the sparser the paler)"]
    assert sorted(legend(figure)) == sorted(names + (["dense"] if draw is plots.accuracy else []))
    assert len({to_hex(line.get_color()) for line in lines}) == len(legend(figure)) and len(lines) == 24 - (draw is plots.layers)
    assert figure.axes[0].get_legend().get_bbox_to_anchor().transformed(figure.axes[0].transAxes.inverted()).x0 > 1     # beside the axes


def test_a_few_sub_nets_keep_their_names():
    report = many()
    report["subnets"] = report["subnets"][:3]
    assert legend(plots.accuracy(report)) == ["dense", "u1", "u2"]


def test_the_end_of_a_stage_is_marked():
    marks = [line.get_xdata()[0] for line in plots.accuracy(many()).axes[0].get_lines() if len(set(line.get_xdata())) == 1]
    assert marks == [2.5]                                  # epochs 1 and 2 are of stage 0, 3 and 4 of stage 1


def test_means_per_pattern_by_hand():
    rows = [entry("dense", "dense", 0.0, accuracy=0.9), entry("u1", "unstructured", 0.2, accuracy=0.8), entry("2:4", "2:4", 0.5, accuracy=0.6),
            entry("u2", "unstructured", 0.4, accuracy=0.7), entry("1:2", "1:2", 0.5, accuracy=0.5), entry("c1", "channel", 0.1, accuracy=None)]
    assert plots.pattern_accuracy(rows) == pytest.approx({"dense": 0.9, "unstructured": 0.75, "N:M": 0.55})
    assert plots.pattern_accuracy([entry("0.0", "unstructured", 0.0, accuracy=0.4)]) == {"dense": 0.4}


def test_stages_and_the_path_of_alpha():
    assert legend(plots.stages(many())) == [f"{group}, {when}" for group in ("dense", "channel", "unstructured", "N:M")
                                            for when in ("own stage", "in the end")]
    chosen, even = plots.alphas(many()).axes[0].get_lines()
    assert list(chosen.get_xdata()) == [2, 3, 4] and list(chosen.get_ydata()) == [0.5, 0.7, 1.0]
    assert list(even.get_ydata()) == pytest.approx([1 / 2, 2 / 3, 3 / 4])
    plain = many() | {"metrics": {}}
    for row in plain["subnets"]:
        del row["accuracy_of_stage"]
    assert plots.stages(plain) is None and plots.alphas(plain) is None


def test_the_page_shows_before_and_after(tmp_path, monkeypatch):
    metrics = Staged.metrics
    monkeypatch.setattr(Staged, "metrics", lambda self: metrics(self) | {
        "alphas": self.alphas, "training_flops_by_subnet": {"paper": {"dense": 1.5, "half": 1.5}}})
    settings = TrainConfig(model="mlp:8", subset=128, batch_size=16, epochs=3, device="cpu", threads=1, progress="none", out=tmp_path / "run")
    kept = []
    report = train(settings, build=build, on_end=lambda run: kept.append(run) or {})
    flops = [kept[0].forward_flops(name) for name in ("dense", "half")]
    assert report["metrics"]["training_flops"]["paper"]["per_sample"] == pytest.approx(1.5 * sum(flops))
    page = (tmp_path / "run/report.html").read_text()
    assert all(words in page for words in ("of its own stage", "before the choice", "Merge of the stages", "mean of unstructured sub-nets",
                                           "<i>mean</i>", "of them by the formula of the paper"))
    dense, half = report["subnets"]
    assert f"<td>{half['accuracy_of_stage']:.2%}</td><td>{half['accuracy_before']:.2%}</td><td><b>{half['accuracy']:.2%}</b></td>" in page
    assert report["pattern_accuracy"] == {"dense": dense["accuracy"], "unstructured": half["accuracy"]}
    old = {key: value for key, value in json.loads((tmp_path / "run/report.json").read_text()).items()
           if key not in ("pattern_accuracy", "stages", "holdout_images")}
    for row in old["subnets"]:                             # a report of a version that knew no stages
        row.pop("accuracy_before"), row.pop("accuracy_of_stage")
    for row in old["history"]:
        row.pop("stage")
    assert "before the choice" not in render(old)


def test_the_table_shows_before_and_after():
    rows = [row | {"nnz": 10, "loss": 0.5, "forward_flops": 1e6} for row in many()["subnets"][:2]]
    rows[0]["accuracy_of_stage"] = None
    head, _, dense, first = table(rows).splitlines()
    assert head.split()[4:] == ["nonzeros", "own", "stage", "before", "accuracy", "loss", "forward", "FLOPs"]
    assert dense.split()[4:] == ["10", "-", "80.00%", "90.00%", "0.5000", "1e+06"] and first.split()[5:8] == ["85.00%", "80.00%", "89.00%"]


def test_lines_stay_short(capsys):
    rows = {row["name"]: {"accuracy": row["accuracy"], "sparsity": row["sparsity"]} for row in many()["subnets"]}
    assert describe(rows) == "24 sub-nets 78.50% on average, worst 4:8 67.00% "
    with make_progress("rich", total=20, per_epoch=10) as bar:
        bar.begin(0, "2 stages of 1 epochs each, 20 steps in all")
        bar.step(20, lambda: {"subnet": "u1", "loss": 1.0, "accuracy": 0.5, "sparsities": [0.2], "stage": "stage 1/1"})
        assert bar.bar.tasks[0].fields["live"] == "stage 1/1  loss 1.000  u1 50.0%  sparsity 20.0%"
        bar.epoch({"epoch": 2, "stage": "stage 1/1", "train_loss": 1.25, "subnets": rows, "finalized": True})
        bar.tick(3, 9, "stage 2")
        task = bar.bar.tasks[0]
        assert (task.completed, task.total, task.fields["live"]) == (3, 9, "finalizing  stage 2")
    said = capsys.readouterr().out
    assert "2 stages of 1 epochs each" in said and "epoch 2: stage 1/1  loss 1.250  finalized: 24 sub-nets" in said.replace("\n", " ")

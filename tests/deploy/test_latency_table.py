"""Latency tables: sums worked by hand, refusals, and measuring with a clock that is a formula."""
import json

import pytest
import torch
from torch import nn

from sparsekern.cli import main
from sparsekern.deploy import latency_table as measuring
from sparsekern.deploy import progress
from sparsekern.deploy.latency_plan import make_plan
from sparsekern.sparsity.channel_groups import find_channel_groups
from sparsekern.sparsity.latency import Entry, LatencyTable, fingerprint, layer_widths
from sparsekern.sparsity.slim import slim

SHAPE = (3, 8, 8)


class Tiny(nn.Module):
    """A stem, a residual block, a depthwise convolution with its pointwise one, and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.inner, self.back = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.depth, self.point = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 32, 1)
        self.last = nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.back(torch.relu(self.inner(x)))
        return self.last(torch.relu(self.point(torch.relu(self.depth(x)))).mean((2, 3)))


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Tiny()


def table() -> LatencyTable:
    entries = {"a": Entry((4, 8), (2, 4), ((1.0, 2.0), (3.0, 6.0))), "dw": Entry(None, (2, 4), ((0.5, 0.7),)), "head": Entry((4,), (10,), ((0.25,),))}
    return LatencyTable({"batch": 7}, {"one": ("a", (8, 4)), "two": ("dw", (4, 4)), "fc": ("head", (4, 10))}, entries, 0.1)


# ---- sums ----

@pytest.mark.parametrize("c_in, c_out, ms", [
    (8, 4, 6.0), (4, 2, 1.0), (4, 3, 1.5), (6, 2, 2.0), (6, 3, 3.0), (8, 3, 4.5),       # on the grid and between
    (4, 1, 0.5), (2, 2, 0.5), (2, 1, 0.25), (0, 4, 0.0), (4, 0, 0.0)])                  # below it, down to nothing
def test_a_layer_between_the_points_that_were_measured(c_in, c_out, ms):
    assert table().layer_ms("one", c_in, c_out) == pytest.approx(ms)


def test_a_depthwise_layer_has_one_width():
    assert table().layer_ms("two", 4, 3) == table().layer_ms("two", 3, 3) == pytest.approx(0.6)


def test_totals():
    t = table()
    assert t.full_ms == pytest.approx(0.1 + 6.0 + 0.7 + 0.25)
    assert t.smallest_ms == pytest.approx(0.1 + 1.0 + 0.5 + 0.25)
    assert t.total_ms({"one": (4, 4)}) == pytest.approx(0.1 + 2.0 + 0.7 + 0.25)
    assert t.total_ms({"one": (4, 2), "two": (2, 2), "fc": (2, 10)}) == pytest.approx(0.1 + 1.0 + 0.5 + 0.125)


@pytest.mark.parametrize("call, words", [
    (lambda t: t.layer_ms("three", 1, 1), "no layer 'three'"), (lambda t: t.total_ms({"three": (1, 1)}), "no layer 'three'"),
    (lambda t: t.layer_ms("one", 9, 4), "expected 0 to 8 channels in"), (lambda t: t.layer_ms("one", 8, -1), "0 to 4 out, got 8 and -1")])
def test_questions_without_an_answer(call, words):
    with pytest.raises(ValueError, match=words):
        call(table())


# ---- the file ----

def test_a_table_survives_its_file(tmp_path):
    path = tmp_path / "deep" / "t.json"
    table().save(path)
    assert LatencyTable.load(path) == table()
    assert [entry.name for entry in path.parent.iterdir()] == ["t.json"]


def damaged(values: dict, how: str) -> None:
    entry = values["entries"]["a"]
    {"rows": lambda: entry["ms"].pop(), "row": lambda: entry["ms"][0].pop(), "order": lambda: entry["inputs"].reverse(),
     "zero": lambda: entry["outputs"].__setitem__(0, 0), "negative": lambda: entry["ms"][0].__setitem__(0, -1.0),
     "text": lambda: entry["ms"][0].__setitem__(0, "fast"), "entry": lambda: values["layers"]["one"].update(entry="b"),
     "full": lambda: values["layers"]["one"].update(channels=[16, 4]), "rest": lambda: values.update(rest_ms=-1),
     "missing": lambda: values.pop("layers"), "list": lambda: values.update(entries=[]), "no inputs": lambda: entry.update(inputs=[], ms=[]),
     "fraction": lambda: entry["inputs"].__setitem__(0, 1.5), "channel text": lambda: values["layers"]["one"]["channels"].__setitem__(0, "x"),
     "huge": lambda: entry["ms"][0].__setitem__(0, 10**400), "huge rest": lambda: values.update(rest_ms=10**400),
     "nan": lambda: entry["ms"][0].__setitem__(0, float("nan"))}[how]()


@pytest.mark.parametrize("how", ["rows", "row", "order", "zero", "negative", "text", "entry", "full", "rest", "missing", "list", "no inputs",
                                 "fraction", "channel text", "huge", "huge rest", "nan"])
def test_a_damaged_file_is_refused(tmp_path, how):
    path = tmp_path / "t.json"
    table().save(path)
    values = json.loads(path.read_text())
    damaged(values, how)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"t\.json is damaged .*measure it again"):
        LatencyTable.load(path)


@pytest.mark.parametrize("text, words", [("{", "is damaged"), pytest.param("[" * 100_000, "is damaged", id="deep"),
                                         ("[]", "is no such file"), ('{"format": "other"}', "got 'other'"), (None, "cannot read")])
def test_something_else_is_refused(tmp_path, text, words):
    path = tmp_path / "t.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=words):
        LatencyTable.load(path)


# ---- whose table it is ----

def test_the_fingerprint_names_what_differs(tiny):
    t = LatencyTable(fingerprint(tiny, 4, SHAPE, "cpu"), {}, {})
    t.check(tiny, 4, SHAPE, "cpu")
    t.check()
    other = Tiny()
    other.inner = nn.Conv2d(16, 24, 3, padding=2)
    for given, words in (((other, 4, SHAPE, "cpu"), "another model: model was"), ((tiny, 5, SHAPE, "cpu"), "another model: batch was 4, now 5"),
                         ((tiny, 4, (3, 9, 9), "cpu"), r"shape was \[3, 8, 8\], now \[3, 9, 9\]"),
                         ((Tiny().double(), None, None, None), "dtype was 'float32', now 'float64'"),
                         ((Tiny().to(memory_format=torch.channels_last), None, None, None), "memory_format was 'contiguous', now 'channels_last'")):
        with pytest.raises(ValueError, match=words):
            t.check(*given)
    t.fingerprint["device"], t.fingerprint["threads"] = "Abacus", 99
    with pytest.raises(ValueError, match="another machine or setup: device was 'Abacus', now .*; threads was 99"):
        t.check(tiny, 4, SHAPE, "cpu")
    t.check(tiny, 4, SHAPE, "cpu", machine=False)


def test_weights_do_not_matter_to_the_fingerprint(tiny):
    torch.manual_seed(1)
    assert fingerprint(Tiny(), 4, SHAPE, "cpu") == fingerprint(tiny, 4, SHAPE, "cpu")


# ---- measuring ----

def formula(name: str, c_in: int, c_out: int) -> float:
    """Bilinear, so that a table of any grid has it exactly; the depthwise layer linear."""
    return 0.01 * c_out if name == "depth" else (1 + len(name)) * c_in * c_out / 100


class Clock:
    """A timer that computes. `drift` multiplies call by call; `stop` raises in that call."""

    def __init__(self, drift=None, stop=None):
        self.drift, self.stop, self.calls = drift or (lambda call: 1.0), stop, 0

    def __call__(self, net, images):
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        assert images.shape == (4, *SHAPE)
        factor = self.drift(self.calls)
        return {"": 0.5 * factor} | {name: factor * formula(name, *widths) for name, widths in layer_widths(net).items()}


def measure(model, path, timer, **settings):
    settings = {"step": 8, "points": 8, "rounds": 3, "progress": "none"} | settings
    return measuring.measure_latency_table(model, SHAPE, 4, path, timer=timer, **settings)


def test_every_point_is_measured_and_every_net_predicted(tiny, tmp_path):
    t = measure(tiny, tmp_path / "t.json", Clock(), step=5)
    assert t.rest_ms == pytest.approx(0.5) and t.fingerprint == fingerprint(tiny, 4, SHAPE, "cpu")
    groups = find_channel_groups(tiny, torch.rand(1, *SHAPE))
    for seed in range(20):
        torch.manual_seed(seed)
        keep = {group.name: torch.rand(group.channels) < 0.7 for group in groups if not group.fixed}
        for mask in keep.values():
            mask[:5] = True
        widths = layer_widths(slim(tiny, groups, keep))
        widths["depth"] = (widths["depth"][1],) * 2
        wanted = 0.5 + sum(formula(name, *values) for name, values in widths.items())
        assert t.total_ms(widths) == pytest.approx(wanted, rel=1e-9)
    assert LatencyTable.load(tmp_path / "t.json").full_ms == pytest.approx(t.full_ms, abs=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def test_outliers_and_drift_leave_no_trace(tiny, tmp_path):
    """Every seventh call takes ten times as long (in the model beside a net, too); and the machine gets slower by half over the run."""
    calm = measure(tiny, tmp_path / "a.json", Clock())
    slow = measure(tiny, tmp_path / "b.json", Clock(lambda call: 1 + call / 2000), rounds=5)
    wild = measure(tiny, tmp_path / "c.json", Clock(lambda call: 10.0 if call % 31 == 0 else 1.0), rounds=7, max_rounds=12)
    assert wild.full_ms == pytest.approx(calm.full_ms, rel=1e-6) and wild.smallest_ms == pytest.approx(calm.smallest_ms, rel=1e-6)
    assert slow.full_ms / slow.smallest_ms == pytest.approx(calm.full_ms / calm.smallest_ms, rel=2e-3)


def test_rounds_are_added_until_the_spread_is_small(tiny, tmp_path):
    assert measure(tiny, tmp_path / "a.json", Clock()).measured["rounds"] == 3
    noisy = Clock(lambda call: 1 + 0.4 * ((call * 7919) % 101) / 101)
    found = measure(tiny, tmp_path / "b.json", noisy, spread=0.02, max_rounds=30).measured
    assert 3 < found["rounds"] <= 30 and (found["spread"] <= 0.02 or found["rounds"] == 30)
    assert measure(tiny, tmp_path / "c.json", noisy, spread=1e-9, max_rounds=4).measured["rounds"] == 4


def test_a_stopped_measurement_goes_on_where_it_was(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "SAVE_SECONDS", 0.0)
    path, whole = tmp_path / "t.json", Clock()
    wanted = measure(tiny, tmp_path / "whole.json", whole)
    with pytest.raises(KeyboardInterrupt):
        measure(tiny, path, Clock(stop=whole.calls // 2))
    assert not path.exists()
    rest = Clock()
    assert measure(tiny, path, rest, resume=True).entries == wanted.entries
    assert rest.calls < 0.6 * whole.calls
    again = Clock(stop=1)
    assert measure(tiny, path, again, resume=True).layers == wanted.layers and again.calls == 0
    with pytest.raises(ValueError, match=r"t\.json exists; add --overwrite"):
        measure(tiny, path, again)
    assert measure(tiny, path, Clock(), overwrite=True).entries == wanted.entries


@pytest.mark.parametrize("change, words", [({"repeats": 2}, "repeats was 3, now 2"), ({"step": 4}, "other nets")])
def test_a_stopped_measurement_of_other_settings_is_refused(tiny, tmp_path, monkeypatch, change, words):
    monkeypatch.setattr(measuring, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        measure(tiny, tmp_path / "t.json", Clock(stop=30))
    with pytest.raises(ValueError, match=words):
        measure(tiny, tmp_path / "t.json", Clock(), resume=True, **change)


@pytest.mark.parametrize("rows", [None, [None], [[0, 0]], [[0, 99, [1.0], {}]], [[0, 0, [1.0, 1.0], {}]], [[0, 0, ["x"], {}]]])
def test_a_damaged_file_of_rounds_is_refused(tiny, tmp_path, monkeypatch, rows):
    monkeypatch.setattr(measuring, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        measure(tiny, tmp_path / "t.json", Clock(stop=30))
    file = tmp_path / "t.json.rounds"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"visits": rows}))
    with pytest.raises(ValueError, match=r"t\.json\.rounds is damaged .*remove it to start again"):
        measure(tiny, tmp_path / "t.json", Clock(), resume=True)


def test_few_nets_show_every_pair(tiny):
    plan = make_plan(tiny, torch.rand(1, *SHAPE), 4, 8)
    assert plan.nets[0] == {name: grid[-1] for name, grid in plan.grids.items()}
    assert plan.grids == {"stem": (4, 8, 12, 16), "inner": (4, 8, 12, 16, 20, 24), "point": (4, 8, 12, 16, 20, 24, 28, 32)}
    assert len(plan.nets) <= 40                                 # the stem's widths by those of point, 32, is the least
    for layer in plan.layers:
        rows, columns = plan.axes(layer)
        assert {plan.place(layer, net) for net in plan.nets} == {(i, j) for i in range(len(rows or (0,))) for j in range(len(columns))}


def test_points_thin_a_grid_out(tiny):
    plan = make_plan(tiny, torch.rand(1, *SHAPE), 1, 4)
    assert plan.grids["point"] == (1, 11, 22, 32) and plan.grids["stem"] == (1, 6, 11, 16)


def test_equal_layers_share_their_measurements():
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 8), (8, 8), (8, 8), (8, 8)))

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return x.mean((2, 3))
    plan = make_plan(Twins(), torch.rand(1, *SHAPE), 4, 8)
    one, two, three, last = (layer.entry for layer in plan.layers)
    assert two == three and len({one, two, last}) == 3          # what reaches the output stays whole
    assert "relu" in one and "(3, 3)" in one


@pytest.mark.parametrize("change, words", [({"step": 0}, "step of at least 1"), ({"points": 1}, "at least 2 points"),
                                           ({"rounds": 0}, "rounds of at least 1"), ({"rounds": 5, "max_rounds": 4}, "max_rounds of at least"),
                                           ({"spread": float("nan")}, "spread above 0"), ({"repeats": 0}, "repeats")])
def test_settings_that_cannot_work(tiny, tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        measure(tiny, tmp_path / "t.json", Clock(), **change)
    assert not list(tmp_path.iterdir())


def test_a_model_without_removable_channels_is_refused(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with pytest.raises(ValueError, match="no channels of this model may be removed .*model output"):
        measure(model, tmp_path / "t.json", Clock())


def test_the_timer_accounts_for_every_layer(tiny):
    found = measuring.time_layers(tiny, torch.rand(4, *SHAPE))
    assert set(found) == {"", *layer_widths(tiny)} and all(value > 0 for value in found.values())
    assert tiny.training and not any(module._forward_pre_hooks for module in tiny.modules())


def test_progress_in_lines_in_a_bar_and_not_at_all(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", -1.0)
    for kind in ("none", "plain", "auto"):
        with progress.Progress(kind, 8) as bar:
            bar.show(2, None, "2.50 ms")
            bar.show(4, 16, "3.50 ms")
        said = capsys.readouterr().out.splitlines()
        assert [line.partition(" left")[0] for line in said] == ([] if kind == "none" else ["measured 2/8 2.50 ms", "measured 4/16 3.50 ms"])
    pytest.importorskip("rich")
    with progress.Progress("rich", 8) as bar:
        bar.show(4, 16, "3.50 ms")
        assert (bar.bar.tasks[0].completed, bar.bar.tasks[0].total) == (4, 16)


# ---- the command ----

def test_the_command(tmp_path, capsys):
    path = tmp_path / "t.json"
    command = ["latency-table", "--model", "small_cnn", "--shape", "1,8,8", "--batch", "2", "--out", str(path), "--step", "32", "--points", "2",
               "--rounds", "1", "--max-rounds", "1", "--repeats", "1", "--threads", "1", "--progress", "plain"]
    assert main(command) == 0
    assert f"wrote {path}" in capsys.readouterr().out
    table = LatencyTable.load(path)
    assert table.full_ms > 0 < table.smallest_ms and table.fingerprint["batch"] == 2
    assert main(command) == 2
    assert "exists; add --overwrite" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0


@pytest.mark.parametrize("change, words", [
    (["--shape", "3,32"], "shape: expected channels,height,width"), (["--model", "resnet2"], "did you mean"),
    (["--data", "mars"], "data: expected one of"),
    (["--threads", "0"], "threads: expected at least 1"), (["--batch", "x"], "invalid int value"), (["--fast"], "unrecognized arguments")])
def test_the_command_refuses_in_one_line(tmp_path, capsys, change, words):
    assert main(["latency-table", "--model", "small_cnn", "--out", str(tmp_path / "t.json"), *change]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1

"""Schedules, timelines and scores are pure functions."""
import pytest
import torch

from sparsekern.sparsity import schedules
from sparsekern.sparsity.scores import SCORES, Sources, score
from sparsekern.sparsity.timeline import ALL, FOREVER, Phase, Timeline, View


@pytest.mark.parametrize("name, arguments, expected", [
    ("constant", {"value": 0.3}, [0.3, 0.3, 0.3]),
    ("cubic", {"initial": 0.0, "final": 0.8, "start": 0, "end": 100}, [0.0, 0.7, 0.8]),
    ("cosine_drop", {"value": 0.3, "end": 100}, [0.3, 0.15, 0.0]),
    ("cosine_floor", {"initial": 0.5, "lowest": 0.005, "end": 100}, [0.5, 0.2525, 0.005]),
    ("power", {"value": 0.4, "exponent": 2, "end": 100}, [0.4, 0.1, 0.0]),
    ("exponential", {"initial": 1.0, "final": 0.01, "start": 0, "end": 100}, [1.0, 0.1, 0.01]),
    ("steps", {"values": [(0, 0.02), (50, 0.01), (100, 0.0)]}, [0.02, 0.01, 0.0]),
])
def test_start_middle_and_end(name, arguments, expected):
    schedule = schedules.SCHEDULES[name]
    assert [schedule(step, **arguments) for step in (0, 50, 100)] == pytest.approx(expected)
    assert schedule(1000, **arguments) == pytest.approx(expected[-1])              # and it stays there


def test_a_window_of_no_length_is_over():
    assert schedules.cubic(3, 0.0, 0.8, 3, 3) == 0.8


def test_timeline_of_two_phases_and_a_rest():
    a, b, rest = Phase("a", 2, View("m", "m")), Phase("b", 1, View(ALL, "m")), Phase("rest", FOREVER, View("m", "m"))
    timeline = Timeline((a, b), cycles=2, then=rest)
    moments = [timeline.at(step) for step in range(8)]
    assert [m.phase.name for m in moments] == ["a", "a", "b", "a", "a", "b", "rest", "rest"]
    assert [(m.cycle, m.position, m.offset) for m in moments[2:5]] == [(0, 1, 0), (1, 0, 0), (1, 0, 1)]
    assert moments[7].offset == 1
    with pytest.raises(ValueError, match="Timeline"):
        Timeline((a,), cycles=2)


def test_a_lead_comes_once_before_the_cycles():
    view = View(ALL, ALL)
    one, two, a, end = (Phase(name, steps, view) for name, steps in (("one", 1), ("two", 2), ("a", 2), ("end", FOREVER)))
    timeline = Timeline((a,), cycles=2, then=end, lead=(one, two))
    seen = [(moment.phase.name, moment.cycle, moment.position, moment.offset, moment.last) for moment in map(timeline.at, range(8))]
    assert seen == [("one", -1, 0, 0, True), ("two", -1, 1, 0, False), ("two", -1, 1, 1, True), ("a", 0, 0, 0, False), ("a", 0, 0, 1, True),
                    ("a", 1, 0, 0, False), ("a", 1, 0, 1, True), ("end", 2, 1, 0, False)]


def test_scores():
    w, g, v = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5]), torch.tensor([0.0, 4.0])
    sources = Sources([w], [g], [v], seed=1, step=2)
    expected = {"magnitude": [1, -2], "gradient": [3, 0.5], "momentum": [0, 4], "saliency": [3, -1], "mag_grad": [1.03, 2.005]}
    for name, values in expected.items():
        torch.testing.assert_close(score(name, sources)[0], torch.tensor(values, dtype=torch.float32))
    assert set(SCORES) == set(expected) | {"random"}
    with pytest.raises(ValueError, match="expected one of"):
        score("magic", sources)
    with pytest.raises(ValueError, match="gradient"):
        score("gradient", Sources([w]))


def test_random_scores_depend_on_seed_step_layer_and_position_only():
    weights = [torch.zeros(50, 40), torch.zeros(50, 40)]

    def draw(seed, step):
        return score("random", Sources(weights, seed=seed, step=step))
    a, b = draw(0, 0)
    assert torch.equal(a, draw(0, 0)[0]) and not torch.equal(a, b)
    assert not torch.equal(a, draw(1, 0)[0]) and not torch.equal(a, draw(0, 1)[0])
    assert a.min() >= 0 and a.max() < 1 and abs(a.mean() - 0.5) < 0.02 and abs(a.var() - 1 / 12) < 0.005
    assert a.unique().numel() > 1990
    assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.08

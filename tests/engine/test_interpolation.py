"""Greedy interpolation: hand-worked optima, ties, restarts to the last bit, and one further copy of the weights."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsekern.sparsity.interpolation import POOL, barrier, choose, interpolate, mix
from sparsekern.sparsity.stage_store import StageStore
from sparsekern.testing import threads


def line(*places):
    """(targets, load) of one-dimensional stages at these places."""
    stages = [{"w": torch.tensor([float(place)], dtype=torch.float64)} for place in places]
    return {"w": torch.zeros(1, dtype=torch.float64)}, lambda k: stages[k - 1]


def random_stages(count, directory=None, seed=0):
    """Targets with awkward shapes, and a StageStore of `count` stages near each other."""
    torch.manual_seed(seed)
    def make(dtype):
        return {"conv": torch.randn(7, 5, 3, 3).contiguous(memory_format=torch.channels_last).to(dtype), "norm": torch.randn(33).to(dtype),
                "one": torch.randn(()).to(dtype), "none": torch.empty(0, 4, dtype=dtype), "long": torch.randn(70001).to(dtype)}
    store = StageStore(directory)
    for k in range(1, count + 1):
        store.put(f"stage-{k}", make(torch.float32))
    return {name: nn.Parameter(value) for name, value in make(torch.float32).items()}, lambda k: store.open(f"stage-{k}")


def pulled(targets, goal=0.3):
    """A score with a different optimum for every stage."""
    return lambda k: -float((targets["long"].detach().double() - goal * k).square().sum() + (targets["conv"].detach().double() * k).sum())


def assert_equal(one, other):
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def copies(targets):
    return {name: value.detach().clone() for name, value in targets.items()}


def test_hand_worked():
    """10 lies 3 from the goal at alpha = .7 of the way back to 0; then 4 - alpha = 3.4."""
    targets, load = line(0, 10, 4)
    goals, noted = {2: 3.0, 3: 3.4}, []
    alphas = interpolate(targets, load, 3, lambda k: -(targets["w"].item() - goals[k]) ** 2, note=lambda k, scores: noted.append((k, scores)))
    assert alphas == [0.7, 0.6] and targets["w"].item() == pytest.approx(3.4, abs=1e-12)
    assert [k for k, _ in noted] == [2, 3] and [choose(POOL, scores) for _, scores in noted] == alphas
    assert noted[0][1] == pytest.approx([-(10 * (1 - alpha) - 3) ** 2 for alpha in POOL], abs=1e-9)


@given(st.lists(st.floats(-4, 4), min_size=2, max_size=5), st.floats(-5, 5))
@settings(max_examples=60, deadline=None)
def test_the_best_of_the_pool_by_trying_all(places, goal):
    targets, load = line(*places)
    alphas = interpolate(targets, load, len(places), lambda k: -(targets["w"].item() - goal) ** 2)
    value = places[0]
    for alpha, place in zip(alphas, places[1:]):
        best = min(abs(other * value + (1 - other) * place - goal) for other in POOL)
        value = alpha * value + (1 - alpha) * place
        assert abs(value - goal) == pytest.approx(best, abs=1e-6)
    assert targets["w"].item() == pytest.approx(value, abs=1e-9)


def test_of_equal_scores_the_first_of_the_pool_wins():
    assert choose((0.5, 0.2, 1), (3, 4, 4)) == 0.2 and tuple(sorted(POOL)) == POOL and len(POOL) == 12 and POOL[-1] == 1
    targets, load = line(1, 2, 3)
    assert interpolate(targets, load, 3, lambda k: 5.0) == [0.05, 0.05]
    assert interpolate(targets, load, 3, lambda k: 5.0, pool=POOL[::-1]) == [1.0, 1.0]


def test_a_stage_that_lowers_the_score_is_dropped_bit_for_bit():
    targets, load = random_stages(3)
    load(2)._tensors["norm"][3], load(3)._tensors["norm"][:] = math.inf, math.nan
    first = {name: load(1)[name] for name in targets}
    alphas = interpolate(targets, load, 3, lambda k: float(all(torch.equal(value, first[name]) for name, value in targets.items())))
    assert alphas == [1.0, 1.0]
    assert_equal(copies(targets), first)


def test_alpha_zero_takes_the_stage_bit_for_bit():
    targets, load = random_stages(2)
    assert interpolate(targets, load, 2, lambda k: 1.0, pool=(0.0, 1.0)) == [0.0]
    assert_equal(copies(targets), {name: load(2)[name] for name in targets})


def test_one_stage_is_the_merged_net():
    targets, load = random_stages(1)
    assert interpolate(targets, load, 1, None) == []
    assert_equal(copies(targets), {name: load(1)[name] for name in targets})


def test_the_targets_are_written_in_place():
    targets, load = random_stages(3)
    grads = {name: torch.ones_like(value) for name, value in targets.items()}
    before = {}
    for name, value in targets.items():
        value.grad = grads[name]
        before[name] = value, value.data_ptr(), value.stride()
    interpolate(targets, load, 3, pulled(targets))
    for name, value in targets.items():
        assert (value, value.data_ptr(), value.stride()) == before[name] and value.requires_grad and value.grad is grads[name]


def test_integer_tensors_are_left_as_they_are():
    targets, load = line(0, 1)
    targets["count"] = torch.tensor(7)
    interpolate(targets, load, 2, lambda k: targets["w"].item())
    assert targets["count"] == 7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_mixing_rounds_once(dtype):
    a, b = {"w": torch.randn(1003).to(dtype)}, {"w": torch.randn(1003).to(dtype)}
    for alpha in POOL:
        out = {"w": torch.empty(1003, dtype=dtype)}
        mix(out, a, b, alpha)
        torch.testing.assert_close(out["w"].double(), alpha * a["w"].double() + (1 - alpha) * b["w"].double(),
                                   rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)


def test_the_bits_do_not_depend_on_threads_nor_on_where_the_stages_lie(tmp_path):
    found = []
    for count, directory in ((1, None), (3, tmp_path / "stages")):
        targets, load = random_stages(4, directory)
        with threads(count):
            found.append((interpolate(targets, load, 4, lambda k, w=targets["norm"]: -float((w[0] - 0.1 * k) ** 2)), copies(targets)))
    assert found[0][0] == found[1][0]
    assert_equal(found[0][1], found[1][1])


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", range(0, 3 * len(POOL), 5))
def test_a_restart_is_the_uninterrupted_run(tmp_path, stop_at):
    targets, load = random_stages(4, tmp_path)
    whole = interpolate(targets, load, 4, pulled(targets))
    assert len(set(whole)) > 1 and min(whole) < 1                       # a path that shows a mistake
    want = copies(targets)

    targets, known, calls = random_stages(4, tmp_path)[0], [], []
    score = pulled(targets)

    def stopping(k):
        calls.append(k)
        if len(calls) == stop_at + 1:
            raise Stop
        return score(k)
    with pytest.raises(Stop):
        interpolate(targets, load, 4, stopping, note=lambda k, scores: known.append(choose(POOL, scores)))
    assert known == whole[:stop_at // len(POOL)]
    so_far, again = copies(targets), random_stages(1)[0]
    assert interpolate(again, load, 1 + len(known), None, known=known) == known
    assert_equal(copies(again), so_far)                                 # what was merged, not a candidate

    calls.clear()
    stop_at = -1
    again = random_stages(1)[0]
    score = pulled(again)
    assert interpolate(again, load, 4, stopping, known=known) == whole and calls == [k for k in range(2 + len(known), 5) for _ in POOL]
    assert_equal(copies(again), want)


def test_a_stage_that_is_dropped_need_not_be_read_again():
    targets, load = line(1, 2, 3)
    asked = []
    assert interpolate(targets, lambda k: asked.append(k) or load(k), 3, None, known=(1.0, 0.5)) == [1.0, 0.5]
    assert asked == [1, 3] and targets["w"].item() == 2


def test_a_damaged_stage_is_named_and_the_targets_hold_those_before(tmp_path):
    targets, load = random_stages(3, tmp_path)
    alphas = interpolate(targets, load, 2, pulled(targets))
    before = copies(targets)
    path = tmp_path / "stage-3.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="stage-3.safetensors: its content does not match its checksum"):
        interpolate(targets, load, 3, pulled(targets), known=alphas)
    assert_equal(copies(targets), before)


def test_a_score_that_is_no_number_is_refused():
    targets, load = line(0, 1, 2)
    with pytest.raises(ValueError, match="interpolate: stage 3, alpha 0.2: the score is NaN.*look for NaN in the weights of stage 3"):
        interpolate(targets, load, 3, lambda k: math.nan if k == 3 and abs(targets["w"].item() - 1.6) < 1e-6 else -abs(targets["w"].item()))
    assert targets["w"].item() == pytest.approx(0)


@pytest.mark.parametrize("change, words", [
    ({"targets": {}}, "targets: expected at least one"), ({"targets": {"n": torch.tensor(3)}}, "targets: expected at least one"),
    ({"stages": 0}, "stages: expected at least 1, got 0"), ({"pool": ()}, r"pool: expected numbers from 0 to 1, got \[\]"),
    ({"pool": (0.5, 1.5)}, "pool: expected numbers from 0 to 1"), ({"pool": (0.5, math.nan)}, "pool: expected numbers"),
    ({"known": (0.5, 0.5)}, "known: expected at most 1 of the pool's"), ({"known": (0.51,)}, r"known: expected .*got \[0.51\]"),
])
def test_arguments_that_do_not_fit_change_nothing(change, words):
    targets, load = line(1, 2)
    targets["w"].fill_(9)
    with pytest.raises(ValueError, match=f"interpolate: {words}"):
        interpolate(**({"targets": targets, "load": load, "stages": 2, "score": lambda k: 1.0} | change))
    assert targets["w"].item() == 9


@pytest.mark.parametrize("wrong", [torch.zeros(2, dtype=torch.float64), torch.zeros(1)])
def test_a_stage_of_another_model_is_refused(wrong):
    targets, load = line(1, 2)
    with pytest.raises(ValueError, match=r"interpolate: stage 2: w: expected torch.float64 \[1\], got .*it is a stage of another model"):
        interpolate(targets, lambda k: load(k) if k == 1 else {"w": wrong}, 2, lambda k: 1.0)
    assert targets["w"].item() == 1


def peak_rise(function):
    """Bytes that torch held at most beyond what it held before; the profiler sees every allocation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    live = peak = 0
    for event in sorted((e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("on_disk", [False, True])
def test_two_copies_and_one_tensor(tmp_path, on_disk):
    shapes = [(64, 32, 3, 3), (50, 400), (128,), (20000,)]
    store = StageStore(tmp_path if on_disk else None)
    for k in range(1, 6):
        store.put(str(k), {str(i): torch.randn(shape) for i, shape in enumerate(shapes)})
    targets = {str(i): torch.empty(shape) for i, shape in enumerate(shapes)}
    sizes = [4 * value.numel() for value in targets.values()]
    rise = peak_rise(lambda: interpolate(targets, lambda k: store.open(str(k)), 5, lambda k: -float(targets["2"][0]) ** 2))
    read = (tmp_path / "1.safetensors").stat().st_size if on_disk else max(sizes)   # a file is mapped for its header, and counts whole
    assert sum(sizes) <= rise <= sum(sizes) + read + 4096                           # beside the targets: D and what is being read


def test_barrier_along_the_path():
    assert barrier((0.0, 0.5, 1.0), (0.9, 0.8, 0.94)) == pytest.approx(0.12)        # below 0.92, the middle of the line
    assert barrier((1.0, 0.0, 0.25), (1.0, 0.6, 0.5)) == pytest.approx(0.2)         # in any order
    assert barrier(POOL, [alpha * (1 - alpha) for alpha in POOL]) == 0 and barrier((1.0,), (0.3,)) == 0

"""Times beside a reference: hand-worked rounds under a timer of numbers, and what a drifting machine must not change."""
import random

import pytest
import torch
from torch import nn

from sparsekern.deploy.timing import WARM_UP, Timing, compare, time_inference


class Clock:
    """A timer of given milliseconds; the n-th call for a net gets the n-th number of its list (the last one for good)."""

    def __init__(self, *given):
        self.given, self.calls = list(given), []

    def __call__(self, net, images):
        assert not net.training
        numbers = next(numbers for owner, numbers in self.given if owner is net)
        count = sum(called is net for called in self.calls)
        self.calls.append(net)
        return numbers[min(count, len(numbers) - 1)]


def rounds_of(*timed):
    """The warm-up, and then what counts behind what does not."""
    return [999.0] * WARM_UP + [ms for one in timed for ms in (777.0, one)]


def test_the_ratio_is_of_the_same_round():
    """Rounds 4/(8+8)/2, 6/(8+16)/2, 20/(16+4)/2: ratios 0.5, 0.5, 2.0, sorted with inclusive quantiles at 0.1 and 0.9."""
    whole, net = nn.Identity(), nn.Identity()
    clock = Clock((whole, rounds_of(8.0, 8.0, 16.0, 4.0)), (net, rounds_of(4.0, 6.0, 20.0)))
    timing = compare({"net": net}, whole, torch.zeros(1), 3, timer=clock)["net"]
    assert timing == Timing(ms=6.0, ratio=0.5, ratio_10=0.5, ratio_90=pytest.approx(1.7), reference_ms=10.0)
    assert timing.speedup == 2.0 and timing.speedup_90 == 2.0 and timing.speedup_10 == pytest.approx(1 / 1.7)


def test_every_net_stands_between_two_inferences_of_the_reference():
    whole, a, b = nn.Identity(), nn.Identity(), nn.Identity()
    clock = Clock((whole, [1.0]), (a, [2.0]), (b, [3.0]))
    timings = compare({"a": a, "b": b}, whole, torch.zeros(1), 2, timer=clock)
    assert list(timings) == ["a", "b"] and timings["a"].ratio == 2.0 and timings["b"].ratio == 3.0
    order = ["wab"[(whole, a, b).index(net)] for net in clock.calls]
    assert "".join(order) == "ww" + "aa" + "bb" + "ww" + "aawwbbww" * 2


def test_a_machine_that_gets_slower_leaves_the_ratio_alone():
    """Every inference is 1 % slower than the one before, and every tenth takes ten times as long: the medians' ratio is that of the nets."""
    whole, net = nn.Identity(), nn.Identity()
    state, draw = {"now": 1.0}, random.Random(0)

    def timer(which, images):
        state["now"] *= 1.01
        return state["now"] * (1.0 if which is net else 2.0) * (10.0 if draw.random() < 0.05 else 1.0)
    timing = compare({"net": net}, whole, torch.zeros(1), timer=timer)["net"]
    assert timing.ratio == pytest.approx(0.5, rel=0.02) and timing.ratio_10 <= timing.ratio <= timing.ratio_90


def test_real_nets_run_in_eval_mode_and_get_their_modes_back():
    seen = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Dropout()

        def forward(self, x):
            seen.append((self.training, self.inner.training, torch.is_grad_enabled()))
            return self.inner(x)
    whole, net = Watch(), Watch()
    whole.inner.eval()
    timing = compare({"net": net}, whole, torch.rand(2, 3), 2)["net"]
    assert set(seen) == {(False, False, False)} and torch.is_grad_enabled()
    assert whole.training and not whole.inner.training and net.training and net.inner.training
    assert timing.ms > 0 and timing.reference_ms > 0 and timing.ratio_10 <= timing.ratio <= timing.ratio_90


def test_modes_come_back_from_a_net_that_fails():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    with pytest.raises(RuntimeError):
        compare({"net": net}, nn.Identity(), torch.rand(2, 4))
    assert net.training and net[1].training


def test_one_round_and_no_nets():
    net = nn.Identity()
    timing = compare({"net": net}, net, torch.zeros(1), 1, timer=lambda net, images: 3.0)["net"]
    assert timing == Timing(3.0, 1.0, 1.0, 1.0, 3.0)
    assert compare({}, net, torch.zeros(1), 1) == {}


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="compare: rounds: expected at least 1, got 0"):
        compare({}, nn.Identity(), torch.zeros(1), 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_timed_to_the_end_of_its_work():
    a, b = nn.Linear(64, 64, device="cuda"), nn.Linear(4096, 4096, device="cuda")
    assert time_inference(a, torch.rand(8, 64, device="cuda")) > 0
    heavy = time_inference(nn.Sequential(*[b] * 50), torch.rand(4096, 4096, device="cuda"))
    assert heavy > 1.0                          # 7e12 operations: a clock that does not wait shows the time of launching them

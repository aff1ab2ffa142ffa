"""Schedules: pure functions of the step, so a resumed run needs no schedule state."""
import math
from collections.abc import Sequence


def _progress(step: float, start: float, end: float) -> float:
    return 1.0 if end <= start else min(1.0, max(0.0, (step - start) / (end - start)))


def constant(step: float, value: float) -> float:
    return value


def cubic(step: float, initial: float, final: float, start: float, end: float) -> float:
    """Gradual pruning: fast first, flat at the end. final + (initial - final) (1 - x)^3."""
    return final + (initial - final) * (1.0 - _progress(step, start, end)) ** 3


def cosine_drop(step: float, value: float, end: float) -> float:
    """From `value` down to 0 at `end`, and 0 afterwards."""
    return value / 2 * (1 + math.cos(math.pi * step / end)) if step < end else 0.0


def cosine_floor(step: float, initial: float, lowest: float, end: float) -> float:
    """From `initial` down to `lowest` at `end`, and `lowest` afterwards."""
    return lowest + (initial - lowest) / 2 * (1 + math.cos(math.pi * _progress(step, 0, end)))


def power(step: float, value: float, exponent: float, end: float) -> float:
    return value * (1.0 - _progress(step, 0, end)) ** exponent


def exponential(step: float, initial: float, final: float, start: float, end: float) -> float:
    """Straight in the logarithm."""
    x = _progress(step, start, end)
    return math.exp((1.0 - x) * math.log(initial) + x * math.log(final))


def steps(step: float, values: Sequence[tuple[float, float]]) -> float:
    """The value of the last pair (from_step, value) whose from_step has been reached."""
    return max((pair for pair in values if pair[0] <= step), default=values[0])[1]


SCHEDULES = {f.__name__: f for f in (constant, cubic, cosine_drop, cosine_floor, power, exponential, steps)}

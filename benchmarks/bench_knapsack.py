"""knapsack: 600 bundles at a capacity of 200,000, beside the same recursion in numpy."""
import numpy
import pytest

from sparsekern import ops

CAPACITY = 200_000


def in_numpy(values, costs):
    """The value alone: no table of choices, so it does less."""
    best = numpy.zeros(CAPACITY + 1, dtype=numpy.int64)
    for v, c in zip(values, costs):
        now = best.copy()
        for value, cost in zip(v.cumsum(), c.cumsum()):
            if cost <= CAPACITY:
                numpy.maximum(now[cost:], best[:CAPACITY + 1 - cost] + value, out=now[cost:])
        best = now
    return int(best[-1])


@pytest.mark.parametrize("groups", [37, 600])
def test_600_bundles(race, groups):
    draw = numpy.random.default_rng(0)
    size = 600 // groups
    values, costs = -numpy.sort(-draw.integers(1, 10**6, (groups, size))), draw.integers(1, 900, (groups, size))
    flat = [values.ravel().tolist(), costs.ravel().tolist(), [size] * groups, CAPACITY]

    def check():
        taken = ops.knapsack(*flat)
        assert sum(int(v[:n].sum()) for v, n in zip(values, taken)) == in_numpy(values, costs)

    race("knapsack", f"{groups * size} bundles in {groups} groups, capacity {CAPACITY}",
         {"sparsekern": lambda: ops.knapsack(*flat), "numpy, value only": lambda: in_numpy(values, costs)}, check={"sparsekern": check}, rounds=5,
         notes=lambda medians: [f"{'met' if medians['sparsekern'] < 0.5 else 'MISSED'}: below 0.5 s: {medians['sparsekern']:.3f} s"])

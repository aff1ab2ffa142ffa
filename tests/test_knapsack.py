"""knapsack: by hand, against every choice there is, against the linear bound, and what it refuses."""
import subprocess
import sys

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import host
from sparsekern.ops.knapsack import knapsack_reference

IMPLEMENTATIONS = [knapsack_reference] + ([ops.knapsack] if host is not None else [])


@pytest.mark.parametrize("solve", IMPLEMENTATIONS)
def test_by_hand(solve):
    # Two groups: (value, cost) 5/3, 1/1, 9/2 and 4/2, 4/2.
    values, costs, sizes = [5, 1, 9, 4, 4], [3, 1, 2, 2, 2], [3, 2]
    assert solve(values, costs, sizes, 10) == [3, 2]                    # everything fits exactly
    assert solve(values, costs, sizes, 9) == [3, 1]
    assert solve(values, costs, sizes, 6) == [3, 0]                     # the poor second bundle is taken for the third
    assert solve(values, costs, sizes, 4) == [0, 2]                     # 8 for 4; 6 would be the first group's for 4
    assert solve(values, costs, sizes, 1) == [0, 0]
    assert solve(values, costs, sizes, 5, min_take=1) == [1, 1]
    assert solve([], [], [], 0) == [] and solve([], [], [0, 0], 5) == [0, 0]


@pytest.mark.parametrize("solve", IMPLEMENTATIONS)
def test_ties_go_to_the_lower_cost_then_to_the_earlier_group(solve):
    assert solve([0, 5], [1, 1], [1, 1], 2) == [0, 1]                   # a bundle of no value costs something: left
    assert solve([5, 5], [1, 1], [1, 1], 1) == [1, 0]
    assert solve([3, 3, 3, 3], [1, 1, 1, 1], [2, 2], 2) == [2, 0]
    assert solve([0, 0], [0, 0], [1, 1], 0) == [1, 1]                   # free and worthless: the longer prefix


@pytest.mark.parametrize("solve", IMPLEMENTATIONS)
def test_a_wider_layer_may_be_faster(solve):
    assert solve([1, 1, 7], [5, -3, 2], [2, 1], 4) == [2, 1]            # the first alone would cost 5
    assert solve([-4, 6], [1, 1], [2], 2) == [2] and solve([-4, 3], [1, 1], [2], 2) == [0]


@st.composite
def problems(draw):
    sizes = draw(st.lists(st.integers(0, 3), max_size=5))
    values = draw(st.lists(st.integers(-5, 9), min_size=sum(sizes), max_size=sum(sizes)))
    costs = []
    for size in sizes:
        total = 0
        for _ in range(size):
            costs.append(draw(st.integers(-total, 7)))
            total += costs[-1]
    return values, costs, sizes, draw(st.integers(0, 40)), draw(st.integers(0, 2))


@pytest.mark.skipif(host is None, reason="built without a compiler")
@settings(max_examples=300, deadline=None)
@given(problems())
def test_agrees_with_every_choice_there_is(problem):
    values, costs, sizes, capacity, least = problem
    try:
        want = knapsack_reference(values, costs, sizes, capacity, min_take=least)
    except ValueError as error:
        with pytest.raises(ValueError) as found:
            ops.knapsack(values, costs, sizes, capacity, min_take=least)
        assert str(found.value) == str(error)
        return
    assert ops.knapsack(values, costs, sizes, capacity, min_take=least) == want


def large(bundles, groups, capacity):
    draw = numpy.random.default_rng(0)
    sizes = numpy.full(groups, bundles // groups)
    values, costs = -numpy.sort(-draw.integers(1, 10**6, (groups, sizes[0]))), draw.integers(1, 3 * capacity // bundles, (groups, sizes[0]))
    return values, costs, sizes


@pytest.mark.skipif(host is None, reason="built without a compiler")
@pytest.mark.parametrize("groups", [10, 60, 600])
def test_large_problems_are_within_a_percent_of_the_linear_bound(groups):
    capacity = 200_000
    values, costs, sizes = large(600, groups, capacity)
    taken = ops.knapsack(values.ravel(), costs.ravel(), sizes, capacity)
    spent = sum(int(c[:n].sum()) for c, n in zip(costs, taken))
    value = sum(int(v[:n].sum()) for v, n in zip(values, taken))
    assert spent <= capacity
    # The fractional optimum over the concave hull of every group bounds the exact one from above.
    steps = []
    for v, c in zip(values, costs):
        points = [(0, 0)]
        for x, y in zip(c.cumsum().tolist(), v.cumsum().tolist()):
            while len(points) > 1 and (y - points[-1][1]) * (points[-1][0] - points[-2][0]) >= (points[-1][1] - points[-2][1]) * (x - points[-1][0]):
                points.pop()
            points.append((x, y))
        steps += [(y2 - y1, x2 - x1) for (x1, y1), (x2, y2) in zip(points, points[1:])]
    bound, left = 0.0, capacity
    for gain, cost in sorted(steps, key=lambda step: -step[0] / step[1]):
        part = min(1.0, left / cost)
        bound, left = bound + part * gain, left - part * cost
    assert 0.99 * bound <= value <= bound + 1


@pytest.mark.skipif(host is None, reason="built without a compiler")
def test_memory_stays_below_50_mb_even_with_groups_of_one():
    program = """
from resource import RUSAGE_SELF, getrusage
from sparsekern import ops
ops.knapsack([1], [1], [1], 5)
before = getrusage(RUSAGE_SELF).ru_maxrss
ops.knapsack(list(range(600)), [500] * 600, [1] * 600, 200_000)
print(getrusage(RUSAGE_SELF).ru_maxrss - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    assert grown < 50_000, f"{grown} KiB"


@pytest.mark.parametrize("arguments, words", [
    (([1, 2], [1], [2], 5), "costs: expected 2 like values, got 1"),
    (([1, 2], [1, 1], [3], 5), "group_sizes: .* that sum to the 2 bundles, got a sum of 3"),
    (([1, 2], [1, 1], [3, -1], 5), "group_sizes: expected sizes of 0 to 65535 .* from -1 to 3"),
    (([1, 2], [1, -2], [2], 5), "costs: expected that no prefix of a group costs less than 0"),
    (([1], [1], [1], -1), "capacity: expected at least 0, .* got -1"),
    (([1] * 100, [1] * 100, [100], 2**30), "capacity: .* beyond 4 GiB; count costs in a coarser unit"),
])
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match="knapsack: " + words):
        ops.knapsack(*arguments)


def test_capacity_below_the_least_names_it():
    with pytest.raises(ValueError, match="capacity: expected at least 7, the least that taking 1 bundles of each group costs, got 6"):
        ops.knapsack([1, 1, 1], [3, 2, 4], [2, 1], 6, min_take=1)
    with pytest.raises(ValueError, match="min_take: expected 0 or more, got -1"):
        ops.knapsack([1], [1], [1], 1, min_take=-1)


@pytest.mark.skipif(host is None, reason="built without a compiler")
def test_sums_that_overflow_are_refused():
    with pytest.raises(ValueError, match="expected sums below 2\\^58"):
        ops.knapsack([2**61, 2**61], [1, 1], [2], 5)

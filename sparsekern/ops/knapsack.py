"""What to keep under a budget: the best prefix of every group of bundles, exactly. Works on plain numbers, on the host."""
import itertools
from collections.abc import Sequence

from sparsekern._native import host


def knapsack(values: Sequence[int], costs: Sequence[int], group_sizes: Sequence[int], capacity: int, *, min_take: int = 0) -> list[int]:
    """How many bundles to take of each group, so that the values sum to the most while the costs sum to at most `capacity`.

    A group's bundles stand in order of importance, and a prefix of them is taken: a bundle only with all that stand before it.
    Ties go to the lower cost, then to the longer prefix in the earlier group.

    Args:
        values, costs: integers, one per bundle, group after group. A bundle may cost less than 0 (a wider layer can be faster), a prefix may not.
        group_sizes: bundles per group, at most 65,535 each; they sum to the number of values.
        capacity: the budget, in the unit of the costs.
        min_take: so many bundles of each group are always taken (all of a smaller group).
    Returns:
        The number taken per group.
    Raises:
        ValueError: lengths that do not fit together, a prefix of negative cost, a capacity below the least that is possible (named), a table
            of choices beyond 4 GiB.
    Cost: capacity times bundles cells in time, one bit for each in memory. Source: the resource-constrained choice of channels in HALP,
        one choice per group instead of one per bundle.
    """
    values, costs, group_sizes = list(values), list(costs), list(group_sizes)
    if len(costs) != len(values):
        raise ValueError(f"knapsack: costs: expected {len(values)} like values, got {len(costs)}")
    if any(not 0 <= size <= 65535 for size in group_sizes) or sum(group_sizes) != len(values):
        raise ValueError(f"knapsack: group_sizes: expected sizes of 0 to 65535 that sum to the {len(values)} bundles, got a sum of "
                         f"{sum(group_sizes)}, sizes from {min(group_sizes, default=0)} to {max(group_sizes, default=0)}")
    if min_take < 0:
        raise ValueError(f"knapsack: min_take: expected 0 or more, got {min_take}")
    if len(values) * (capacity + 1) > 2**35:
        raise ValueError(f"knapsack: capacity: {capacity} times {len(values)} bundles needs a table beyond 4 GiB; count costs in a coarser unit")
    if host is None:
        return knapsack_reference(values, costs, group_sizes, capacity, min_take=min_take)
    return host.knapsack(values, costs, group_sizes, capacity, min_take)


def knapsack_reference(values, costs, group_sizes, capacity, *, min_take=0) -> list[int]:
    """Every choice there is, one after the other: the oracle, and the fallback without a compiler (for a few groups only)."""
    groups, at = [], 0
    for size in group_sizes:
        prefixes = [(0, 0)]
        for value, cost in zip(values[at:at + size], costs[at:at + size]):
            prefixes.append((prefixes[-1][0] + value, prefixes[-1][1] + cost))
        if min(cost for _, cost in prefixes) < 0:
            raise ValueError(f"knapsack: costs: expected that no prefix of a group costs less than 0, group {len(groups)} has one")
        groups.append(prefixes)
        at += size
    best = None
    for taken in itertools.product(*(range(min(min_take, len(group) - 1), len(group)) for group in groups)):
        value, cost = (sum(group[j][k] for group, j in zip(groups, taken)) for k in (0, 1))
        if cost <= capacity and (best is None or (value, -cost, taken) > best):
            best = (value, -cost, taken)
    if best is None:
        least = sum(min(cost for _, cost in group[min(min_take, len(group) - 1):]) for group in groups)
        raise ValueError(f"knapsack: capacity: expected at least {least}, the least that taking {min_take} bundles of each group costs, "
                         f"got {capacity}")
    return list(best[2])

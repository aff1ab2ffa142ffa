"""How a budget of weights is shared among layers. Every allocation sums to the budget exactly."""
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekern import ops


def largest_remainder(shares: Sequence[float], total: int, capacity: Sequence[int]) -> list[int]:
    """Whole numbers close to `shares` that sum to `total`: floors first, then one each by falling fraction (ties: first layer).

    Args:
        shares: wanted real numbers, 0 <= share <= capacity, whose sum is `total` up to rounding.
        total: the sum to reach, at most sum(capacity).
        capacity: upper bound of each entry.
    """
    if not 0 <= total <= sum(capacity):
        raise ValueError(f"largest_remainder: total: expected 0 to {sum(capacity)} (the capacity), got {total}")
    counts = [min(math.floor(share), limit) for share, limit in zip(shares, capacity)]
    order = sorted(range(len(counts)), key=lambda i: (math.floor(shares[i]) - shares[i], i))
    step = 1 if total > sum(counts) else -1
    while sum(counts) != total:                       # one round is enough but for rounding errors of the shares themselves
        for i in order[::step]:
            if sum(counts) != total and 0 <= counts[i] + step <= capacity[i]:
                counts[i] += step
    return counts


def uniform(shapes: Sequence[torch.Size], total: int) -> list[int]:
    """The same density in every layer."""
    sizes = [math.prod(shape) for shape in shapes]
    density = total / max(1, sum(sizes))
    return largest_remainder([density * size for size in sizes], total, sizes)


def erdos_renyi(shapes: Sequence[torch.Size], total: int, *, kernel: bool = True, power: float = 1.0) -> list[int]:
    """ERK (or ER with kernel=False): density_l = min(1, epsilon * (sum of dimensions / product of dimensions) ** power).

    Epsilon is solved for exactly: layers whose density would pass 1 become dense one after another, the rest shares what is left.
    """
    sizes = [math.prod(shape) for shape in shapes]
    if total == sum(sizes):
        return sizes
    used = [shape if kernel else shape[:2] for shape in shapes]
    raw = [(sum(shape) / math.prod(shape)) ** power for shape in used]
    dense: set[int] = set()
    while True:
        rest = [i for i in range(len(sizes)) if i not in dense]
        epsilon = (total - sum(sizes[i] for i in dense)) / sum(raw[i] * sizes[i] for i in rest)
        full = max(rest, key=lambda i: raw[i])
        if epsilon * raw[full] <= 1.0:
            break
        dense |= {i for i in rest if raw[i] == raw[full]}
    return largest_remainder([sizes[i] if i in dense else epsilon * raw[i] * sizes[i] for i in range(len(sizes))], total, sizes)


ALLOCATIONS = ("er", "erk", "uniform")


def allocate(name: str, shapes: Sequence[torch.Size], total: int) -> list[int]:
    """Weights per layer by the allocation called `name`; `er` takes every weight as its [out, flattened in] matrix."""
    if name == "uniform":
        return uniform(shapes, total)
    return erdos_renyi(shapes if name == "erk" else [(shape[0], math.prod(shape[1:])) for shape in shapes], total)


def global_masks(scores: list[Tensor], total: int, *, min_per_layer: int = 1, eligible: list[Tensor] | None = None,
                 largest_possible: list[int] | None = None, flags: Tensor | None = None) -> tuple[list[Tensor], list[int], list[int]]:
    """One ranking of |score| over all layers, and no layer left with fewer than `min_per_layer` weights.

    A layer that the ranking would empty gets its own best `min_per_layer`, and the others are ranked again for what is left, so the sum
    stays exact. One device read-back per round (one round unless a layer runs dry).

    Args:
        scores: one tensor per layer.
        total: how many weights to keep.
        eligible: candidates per layer (default: all), of which `largest_possible` gives the number.
        flags: [F] int64 on the device, brought home with the first read.
    Returns:
        masks, counts per layer, the flags as numbers.
    """
    capacity = largest_possible or [score.numel() for score in scores]
    floor = [min(min_per_layer, size) for size in capacity]
    if total < sum(floor):
        raise ValueError(f"global ranking: {total} weights cannot keep {min_per_layer} in each of {len(scores)} layers; "
                         f"lower the sparsity or min_per_layer")
    total = min(total, sum(capacity))
    short: set[int] = set()
    seen: list[int] = []
    masks: list[Tensor] = [None] * len(scores)
    while True:
        ranked = [i for i in range(len(scores)) if i not in short]
        picked, _, _ = ops.topk_mask([scores[i] for i in ranked], [total - sum(floor[i] for i in short)], global_=True,
                                     eligible=None if eligible is None else [eligible[i] for i in ranked])
        for i, mask in zip(ranked, picked):
            masks[i] = mask
        found = ops.mask_stats(masks)[:, 0]
        numbers = (found if flags is None or seen else torch.cat([found, flags])).tolist()
        counts, seen = numbers[:len(masks)], seen or numbers[len(masks):]
        dry = [i for i in ranked if counts[i] < floor[i]]
        if not dry:
            return masks, counts, seen
        best, _, _ = ops.topk_mask([scores[i] for i in dry], [floor[i] for i in dry],
                                   eligible=None if eligible is None else [eligible[i] for i in dry])
        for i, mask in zip(dry, best):
            masks[i] = mask
        short |= set(dry)

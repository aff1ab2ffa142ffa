"""The N:M form of AST-GC: sub-nets of different n:m from one run, in which groups of weights take the place of weights.

Every sub-net starts dense. At its events a growing share of the groups, 100 % at the end, keeps only its n largest weights; those of
largest sum |W| stay dense until then, and some of them are exchanged for sparse ones of largest sum |g|.
"""
import math

import torch
from torch import Tensor

from sparsekern import ops
from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.nm_groups import expand, group_scores, groupable
from sparsekern.sparsity.patterns import NM, refuse_settings


class NMForm:
    """What AST_GC asks of the N:M form.

    Args:
        config: that of the algorithm; its `nm` becomes a list, its `sparsity` follows from it.
    Source: Yang et al., Get More at Once: Alternating Sparse Training with Gradient Correction, section 4.3.
    """

    def __init__(self, config):
        patterns = NM.parse_all(config.nm)
        self.patterns = {str(pattern): pattern for pattern in patterns}
        if not patterns or len(self.patterns) < len(patterns):
            raise ValueError(f"nm: expected one or more different patterns, got {config.nm!r}")
        implied = [pattern.sparsity for pattern in patterns]
        if config.sparsity != implied:                              # as in a config that was filled in before
            refuse_settings(config, "unstructured", "sparsity")
        refuse_settings(config, "unstructured", "initial_sparsity", "nested", "drop_over_all", "min_per_layer")
        config.nm, config.sparsity = list(self.patterns), implied

    def fitting(self, layers: list[Layer]) -> tuple[list[Layer], dict[str, dict[str, str]]]:
        """The layers that have groups, and per sub-net those that have none."""
        return groupable(layers, list(self.patterns.values()))

    def masks(self, name: str, weights: list[Tensor | None], grads: list[Tensor | None], left: tuple[int, int],
              fraction: float) -> tuple[list[Tensor | None], list[int]]:
        """The masks of sub-net `name` at an event, and how many weights they keep.

        Args:
            weights: per layer, None where it stays dense.
            grads: those of the effective weights, None for a layer that has none (it exchanges no groups).
            left: share of the groups that stay dense, as (numerator, denominator): ceil(share * groups) of every layer.
            fraction: share of these that is exchanged, rounded down.
        Returns:
            Per layer the mask and its count, None and 0 where the layer stays dense.
        """
        n, m = self.patterns[name].keep, self.patterns[name].group
        own = [index for index, weight in enumerate(weights) if weight is not None]
        sums = [group_scores(weights[index], m) for index in own]
        wanted = [-(-score.numel() * left[0] // left[1]) for score in sums]
        dense, _, _ = ops.topk_mask(sums, wanted)
        moved = [0 if grads[index] is None else math.floor(fraction * count) for index, count in zip(own, wanted)]
        if any(moved):
            slopes = [group_scores(grads[index], m) if q else score for index, score, q in zip(own, sums, moved)]
            ops.prune_regrow_(dense, sums, slopes, moved, moved, regrow_dropped=True)
        masks: list[Tensor | None] = [None] * len(weights)
        counts = [0] * len(weights)
        for index, groups, count in zip(own, dense, wanted):
            masks[index] = torch.logical_or(ops.nm_mask(weights[index], n, m, dim=1), expand(groups, m))
            counts[index] = groups.numel() * n + count * (m - n)
        return masks, counts

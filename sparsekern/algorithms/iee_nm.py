"""The N:M form of IEE: n of every m neighbouring weights are active, and what is exchanged are single weights of single groups."""
import math

from torch import Tensor

from sparsekern import ops
from sparsekern.algorithms.iee_form import Form
from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.nm_groups import expand, group_values, groupable
from sparsekern.sparsity.patterns import NM, Pattern
from sparsekern.sparsity.scores import Sources, score


class Groups(Form):
    """n of m: PRUNE takes the weakest active weight of the groups in which an inactive one comes closest to it, or is above it; GROW gives
    every group that lacks one its strongest inactive weight.

    Groups are chosen within each layer, a share of its groups (at least one), ties by the lowest index; between the two events they keep
    n - 1 of m.

    Source: Sun et al., Advancing Weight and Channel Sparsification with Enhanced Saliency, whose appendix reports 2:4 and leaves open how.
    """
    own = ("nm",)
    first = "magnitude"

    def find_layers(self) -> list[Layer]:
        c = self.s.config
        patterns = NM.parse_all(c.nm)
        if len(patterns) != 1:
            raise ValueError(f"nm: IEE trains one net, expected one pattern, got {c.nm!r}")
        self.pattern, = patterns
        c.nm = str(self.pattern)
        layers, self.s.left_dense = groupable(super().find_layers(), patterns)
        return layers

    def make_patterns(self) -> dict[str, Pattern]:
        return {str(self.pattern): self.pattern}

    def explores(self) -> bool:
        return self.pattern.keep < self.pattern.group

    def start(self) -> None:
        s = self.s
        values = score(s.config.start, Sources(s.weights, seed=s.config.seed))
        self.budget = [self.pattern.nnz(weight.numel()) for weight in s.weights]
        s.masks.write(s.net, [ops.nm_mask(value, self.pattern.keep, self.pattern.group, dim=1) for value in values], self.budget)

    def prune(self, share: float) -> tuple[list[Tensor], list[int]]:
        s, (n, m) = self.s, (self.pattern.keep, self.pattern.group)
        active, values = s.masks[s.net], [value.abs() for value in s.scores()]
        gaps = [smallest_gap(value, mask, m) for value, mask in zip(values, active)]
        lost = [min(max(1, math.floor(share * gap.numel())), count - 1) if weight.requires_grad else 0
                for gap, count, weight in zip(gaps, self.budget, s.weights)]
        weak, _, _ = ops.topk_mask(gaps, lost, largest=False, use_abs=False)
        masks = [mask & (strongest(value, mask, n - 1, m) | ~expand(groups, m)) for groups, value, mask in zip(weak, values, active)]
        return masks, [count - number for count, number in zip(self.budget, lost)]

    def grow(self, share: float) -> tuple[list[Tensor], list[int]]:
        s, (n, m) = self.s, (self.pattern.keep, self.pattern.group)
        masks = []
        for value, mask in zip(s.scores(), s.masks[s.net]):
            lacking = group_values(mask, m).sum(2) < n
            masks.append(mask | (strongest(value, ~mask, 1, m) & expand(lacking, m)))
        return masks, list(self.budget)


def smallest_gap(value: Tensor, mask: Tensor, m: int) -> Tensor:
    """Per group how far its smallest active value lies above its largest inactive one (below 0: beneath it)."""
    lowest = group_values(value.masked_fill(~mask, math.inf), m).amin(2)
    return lowest - group_values(value.masked_fill(mask, -math.inf), m).amax(2)


def strongest(value: Tensor, candidates: Tensor, n: int, m: int) -> Tensor:
    """Mask of the n candidates of largest magnitude in every group; each has as many at least."""
    return ops.nm_mask(value.masked_fill(~candidates, math.nan), n, m, dim=1)       # NaN comes after every number

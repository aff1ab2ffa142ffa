"""What IEE does differently for each kind of sparsity; here the base of the forms, and single weights."""
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sparsekern import ops
from sparsekern.sparsity.allocation import ALLOCATIONS, allocate, global_masks
from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.masks import MaskSet
from sparsekern.sparsity.patterns import Pattern, Unstructured, single_sparsity
from sparsekern.sparsity.scores import Sources, score
from sparsekern.sparsity.sparsifier import Sparsifier

if TYPE_CHECKING:
    from sparsekern.algorithms.iee import IEE


class Form(ABC):
    """A kind of sparsity under IEE, which calls these methods in this order and does the rest: phases, freezing, momentum, metrics.

    `self.s` is the IEE: its config, model, layers, masks (the active net is `self.s.masks[self.s.net]`), weights and `scores()`.
    A form writes no mask after `start`; it returns fresh ones.
    """
    own: tuple[str, ...] = ()           # settings that no other form has
    until = 0.75                        # default share of the run after which cycles end
    schedule = "cosine"                 # default schedule of the update budget
    first = "random"                    # default choice of the first net
    score = "magnitude"                 # default importance score
    scores = ("magnitude", "mean_magnitude")

    def __init__(self, s: "IEE"):
        self.s = s

    def find_layers(self) -> list[Layer]:
        """What is masked; the settings that choose it are checked here."""
        return Sparsifier.find_layers(self.s)

    def make_masks(self) -> MaskSet:
        return Sparsifier.make_masks(self.s)

    @abstractmethod
    def make_patterns(self) -> dict[str, Pattern]:
        """{name: pattern} of the one net; the form's settings are checked here."""

    def explores(self) -> bool:
        """Whether anything is pruned at all; without it there are no cycles."""
        return True

    def lead(self) -> list[int]:
        """Steps of the phases before the cycles, each of which ends with `approach`."""
        return []

    @abstractmethod
    def start(self) -> None:
        """Write the first masks of the active net."""

    def observe(self) -> None:
        """Called in every step with the gradients in place, before its update; `self.s.phase` tells which phase it is."""

    def approach(self, position: int) -> tuple[list[Tensor], list[int]]:
        """The active masks after the phase `position` of the lead, and their counts; as they are, unless a form has a lead and changes them."""
        return [mask.clone() for mask in self.s.masks[self.s.net]], self.s.masks.counts(self.s.net)

    @abstractmethod
    def prune(self, share: float) -> tuple[list[Tensor], list[int]]:
        """The active masks without the share of the budget that this cycle exchanges, and their counts. Called after phase H."""

    @abstractmethod
    def grow(self, share: float) -> tuple[list[Tensor], list[int]]:
        """The active masks back at the full budget, and their counts. Called after phase Q."""

    def slim(self) -> nn.Module:
        """The active net as a plain, physically smaller model."""
        raise ValueError(f'slim: pattern={self.s.config.pattern!r} removes no channels; only pattern="channel" does')

    def record(self) -> dict:
        """What the history says of the event just done beside what every form records."""
        return {}

    def extra_state(self) -> dict:
        """What the form carries over, as json-able values."""
        return {}

    def load_extra_state(self, values: dict) -> None:
        pass

    def extra_tensors(self) -> dict[str, Tensor]:
        """And as tensors."""
        return {}

    def load_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        pass


class Weights(Form):
    """Single weights: budgets per layer, or one ranking of all layers."""
    own = "sparsity", "allocation", "first_allocation"

    def make_patterns(self) -> dict[str, Pattern]:
        c = self.s.config
        c.sparsity = single_sparsity(c.sparsity)
        for name, value, known in (("allocation", c.allocation, (*ALLOCATIONS, "nonuniform")),
                                   ("first_allocation", c.first_allocation, ALLOCATIONS)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        return {str(c.sparsity): Unstructured(c.sparsity)}

    def explores(self) -> bool:
        return self.s.patterns[self.s.net].nnz(self.s.masks.numel) < self.s.masks.numel

    def start(self) -> None:
        s, c = self.s, self.s.config
        self.ranks_globally = c.allocation == "nonuniform"
        name = c.first_allocation if self.ranks_globally else c.allocation
        self.budget = allocate(name, [weight.shape for weight in s.weights], s.patterns[s.net].nnz(s.masks.numel))
        empty = [layer.name for layer, count in zip(s.layers, self.budget) if count == 0]
        if empty:
            raise ValueError(f"sparsity: {c.sparsity} with allocation {name!r} leaves no weight in {', '.join(empty)}; lower it, exclude such "
                             f"layers, or use another allocation")
        masks, _, _ = ops.topk_mask(score(c.start, Sources(s.weights, seed=c.seed)), self.budget)
        s.masks.write(s.net, masks, self.budget)

    def prune(self, share: float) -> tuple[list[Tensor], list[int]]:
        s = self.s
        active, counts = s.masks[s.net], s.masks.counts(s.net)
        if self.ranks_globally:
            kept = sum(self.budget) - max(1, int(share * sum(self.budget)))
            masks, counts, _ = global_masks(s.scores(), max(kept, len(counts)), eligible=active, largest_possible=counts)
            return masks, counts
        left = [budget if self._fixed(index) else max(1, budget - max(1, int(share * budget))) for index, budget in enumerate(self.budget)]
        left = [min(pair) for pair in zip(left, counts)]            # set_masks() may have left fewer
        masks, _, _ = ops.topk_mask(s.scores(), left, eligible=active)
        return masks, left

    def grow(self, share: float) -> tuple[list[Tensor], list[int]]:
        s = self.s
        masks, missing = [mask.clone() for mask in s.masks[s.net]], [a - b for a, b in zip(self.budget, s.masks.counts(s.net))]
        if not self.ranks_globally:
            ops.prune_regrow_(masks, s.weights, s.scores(), 0, missing)
            return masks, [max(pair) for pair in zip(self.budget, s.masks.counts(s.net))]
        ops.prune_regrow_(masks, s.weights, s.scores(), 0, sum(missing), global_=True)
        return masks, ops.mask_stats(masks)[:, 0].tolist()

    def _fixed(self, index: int) -> bool:
        """A layer that is dense has nothing to explore, one that does not train nothing to show."""
        weight = self.s.weights[index]
        return self.budget[index] == weight.numel() or not weight.requires_grad

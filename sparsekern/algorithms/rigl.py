"""RigL: the weakest connections go, those with the largest dense gradient come."""
from torch import Tensor

from sparsekern import ops
from sparsekern.sparsity.dynamic import Dynamic
from sparsekern.sparsity.optim_state import shaped_state
from sparsekern.sparsity.past_masks import PastMasks


class RigL(Dynamic):
    """Drop the smallest weights of every layer and grow as many connections where the gradient of the loss is largest, as zeros.

    A connection that was dropped may be grown again in the same event and then keeps its value. The gradient of every connection is
    made once per event, so memory and the event's time are those of a dense layer. `survival` of an event's record is the share of what
    the event before grew that is not among what this one drops.

    Args:
        model, optimizer: see Sparsifier.
        fields: those of DynamicConfig; `total_steps` is needed. delta_t is 100 steps, or a hundredth of a shorter run.
    Source: Evci et al., Rigging the lottery: making all tickets winners, 2020, algorithm 1.
    """
    longest_period = 100

    def make_patterns(self):
        if not self.store.dense:
            raise ValueError('storage: RigL ranks the gradient of every connection, which storage="csr" never makes; use "masked", or GSE '
                             'for a choice among sampled connections')
        return super().make_patterns()

    def setup(self) -> None:
        super().setup()
        self.past = PastMasks(self.masks.layers)

    def exchange(self, grads: list[Tensor | None], fraction: float) -> dict:
        counts = self.masks.counts(self.net)
        moved = [0 if grad is None else int(fraction * count) for grad, count in zip(grads, counts)]
        scores = [weight if grad is None else grad for weight, grad in zip(self.weights, grads)]
        old, masks = self.masks[self.net], [mask.clone() for mask in self.masks[self.net]]
        staying, _, _ = ops.topk_mask(self.weights, [count - q for count, q in zip(counts, moved)], eligible=old)
        survival = self.past.left("grown", staying)
        dropped, grown = ops.prune_regrow_(masks, self.weights, scores, moved, moved, regrow_dropped=True, on_drop="zero", on_grow="zero")
        for weight, before, after in zip(self.weights, old, masks):
            for state in shaped_state(self.optimizer, weight).values():
                state.masked_fill_(before ^ after, 0)
        self.past.keep("grown", [after & ~before for before, after in zip(old, masks)])
        self.masks.write(self.net, masks, counts)
        return {"flips": (dropped + grown).tolist(), "grown": grown.tolist(), "survival": survival}

    def extra_tensors(self) -> dict[str, Tensor]:
        return self.past.tensors()

    def load_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.past.load(tensors, self.weights)

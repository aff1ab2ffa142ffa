"""RigL: the weakest connections go, those with the largest dense gradient come."""
from torch import Tensor

from sparsekern import ops
from sparsekern.sparsity.dynamic import Dynamic
from sparsekern.sparsity.optim_state import shaped_state


class RigL(Dynamic):
    """Drop the smallest weights of every layer and grow as many connections where the gradient of the loss is largest, as zeros.

    A connection that was dropped may be grown again in the same event and then keeps its value. The gradient of every connection is
    made once per event, so memory and the event's time are those of a dense layer.

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

    def exchange(self, grads: list[Tensor | None], fraction: float) -> dict:
        counts = self.masks.counts(self.net)
        moved = [0 if grad is None else int(fraction * count) for grad, count in zip(grads, counts)]
        scores = [weight if grad is None else grad for weight, grad in zip(self.weights, grads)]
        old, masks = self.masks[self.net], [mask.clone() for mask in self.masks[self.net]]
        dropped, grown = ops.prune_regrow_(masks, self.weights, scores, moved, moved, regrow_dropped=True, on_drop="zero", on_grow="zero")
        for weight, before, after in zip(self.weights, old, masks):
            for state in shaped_state(self.optimizer, weight).values():
                state.masked_fill_(before ^ after, 0)
        self.masks.write(self.net, masks, counts)
        return {"flips": (dropped + grown).tolist(), "grown": grown.tolist()}

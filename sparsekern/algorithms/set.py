"""SET: sparse evolutionary training. The weakest connections go, random ones come."""
from torch import Tensor

from sparsekern.sparsity.dynamic import Dynamic, DynamicConfig
from sparsekern.sparsity.scores import Sources, score


class SET(Dynamic):
    """Drop the smallest weights of every layer and grow as many connections at random, as zeros.

    Args:
        model, optimizer: see Sparsifier.
        fields: those of DynamicConfig; `total_steps` is needed.
    Source: Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity, 2018, with the schedule
        that Evci et al. (RigL, 2020) gave it; their constant share is prune_schedule="constant".
    """
    Config = DynamicConfig

    def wants_dense_grad(self, step: int) -> bool:
        return False

    def exchange(self, grads: list[Tensor | None], fraction: float) -> dict:
        random = score("random", Sources(self.weights, seed=self.config.seed, step=self.steps))
        moved = [0 if grad is None else min(int(fraction * count), numel - count)
                 for grad, count, numel in zip(grads, self.masks.counts(self.net), self.masks.numels)]
        return {"flips": self.prune_regrow(random, moved, regrow_dropped=False)}

"""SET: sparse evolutionary training. The weakest connections go, random ones come."""
import torch
from torch import Tensor

from sparsekern import ops
from sparsekern.sparsity.counter_rng import seed, uniform
from sparsekern.sparsity.dynamic import Dynamic, DynamicConfig
from sparsekern.sparsity.stores import Move, matrix

_ROUNDS = 64                            # of draws: each finds more than half of what is still missing


class SET(Dynamic):
    """Drop the smallest weights of every layer and grow as many connections at random, as zeros.

    Every inactive connection is equally likely; the draws are functions of (seed, step, layer), the same for both kinds of storage.

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
        moves = [None if grad is None else self._move(index, fraction) for index, grad in enumerate(grads)]
        return {"flips": self.store.move(moves), "grown": [0 if move is None else int(move.take.sum()) for move in moves]}

    def _move(self, index: int, fraction: float) -> Move:
        crow, col, values = self.store.pattern(index)
        n_rows, n_cols = matrix(self.layers[index].shape)
        count = min(int(fraction * values.numel()), n_rows * n_cols - values.numel())
        key = seed(self.config.seed, self.steps, index)
        ones = [torch.ones(length, device=crow.device) for length in (n_rows, n_cols)]
        rows, cols, found = ops.gse_candidates(*ones, crow, col, count, seed=key, rounds=_ROUNDS)
        found = found.item()
        rows, cols = rows[:found], cols[:found]
        take = ops.topk_mask([uniform(rows, key & 0xFFFFFFFF, key >> 32)], count)[0][0]         # of a layer half full all were returned
        drop = ops.topk_mask([values], min(count, found), largest=False)[0][0]
        return Move(drop, rows, cols, take, torch.zeros_like(rows, dtype=values.dtype))

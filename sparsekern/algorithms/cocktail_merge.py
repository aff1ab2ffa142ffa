"""What Sparse Cocktail does after its last stage: one set of weights from all stages, and norms measured for every sub-net."""
import math
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from sparsekern.nn.switchable_norm import find_norms
from sparsekern.sparsity.interpolation import POOL, choose, interpolate
from sparsekern.sparsity.slim import recalibrate


class Merge:
    """Stage by stage D = alpha D + (1 - alpha) D_k, with the alpha that makes the sum of the accuracies of all sub-nets so far largest.

    With norms per sub-net their scales and shifts are merged pattern by pattern (the dense net's, the unstructured nets', ...) and given to all
    sub-nets of the pattern. Their statistics depend on the mask and on every weight before them, so they are measured anew before a
    candidate is judged (`score_batches`), and over all batches in the end. Shared norms keep their merged statistics, as in the paper's code.

    Args:
        sparsifier: a SparseCocktail after its last step.
        evaluate, batches, tick: as `SparseCocktail.finalize` takes them.
    Source: Sparse Cocktail, section 3.6 and Algorithm 1; masks are the stored ones.
    """

    def __init__(self, sparsifier, evaluate: Callable[[str], float], batches: Callable[[], Iterator[Tensor]],
                 tick: Callable[[int, int, str], None] | None):
        self.s, self.evaluate, self.batches, self.tick = sparsifier, evaluate, batches, tick
        s, c = sparsifier, sparsifier.config
        self.stages = c.stages if c.interpolate else 1              # one, the last, serves every mask
        self.nets = {k: [name for name in s.subnets if s.born[name] <= k] for k in range(1, c.stages + 1)}
        ladders = {kind: [f"{kind}{k}" for k in self.nets] for kind in "uc"} | ({"nm": c.nm} if c.nm else {})
        self.ladders = {"dense": ["dense"]} | ladders
        self.measured = c.norm_banks and bool(find_norms(s.model))
        self.judged = c.score_batches if self.measured else 0
        searched = range(len(s.alphas) + 2, self.stages + 1)
        self.done, self.total = 0, len(POOL) * sum(len(self.nets[k]) for k in searched) + len(s.subnets)

    @torch.no_grad()
    def run(self) -> None:
        s, c = self.s, self.s.config
        targets = s.stored(0)
        for part, nets in self.ladders.items():                     # of the merged norms: the first sub-net's
            targets |= {f"norm/{part}/{key}": tensor for key, tensor in s.own_norms(nets[0]).items()}
        s.alphas = interpolate(targets, lambda k: s.opened(f"D{k if c.interpolate else c.stages}"), self.stages, self.score, known=list(s.alphas),
                               note=lambda k, scores: s.alphas.append(choose(POOL, scores)))
        self.spread(c.stages)
        for name in s.subnets:
            if self.measured:
                self.measure(name, self.batches())
            self.tell(f"norms of {name}")

    def score(self, k: int) -> float:
        """Sum of the accuracies of the sub-nets up to stage k, each counted once."""
        self.spread(k)
        found = []
        for name in self.nets[k]:
            if self.judged:
                self.measure(name, islice(self.batches(), self.judged))
            found.append(self.evaluate(name))
            self.tell(f"stage {k}/{self.stages}, {name}")
        return math.fsum(found)

    def spread(self, k: int) -> None:
        """Give the merged norms of each pattern to its sub-nets up to stage k."""
        for first, *others in self.ladders.values():
            for name in others:
                if self.s.born[name] <= k:
                    self.s.copy_norms(first, name)

    def measure(self, name: str, inputs: Iterator[Tensor]) -> None:
        with self.s.subnet(name):
            if not recalibrate(self.s.model, inputs):
                raise ValueError("finalize: batches: expected at least one batch of training inputs, got none")

    def tell(self, what: str) -> None:
        self.done += 1
        if self.tick is not None:
            self.tick(self.done, self.total, what)

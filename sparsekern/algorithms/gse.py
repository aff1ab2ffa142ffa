"""GSE: guided stochastic exploration. Always-sparse training that grows the best of a sampled set of connections.

Neither a dense weight nor a dense gradient is ever made: candidates are drawn from a product of two distributions, one over a layer's
inputs and one over its outputs, and only their gradients are computed. An event costs time linear in a layer's width and connections.
"""
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.sparsity import taps
from sparsekern.sparsity.counter_rng import seed
from sparsekern.sparsity.dynamic import Dynamic, DynamicConfig
from sparsekern.sparsity.ranks import Ranks
from sparsekern.sparsity.stores import Move, matrix


@dataclass(kw_only=True)
class GSEConfig(DynamicConfig):
    distribution: str = "uniform"       # of the candidates: uniform, grabo (bound of the gradient) or graest (estimate of it)
    gamma: float = 1.0                  # candidates drawn, as a multiple of a layer's connections
    scope: str = "local"                # local: every layer exchanges within itself; global: one ranking over all layers
    prune_fraction: float = 0.2         # largest share of the connections exchanged at an event
    event_batches: int = 1              # steps whose gradients an event sums, its own being the last
    storage: str = "csr"                # csr: sparse layers take the place of dense ones; masked: dense weights under a mask


@dataclass
class Sample:
    """The candidates of one layer and the sum of their gradients over the steps of the event; `fresh` is that of the step at hand."""
    rows: Tensor
    cols: Tensor
    grads: Tensor
    fresh: Tensor | None = None


class GSE(Dynamic):
    """Guided stochastic exploration.

    In the steps of an event (`event_batches` of them, over any number of micro-batches each) hooks see what enters a layer and the
    gradient of what leaves it. In the first backward pass of the first step candidates S are drawn, ceil(gamma * connections) pairs
    without duplicates and without active ones (all inactive ones of a layer at least half full); their gradients are summed over the
    whole event. Then k = min(ceil(fraction * connections), |S|) candidates of the largest |gradient| come, with weight and momentum
    zero, and the k smallest |weights| among the old connections go. The update of that last step is made by the new connections, with
    its own gradient.

    Uniform: every pair alike. GraBo: in proportion to the sums of |input| and |output gradient| over the batch. GraEst: to |sums under
    random signs| shared by both sides. Every draw is a function of (seed, step, layer).

    A layer that is used several times in one pass draws from the use that comes first in the backward pass and sums over all. The
    ranks of a distributed run draw the same candidates, from the activities of all of them, and average their gradients. `hook()` does
    not know the scale of a gradient scaler: there, the first update of new connections is made with the scaled gradient unless
    event_skips_update is set.

    Args:
        model, optimizer: see Sparsifier; storage="csr" replaces layers of the model and parameters in the optimizer (see SparseStart).
        fields: those of GSEConfig; `total_steps` is needed. delta_t is 1/78 and the end 0.6 of the run, as in the paper.
    Source: Heddes et al., Always-Sparse Training by Growing Connections with Guided Stochastic Exploration, 2024, algorithm 2.
    """
    Config = GSEConfig
    config: GSEConfig
    period = 1 / 78
    until = 0.6

    def make_patterns(self):
        c = self.config
        for name, value, known in (("distribution", c.distribution, ("uniform", "grabo", "graest")), ("scope", c.scope, ("local", "global"))):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if not (c.gamma > 0 and math.isfinite(c.gamma)):
            raise ValueError(f"gamma: expected a positive number of candidates per connection, got {c.gamma}")
        self._ranks = Ranks()
        if self._ranks.count > 1 and c.scope == "global" and not self.store.dense:
            raise ValueError('scope: "global" changes the size of parameters, which DistributedDataParallel does not allow; use scope="local" '
                             'or storage="masked"')
        patterns = super().make_patterns()
        if not 1 <= c.event_batches <= c.delta_t:
            raise ValueError(f"event_batches: expected 1 to delta_t ({c.delta_t}), got {c.event_batches}")
        return patterns

    def setup(self) -> None:
        super().setup()
        self._samples: dict[int, Sample] = {}
        self._newest: dict[int, Tensor] = {}                        # flat places that the last event grew
        self._taps = [taps.Tap(layer.modules, lambda module, h, delta, index=index: self._seen(index, module, h, delta))
                      for index, layer in enumerate(self.layers)]

    # The steps of an event.

    def collecting(self, step: int) -> bool:
        """Whether the gradients of this step count for the next event."""
        return any(self.event_due(step + later) for later in range(self.config.event_batches))

    def wants_dense_grad(self, step: int) -> bool:
        return self.store.dense and self.collecting(step)

    def prepare(self, step: int) -> None:
        for tap in self._taps:
            tap.open = self.collecting(step)
        for sample in self._samples.values():
            sample.fresh = None

    def on_overflow(self) -> None:
        self._samples.clear()

    def _seen(self, index: int, module: nn.Module, h: Tensor, delta: Tensor) -> None:
        """One use of a layer in the backward pass of a step that counts."""
        if index not in self._samples:
            rows, cols = self._draw(index, module, h, delta)
            self._samples[index] = Sample(rows, cols, torch.zeros(rows.numel(), dtype=self.weights[index].dtype, device=rows.device))
        sample = self._samples[index]
        if not self.store.dense:
            grads = taps.gradient_at(module, h, delta, sample.rows, sample.cols).to(sample.grads.dtype)
            sample.fresh = grads if sample.fresh is None else sample.fresh + grads

    def _draw(self, index: int, module: nn.Module, h: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        c, (rows, cols) = self.config, matrix(self.layers[index].shape)
        crow, col, _ = self.store.pattern(index)
        if c.distribution == "uniform":
            at_work = torch.ones(rows, device=crow.device), torch.ones(taps.groups(module), cols, device=crow.device)
        else:
            key = seed(c.seed, self.steps, index, 1, self._ranks.rank)          # other samples, other signs
            at_work = self._ranks.sum(*taps.activities(module, h, delta, signed=c.distribution == "graest", seed=key))
        return taps.candidates(*at_work, crow, col, c.gamma, seed(c.seed, self.steps, index, 0))

    def observe(self) -> None:
        """Add this step's gradients of the candidates."""
        for index, sample in self._samples.items():
            grad = self.weights[index].grad
            if self.store.dense and grad is not None:
                sample.fresh = grad.flatten(1)[sample.rows.long(), sample.cols.long()]
            elif sample.fresh is not None:
                sample.fresh /= self._scale
            if sample.fresh is not None:
                sample.grads += sample.fresh

    # The event.

    def exchange(self, grads: list[Tensor | None], fraction: float) -> dict | None:
        samples = {index: sample for index, sample in self._samples.items() if grads[index] is not None and sample.fresh is not None}
        unseen = [layer.name for index, layer in enumerate(self.layers) if grads[index] is not None and index not in samples]
        if unseen:
            raise ValueError(f"GSE: event at step {self.steps}: the forward pass of {', '.join(unseen)} was not seen by its hook, as in a model "
                             f"compiled before it was made sparse; compile it afterwards")
        self._ranks.mean_([tensor for sample in samples.values() for tensor in (sample.grads, sample.fresh)])
        if not all(bool(sample.grads.isfinite().all()) for sample in samples.values()):
            self._samples.clear()
            return None
        patterns = {index: self.store.pattern(index) for index in samples}
        drop, take = self._choose([patterns[index][2] for index in samples], [sample.grads for sample in samples.values()], fraction)
        moves: list[Move | None] = [None] * len(self.layers)
        for index, gone, come in zip(samples, drop, take):
            moves[index] = Move(gone, samples[index].rows, samples[index].cols, come, samples[index].fresh)
        survival = self._survival(moves, patterns)
        flips = self.store.move(moves)
        self._samples.clear()
        drawn = [samples[index].rows.numel() if index in samples else 0 for index in range(len(self.layers))]
        grown = [0 if move is None else int(move.take.sum()) for move in moves]
        return {"flips": flips, "candidates": drawn, "grown": grown, "survival": survival, "nnz": self.masks.counts(self.net)}

    def _choose(self, values: list[Tensor], grads: list[Tensor], fraction: float) -> tuple[list[Tensor], list[Tensor]]:
        """Per layer what goes [nnz] bool and what comes [S] bool; ties go to the lowest index."""
        if self.config.scope == "local":
            counts = [min(math.ceil(fraction * value.numel()), grad.numel()) for value, grad in zip(values, grads)]
            return ops.topk_mask(values, counts, largest=False)[0], ops.topk_mask(grads, counts)[0]
        # Every layer keeps its largest weight, so none can run dry.
        free = [torch.ones_like(value, dtype=torch.bool) for value in values]
        for one, value in zip(free, values):
            one[value.abs().argmax()] = False
        total = sum(value.numel() for value in values)
        count = min(int(fraction * total + 0.5), sum(grad.numel() for grad in grads), total - len(values))
        return ops.topk_mask(values, count, largest=False, global_=True, eligible=free)[0], ops.topk_mask(grads, count, global_=True)[0]

    def _survival(self, moves: list[Move | None], patterns: dict[int, tuple[Tensor, Tensor, Tensor]]) -> float | None:
        """Share of the connections grown by the event before that outlive this one; remembers those of this one."""
        born = lost = 0
        for index, (crow, col, _) in patterns.items():
            cols, move = matrix(self.layers[index].shape)[1], moves[index]
            if len(self._newest.get(index, ())):
                newest, at = self._newest[index], move.drop.nonzero().flatten()
                gone = (torch.searchsorted(crow, at, right=True) - 1) * cols + col[at]              # ascending, as `newest` is
                place = torch.searchsorted(newest, gone).clamp(max=len(newest) - 1)
                born, lost = born + len(newest), lost + int((newest[place] == gone).sum())
            self._newest[index] = (move.rows.long() * cols + move.cols)[move.take]
        return 1 - lost / born if born else None

    # The way to disk and back.

    def remove(self, subnet: str | None = None) -> nn.Module:
        model = super().remove(subnet)
        for tap in self._taps:
            tap.remove()
        return model

    def extra_tensors(self) -> dict[str, Tensor]:
        tensors = {f"newest/{self.layers[index].name}": places for index, places in self._newest.items()}
        for index, sample in self._samples.items():
            tensors |= {f"{part}/{self.layers[index].name}": getattr(sample, part) for part in ("rows", "cols", "grads")}
        return tensors

    def load_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        self._samples.clear()
        self._newest.clear()
        for index, layer in enumerate(self.layers):
            found = {part: tensors[f"{part}/{layer.name}"].to(layer.param.device, copy=True) for part in ("newest", "rows", "cols", "grads")
                     if f"{part}/{layer.name}" in tensors}
            if "newest" in found:
                self._newest[index] = found.pop("newest")
            if found:
                self._samples[index] = Sample(**found)


"""AST-GC: alternating sparse training with gradient correction (Get More at Once, NeurIPS 2022).

One run trains several sub-nets of different sparsity inside one set of weights. Every mini-batch trains the next sub-net in turn; within
a group (one mini-batch per sub-net) the part of its gradient that conflicts with the sub-net before it is taken out. What an event does to
masks of n:m groups stands in ast_gc_nm.py.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern import ops
from sparsekern.algorithms.ast_gc_nm import NMForm
from sparsekern.sparsity import schedules
from sparsekern.sparsity.allocation import erdos_renyi, global_masks
from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.patterns import Pattern, Unstructured, kept, refuse_settings
from sparsekern.sparsity.scores import Sources, score
from sparsekern.sparsity.sparsifier import Sparsifier, SparsifierConfig
from sparsekern.sparsity.timeline import Phase, Timeline, View
from sparsekern.sparsity.update import Correction


@dataclass(kw_only=True)
class ASTGCConfig(SparsifierConfig):
    sparsity: float | Sequence[float] = (0.9, 0.95, 0.98)   # one sub-net each, fraction of zeros
    pattern: str = "unstructured"       # of the masks: unstructured, or nm for sub-nets that keep n of every m neighbouring weights
    nm: str | Sequence[str] = "2:4,1:4,1:8,1:16"            # with pattern nm one sub-net each, n kept of m (or "zeros 3:4" for 1:4)
    initial_sparsity: float = 0.0       # at the start, ERK-allocated; weights outside the initial mask start at 0
    nested: bool = False                # completely-subset: every sub-net lies inside the one before it
    gc: bool = True                     # correct conflicting gradients
    gc_mode: str = "layer"              # "layer": decide per layer; "global": once for the whole model
    gc_scope: str = "inner"             # "inner": not at the first sub-net of a group; "all"
    delta_t: int | None = None          # steps between a sub-net's mask events; default: 1/63 of the run
    offset: int | None = None           # how many of its own steps a sub-net's events lag behind the one before; default: delta_t / 10
    prune_start: int = 0                # gradual pruning begins
    prune_end: int | None = None        # and ends; default: 0.69 of the run
    prune_fraction: float = 0.5         # share of weights exchanged at an event, falling as a cosine; 0 turns the exchange off
    prune_fraction_end: float = 0.005
    drop_over_all: bool = False         # rank the drop over all weights, not over the active ones
    min_per_layer: int = 1              # weights that the global ranking leaves in every layer


class AST_GC(Sparsifier):
    """Alternating sparse training with gradient correction.

    Args:
        model, optimizer: see Sparsifier.
        fields: those of ASTGCConfig; `total_steps` is needed, `sparsity` lists the sub-nets (with pattern="nm": `nm` does).
    Source: Yang et al., Get More at Once: Alternating Sparse Training with Gradient Correction, sections 3.1 to 3.3, and 4.3 for n:m.
    """
    Config = ASTGCConfig
    config: ASTGCConfig

    def find_layers(self) -> list[Layer]:
        c = self.config
        if c.pattern not in ("unstructured", "nm"):
            raise ValueError(f"pattern: expected 'unstructured' or 'nm', got {c.pattern!r}")
        self.form = NMForm(c) if c.pattern == "nm" else None        # None: unstructured
        if self.form is None:
            refuse_settings(c, "nm", "nm")
        layers = super().find_layers()
        if self.form is not None:
            layers, self.left_dense = self.form.fitting(layers)
        return layers

    def make_patterns(self) -> dict[str, Pattern]:
        c = self.config
        c.sparsity = [float(s) for s in ([c.sparsity] if isinstance(c.sparsity, (int, float)) else c.sparsity)]
        patterns = {str(s): Unstructured(s) for s in c.sparsity} if self.form is None else self.form.patterns
        if not c.sparsity or len(patterns) < len(c.sparsity):
            raise ValueError(f"sparsity: expected one or more different sparsities, got {c.sparsity}")
        Unstructured(c.initial_sparsity)
        if c.initial_sparsity > min(c.sparsity):
            raise ValueError(f"initial_sparsity: {c.initial_sparsity} is above the sparsity {min(c.sparsity)} of a sub-net, which could "
                             f"only get sparser; start at {min(c.sparsity)} or below")
        if c.nested and c.sparsity != sorted(c.sparsity):
            raise ValueError(f"sparsity: nested sub-nets go from dense to sparse, got {c.sparsity}; sort them")
        for name, value, known in (("gc_mode", c.gc_mode, ("layer", "global")), ("gc_scope", c.gc_scope, ("inner", "all"))):
            if value not in known:
                raise ValueError(f"{name}: expected {known[0]!r} or {known[1]!r}, got {value!r}")
        if not 0.0 <= c.prune_fraction_end <= max(c.prune_fraction, c.prune_fraction_end) <= 1.0:
            raise ValueError(f"prune_fraction: expected fractions in [0, 1], got {c.prune_fraction} down to {c.prune_fraction_end}")
        self._schedule(len(c.sparsity))
        return patterns

    def _schedule(self, n: int) -> None:
        """Defaults as shares of the run, and a refusal of what cannot finish."""
        c = self.config
        c.delta_t = n * max(1, c.total_steps // (63 * n)) if c.delta_t is None else c.delta_t
        c.offset = c.delta_t // 10 if c.offset is None else c.offset
        c.prune_end = int(0.69 * c.total_steps) if c.prune_end is None else c.prune_end
        if c.delta_t < 1 or c.offset < 0 or c.prune_start < 0:
            raise ValueError(f"delta_t, offset, prune_start: expected delta_t >= 1 and the others >= 0, got {c.delta_t}, {c.offset}, "
                             f"{c.prune_start}")
        last = c.prune_end // c.delta_t
        if last < 1 or last * c.delta_t < c.prune_start:
            raise ValueError(f"prune_end: no mask event falls between prune_start {c.prune_start} and prune_end {c.prune_end} with "
                             f"delta_t {c.delta_t}; lower delta_t or train for more than {c.total_steps} steps")
        ends = [self._first_step(last, i, n) for i in range(n)]
        if max(ends) >= c.total_steps:
            raise ValueError(f"total_steps: sub-net {ends.index(max(ends))} would reach its sparsity at step {max(ends)} of "
                             f"{c.total_steps}; lower prune_end ({c.prune_end}), delta_t ({c.delta_t}) or offset ({c.offset}), or train "
                             f"longer")
        self._last_gradual = last

    def _first_step(self, event: int, i: int, n: int) -> int:
        """The first step that trains sub-net i at or after the time of its `event`-th event."""
        time = self.config.delta_t * event + i * n * self.config.offset
        return time + (i - time) % n

    def make_timeline(self) -> Timeline:
        return Timeline(tuple(Phase(name, 1, View(name, name)) for name in self.patterns))

    def setup(self) -> None:
        c = self.config
        self._events = [0] * len(self.subnets)                      # the last event of each sub-net
        start = kept(self.masks.numel, c.initial_sparsity)
        self._budgets = [start] * len(self.subnets)                 # how many weights each sub-net may keep now
        if c.initial_sparsity > 0:
            counts = erdos_renyi([weight.shape for weight in self.weights], start)
            drawn, _, _ = ops.topk_mask(score("random", Sources(self.weights, seed=c.seed)), counts)
            for name in self.subnets:
                self.masks.write(name, drawn, counts)
            with torch.no_grad():                                   # or untrained values would compete in the global ranking
                for weight, mask in zip(self.weights, drawn):
                    weight.masked_fill_(~mask, 0)

    def _event_number(self, step: int) -> tuple[int, int]:
        """(sub-net, number of the event that is due in this step; 0: none)."""
        c, n = self.config, len(self.subnets)
        i = step % n
        number = (step - i * n * c.offset) // c.delta_t
        if number <= self._events[i] or number * c.delta_t < c.prune_start or step >= c.total_steps:
            return i, 0
        if self.form is not None and self._events[i] == self._last_gradual:         # no dense group is left to exchange
            return i, 0
        # an event that came late (a step skipped by the gradient scaler) must not jump over the end of gradual pruning
        return i, min(number, self._last_gradual) if self._events[i] < self._last_gradual else number

    def event_due(self, step: int) -> bool:
        return self._event_number(step)[1] > 0

    def wants_dense_grad(self, step: int) -> bool:
        return self.event_due(step) and self.config.prune_fraction > 0 and not (self.config.nested and step % len(self.subnets))

    def on_event(self, grads: list[Tensor | None]) -> None:
        c = self.config
        i, number = self._event_number(self.steps)
        name = self.subnets[i]
        old = [mask.clone() for mask in self.masks[name]]
        fraction = 0.0
        if c.prune_fraction > 0 and not (c.nested and i):
            fraction = schedules.cosine_floor(self.steps, c.prune_fraction, c.prune_fraction_end, c.total_steps)
        if self.form is None:
            self._change(i, number, grads, fraction)
        else:
            self._change_groups(name, number, grads, fraction)
        self._events[i] = number
        self.history.append({"step": self.steps, "subnet": name, "event": number, "sparsity": self.masks.sparsity(name),
                             "fraction": fraction, "flips": ops.mask_stats(old, self.masks[name])[:, 3]})

    def _change(self, i: int, number: int, grads: list[Tensor | None], fraction: float) -> None:
        """The masks of sub-net i (and of those nested in it) after its event."""
        c, name = self.config, self.subnets[i]
        gradual, budget = self._events[i] < self._last_gradual, self._budgets[i]
        if gradual:
            now = schedules.cubic(number, c.initial_sparsity, c.sparsity[i], c.prune_start // c.delta_t, self._last_gradual)
            budget = kept(self.masks.numel, now)
        parent = self.subnets[i - 1] if c.nested and i else None
        masks, counts = self._rank(budget, parent) if gradual or parent else self._checked(name)
        self._budgets[i] = budget
        if c.prune_fraction > 0 and parent is None:
            self._exchange(masks, counts, grads, fraction)
        self.masks.write(name, masks, counts)
        for k in range(i + 1, len(self.subnets) if c.nested else 0):                # nesting holds at every step
            self.masks.write(self.subnets[k], *self._rank(self._budgets[k], self.subnets[k - 1]))

    def _change_groups(self, name: str, number: int, grads: list[Tensor | None], fraction: float) -> None:
        """The same with n:m: of the groups (1 - x)^3 stay dense, in whole numbers, so that no rounding decides how many that are."""
        start, end = self.config.prune_start // self.config.delta_t, self._last_gradual
        left = (end - max(start, number)) ** 3, max(1, end - start) ** 3
        self.refuse_nan()
        weights = [None if layer.name in self.left_dense[name] else layer.param for layer in self.layers]
        masks, counts = self.form.masks(name, weights, grads, left, fraction)
        for index, weight in enumerate(weights):
            if weight is None:
                masks[index], counts[index] = self.masks[name][index], self.masks.numels[index]
        self.masks.write(name, masks, counts)

    def _rank(self, budget: int, parent: str | None) -> tuple[list[Tensor], list[int]]:
        """The largest |W| of all layers together, inside the parent's mask if there is one. Nothing is written yet."""
        masks, counts, nan = global_masks(self.weights, budget, min_per_layer=self.config.min_per_layer,
                                          eligible=self.masks[parent] if parent else None,
                                          largest_possible=self.masks.counts(parent) if parent else None, flags=self.nan_flags())
        self.refuse_nan(nan)
        return masks, counts

    def _checked(self, name: str) -> tuple[list[Tensor], list[int]]:
        """Copies of the present masks."""
        self.refuse_nan()
        return [mask.clone() for mask in self.masks[name]], self.masks.counts(name)

    def _exchange(self, masks: list[Tensor], counts: list[int], grads: list[Tensor | None], fraction: float) -> None:
        """Layer by layer: drop the smallest weights, grow where the gradient of the loss is largest (a dropped weight may come back)."""
        share = [0 if grad is None else math.ceil(fraction * count) for grad, count in zip(grads, counts)]
        scores = [weight if grad is None else grad for weight, grad in zip(self.weights, grads)]
        drop = share
        if self.config.drop_over_all:
            remaining, _, _ = ops.topk_mask(self.weights, [count - q for count, q in zip(counts, share)])
            torch._foreach_copy_(masks, remaining)
            drop = [0] * len(share)
        ops.prune_regrow_(masks, self.weights, scores, drop, share, regrow_dropped=True)

    def correction(self, step: int) -> Correction | None:
        c = self.config
        apply = c.gc and (step % len(self.subnets) != 0 or c.gc_scope == "all")
        return Correction(c.gc_mode == "layer", apply) if c.gc or c.metrics else None

    def extra_state(self) -> dict:
        return {"events": list(self._events), "budgets": list(self._budgets)}

    def load_extra_state(self, values: dict) -> None:
        self._events, self._budgets = list(values["events"]), list(values["budgets"])

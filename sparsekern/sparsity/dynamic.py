"""Training that is sparse from the first step: one net of exact sparsity, and connections that move now and then.

`SparseStart` draws the net; `Dynamic` adds the times at which connections move and what the move does to values and momentum.
"""
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsekern.nn.sparse_weight import BACKENDS
from sparsekern.sparsity import schedules
from sparsekern.sparsity.allocation import ALLOCATIONS, allocate
from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.masks import MaskSet
from sparsekern.sparsity.patterns import Unstructured, single_sparsity
from sparsekern.sparsity.sparsifier import Sparsifier, SparsifierConfig
from sparsekern.sparsity.stores import STORES, CsrStore, MaskedStore, PatternSet, layers_to_store
from sparsekern.sparsity.timeline import FOREVER, Phase, Timeline, View


@dataclass(kw_only=True)
class SparseStartConfig(SparsifierConfig):
    """Settings of every algorithm whose net is sparse from the first step."""
    sparsity: float = 0.9               # fraction of zeros over all prunable weights
    allocation: str = "er"              # er (Erdos-Renyi over the flattened kernel), erk (kernel sides count) or uniform
    init: str = "fan_in"                # fan_in: scaled to each unit's real fan-in; keep: the model's own values where connections are
    storage: str = "masked"             # masked: dense weights under a mask; csr: sparse layers take the place of dense ones
    backend: str = "csr"                # product of sparse layers: csr, dense, or auto (both are measured at the first batch)
    skip_first: bool = False            # leave the first convolution dense
    metrics: bool = False               # measure the inner product of consecutive gradients


@dataclass(kw_only=True)
class DynamicConfig(SparseStartConfig):
    """And of those that move connections."""
    delta_t: int | None = None          # steps between events
    end: int | None = None              # no event after this step
    prune_fraction: float = 0.3         # share of the connections exchanged at an event
    prune_schedule: str = "cosine"      # of that share: cosine (falls to 0 at the end) or constant
    event_skips_update: bool = False    # an event takes the place of the step's weight update


class SparseStart(Sparsifier):
    """One net, sparse from the first step: exact counts per layer, connections and values drawn from the seed.

    With storage="csr" the model's Linear and Conv2d layers become SparseLinear and SparseConv2d, and the optimizer's groups hold their
    `values` instead. Layers that are sparse already stay as they are. `remove()` then leaves the sparse layers in the model, and
    `remove(name)` puts dense ones with zeros in their place.
    """
    Config = SparseStartConfig
    config: SparseStartConfig

    def find_layers(self) -> list[Layer]:
        c = self.config
        if c.storage not in STORES:
            raise ValueError(f"storage: expected one of {', '.join(STORES)}, got {c.storage!r}")
        self.store: MaskedStore | CsrStore = STORES[c.storage](self)
        self.masked = self.store.dense
        if self.store.dense:
            return super().find_layers()
        return layers_to_store(self.model, skip_first=c.skip_first, skip_last=c.skip_last, skip_depthwise=c.skip_depthwise, only=c.only,
                               exclude=c.exclude)

    def make_masks(self) -> MaskSet | PatternSet:
        return super().make_masks() if self.store.dense else PatternSet(self.layers)

    def make_patterns(self) -> dict[str, Unstructured]:
        c = self.config
        c.sparsity = single_sparsity(c.sparsity)
        for name, value, known in (("allocation", c.allocation, ALLOCATIONS), ("init", c.init, ("fan_in", "keep")),
                                   ("backend", c.backend, (*BACKENDS, "auto"))):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        return {str(c.sparsity): Unstructured(c.sparsity)}

    def make_timeline(self) -> Timeline:
        name = self.subnets[0]
        return Timeline((Phase(name, FOREVER, View(name, name)),))

    @property
    def net(self) -> str:
        """The name of the one net."""
        return self.subnets[0]

    def first_counts(self) -> list[int]:
        """Connections per layer at the start; the sparsity is that of the layers that are dense until then."""
        c = self.config
        counts = [layer.param.numel() for layer in self.layers]
        fresh = [index for index, layer in enumerate(self.layers) if layer.dense_shape is None]
        shapes = [self.layers[index].shape for index in fresh]
        total = self.patterns[self.net].nnz(sum(shape.numel() for shape in shapes))
        for index, count in zip(fresh, allocate(c.allocation, shapes, total) if fresh else ()):
            counts[index] = count
        empty = [layer.name for layer, count in zip(self.layers, counts) if count == 0]
        if empty:
            raise ValueError(f"sparsity: {c.sparsity} with allocation {c.allocation!r} leaves no weight in {', '.join(empty)}; lower it, "
                             f"exclude such layers, or use another allocation")
        return counts

    @torch.no_grad()
    def setup(self) -> None:
        draws = torch.Generator().manual_seed(self.config.seed)
        self.store.start(self.first_counts(), torch.randint(2**62, (len(self.layers),), generator=draws).tolist(), self.config.init)
        self.store.choose(self.config.backend)

    def metrics(self) -> dict:
        return super().metrics() | ({} if self.store.dense else {"products": self.store.products})

    def extra_state(self) -> dict:
        return self.store.extra_state()

    def load_extra_state(self, values: dict) -> None:
        self.store.load_extra_state(values)

    def remove(self, subnet: str | None = None) -> nn.Module:
        attached = self._attached is not None
        if subnet is not None:
            self.masks.counts(subnet)                               # an unknown name is refused before anything changes
        super().remove(None if not self.store.dense else subnet)
        if attached and not self.store.dense:
            self.store.stop_waiting()
            if subnet is not None:
                with torch.no_grad():
                    self.store.remove()
        return self.model


class Dynamic(SparseStart):
    """Adds events every `delta_t` steps until `end`; a subclass says what happens there by writing `exchange`.

    Event n is due at the end of step n * delta_t (counted from 1), before that step's update. One that a gradient scaler skipped, or
    whose gradients are not finite, takes place in the next step.
    """
    Config = DynamicConfig
    config: DynamicConfig
    period = 1 / 100                    # defaults of delta_t and of the end, as shares of the run
    longest_period = 1 << 62
    until = 0.75

    def make_patterns(self) -> dict[str, Unstructured]:
        c = self.config
        c.delta_t = max(1, min(self.longest_period, int(self.period * c.total_steps))) if c.delta_t is None else c.delta_t
        c.end = int(self.until * c.total_steps) if c.end is None else c.end
        if c.delta_t < 1 or c.end < 0:
            raise ValueError(f"delta_t, end: expected delta_t >= 1 and end >= 0, got {c.delta_t} and {c.end}")
        if not 0.0 <= c.prune_fraction <= 1.0:
            raise ValueError(f"prune_fraction: expected a fraction in [0, 1], got {c.prune_fraction}")
        if c.prune_schedule not in ("cosine", "constant"):
            raise ValueError(f"prune_schedule: expected 'cosine' or 'constant', got {c.prune_schedule!r}")
        self.events = 0                                             # how many have taken place
        return super().make_patterns()

    def event_due(self, step: int) -> bool:
        """Whether fewer events have taken place than stretches of delta_t steps end with or before this step."""
        return step < self.config.total_steps and (min(step, self.config.end) + 1) // self.config.delta_t > self.events

    def fraction(self, step: int) -> float:
        """Share of the connections that an event in this step exchanges."""
        c = self.config
        return c.prune_fraction if c.prune_schedule == "constant" else schedules.cosine_drop(step, c.prune_fraction, c.end)

    def on_event(self, grads: list[Tensor | None]) -> None:
        c = self.config
        self.refuse_nan()
        present = [grad for grad in grads if grad is not None]
        if not present or not bool(torch.stack(torch._foreach_norm(present)).isfinite().all()):
            return                                                  # the next step has better gradients
        fraction = self.fraction(self.steps)
        record = self.exchange(grads, fraction)
        if record is None:
            return
        self.events = (min(self.steps, c.end) + 1) // c.delta_t
        self.history.append({"step": self.steps, "subnet": self.net, "event": self.events, "sparsity": self.masks.sparsity(self.net),
                             "fraction": fraction} | record)
        if c.event_skips_update:
            self.optimizer.zero_grad()

    @abstractmethod
    def exchange(self, grads: list[Tensor | None], fraction: float) -> dict | None:
        """Move connections; returns what the record of the event says about it, `flips` per layer at least. None: not in this step."""

    def extra_state(self) -> dict:
        return super().extra_state() | {"events": self.events}

    def load_extra_state(self, values: dict) -> None:
        super().load_extra_state(values)
        self.events = values["events"]

"""Sparsifier: masks over time, and one `step()` in place of `optimizer.step()`. It knows no algorithm.

An algorithm is a subclass with a Config and a few hooks: `make_patterns`, `make_timeline`, `setup`, `event_due`, `wants_dense_grad`,
`on_event`, `on_phase_end`, `correction`, `extra_state`; those of `LoopHooks` speak to a training loop.
"""
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations

import torch
from torch import Tensor, nn

from sparsekern.nn.switchable_norm import HeldStatistics, NormBanks, find_norms
from sparsekern.sparsity import state
from sparsekern.sparsity.conflict_log import ConflictLog
from sparsekern.sparsity.layers import Attached, Layer, find_layers
from sparsekern.sparsity.loop_hooks import LoopHooks
from sparsekern.sparsity.masks import MaskSet
from sparsekern.sparsity.optim_state import check_owned, fused_sgd
from sparsekern.sparsity.patterns import Pattern
from sparsekern.sparsity.report import metrics, summary
from sparsekern.sparsity.timeline import Moment, Timeline, View
from sparsekern.sparsity.update import AnyUpdate, Correction, Measured, Update


@dataclasses.dataclass(kw_only=True)
class SparsifierConfig:
    """Fields that every algorithm has."""
    total_steps: int                    # optimizer steps of the whole run
    skip_first: bool = True             # leave the first convolution dense
    skip_last: bool = False             # leave the last linear layer dense
    skip_depthwise: bool = False        # leave depthwise convolutions dense
    only: str | None = None             # regular expression: prune only weights whose name matches
    exclude: str | None = None          # regular expression: leave weights whose name matches dense
    norm_banks: bool = True             # batch-norm parameters and statistics of their own for every sub-net
    share_first_norm: bool = True       # but the first batch norm, which follows the dense first convolution, is shared
    leaky: bool = False                 # momentum and weight decay also move what the masks hide
    metrics: bool = True                # measure the inner product of consecutive gradients
    seed: int = 0                       # of the random choices (the initial mask)


class Sparsifier(LoopHooks, ABC):
    """Base of the algorithms.

    Args:
        model: any module with Linear or Conv2d layers, on its device; no parameter is replaced.
        optimizer: owns the model's parameters. torch.optim.SGD takes the fused update, any other one runs as it is. The further batch
            norms join its param groups; they are no parameters of the model, so DistributedDataParallel needs norm_banks=False.
        fields: those of the algorithm's `Config`.
    """
    Config = SparsifierConfig
    masked = True                       # False: the layers are only counted, no forward is changed

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, **fields):
        self.config = c = self.Config(**fields)
        self.model, self.optimizer = model, optimizer
        if c.total_steps < 1:
            raise ValueError(f"total_steps: expected the number of optimizer steps of the whole run, got {c.total_steps}")
        self.left_dense: dict[str, dict[str, str]] = {}             # per sub-net the layers that its pattern does not fit, and why
        self.layers = self.find_layers()
        if not self.layers:
            raise ValueError("nothing to prune: no weight of a Linear or Conv2d layer is left by skip_first, skip_last, only and exclude")
        self.masks = self.make_masks()
        self.patterns: dict[str, Pattern] = self.make_patterns()
        for name in self.patterns:
            self.masks.add(name)
        norms = find_norms(model)[1 if c.share_first_norm else 0:]
        self.norms = NormBanks(norms, len(self.patterns) if c.norm_banks else 1)
        self._statistics = HeldStatistics(model)
        check_owned(optimizer, {layer.name: layer.param for layer in self.layers} | self.norms.owned())
        self.steps = 0
        self.timeline = self.make_timeline()
        self.history: list[dict] = []                               # one record per mask event
        self.log = ConflictLog(c.total_steps if c.metrics else 0, len(self.layers), self.weights[0].device)
        self._scale = 1.0                                           # of the gradient scaler in the step at hand
        self.setup()
        self.norms.join(optimizer)
        self._update = Update(optimizer, self.layers, c.leaky) if fused_sgd(optimizer) else None
        self._around = AnyUpdate(optimizer, self.layers, c.leaky)
        self._absent = [{id(param) for other in range(len(self.norms.banks)) if other != bank for param in self.norms.parameters(other)}
                        for bank in range(len(self.norms.banks))]
        self._previous: list[Tensor | None] | None = None           # the masked gradients of the step before
        self._nothing: list[None] = [None] * len(self.layers)
        self._views: dict[str, list[Tensor | None]] = {}
        self._handles: list = []
        self._inside_subnet = False
        self._attached: Attached | None = Attached(model, self.layers if self.masked else [])
        self._show_next()

    @property
    def weights(self) -> list[Tensor]:
        """The parameters that hold the prunable weights, in layer order."""
        return [layer.param for layer in self.layers]

    # What an algorithm says.

    def find_layers(self) -> list[Layer]:
        """What is to be sparse."""
        c = self.config
        return find_layers(self.model, skip_first=c.skip_first, skip_last=c.skip_last, skip_depthwise=c.skip_depthwise, only=c.only,
                           exclude=c.exclude)

    def make_masks(self) -> MaskSet:
        return MaskSet({layer.name: layer.param for layer in self.layers}, [layer.counted for layer in self.layers])

    @abstractmethod
    def make_patterns(self) -> dict[str, Pattern]:
        """The sub-nets by name."""

    @abstractmethod
    def make_timeline(self) -> Timeline:
        """Which sub-net trains in which step."""

    def setup(self) -> None:
        """Initial masks; called once, before anything is attached."""

    def norms_of(self, name: str) -> str:
        """The sub-net whose norms the sub-net `name` is shown with at the moment."""
        return name

    def compared(self) -> list[tuple[str, str]]:
        """The pairs of sub-nets whose overlap `metrics` tells."""
        return list(combinations(self.subnets, 2))

    def event_due(self, step: int) -> bool:
        """Whether the masks change in this step, before its update."""
        return False

    def wants_dense_grad(self, step: int) -> bool:
        """Whether this step needs the gradient of weights that the masks hide, for its event or a later one."""
        return self.event_due(step)

    def prepare(self, step: int) -> None:
        """Called before the forward pass of every step."""

    def observe(self) -> None:
        """Called with the gradients of every step in place, before its event and its update; `self._scale` is what they were scaled by."""

    def on_overflow(self) -> None:
        """Called instead when the gradients of a step are thrown away."""

    def on_event(self, grads: list[Tensor | None]) -> None:
        """Change masks. `grads` are those of the effective weights."""

    def on_phase_end(self, moment: Moment) -> None:
        """Called after the last step of every phase of the timeline, its update done (or thrown away); masks may change here, too."""

    def correction(self, step: int) -> Correction | None:
        """How this step's gradient is compared with that of the step before."""
        return None

    def extra_state(self) -> dict:
        """What the hooks carry over, as json-able values."""
        return {}

    def load_extra_state(self, values: dict) -> None:
        pass

    def extra_tensors(self) -> dict[str, Tensor]:
        """And as tensors, of any size."""
        return {}

    def load_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        pass

    # What a training loop calls.

    @property
    def subnets(self) -> tuple[str, ...]:
        """Names of the sub-nets."""
        return tuple(self.patterns)

    @property
    def active(self) -> str:
        """The sub-net that the model shows now; between steps the one that trains next."""
        return self._shown[0].forward if self._shown[0].forward in self.patterns else self.subnets[0]

    @property
    def products(self) -> tuple[str, str, str]:
        """The masks of the three products of the step at hand: forward, gradient of the inputs, gradient of the weights."""
        view = self._shown[0]
        return view.forward, view.forward, view.update

    @torch.no_grad()
    def step(self, max_norm: float | None = None, scaler: torch.amp.GradScaler | None = None) -> None:
        """Mask event if one is due, correction, optimizer step inside the mask, and the next step's sub-net is put in place.

        Takes the gradients: afterwards every `grad` of the step is None (with torch.optim.SGD).

        Args:
            max_norm: clip the norm of the gradient that is applied (a clip before this call would see dense gradients on event steps).
            scaler: unscales here; on an overflow nothing changes but the rotation of sub-nets. Call `scaler.update()` afterwards.
        Raises:
            ValueError: NaN in the weights at an event; the masks are as they were.
        """
        if self._attached is None or self._handles or self._inside_subnet:
            raise ValueError("step: " + ("this sparsifier was removed" if self._attached is None else "the optimizer is hooked, call "
                             "optimizer.step() instead" if self._handles else "called inside `with subnet(...)`; train outside of it"))
        self._scale = scaler.get_scale() if scaler is not None else 1.0
        if scaler is not None and overflowed(scaler, self.optimizer):
            self._previous = None
            self.on_overflow()
        elif self._update is not None:
            self._event()
            correction = self.correction(self.steps)
            self._keep(correction, *self._update.run(self._shown[0].update, *self._arguments(), correction, max_norm))
        else:
            self._before(max_norm)
            self.optimizer.step()
            self._around.after()
        self._advance()

    def hook(self) -> None:
        """Do the work of `step()` inside `optimizer.step()`, for frameworks that call that themselves, with or without a closure.

        A step that a gradient scaler skips is not seen: the same sub-net trains again.
        """
        def before(optimizer, args, kwargs):
            closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
            if closure is None:
                self._before(None)
                return None

            def with_gradients():                       # the gradients come into being inside the optimizer's step
                loss = closure()
                self._before(None)
                return loss
            return (args[0], with_gradients), {}

        def after(optimizer, args, kwargs):
            self._around.after()
            self._advance()
        self._handles = self._handles or [self.optimizer.register_step_pre_hook(before), self.optimizer.register_step_post_hook(after)]

    @contextmanager
    def subnet(self, name: str) -> Iterator[nn.Module]:
        """Within it the model is the named sub-net."""
        self.masks.counts(name)
        shown, inside = self._shown, self._inside_subnet
        self._inside_subnet = True
        self._show(View(name, name), False)
        try:
            yield self.model
        finally:
            self._inside_subnet = inside
            self._show(*shown)

    @torch.no_grad()
    def remove(self, subnet: str | None = None) -> nn.Module:
        """Give the plain model back: dense, with its own batch norms; or, with a name, that sub-net with zeros in its weights."""
        if self._attached is not None:
            if subnet is not None:
                self.norms.fold(self.bank(subnet))              # first, as masks may hide scales and shifts, too
                for weight, mask in zip(self.weights, self.masks[subnet]):
                    weight.masked_fill_(~mask, 0)
            for handle in self._handles:
                handle.remove()
            self._attached.remove()
            self._statistics.hold(False)
            self.norms.show(0)
            self.norms.leave(self.optimizer)
            self._attached = None
        return self.model

    def set_masks(self, subnet: str, masks: Mapping[str, Tensor]) -> None:
        """Give a sub-net masks made elsewhere: {layer: bool tensor of the weight's shape}; layers left out keep theirs."""
        self.masks.set(subnet, masks)
        self._masks_changed()
        self._show(*self._shown)

    def summary(self) -> list[dict]:
        """Per sub-net: name, pattern, target and exact sparsity, over prunable and over all parameters, and kept weights per layer."""
        return summary(self)

    def metrics(self) -> dict:
        """What was measured so far; reads the device."""
        return metrics(self)

    def state_dict(self) -> dict:
        """{"tensors": {name: tensor}, "meta": json-able dict}: all that is not in the model's and the optimizer's state_dict."""
        return state.save(self)

    def load_state_dict(self, saved: dict) -> None:
        """Continue where `state_dict` was taken, before or after the model's and the optimizer's state is loaded.

        Raises:
            ValueError: naming the first disagreement; nothing has changed then.
        """
        state.load(self, saved)
        self._masks_changed()
        self._show_next()

    # What hooks may use.

    def bank(self, name: str) -> int:
        """The number of the norm bank that the sub-net `name` is shown with."""
        return self.subnets.index(self.norms_of(name)) if len(self.norms.banks) > 1 else 0

    def nan_flags(self) -> Tensor:
        """[layers] int64 on the device: 1 where a layer's weights hold a NaN (or overflow their norm)."""
        return torch.stack(torch._foreach_norm([weight.detach() for weight in self.weights])).isnan().long()

    def refuse_nan(self, flags: list[int] | None = None) -> None:
        """ValueError naming the layers with NaN in their weights; `flags` when they were read already."""
        bad = [layer for layer, flag in zip(self.masks.layers, self.nan_flags().tolist() if flags is None else flags) if flag]
        if bad:
            raise ValueError(f"mask event at step {self.steps}: NaN in the weights of {', '.join(bad)}; the masks are unchanged. Lower the "
                             f"learning rate, or clip with step(max_norm=...)")

    # How it is done.

    def _masks_changed(self) -> None:
        """Forget what was derived from the masks."""
        self._views.clear()
        if self._update is not None:
            self._update.flush()

    def _event(self) -> None:
        self.observe()
        due = self.event_due(self.steps)
        if due or self._shown[1]:
            grads = [weight.grad for weight in self.weights]
            if due:
                self.on_event(grads)
                self._masks_changed()
            for grad, mask in zip(grads, self._masks(self._shown[0].update)):
                if grad is not None and mask is not None:
                    grad.masked_fill_(~mask, 0)
        if self._shown[0].frozen:                       # without a gradient no optimizer moves a parameter or its state
            prunable = {id(weight) for weight in self.weights}
            for group in self.optimizer.param_groups:
                for param in group["params"]:
                    if id(param) not in prunable:
                        param.grad = None

    def _arguments(self) -> tuple[list[Tensor | None], set[int], list[Tensor | None]]:
        return self._masks(self._shown[0].update), self._absent[self.norms.shown], self._previous or self._nothing

    def _keep(self, correction: Correction | None, grads: list[Tensor | None], measured: list[Measured]) -> None:
        if self._previous is not None:
            self.log.record(self.steps, correction, measured)
        self._previous = None if correction is None else grads

    @torch.no_grad()
    def _before(self, max_norm: float | None) -> None:
        self._event()
        correction = self.correction(self.steps)
        self._keep(correction, *self._around.before(*self._arguments(), correction, max_norm))

    @torch.no_grad()
    def _advance(self) -> None:
        moment = self.timeline.at(self.steps)
        if self.span_ended is not None and self.steps + 1 == sum(self.span(self.steps)):
            self.span_ended()
        if moment.last:
            version = self.masks.version
            self.on_phase_end(moment)
            if self.masks.version != version:
                self._masks_changed()
        self.steps += 1
        self._show_next()

    def _masks(self, name: str) -> list[Tensor | None]:
        if name not in self._views:
            self._views[name] = self.masks.active(name)
        return self._views[name]

    def _show_next(self) -> None:
        self.prepare(self.steps)
        self._show(self.timeline.at(self.steps).phase.view, self.wants_dense_grad(self.steps))

    def _show(self, view: View, dense_grad: bool) -> None:
        self._shown = (view, dense_grad)
        self._attached.show(self._masks(view.forward), self._masks(view.update), dense_grad)
        self._statistics.hold(view.frozen)
        self.norms.show(self.bank(view.forward) if view.forward in self.patterns else 0)


def overflowed(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer) -> bool:
    """Unscale the gradients; whether one was inf or NaN (the read that GradScaler.step() makes, too)."""
    if not scaler.is_enabled():
        return False
    scaler.unscale_(optimizer)
    return any(found.item() for found in scaler._found_inf_per_device(optimizer).values())

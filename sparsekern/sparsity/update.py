"""One optimizer step inside a mask, with the correction of conflicting gradients.

torch.optim.SGD is replaced by the fused ops: one call per param group, the argument lists made once per sub-net and set of gradients
present. Any other optimizer runs as it is, between a save and a restore of what lies outside the mask.
"""
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsekern import ops
from sparsekern.ops.mask_bits import no_mask
from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.optim_state import Outside, momentum_buffers


@dataclass(frozen=True)
class Correction:
    """Compare this step's gradient with the one before; `apply` takes out the part that conflicts."""
    per_tensor: bool
    apply: bool

    @property
    def eps(self) -> float:
        return 0.0 if self.apply else math.inf


class Measured:
    """[S, 4] stats of a comparison (inner product, |previous|^2, cosine, applied) and the layer of each row."""

    def __init__(self, layers: list[int], per_tensor: bool, device: torch.device):
        self.stats = torch.zeros(len(layers) if per_tensor else 1, 4, dtype=torch.float32, device=device)
        self.products, self.applied = self.stats[:, 0], self.stats[:, 3]
        self.layers = torch.tensor(layers, device=device) if per_tensor else None


@dataclass
class Lists:
    """The arguments of one fused call."""
    params: list[Tensor]
    momenta: list[Tensor]
    masks: list[Tensor]
    spread: list[Tensor]                # the masks of the update itself: `masks`, or dense ones when it is leaky
    slots: list[tuple[int, int]]        # (place in these lists, layer)
    nothing: list[Tensor]               # an empty tensor for each: takes no part in the comparison
    measured: Measured


class Update:
    """torch.optim.SGD inside masks.

    Args:
        optimizer: a torch.optim.SGD; its param groups are read at every step and its state holds the momentum.
        layers: the masked layers.
        leaky: momentum and decay also act outside the masks, as in plain SGD on masked gradients.
    """

    def __init__(self, optimizer: Optimizer, layers: list[Layer], leaky: bool = False):
        self.optimizer, self.layers, self.leaky = optimizer, layers, leaky
        self._layer_of = {id(layer.param): index for index, layer in enumerate(layers)}
        self.flush()

    def flush(self) -> None:
        """Forget the argument lists (masks changed, the optimizer's state was loaded)."""
        self._state, self._groups = self.optimizer.state, len(self.optimizer.param_groups)
        self._candidates: dict[tuple[str, int], list[Tensor]] = {}
        self._lists: dict[tuple, Lists] = {}

    def run(self, key: str, masks: list[Tensor | None], absent: set[int], previous: list[Tensor | None], correction: Correction | None,
            max_norm: float | None = None) -> tuple[list[Tensor | None], list[Measured]]:
        """One step; takes the gradients, so that every `grad` is None afterwards.

        Args:
            key: name of the view; the cached lists belong to it.
            masks: per layer, None for dense.
            absent: ids of the parameters that belong to other sub-nets.
            previous: per layer the gradient to compare with, or None.
            correction: None for no comparison at all.
            max_norm: clip the norm of what is applied.
        Returns:
            The gradients per layer before correction (when there is a comparison), and what was measured.
        """
        if self.optimizer.state is not self._state or len(self.optimizer.param_groups) != self._groups:
            self.flush()
        kept: list[Tensor | None] = [None] * len(self.layers)
        calls = []
        for index, group in enumerate(self.optimizer.param_groups):
            candidates = self._candidates.get((key, index))
            if candidates is None:
                candidates = self._candidates[key, index] = [param for param in group["params"] if id(param) not in absent]
            grads = [param.grad for param in candidates]
            missing = tuple([place for place, grad in enumerate(grads) if grad is None])
            if missing:
                grads = [grad for grad in grads if grad is not None]
            if not grads:
                continue
            per_tensor = correction is not None and correction.per_tensor
            lists = self._lists.get((key, index, missing, per_tensor))
            if lists is None:
                lists = self._lists[key, index, missing, per_tensor] = self._build(candidates, masks, group, per_tensor)
            for param in candidates:
                param.grad = None
            before = lists.nothing
            if correction is not None:
                before = before.copy()
                for place, layer in lists.slots:
                    grad = grads[place]
                    # itself, or a copy where its storage is shared (a bucket of DistributedDataParallel is overwritten)
                    kept[layer] = grad if grad.untyped_storage().nbytes() == grad.nbytes else grad.clone()
                    if previous[layer] is not None:
                        before[place] = previous[layer]
            calls.append((group, lists, grads, before))
        return kept, self._call(calls, correction, max_norm)

    def _build(self, candidates, masks, group, per_tensor) -> Lists:
        params = [param for param in candidates if param.grad is not None]
        layer = [self._layer_of.get(id(param), len(self.layers)) for param in params]
        dense = [no_mask(param.device) for param in params]
        inside = [none if index == len(self.layers) or masks[index] is None else masks[index] for none, index in zip(dense, layer)]
        return Lists(params, momentum_buffers(self.optimizer, params) if group["momentum"] else [], inside, dense if self.leaky else inside,
                     [(place, index) for place, index in enumerate(layer) if index < len(self.layers)],
                     dense, Measured(layer, per_tensor, params[0].device))

    def _call(self, calls, correction, max_norm) -> list[Measured]:
        compared = [lists for _, lists, _, _ in calls if lists.slots] if correction is not None else []
        across_groups = correction is not None and not correction.per_tensor and len(compared) > 1
        self.optimizer._opt_called = True           # or torch's schedulers warn that step() was never called
        if compared and not (self.leaky or across_groups or max_norm is not None):
            for group, lists, grads, before in calls:
                ops.project_conflict_sgd_(lists.params, grads, before, lists.momenta, lists.masks, per_tensor=correction.per_tensor,
                                          eps=correction.eps, stats=lists.measured.stats, **_scalars(group))
            return [lists.measured for lists in compared]
        if compared:
            self._project(calls, correction, compared, across_groups)
        scale = None if max_norm is None else clip_scale([grad for *_, grads, _ in calls for grad in grads], max_norm)
        for group, lists, grads, _ in calls:
            ops.masked_sgd_(lists.params, grads, lists.momenta, lists.spread, grad_scale=scale, **_scalars(group))
        return [lists.measured for lists in (compared[:1] if across_groups else compared)]

    def _project(self, calls, correction, compared, across_groups) -> None:
        for _, lists, grads, _ in calls:
            for place, _ in lists.slots if correction.apply else ():
                grads[place] = grads[place].clone()                     # the raw one is kept for the next step
        parts = [(grads, before, lists.masks, lists.measured.stats) for _, lists, grads, before in calls if lists.slots]
        if across_groups:
            parts = [(*([x for part in parts for x in part[column]] for column in range(3)), compared[0].measured.stats)]
        for grads, before, masks, stats in parts:
            ops.project_conflict_(grads, before, masks=masks, per_tensor=correction.per_tensor, eps=correction.eps, stats=stats)


class AnyUpdate:
    """The same promises around any optimizer: `before` it, its own step, `after` it."""

    def __init__(self, optimizer: Optimizer, layers: list[Layer], leaky: bool = False):
        self.optimizer, self.layers, self.leaky = optimizer, layers, leaky
        self._outside: Outside | None = None

    def before(self, masks: list[Tensor | None], absent: set[int], previous: list[Tensor | None], correction: Correction | None,
               max_norm: float | None = None) -> tuple[list[Tensor | None], list[Measured]]:
        """Correct and clip the gradients where they are. Arguments and results are those of `Update.run`."""
        params = [param for group in self.optimizer.param_groups for param in group["params"]]
        for param in params:
            if id(param) in absent:
                param.grad = None                                       # zeros there would still bring decay and momentum
        present = [index for index, layer in enumerate(self.layers) if layer.param.grad is not None]
        grads = [self.layers[index].param.grad for index in present]
        kept: list[Tensor | None] = [None] * len(self.layers)
        measured = []
        if correction is not None and grads:
            measured = [Measured(present, correction.per_tensor, grads[0].device)]
            for index, grad in zip(present, grads):
                kept[index] = grad.clone()
            ops.project_conflict_(grads, [previous[index] for index in present], masks=[masks[index] for index in present],
                                  per_tensor=correction.per_tensor, eps=correction.eps, stats=measured[0].stats)
        if max_norm is not None:
            every = [param.grad for param in params if param.grad is not None]
            torch._foreach_div_(every, clip_scale(every, max_norm))
        if not self.leaky:
            self._outside = Outside(self.optimizer, [layer.param for layer in self.layers], masks)
        return kept, measured

    @torch.no_grad()
    def after(self) -> None:
        if self._outside is not None:
            self._outside.restore()
            self._outside = None


def clip_scale(grads: list[Tensor], max_norm: float) -> Tensor:
    """[] float32: what to divide gradients by so that their norm stays within `max_norm`, as torch clips. No read-back."""
    return ((torch.nn.utils.get_total_norm(grads) + 1e-6) / max_norm).clamp(min=1.0).float()


def _scalars(group: dict) -> dict:
    return {key: group[key] for key in ("lr", "weight_decay", "momentum", "dampening", "nesterov", "maximize")}

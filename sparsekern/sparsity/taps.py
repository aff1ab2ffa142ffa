"""What guided growth needs to know of a layer: how much its units are at work, and the gradient of connections it does not have.

Both come from the layer's input h and its output gradient delta, seen by hooks while a batch passes. For Linear and SparseLinear (any
leading dimensions count as batch), Conv2d and SparseConv2d (their output positions count as batch, nothing is unfolded).
"""
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsekern import ops
from sparsekern.nn import SparseConv2d

Seen = Callable[[nn.Module, Tensor, Tensor], None]


class Tap:
    """Calls `seen(module, h, delta)` in the backward pass of the modules, for every forward pass made while it is open.

    It holds h until the module's backward pass, where autograd holds it anyway; what `seen` keeps is its own affair.
    """

    def __init__(self, modules: Sequence[nn.Module], seen: Seen):
        self.open, self.seen = False, seen
        self._handles = [module.register_forward_hook(self._forward, with_kwargs=True) for module in modules]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _forward(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        if self.open and output.requires_grad:
            self._watch(module, args[0] if args else kwargs["input" if "input" in kwargs else "x"], output)

    @torch.compiler.disable                         # a compiled model leaves its graph here, in the steps that are watched only
    def _watch(self, module: nn.Module, h: Tensor, output: Tensor) -> None:
        h = h.detach()

        def backward(delta: Tensor) -> None:
            with torch.no_grad():
                self.seen(module, h, delta.detach())
        output.register_hook(backward)


def is_convolution(module: nn.Module) -> bool:
    """Of two dimensions, dense or sparse."""
    return isinstance(module, (nn.Conv2d, SparseConv2d))


def groups(module: nn.Module) -> int:
    """How many blocks the weight has that share neither inputs nor outputs."""
    return module.groups if is_convolution(module) else 1


def activities(module: nn.Module, h: Tensor, delta: Tensor, *, signed: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    """float32 (or float64 of float64) [rows] of the output units and [groups, cols] of the inputs: see `ops.activity`.

    Positions of the batch have the same number, so the same sign, on both sides.
    """
    options = {"signed": signed, "seed": seed if signed else None}
    if not is_convolution(module):
        return ops.activity(delta, **options), ops.activity(h, **options)[None]
    h, delta, geometry = _convolution(module, h, delta)
    taps = ops.activity(h, kernel_size=module.kernel_size, stride=geometry["stride"], padding=geometry["padding"],
                        dilation=geometry["dilation"], **options)
    return ops.activity(delta.permute(0, 2, 3, 1), **options), taps.view(module.groups, -1)


def gradient_at(module: nn.Module, h: Tensor, delta: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """[S] the gradient of the weight, flattened to a matrix, at the positions (rows, cols): int32, sorted by row, then column."""
    dtype = torch.promote_types(h.dtype, delta.dtype)
    h, delta = h.to(dtype), delta.to(dtype)
    if not is_convolution(module):
        count = torch.tensor(rows.numel(), device=rows.device)
        return ops.coo_sddmm(rows, cols, count, delta.reshape(-1, delta.shape[-1]).T, h.reshape(-1, h.shape[-1]).T)
    h, delta, geometry = _convolution(module, h, delta)
    crow = torch.searchsorted(rows, torch.arange(delta.shape[1] + 1, dtype=rows.dtype, device=rows.device), out_int32=True)
    return ops.sparse_conv2d_weight_grad(h, delta, crow, cols, module.kernel_size, **geometry)


def _convolution(module: nn.Module, h: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, dict]:
    """Batched h and delta, and the geometry with the padding in numbers; another padding than zeros on both sides is put into h."""
    if h.dim() == 3:
        h, delta = h.unsqueeze(0), delta.unsqueeze(0)
    padding = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        high, wide = ([0, 0] if padding == "valid" else [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size)]
                      if padding == "same" else [2 * p for p in padding])
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        h, padding = F.pad(h, (wide // 2, wide - wide // 2, high // 2, high - high // 2), mode), (0, 0)
    return h, delta, {"stride": module.stride, "padding": padding, "dilation": module.dilation, "groups": module.groups}


def candidates(rows_at_work: Tensor, cols_at_work: Tensor, crow: Tensor, col: Tensor, factor: float, seed: int) -> tuple[Tensor, Tensor]:
    """int32 rows and columns, sorted: distinct inactive positions drawn in proportion to the activity of both their units.

    Per group ceil(factor * its active connections) draws, with replacement, duplicates and active ones left out; of a group at least
    half full every inactive position. A factor of a distribution that is zero or not finite counts as uniform.

    Args:
        rows_at_work: [rows], cols_at_work: [groups, cols], any sign.
        crow, col: the active connections.
    """
    found, height = [], len(rows_at_work) // len(cols_at_work)
    for group, columns in enumerate(cols_at_work):
        first = group * height
        own = crow[first:first + height + 1]
        start, end = own[0].item(), own[-1].item()
        count = math.ceil(factor * (end - start))
        rows, cols, valid = ops.gse_candidates(_usable(rows_at_work[first:first + height]), _usable(columns), own - start, col[start:end],
                                               count, seed=seed + group)
        valid = valid.item()
        found.append((rows[:valid] + first, cols[:valid]))
    return found[0] if len(found) == 1 else (torch.cat([rows for rows, _ in found]), torch.cat([cols for _, cols in found]))


def _usable(weights: Tensor) -> Tensor:
    weights = weights.abs().float()
    total = weights.sum()
    return weights if total.isfinite() and total > 0 else torch.ones_like(weights)

"""SGD with momentum inside a mask: one launch for a whole list of parameters, no multiplication by masks."""
import torch
from torch import Tensor

from sparsekern.ops._register import define, fake, reference, uses_triton
from sparsekern.ops.mask_bits import dense_mask, no_mask, packed_words

_SCALARS = "float weight_decay, float momentum, {lr}, float dampening, bool nesterov, bool maximize, bool is_first_step"
_TAIL = "Tensor? grad_scale=None, Tensor? found_inf=None) -> ()"
_MASKED = "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor[] masks, *, " + _SCALARS + \
    ", str outside=\"keep\", bool invert=False, bool assume_clean=False, " + _TAIL
define("masked_sgd_" + _MASKED.format(lr="float lr"))
define("masked_sgd_.tensor_lr" + _MASKED.format(lr="Tensor lr"))
define("packed_sgd_(Tensor(a!)[] values, Tensor[] grads, Tensor(b!)[] momentum_buffers, Tensor?[] indices, *, "
       + _SCALARS.format(lr="float lr") + ", " + _TAIL)
define("is_clean(Tensor[] params, Tensor[] momentum_buffers, Tensor[] masks) -> Tensor")


@torch.no_grad()
def masked_sgd_(params: list[Tensor], grads: list[Tensor], momentum_buffers: list[Tensor], masks: list[Tensor | None], *,
                lr: float | Tensor, weight_decay: float = 0.0, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False,
                maximize: bool = False, is_first_step: bool = False, outside: str = "keep", invert: bool = False,
                assume_clean: bool = False, grad_scale: Tensor | None = None, found_inf: Tensor | None = None) -> None:
    """Update `params` in place where their masks are on, as `torch.optim.SGD` would; elsewhere nothing changes.

    Gradients are never written. A NaN in a hidden gradient reaches nothing: masking selects, it does not multiply.

    Args:
        params: tensors of any shape, float32, bfloat16, float16 or float64 (CPU), dense in memory. Written in place.
        grads: like `params`; float32 params also take bfloat16 or float16 gradients.
        momentum_buffers: like `params`, zero before the first step; may be empty when `momentum` is 0. Written in place.
        masks: per param a bool tensor of its shape, packed int32 words (`pack_mask`), or None (or an empty tensor): dense.
        lr, weight_decay, momentum, dampening, nesterov, maximize: as in `torch.optim.SGD`. A 0-d tensor as `lr` stays on the device.
        is_first_step: the buffers take the gradient as it is, without dampening.
        outside: "keep" leaves hidden params and momenta bit for bit; "zero" makes them +0.
        invert: train what the masks hide, without building the complement.
        assume_clean: with outside="zero", hidden params and momenta are already 0 and may be skipped.
        grad_scale, found_inf: [] or [1] float32 of a gradient scaler; grads are divided by the scale, and nothing changes where
            `found_inf` is 1.
    Raises:
        ValueError: lists of different lengths, a mask or gradient of another shape, a param that is not dense.
        TypeError: an unsupported pair of dtypes (both are named).
    Source: torch.optim.SGD restricted to a mask. Bytes per fp32 element: 20 + mask.
    """
    if outside not in ("keep", "zero"):
        raise ValueError(f'masked_sgd_: outside: expected "keep" or "zero", got {outside!r}')
    if not params:
        return
    masks = [no_mask(params[0].device) if mask is None else mask for mask in masks]
    op = torch.ops.sparsekern.masked_sgd_
    (op.tensor_lr if isinstance(lr, Tensor) else op.default)(
        params, grads, momentum_buffers, masks, weight_decay=weight_decay, momentum=momentum, lr=lr, dampening=dampening, nesterov=nesterov,
        maximize=maximize, is_first_step=is_first_step, outside=outside, invert=invert, assume_clean=assume_clean, grad_scale=grad_scale,
        found_inf=found_inf)


def check_update_lists(op: str, params, grads, momentum_buffers, masks, momentum, grads_name="grads") -> None:
    """The checks of the compiled kernels, in their words, for the implementations written in Python."""
    for name, items in ((grads_name, grads), ("masks", masks)) + ((("momentum_buffers", momentum_buffers),) if momentum != 0 else ()):
        if len(items) != len(params):
            raise ValueError(f"{op}: {name}: expected a list of {len(params)} tensors like the first list, got {len(items)}")
    for i, (param, grad, mask) in enumerate(zip(params, grads, masks)):
        if grad.shape != param.shape:
            raise ValueError(f"{op}: {grads_name}[{i}]: expected shape {list(param.shape)}, got {list(grad.shape)}")
        if momentum != 0 and momentum_buffers[i].shape != param.shape:
            raise ValueError(f"{op}: momentum_buffers[{i}]: expected shape {list(param.shape)}, got {list(momentum_buffers[i].shape)}")
        if mask.numel() == 0 and (param.numel() != 0 or mask.dim() == 1):
            continue
        if mask.dtype == torch.bool and mask.shape != param.shape:
            raise ValueError(f"{op}: masks[{i}]: expected a bool mask of shape {list(param.shape)}, got {list(mask.shape)}")
        if mask.dtype not in (torch.bool, torch.int32):
            raise TypeError(f"{op}: masks[{i}]: expected a bool mask, packed int32 words or an empty tensor, got {mask.dtype}")
        if mask.dtype == torch.int32 and mask.shape != (packed_words(param.numel()),):
            raise ValueError(f"{op}: masks[{i}]: expected {packed_words(param.numel())} contiguous int32 words for {param.numel()} elements, "
                             f"got shape {list(mask.shape)}")


def _step(param, grad, buffer, *, weight_decay, momentum, lr, dampening, nesterov, maximize, is_first_step, grad_scale):
    """The dense part, out of place: new param and new buffer (None without momentum)."""
    arithmetic = torch.float64 if param.dtype == torch.float64 else torch.float32
    value, grad = param.to(arithmetic), grad.to(arithmetic)
    if grad_scale is not None:
        grad = grad / grad_scale.to(arithmetic)
    if maximize:
        grad = -grad
    if weight_decay != 0:
        grad = grad + weight_decay * value
    if momentum != 0:
        buffer = grad if is_first_step else momentum * buffer.to(arithmetic) + (1 - dampening) * grad
        grad = grad + momentum * buffer if nesterov else buffer
    return value - lr * grad, buffer


@reference("masked_sgd_.tensor_lr")
@reference("masked_sgd_")
def masked_sgd_reference(params, grads, momentum_buffers, masks, *, weight_decay, momentum, lr, dampening, nesterov, maximize, is_first_step,
                         outside="keep", invert=False, assume_clean=False, grad_scale=None, found_inf=None):
    check_update_lists("masked_sgd_", params, grads, momentum_buffers, masks, momentum)
    for i, (param, grad, mask) in enumerate(zip(params, grads, masks)):
        inside = dense_mask(mask, param) ^ invert
        changed = torch.ones_like(inside) if found_inf is None else (found_inf == 0).expand_as(inside)     # no read-back
        buffer = momentum_buffers[i] if momentum != 0 else None
        new, new_buffer = _step(param, grad, buffer, weight_decay=weight_decay, momentum=momentum, lr=lr, dampening=dampening,
                                nesterov=nesterov, maximize=maximize, is_first_step=is_first_step, grad_scale=grad_scale)
        for target, value in ((param, new), (buffer, new_buffer)):
            if target is not None:
                hidden = torch.zeros_like(target) if outside == "zero" else target
                target.copy_(torch.where(changed, torch.where(inside, value.to(target.dtype), hidden), target))


@fake("masked_sgd_")
def _(params, grads, momentum_buffers, masks, **scalars):
    return None


@fake("masked_sgd_.tensor_lr")
def _(params, grads, momentum_buffers, masks, **scalars):
    return None


@torch.no_grad()
def packed_sgd_(values: list[Tensor], grads: list[Tensor], momentum_buffers: list[Tensor], indices: list[Tensor | None] | None = None, *,
                lr: float, weight_decay: float = 0.0, momentum: float = 0.0, dampening: float = 0.0, nesterov: bool = False,
                maximize: bool = False, is_first_step: bool = False, grad_scale: Tensor | None = None,
                found_inf: Tensor | None = None) -> None:
    """The same update where only nonzeros are stored.

    Args:
        values: [nnz] vectors, written in place.
        grads: [nnz] packed gradients, or dense gradients of any shape where `indices` says where to gather.
        momentum_buffers: [nnz] like `values`; may be empty when `momentum` is 0.
        indices: per entry [nnz] int32 or int64 flat row-major positions into the dense gradient, ascending; None: packed.
        The scalars are those of `masked_sgd_`.
    Raises:
        ValueError: sizes that disagree. IndexError: a position outside the gradient (CPU).
    Source: torch.optim.SGD on stored values. Bytes per fp32 nonzero: 20, or 20 plus the touched lines of the dense gradient.
    """
    if not values:
        return
    torch.ops.sparsekern.packed_sgd_(values, grads, momentum_buffers, [None] * len(values) if indices is None else indices,
                                     weight_decay=weight_decay, momentum=momentum, lr=lr, dampening=dampening, nesterov=nesterov,
                                     maximize=maximize, is_first_step=is_first_step, grad_scale=grad_scale, found_inf=found_inf)


@reference("packed_sgd_")
def packed_sgd_reference(values, grads, momentum_buffers, indices, *, weight_decay, momentum, lr, dampening, nesterov, maximize, is_first_step,
                         grad_scale=None, found_inf=None):
    packed = []
    for i, (value, grad, index) in enumerate(zip(values, grads, indices)):
        if index is not None and index.shape != value.shape:
            raise ValueError(f"packed_sgd_: indices[{i}]: expected one index per value, {list(value.shape)}, got {list(index.shape)}")
        if index is None and grad.numel() != value.numel():
            raise ValueError(f"packed_sgd_: grads[{i}]: expected a packed gradient of {value.numel()} values, got {grad.numel()}; "
                             f"pass indices[{i}] to gather from a dense one")
        packed.append(grad.reshape(-1) if index is None else grad.reshape(-1)[index.long()])
    masked_sgd_reference(values, packed, momentum_buffers, [no_mask(v.device) for v in values], weight_decay=weight_decay, momentum=momentum,
                         lr=lr, dampening=dampening, nesterov=nesterov, maximize=maximize, is_first_step=is_first_step,
                         grad_scale=grad_scale, found_inf=found_inf)


@fake("packed_sgd_")
def _(values, grads, momentum_buffers, indices, **scalars):
    return None


def is_clean(params: list[Tensor], momentum_buffers: list[Tensor], masks: list[Tensor]) -> Tensor:
    """[] bool: whether every hidden param and momentum is exactly 0, the promise of `assume_clean`. A check for tests."""
    return torch.ops.sparsekern.is_clean(params, momentum_buffers, masks)


@reference("is_clean")
def is_clean_reference(params, momentum_buffers, masks):
    dirty = torch.zeros((), dtype=torch.bool, device=params[0].device if params else None)
    for i, (param, mask) in enumerate(zip(params, masks)):
        for tensor in [param] + ([momentum_buffers[i]] if momentum_buffers else []):
            dirty = dirty | ((tensor != 0) & ~dense_mask(mask, param)).any()
    return ~dirty


@fake("is_clean")
def _(params, momentum_buffers, masks):
    return torch.empty((), dtype=torch.bool, device=params[0].device if params else None)


uses_triton("masked_sgd_", "masked_sgd")
uses_triton("masked_sgd_.tensor_lr", "masked_sgd")
uses_triton("packed_sgd_", "masked_sgd")

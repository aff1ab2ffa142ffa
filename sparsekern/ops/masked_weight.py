"""The effective weight: what a layer multiplies by, with the weights outside a mask hidden, and its masked gradient."""
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekern.ops._register import autograd_kernel, define, fake, reference, uses_triton
from sparsekern.ops.mask_bits import check_mask, dense_mask, no_mask

define("masked_weight(Tensor weight, Tensor mask, *, Tensor? grad_mask=None, bool dense_grad=False, ScalarType? dtype=None) -> Tensor")
define("masked_weight.list(Tensor[] weights, Tensor[] masks, *, Tensor[]? grad_masks=None, bool dense_grad=False, "
       "ScalarType? dtype=None) -> Tensor[]")

_one = torch.ops.sparsekern.masked_weight.default
_many = torch.ops.sparsekern.masked_weight.list
_below_autograd = torch._C._AutoDispatchBelowAutograd


def masked_weight(weight: Tensor | Sequence[Tensor], mask: Tensor | None | Sequence[Tensor | None], *,
                  grad_mask: Tensor | None | Sequence[Tensor | None] = None, dense_grad: bool = False, dtype: torch.dtype | None = None):
    """`weight` where `mask` is on and +0 elsewhere, by selection: a NaN or inf in a hidden weight never shows.

    The gradient that reaches `weight` is the incoming one where `grad_mask` is on and +0 elsewhere, in the weight's dtype.
    Only masks are kept for the backward pass, never the weight. Lists are worked in one launch, with the same bits.

    Args:
        weight: any shape and strides, float32, bfloat16, float16 or float64; or a list of such tensors.
        mask: bool of the weight's shape, packed int32 words (`pack_mask`; row-major weights only), or None or an empty tensor: dense.
            A list for a list of weights.
        grad_mask: like `mask`, None meaning `mask`; an empty tensor lets all of the gradient through.
        dense_grad: pass the incoming gradient on unchanged, without a copy.
        dtype: of the result, rounded once (autocast needs no second pass); None: the weight's.
    Returns:
        A tensor of the weight's shape and strides, or a list of them. Where the mask says dense and neither another dtype nor
        a gradient mask is asked for, it is the weight itself.
    Raises:
        ValueError: a mask of another shape or device, a packed mask with a weight that is not row-major, lists of different lengths.
        TypeError: a mask or weight of an unsupported dtype.
    Cost: 8 bytes and the mask per fp32 element forward, the same backward; nothing backward with `dense_grad`.
    """
    if not isinstance(weight, Tensor):
        return _masked_weights(list(weight), mask, grad_mask, dense_grad, dtype)
    if mask is None:
        mask = no_mask(weight.device)
    if grad_mask is not None:
        check_mask("masked_weight", "grad_mask", grad_mask, weight)
    if mask.numel() == 0 and _nothing_else(weight, grad_mask, dense_grad, dtype):
        return weight
    return _one(weight, mask, grad_mask=grad_mask, dense_grad=dense_grad, dtype=dtype)


def _nothing_else(weight, grad_mask, dense_grad, dtype) -> bool:
    return (dtype is None or dtype == weight.dtype) and (grad_mask is None or dense_grad or grad_mask.numel() == 0)


def _masked_weights(weights, masks, grad_masks, dense_grad, dtype) -> list[Tensor]:
    for name, items in (("mask", masks), ("grad_mask", grad_masks)):
        if items is not None and (isinstance(items, Tensor) or len(items) != len(weights)):
            got = "a tensor" if isinstance(items, Tensor) else f"a list of {len(items)}"
            raise ValueError(f"masked_weight: {name}: expected a list of {len(weights)} masks like the list of weights, got {got}")
    if masks is None:
        masks = [None] * len(weights)
    masks = [no_mask(weight.device) if mask is None else mask for weight, mask in zip(weights, masks)]
    if grad_masks is not None:
        grad_masks = [mask if given is None else given for mask, given in zip(masks, grad_masks)]
        for i, (weight, given) in enumerate(zip(weights, grad_masks)):
            check_mask("masked_weight", f"grad_mask[{i}]", given, weight)
    result = list(weights)
    work = [i for i, weight in enumerate(weights)
            if masks[i].numel() != 0 or not _nothing_else(weight, grad_masks and grad_masks[i], dense_grad, dtype)]
    if work:
        out = _many([weights[i] for i in work], [masks[i] for i in work], grad_masks=grad_masks and [grad_masks[i] for i in work],
                    dense_grad=dense_grad, dtype=dtype)
        for i, tensor in zip(work, out):
            result[i] = tensor
    return result


# The gradient. torch.library.register_autograd does not take keyword-only tensors, so the Autograd key gets these functions.
# Each Function's backward is the op again, so differentiating twice needs no formula of its own.

class _MaskedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, mask, grad_mask, dense_grad, dtype):
        ctx.dtype = weight.dtype
        if not dense_grad:
            ctx.save_for_backward(mask if grad_mask is None else grad_mask)
        with _below_autograd():
            return _one(weight, mask, dtype=dtype)

    @staticmethod
    def backward(ctx, grad):
        saved = ctx.saved_tensors
        if not saved or (saved[0].numel() == 0):
            return grad.to(ctx.dtype), None, None, None, None           # the same tensor where the dtype is the same
        return _apply_one(_row_major_if_packed(grad, saved[0]), saved[0], dtype=ctx.dtype), None, None, None, None


class _MaskedWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx, masks, grad_masks, dense_grad, dtype, *weights):
        ctx.set_materialize_grads(False)
        ctx.dtypes = [weight.dtype for weight in weights]
        if not dense_grad:
            ctx.save_for_backward(*(masks if grad_masks is None else grad_masks))
        with _below_autograd():
            return tuple(_many(weights, masks, dtype=dtype))

    @staticmethod
    def backward(ctx, *grads):
        masks = ctx.saved_tensors
        result: list[Tensor | None] = [None] * len(grads)
        launches: dict[torch.dtype, list[int]] = {}
        for i, (grad, dtype) in enumerate(zip(grads, ctx.dtypes)):
            if grad is None or not ctx.needs_input_grad[4 + i]:
                continue
            if not masks or masks[i].numel() == 0:
                result[i] = grad.to(dtype)
            else:
                launches.setdefault(dtype, []).append(i)
        for dtype, positions in launches.items():
            out = _apply_many([_row_major_if_packed(grads[i], masks[i]) for i in positions], [masks[i] for i in positions], dtype=dtype)
            for i, grad in zip(positions, out):
                result[i] = grad
        return None, None, None, None, *result


def _row_major_if_packed(grad: Tensor, mask: Tensor) -> Tensor:
    """A convolution may hand back a channels-last gradient for a row-major weight; bits follow the logical order."""
    return grad.contiguous() if mask.dtype == torch.int32 else grad


@autograd_kernel("masked_weight")
def _apply_one(weight, mask, *, grad_mask=None, dense_grad=False, dtype=None):
    if weight.requires_grad and torch.is_grad_enabled():
        return _MaskedWeight.apply(weight, mask, grad_mask, dense_grad, dtype)
    with _below_autograd():
        return _one(weight, mask, dtype=dtype)


@autograd_kernel("masked_weight.list")
def _apply_many(weights, masks, *, grad_masks=None, dense_grad=False, dtype=None):
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
        return list(_MaskedWeights.apply(masks, grad_masks, dense_grad, dtype, *weights))
    with _below_autograd():
        return _many(weights, masks, dtype=dtype)


@reference("masked_weight")
def masked_weight_reference(weight, mask, *, grad_mask=None, dense_grad=False, dtype=None) -> Tensor:
    dtype = dtype or weight.dtype
    for name, given in (("weights", weight.dtype), ("dtype", dtype)):
        if given not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise TypeError(f"masked_weight: {name}: expected float32, bfloat16, float16 or float64, got {given}")
    check_mask("masked_weight", "masks[0]", mask, weight)
    selected = torch.where(dense_mask(mask, weight), weight, torch.zeros((), dtype=weight.dtype, device=weight.device))
    return torch.empty_like(weight, dtype=dtype).copy_(selected)        # the weight's strides, whatever the mask's


@reference("masked_weight.list")
def masked_weight_list_reference(weights, masks, *, grad_masks=None, dense_grad=False, dtype=None) -> list[Tensor]:
    if len(masks) != len(weights):
        raise ValueError(f"masked_weight: masks: expected a list of {len(weights)} tensors like the first list, got {len(masks)}")
    return [masked_weight_reference(weight, mask, dtype=dtype) for weight, mask in zip(weights, masks)]


@fake("masked_weight")
def _(weight, mask, *, grad_mask=None, dense_grad=False, dtype=None):
    return torch.empty_like(weight, dtype=dtype)


@fake("masked_weight.list")
def _(weights, masks, *, grad_masks=None, dense_grad=False, dtype=None):
    return [torch.empty_like(weight, dtype=dtype) for weight in weights]


uses_triton("masked_weight")
uses_triton("masked_weight.list", "masked_weight")

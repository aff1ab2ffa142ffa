"""How much each output channel is worth: masked weight magnitudes, and the first-order cost of a batch-norm channel."""
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekern.ops._register import define, fake, reference, uses_triton
from sparsekern.ops.mask_bits import check_mask, dense_mask, no_mask

define("channel_scores(Tensor[] weights, Tensor[] masks_a, Tensor[]? masks_b=None, *, float beta=1.0) -> Tensor[]")


@torch.no_grad()
def channel_scores(weights: Sequence[Tensor], masks_a: Sequence[Tensor | None], masks_b: Sequence[Tensor | None] | None = None, *,
                   beta: float = 1.0) -> list[Tensor]:
    """score[o] = sum over j of (beta * a[o, j] + (1 - beta) * b[o, j]) * |w[o, j]|, the weight flattened to [O, -1].

    By selection: a NaN or inf that both masks hide never shows; one that a mask keeps propagates. One pass over the list.

    Args:
        weights: each [O, ...], any strides, float32, bfloat16, float16 or float64.
        masks_a: for each weight, bool of its shape, packed int32 words (`pack_mask`; row-major weights only), or None or an empty
            tensor: all ones.
        masks_b: the same, or None for the whole list: the second term is 0.
        beta: the share of the first masks.
    Returns:
        For each weight [O] float32; float64 for float64.
    Raises:
        ValueError: lists of different lengths, a scalar weight, a mask of another shape or device, a packed mask with a weight that
            is not row-major.
        TypeError: a weight or mask of an unsupported dtype.
    Cost: 4 bytes and the masks per fp32 element.
    """
    if not weights:
        return []
    dense = no_mask(weights[0].device)
    lists = [None if masks is None else [dense if mask is None else mask for mask in masks] for masks in (masks_a, masks_b)]
    return torch.ops.sparsekern.channel_scores(list(weights), *lists, beta=beta)


@reference("channel_scores")
def channel_scores_reference(weights, masks_a, masks_b=None, *, beta=1.0) -> list[Tensor]:
    for name, masks in (("masks_a", masks_a), ("masks_b", masks_b)):
        if masks is not None and len(masks) != len(weights):
            raise ValueError(f"channel_scores: {name}: expected a list of {len(weights)} tensors like the first list, got {len(masks)}")
    scores = []
    for i, weight in enumerate(weights):
        if weight.dim() == 0:
            raise ValueError(f"channel_scores: weights[{i}]: expected [channels, ...], got a scalar")
        if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise TypeError(f"channel_scores: weights: expected float32, bfloat16, float16 or float64, got {weight.dtype}")
        shape = weight.shape[0], weight.shape[1:].numel()
        size = weight.abs().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
        sums = []
        for name, masks in (("masks_a", masks_a), ("masks_b", masks_b)):
            if masks is not None:
                check_mask("channel_scores", f"{name}[{i}]", masks[i], weight)
                sums.append(torch.where(dense_mask(masks[i], weight), size, 0).reshape(shape).sum(1))
        scores.append(beta * sums[0] if masks_b is None else beta * sums[0] + (1 - beta) * sums[1])
    return scores


@fake("channel_scores")
def _(weights, masks_a, masks_b=None, *, beta=1.0):
    return [w.new_empty(w.shape[:1], dtype=torch.float64 if w.dtype == torch.float64 else torch.float32) for w in weights]


@torch.no_grad()
def bn_taylor(gamma: Sequence[Tensor], grad_gamma: Sequence[Tensor], beta: Sequence[Tensor], grad_beta: Sequence[Tensor]) -> list[Tensor]:
    """grad_gamma * gamma + grad_beta * beta of each batch norm: the first-order change of the loss when a channel's output is kept.

    Signed, so that channels which stand or fall together add theirs before the absolute value is taken.

    Args:
        gamma, beta: the norms' weights and biases, [C] each. grad_gamma, grad_beta: their gradients.
    Returns:
        For each norm [C] float32.
    Raises:
        ValueError: lists of different lengths, tensors of different shapes.
    Source: Molchanov et al., Importance Estimation for Neural Network Pruning (2019).
    """
    lists = {"gamma": gamma, "grad_gamma": grad_gamma, "beta": beta, "grad_beta": grad_beta}
    for name, tensors in lists.items():
        if len(tensors) != len(gamma):
            raise ValueError(f"bn_taylor: {name}: expected a list of {len(gamma)} tensors like gamma, got {len(tensors)}")
        for i, tensor in enumerate(tensors):
            if tensor.shape != gamma[i].shape or tensor.dim() != 1:
                raise ValueError(f"bn_taylor: {name}[{i}]: expected [channels] like gamma[{i}], {list(gamma[i].shape)}, got {list(tensor.shape)}")
    return [g.float() * dg.float() + b.float() * db.float() for g, dg, b, db in zip(gamma, grad_gamma, beta, grad_beta)]


uses_triton("channel_scores")

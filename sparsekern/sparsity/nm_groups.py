"""Weights as groups of m neighbours: which layers have them, scores per group, and masks from a choice of groups.

The groups of a Linear weight [O, I] lie along I; those of a Conv2d weight [O, C, kh, kw] along C, for every tap of the kernel on its own.
A tensor with one entry per group therefore has the weight's shape with I (or C) divided by m, and ties go by the flat index in it.
"""
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.patterns import NM


def obstacle(layer: Layer, pattern: NM) -> str | None:
    """Why a layer's weight has no groups of this pattern; None if it has."""
    split = next((module.groups for module in layer.modules if isinstance(module, nn.Conv2d) and module.groups > 1), 1)
    if split > 1:
        kind = "depthwise" if layer.shape[1] == 1 else "grouped"
        return f"a {kind} convolution ({split} groups of channels) has no dense product along its input channels"
    if layer.shape[1] % pattern.group:
        return f"its {layer.shape[1]} inputs do not divide into groups of {pattern.group}"
    return None


def groupable(layers: Sequence[Layer], patterns: Sequence[NM]) -> tuple[list[Layer], dict[str, dict[str, str]]]:
    """The layers that have groups of one of the patterns at least; and per pattern, by name, those that have none, with the reason.

    What a pattern leaves dense is named in one warning.
    Raises:
        ValueError: a pattern that no layer has groups of.
    """
    left = {str(pattern): {layer.name: why for layer in layers if (why := obstacle(layer, pattern)) is not None} for pattern in patterns}
    for name, found in left.items():
        if layers and len(found) == len(layers):
            raise ValueError(f"nm: {name} fits no layer: " + "; ".join(f"{layer}: {why}" for layer, why in found.items()))
    told = [f"{layer} by {name} ({why})" for name, found in left.items() for layer, why in found.items()]
    if told:
        warnings.warn(f"left dense: {', '.join(told)}", stacklevel=2)
    return [layer for layer in layers if any(layer.name not in found for found in left.values())], left


def group_values(x: Tensor, m: int) -> Tensor:
    """View of [O, I] or [O, C, kh, kw] as [O, I / m, m] or [O, C / m, m, kh, kw]: dimension 2 runs within a group."""
    return x.unflatten(1, (x.shape[1] // m, m))


@torch.no_grad()
def group_scores(x: Tensor, m: int) -> Tensor:
    """Sum of magnitudes over each group.

    Args:
        x: [O, I] or [O, C, kh, kw], a weight or its gradient, any strides; I or C divisible by m.
    Returns:
        [O, I / m] or [O, C / m, kh, kw], float32 (float64 for float64).
    """
    return group_values(x.abs(), m).sum(2, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32).contiguous()


def expand(groups: Tensor, m: int) -> Tensor:
    """A value per group, given to each of the group's m weights: the inverse in shape of `group_scores`."""
    return groups.repeat_interleave(m, 1)

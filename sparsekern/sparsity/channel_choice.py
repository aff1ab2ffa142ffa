"""The same share of output channels out of every layer: which ones, by scores of their weights or of the norms behind them."""
import warnings
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.sparsity.channel_groups import ChannelGroup, find_channel_groups, norms_after
from sparsekern.sparsity.channel_masks import ChannelMasks
from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.masks import MaskSet
from sparsekern.sparsity.patterns import kept


class ChannelChoice:
    """Channels of a model's prunable layers, chosen layer by layer, or as one where layers are coupled.

    Coupled layers, whose outputs are added to each other, share one choice by the sum of their scores, so that its channels can be removed for
    good. A member of a group that must stay whole (tied to a dense layer, or padded with channels of zeros) ranks its own: its hidden
    channels are zeros, and stay. Behind a choice the layer's bias and the norms that read it are hidden, too, so that a hidden channel is
    exactly zero; a norm over a sum of branches only where all branches share the choice.

    Args:
        model: without masks.
        layers: the prunable weights, as `find_layers` gives them.
        example: one input on the model's device, to find what is coupled; None: every layer by itself.
    Raises:
        ValueError: with an example, a model that cannot be followed.
    Source: Sparse Cocktail, section 3.4 (every layer by itself); coupled groups as in ChannelMasks.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer], example: Tensor | None = None):
        self.whole: dict[str, str] = {}                     # layers whose channels all stay, and why
        self.rows = {layer.name.removesuffix("weight").removesuffix("."): layer for layer in layers}
        self._followers = _norms_after(model)
        groups: list[ChannelGroup] = []
        for group in [] if example is None else _groups(model, example):
            own = [name for name in group.producers if name in self.rows]
            if "model output" in group.fixed:
                self.whole |= {f"{name}.weight": "its channels are the model's output" for name in own}
            elif own == list(group.producers) and not group.fixed:
                groups.append(group)
            else:
                groups += [self._alone(name) for name in own]
        seen = {name for group in groups for name in group.producers} | {name.removesuffix(".weight") for name in self.whole}
        self.masks = ChannelMasks(model, groups + [self._alone(name) for name in self.rows if name not in seen])

    def _alone(self, name: str) -> ChannelGroup:
        return ChannelGroup(name, self.rows[name].shape[0], (name,), self._followers.get(name, ()), ())

    def followers(self) -> list[Layer]:
        """Biases, scales and shifts that are hidden with their channels."""
        return [layer for layer in self.masks.layers() if not layer.counted]

    def check(self, sparsity: float, what: str) -> None:
        """ValueError naming the layers that would keep no channel at this sparsity."""
        empty = [name for group in self.masks.groups if kept(group.channels, sparsity) == 0 for name in group.producers]
        if empty:
            raise ValueError(f"{what}: at {sparsity:.4g} of the channels gone none would be left in {', '.join(empty)}; lower the rate, or leave "
                             f"them dense with exclude")

    def weight_scores(self, a: Sequence[Tensor], b: Sequence[Tensor | None] | None, beta: float) -> list[Tensor]:
        """Per choice the sum over its layers of beta |a * W| + (1 - beta) |b * W|, [channels]. Masks in the order of the layers."""
        scores = ops.channel_scores([layer.param.detach() for layer in self.rows.values()], list(a), b, beta=beta)
        return self._summed(dict(zip(self.rows, scores)))

    def norm_scores(self, scale: Callable[[str], Tensor | None]) -> list[Tensor]:
        """Per choice the sum over its norms of |scale(norm)|, or of the layers' weights where no norm has a scale."""
        plain = self.weight_scores([None] * len(self.rows), None, 1.0)
        scales = [[found for name in group.norms if (found := scale(name)) is not None] for group in self.masks.groups]
        return [torch.stack(own).abs().sum(0).to(score.dtype) if own else score for own, score in zip(scales, plain)]

    def choose(self, scores: Sequence[Tensor], sparsity: float) -> dict[str, tuple[Tensor, int]]:
        """{layer or follower: (mask, kept elements)} with the best channels of each choice; exactly kept(channels, sparsity), ties to the first."""
        groups = self.masks.groups
        picked, _, _ = ops.topk_mask(list(scores), [kept(group.channels, sparsity) for group in groups])
        keep = torch.cat(picked).cpu().split([group.channels for group in groups])          # one read
        masks, counts = self.masks.expand({group.name: part for group, part in zip(groups, keep)})
        return {layer.name: found for layer, *found in zip(self.masks.layers(), masks, counts)}

    def _summed(self, scores: dict[str, Tensor]) -> list[Tensor]:
        return [torch.stack([scores[name] for name in group.producers]).sum(0) for group in self.masks.groups]


class ChoiceMasks(MaskSet):
    """A MaskSet in which the masks named `chosen` are choices of channels: what reads a hidden channel has less to do, too.

    Args:
        layers: of all the masks.
        choice: of the channels.
    """

    def __init__(self, layers: Sequence[Layer], choice: ChannelChoice, chosen: Collection[str]):
        super().__init__({layer.name: layer.param for layer in layers}, [layer.counted for layer in layers])
        self.channels, self.chosen = choice.masks, frozenset(chosen)

    def effective_sparsity(self, name: str) -> float:
        return self.channels.effective_sparsity(self._channels(name)) if name in self.chosen else super().effective_sparsity(name)

    def densities(self, name: str) -> dict[str, float]:
        return self.channels.densities(self._channels(name)) if name in self.chosen else super().densities(name)

    def _channels(self, name: str) -> dict[str, int]:
        share = super().densities(name)
        return {group.name: round(share[f"{group.producers[0]}.weight"] * group.channels) for group in self.channels.groups}


def example_input(model: nn.Module, shape: Sequence[int] | None) -> Tensor:
    """[1, *shape] zeros for a model; by default a 32 x 32 image, or a vector where the first layer is linear."""
    first = next(module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
    if shape is None:
        shape = (first.in_channels, 32, 32) if isinstance(first, nn.Conv2d) else (first.in_features,)
    return torch.zeros(1, *shape, device=first.weight.device, dtype=first.weight.dtype)


def _groups(model: nn.Module, example: Tensor) -> list[ChannelGroup]:
    try:
        return find_channel_groups(model, example)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"coupled: the channels that hang together were not found with an input of shape {list(example.shape)}: {error}. Give the "
                         f"shape of one input (shape), or take every layer by itself (coupled=False)") from error


def _norms_after(model: nn.Module) -> dict[str, tuple[str, ...]]:
    try:
        return norms_after(model)
    except ValueError as error:
        warnings.warn(f"norms behind hidden channels are not hidden with them: {error}", stacklevel=3)
        return {}

"""Whole channels as masks: what hides a channel, what it is worth, and how much of the net is left without it."""
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsekern import ops
from sparsekern.sparsity.channel_budget import ChannelBudget
from sparsekern.sparsity.channel_groups import ChannelGroup, find_channel_groups
from sparsekern.sparsity.latency import LatencyTable
from sparsekern.sparsity.layers import Layer, refuse_attached
from sparsekern.sparsity.masks import MaskSet
from sparsekern.sparsity.slim import check_keep
from sparsekern.sparsity.timeline import ALL, rest


@dataclass(frozen=True)
class Channels:
    """Whole channels, as many as a latency allows."""
    latency_ms: float
    sparsity: None = None               # no target; it follows from the latency

    def __str__(self) -> str:
        return "channel"


@dataclass(frozen=True)
class ChannelShare:
    """Whole output channels, the same share of every layer's."""
    sparsity: float                     # fraction of zeros, in [0, 1)

    def __str__(self) -> str:
        return "channel"


class ChannelMasks:
    """The channel groups of a model as masks over its parameters.

    A channel is hidden by hiding its row in every producer's weight and bias and its scale and shift in every norm; hidden values stay what
    they were, and so do hidden running statistics.

    Args:
        model: the module that the groups were found in.
        groups: all of them; those that are `fixed` get no masks.
    Raises:
        ValueError: no group may be pruned (the reasons are named).
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup]):
        self.model, self.all = model, list(groups)
        self.groups = [group for group in self.all if not group.fixed]
        if not self.groups:
            whole = ", ".join(f"{group.name}: {group.fixed}" for group in self.all) or "there is none"
            raise ValueError(f"channels: no group may be pruned: {whole}")
        self._layers: list[Layer] = []
        self._group_of: list[ChannelGroup] = []
        for group in self.groups:
            for names, key, counted in ((group.producers, "weight", True), (group.producers, "bias", False), (group.norms, "weight", False),
                                        (group.norms, "bias", False)):
                for name in names:
                    module = model.get_submodule(name)
                    param = module._parameters[key]
                    if param is not None:
                        self._layers.append(Layer(f"{name}.{key}", param, [module], key=key, counted=counted))
                        self._group_of.append(group)

    def layers(self) -> list[Layer]:
        """Every parameter that has channels of a group, for `Sparsifier.find_layers`."""
        return list(self._layers)

    def mask_set(self) -> "ChannelMaskSet":
        """For `Sparsifier.make_masks`."""
        return ChannelMaskSet(self)

    def whole(self) -> dict[str, Tensor]:
        """{group: bool [channels]} with all channels."""
        return {group.name: torch.ones(group.channels, dtype=torch.bool) for group in self.groups}

    def expand(self, keep: Mapping[str, Tensor]) -> tuple[list[Tensor], list[int]]:
        """{group: bool [channels]}, on the host, as one mask per layer, and the kept elements of each.

        Raises:
            ValueError: a mask that does not fit its group or keeps none of it.
        """
        check_keep(self.groups, keep, "channels: keep")
        masks, counts = [], []
        for layer, group in zip(self._layers, self._group_of):
            rows = keep[group.name].to(layer.param.device)
            mask = torch.empty_like(layer.param, dtype=torch.bool, requires_grad=False)
            masks.append(mask.copy_(rows.view(-1, *[1] * (layer.param.dim() - 1)).expand(layer.param.shape)))
            counts.append(int(keep[group.name].sum()) * (layer.param.numel() // group.channels))
        return masks, counts

    def keep(self, masks: Sequence[Tensor]) -> dict[str, Tensor]:
        """The way back: {group: bool [channels]} on the host, read from the mask of each group's first layer."""
        found: dict[str, Tensor] = {}
        for mask, group in zip(masks, self._group_of):
            if group.name not in found:
                found[group.name] = mask.flatten(1)[:, 0] if mask.dim() > 1 else mask
        flat = torch.cat(list(found.values())).cpu()                # one read
        return {name: part.clone() for name, part in zip(found, flat.split([len(mask) for mask in found.values()]))}

    def kept(self, keep: Mapping[str, Tensor]) -> dict[str, int]:
        """{group: channels}."""
        return {name: int(mask.sum()) for name, mask in keep.items()}

    def densities(self, kept: Mapping[str, int]) -> dict[str, float]:
        """{weight: share of rows times share of columns} when the groups keep so many channels."""
        found: dict[str, float] = {}
        for group in self.groups:
            share = kept[group.name] / group.channels
            for name in (*group.producers, *(module for module, _ in group.consumers)):
                found[f"{name}.weight"] = found.get(f"{name}.weight", 1.0) * share
        return found

    def effective_sparsity(self, kept: Mapping[str, int]) -> float:
        """Share of the convolutions' and linear layers' weights that vanish with the channels: rows, and the columns that read them."""
        weights = {f"{name}.weight": module.weight.numel() for name, module in self.model.named_modules()
                   if isinstance(module, (nn.Conv2d, nn.Linear))}
        left = math.fsum(self.densities(kept).get(name, 1.0) * numel for name, numel in weights.items())
        return 1.0 - left / sum(weights.values())


class ChannelMaskSet(MaskSet):
    """A MaskSet in which only the producers' weights count as prunable; norms and biases follow their channels."""

    def __init__(self, channels: ChannelMasks):
        layers = channels.layers()
        super().__init__({layer.name: layer.param for layer in layers}, [layer.counted for layer in layers])
        self.channels = channels
        self._first = {}                                            # group -> its first layer and the elements of a channel there
        for index, group in enumerate(channels._group_of):
            self._first.setdefault(group.name, (index, self.numels[index] // group.channels))

    def kept(self, name: str) -> dict[str, int]:
        """{group: channels}, without asking the device."""
        counts = self.counts(name)
        return {group: counts[index] // per for group, (index, per) in self._first.items()}

    def effective_sparsity(self, name: str) -> float:
        return self.channels.effective_sparsity(self.kept(name))

    def densities(self, name: str) -> dict[str, float]:
        if name == ALL or name.startswith(rest("")):                # rows alone: what reads them is all there
            return super().densities(name)
        return self.channels.densities(self.kept(name))


class TaylorSum:
    """Mean over steps of each channel's importance: |sum over its norms of (g_gamma * gamma + g_beta * beta)|, or |sum of W * g| without norms
    that train.

    A step in which any value is not finite is left out as a whole.

    Source: IEE (structured form) after HALP, section 3; Molchanov et al. 2019 for the first-order term.
    """

    def __init__(self, model: nn.Module, groups: Iterable[ChannelGroup]):
        self.groups = list(groups)
        norms = [[norm for norm in map(model.get_submodule, group.norms) if norm.weight.requires_grad] for group in self.groups]
        self._members = [own or [model.get_submodule(name) for name in group.producers] for own, group in zip(norms, self.groups)]
        device = self._members[0][0].weight.device
        self._sum = torch.zeros(sum(group.channels for group in self.groups), device=device)
        self._steps = torch.zeros((), device=device)

    @torch.no_grad()
    def add(self) -> None:
        """The gradients at hand; without any nothing is added. Reads nothing back."""
        parts, seen = [], False
        for group, members in zip(self.groups, self._members):
            trained = [module for module in members if module.weight.grad is not None]
            seen |= bool(trained)
            total = torch.zeros(group.channels, device=self._sum.device)
            if trained and isinstance(trained[0], _BatchNorm):
                gamma, beta = [module.weight for module in trained], [_or_zeros(module.bias, module.weight) for module in trained]
                for signed in ops.bn_taylor(gamma, [weight.grad for weight in gamma], beta, [_or_zeros(bias.grad, bias) for bias in beta]):
                    total += signed
            elif trained:
                for module in trained:
                    total += (module.weight.float() * module.weight.grad.float()).flatten(1).sum(1)
            parts.append(total.abs())
        if seen:
            now = torch.cat(parts)
            usable = now.isfinite().all()
            self._sum += torch.where(usable, now, 0)
            self._steps += usable

    def mean(self) -> dict[str, Tensor]:
        """{group: float32 [channels]} on the host; zeros where no step was usable."""
        mean = (self._sum / self._steps.clamp(min=1)).cpu()
        return {group.name: part for group, part in zip(self.groups, mean.split([group.channels for group in self.groups]))}

    def clear(self) -> None:
        """Begin a new mean."""
        self._sum.zero_()
        self._steps.zero_()

    def tensors(self) -> dict[str, Tensor]:
        return {"taylor/sum": self._sum, "taylor/steps": self._steps}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._sum.copy_(tensors["taylor/sum"])
        self._steps.copy_(tensors["taylor/steps"])


def plan_channels(model: nn.Module, *, table: str | None, latency: float | str, bundle: int, min_keep: int, keep_first: bool,
                  other_machine: bool) -> tuple[ChannelMasks, ChannelBudget, float]:
    """The channels of a model, their budget arithmetic, and the target in milliseconds.

    Args:
        table: path of a latency table of this very model.
        latency: a fraction of the whole net's latency in (0, 1], or milliseconds as "12.5ms".
        bundle, min_keep: as in ChannelBudget. keep_first: as in `find_channel_groups`.
        other_machine: accept a table that was measured on another machine.
    Raises:
        ValueError: no table, one of another model or machine, a target below the smallest or above the whole net (both are named), a model
            that cannot be followed or has a sparsifier already.
    """
    refuse_attached(model)
    if not table:
        raise ValueError("table: expected the path of a latency table; measure one with: sparsekern latency-table")
    found = LatencyTable.load(table)
    device = next(model.parameters()).device
    found.check(model, device=device, machine=not other_machine)
    batch, shape = found.fingerprint.get("batch"), found.fingerprint.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 1 for size in [batch, *shape]):
        raise ValueError(f"table: {table} does not say for which images it holds (batch: {batch!r}, shape: {shape!r}); measure it again")
    example = torch.zeros(1, *shape, device=device, dtype=next(model.parameters()).dtype)
    channels = ChannelMasks(model, find_channel_groups(model, example, keep_first=keep_first,
                                                           backend=found.measured.get("backend", "own")))
    budget = ChannelBudget(channels.all, found, bundle, min_keep)
    target = _milliseconds(latency, found.full_ms)
    budget.check(target)
    return channels, budget, target


def _milliseconds(latency: float | str, full_ms: float) -> float:
    number = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(ms)?\s*", str(latency))
    try:
        value = float(number[1])
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < math.inf or (number[2] is None and value > 1):
        raise ValueError(f"latency: expected a fraction of the whole net's {full_ms:.3f} ms in (0, 1], or milliseconds such as '12.5ms', "
                         f"got {latency!r}")
    return value if number[2] else value * full_ms


def _or_zeros(tensor: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tensor is None else tensor

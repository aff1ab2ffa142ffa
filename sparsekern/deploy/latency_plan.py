"""What a latency table has to measure: the layers of a net in the order they run, their widths, and nets that show every pair of widths."""
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsekern.sparsity.channel_groups import ChannelGroup, find_channel_groups
from sparsekern.sparsity.latency import layer_widths


@dataclass(frozen=True)
class PlannedLayer:
    """A Conv2d or Linear; `feeds` and `makes` are the channel groups it reads (with columns per channel) and writes, None where it is whole."""
    name: str
    entry: str                                  # layers with equal text share their measurements
    full: tuple[int, int]
    feeds: str | None
    columns: int
    makes: str | None
    diagonal: bool                              # channels in are channels out, as in a depthwise convolution


@dataclass(frozen=True)
class LatencyPlan:
    """What `make_plan` found: nets that show each pair of widths a layer can have."""
    groups: tuple[ChannelGroup, ...]
    grids: dict[str, tuple[int, ...]]           # prunable group -> the widths measured
    layers: tuple[PlannedLayer, ...]
    nets: tuple[dict[str, int], ...]            # {group: width}; the first is the whole net

    def axes(self, layer: PlannedLayer) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
        """The widths of a layer's input and output, in its own channels."""
        inputs = tuple(width * layer.columns for width in self.grids[layer.feeds]) if layer.feeds else (layer.full[0],)
        outputs = self.grids[layer.makes] if layer.makes else (layer.full[1],)
        return (None if layer.diagonal else inputs), outputs

    def place(self, layer: PlannedLayer, net: dict[str, int]) -> tuple[int, int]:
        """Row and column of a layer's entry that a net measures."""
        row = self.grids[layer.feeds].index(net[layer.feeds]) if layer.feeds else 0
        column = self.grids[layer.makes].index(net[layer.makes]) if layer.makes else 0
        return (0 if layer.diagonal else row), column


def make_plan(model: nn.Module, example: Tensor, step: int, points: int, backend: str = "own") -> LatencyPlan:
    """Every group at multiples of `step` channels, at most `points` of them, and the nets that measure each pair a layer can meet.

    Raises:
        ValueError: channel coupling that cannot be followed, naming the module; no group that may be pruned.
    """
    if step < 1 or points < 2:
        raise ValueError(f"latency table: expected a step of at least 1 and at least 2 points, got {step} and {points}")
    groups = tuple(find_channel_groups(model, example, backend=backend))
    grids = {group.name: _grid(group.channels, step, points) for group in groups if not group.fixed}
    if not grids:
        reasons = "; ".join(f"{group.name}: {group.fixed}" for group in groups[:4])
        raise ValueError(f"latency table: no channels of this model may be removed ({reasons})")
    makes = {module: group.name for group in groups if not group.fixed for module in group.producers}
    feeds = {module: (group.name, columns) for group in groups if not group.fixed for module, columns in group.consumers}
    modules, widths, layers = dict(model.named_modules()), layer_widths(model), []
    for name, text in trace_layers(model, example):
        group, columns = feeds.get(name, (None, 1))
        diagonal = getattr(modules[name], "groups", 1) > 1 or (group is not None and group == makes.get(name))
        entry = f"{text}; {grids.get(group, 'whole')} x {columns} to {grids.get(makes.get(name), 'whole')}"
        layers.append(PlannedLayer(name, entry, widths[name], group, columns, makes.get(name), diagonal))
    return LatencyPlan(groups, grids, tuple(layers), tuple(_nets(grids, layers)))


def trace_layers(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """(name, geometry and the operations up to the next layer) of every Conv2d and Linear, in the order they run in eval mode."""
    found: list[list] = []

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if found:
                found[-1][2].append(func.__name__.split(".")[0])
            return func(*args, **(kwargs or {}))

    def enter(module, inputs, name):
        text = f"{type(module).__name__} {module.weight.shape.numel() // max(1, module.weight.shape[0])}->{module.weight.shape[0]}"
        if isinstance(module, nn.Conv2d):
            text += (f" kernel {tuple(module.kernel_size)} stride {module.stride} padding {module.padding} dilation {module.dilation} groups "
                     f"{module.groups}")
        found.append([name, f"{text} on {tuple(inputs[0].shape[1:])}", []])
    run_hooked(model, example, enter, Ops())
    return [(name, f"{text}: {' '.join(ops)}") for name, text, ops in found]


def run_hooked(model: nn.Module, images: Tensor, enter, context) -> None:
    """One inference with `enter(module, inputs, name)` called before every Conv2d and Linear."""
    handles = [module.register_forward_pre_hook(lambda module, inputs, name=name: enter(module, inputs, name))
               for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), context:
            model(images)
    finally:
        for module, mode in modes:
            module.training = mode
        for handle in handles:
            handle.remove()


def _grid(channels: int, step: int, points: int) -> tuple[int, ...]:
    every = [*range(step, channels, step), channels]
    if len(every) > points:
        every = [every[round(place * (len(every) - 1) / (points - 1))] for place in range(points)]
    return tuple(every)


def _nets(grids: dict[str, tuple[int, ...]], layers: Sequence[PlannedLayer]) -> list[dict[str, int]]:
    """Few nets in which every layer meets every pair of its widths: each net takes, layer by layer, pairs that are still missing."""
    draw = random.Random(0)
    whole = {name: grid[-1] for name, grid in grids.items()}
    nets, missing = [], {}
    for layer in layers:
        pair = (None if layer.diagonal else layer.feeds, layer.makes)
        missing[pair] = {(a, b) for a in grids.get(pair[0], (0,)) for b in grids.get(pair[1], (0,))}

    def note(net: dict[str, int]) -> None:
        nets.append(net)
        for (a, b), left in missing.items():
            left.discard((net.get(a, 0), net.get(b, 0)))
    note(whole)
    while any(missing.values()):
        net: dict[str, int] = {}
        for pair in sorted(missing, key=lambda pair: (-len(missing[pair]), draw.random())):
            fitting = sorted(values for values in missing[pair] if all(net.get(group, value) == value for group, value in zip(pair, values)))
            if fitting:
                net |= {group: value for group, value in zip(pair, draw.choice(fitting)) if group}
        note({name: net.get(name) or draw.choice(grid) for name, grid in grids.items()})
    return nets

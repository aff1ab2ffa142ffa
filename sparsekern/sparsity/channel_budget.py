"""Which channels fit into a latency: bundles of channels, their values and costs, and a knapsack over them.

Cost of a group's j-th bundle: what its layers gain in latency from (j-1) to j bundles of output channels, with their input channels as they
are now. That neglects that a group's width is also the input width of its consumers, so every choice is held to the table's own sum
afterwards. Source: HALP's latency-aware saliency, as IEE takes it over ("Advancing Weight and Channel Sparsification with Enhanced
Saliency", structured part).
"""
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsekern.ops import knapsack
from sparsekern.sparsity.channel_groups import ChannelGroup
from sparsekern.sparsity.counter_rng import uniform
from sparsekern.sparsity.latency import LatencyTable

_CAPACITY = 100_000                     # units that a budget is counted in
_VALUE = 1_000_000                      # of the best bundle

Keep = Mapping[str, Tensor]             # {group: bool [channels]}


class ChannelBudget:
    """The arithmetic of widths and milliseconds for the channel groups of one model.

    Args:
        groups: of the model; one that is `fixed` stays whole and needs no masks.
        table: measured for the model.
        bundle: channels that come and go together (the last bundle of a group may be smaller).
        min_keep: bundles that every group keeps.
    """

    def __init__(self, groups: Sequence[ChannelGroup], table: LatencyTable, bundle: int = 8, min_keep: int = 1):
        if bundle < 1 or min_keep < 1:
            raise ValueError(f"channels: expected bundle and min_keep of at least 1, got {bundle} and {min_keep}")
        self.groups = {group.name: group for group in groups if not group.fixed}
        self.table, self.bundle, self.min_keep = table, bundle, min_keep
        self._feeds: dict[str, tuple[str, int]] = {}
        self._makes: dict[str, str] = {}
        for name, group in self.groups.items():
            self._makes |= dict.fromkeys(group.producers, name)
            self._feeds |= {module: (name, columns) for module, columns in group.consumers}
        for module in [*self._makes, *self._feeds]:
            table.layer_ms(module, 0, 0)                            # refuses what the table does not know

    # ---- widths and milliseconds ----

    def widths(self, kept: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """{module: (channels in, channels out)} when the groups keep so many channels; a group left out is whole."""
        widths = {}
        for module in {**self._makes, **self._feeds}:
            whole_in, whole_out = self.table.layers[module][1]
            group, columns = self._feeds.get(module, (None, 1))
            c_in = kept[group] * columns if group in kept else whole_in
            c_out = kept.get(self._makes.get(module), whole_out)
            # A depthwise convolution's input is its output.
            widths[module] = (c_out, c_out) if self._diagonal(module) else (c_in, c_out)
        return widths

    def total_ms(self, kept: Mapping[str, int]) -> float:
        """Milliseconds of the net with so many channels {group: kept}."""
        return self.table.total_ms(self.widths(kept))

    def limits(self) -> tuple[float, float]:
        """Milliseconds of the smallest net there is, every group at min_keep bundles, and of the whole one."""
        return self.total_ms({name: self._least(group.channels) for name, group in self.groups.items()}), self.table.full_ms

    def check(self, budget: float) -> None:
        """Refuse a budget (ms) that no net, or every net, meets."""
        smallest, full = self.limits()
        if not budget >= smallest:
            raise ValueError(f"latency: budget {budget:.3f} ms is below the smallest net {smallest:.3f} ms ({smallest / full:.3f} of the full "
                             f"one; bundles of {self.bundle}, min_keep {self.min_keep}); the full net takes {full:.3f} ms")
        if budget > full:
            raise ValueError(f"latency: budget {budget:.3f} ms is above the full net {full:.3f} ms: nothing to prune; the smallest net takes "
                             f"{smallest:.3f} ms")

    # ---- choices ----

    def choose_keep(self, keep: Keep, importance: Keep, budget: float) -> dict[str, Tensor]:
        """Masks inside `keep` of the most important channels whose net takes at most `budget` ms.

        Args:
            keep: {group: bool [channels]}, the channels there are now.
            importance: {group: [channels]}, at least 0; ties go to the lower channel.
        Raises:
            ValueError: see `check`; NaN in an importance, naming the group.
        """
        self.check(budget)
        bundles = {name: self._bundles(name, keep[name], importance[name]) for name in self.groups}
        now = {name: sum(map(len, parts)) for name, parts in bundles.items()}
        if self.total_ms(now) <= budget:
            return {name: keep[name].clone() for name in self.groups}
        widths = self.widths(now)
        costs = {name: self._steps(name, widths, 0, parts) for name, parts in bundles.items()}
        spent = self.total_ms(now) - math.fsum(map(math.fsum, costs.values()))          # what no choice changes
        values = self._values(bundles, importance)
        least = {name: min(self.min_keep, len(parts)) for name, parts in bundles.items()}
        nothing = dict.fromkeys(bundles, 0)
        taken = self._fitting(nothing, bundles, self._knapsack(values, costs, budget - spent, least), least, values, costs, budget)
        # The inputs shrank as well, so there may be room for some of what was cut.
        kept = {name: _mask(keep[name], bundles[name][:taken[name]]) for name in self.groups}
        return self._add(kept, {name: parts[taken[name]:] for name, parts in bundles.items()}, importance, budget)

    def choose_grow(self, keep: Keep, importance: Keep, budget: float) -> dict[str, Tensor]:
        """Masks that contain `keep` and the most important of the other channels as long as the net takes at most `budget` ms.

        Raises:
            ValueError: the net of `keep` takes longer already; NaN in an importance, naming the group.
        """
        now = self.total_ms({name: int(mask.sum()) for name, mask in keep.items() if name in self.groups})
        if now > budget:
            raise ValueError(f"latency: nothing can grow, {now:.3f} ms are above the budget of {budget:.3f} ms")
        bundles = {name: self._bundles(name, ~keep[name], importance[name]) for name in self.groups}
        return self._add({name: keep[name].clone() for name in self.groups}, bundles, importance, budget)

    def uniform_keep(self, budget: float, seed: int = 0) -> dict[str, Tensor]:
        """Random channels, the same share of bundles of every group (rounded down), as many as fit into `budget` ms."""
        self.check(budget)

        def kept(share: float) -> dict[str, int]:
            return {name: max(self._least(group.channels), min(group.channels, self.bundle * int(share * group.channels / self.bundle + 1e-9)))
                    if share < 1 else group.channels for name, group in self.groups.items()}
        low, high = 0.0, 1.0
        if self.total_ms(kept(high)) <= budget:
            low = high
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self.total_ms(kept(middle)) <= budget else (low, middle)
        masks = {}
        for index, (name, count) in enumerate(kept(low).items()):
            order = uniform(torch.empty(self.groups[name].channels), seed, index).argsort(stable=True)
            masks[name] = torch.zeros(len(order), dtype=torch.bool)
            masks[name][order[:count]] = True
        return masks

    # ---- how it is done ----

    def _diagonal(self, module: str) -> bool:
        return self.table.entries[self.table.layers[module][0]].inputs is None

    def _least(self, channels: int) -> int:
        return min(channels, self.min_keep * self.bundle)

    def _bundles(self, name: str, candidates: Tensor, importance: Tensor) -> list[Tensor]:
        """The candidates by falling importance, in bundles of channel numbers."""
        if importance.shape != candidates.shape:
            raise ValueError(f"channels: {name}: expected an importance of shape {list(candidates.shape)}, got {list(importance.shape)}")
        if bool(importance[candidates].isnan().any()):
            raise ValueError(f"channels: NaN in the importance of {name}; the masks are unchanged")
        index = candidates.nonzero().flatten()
        order = importance[index].to(torch.float64).argsort(descending=True, stable=True)
        return list(index[order].split(self.bundle)) if len(index) else []

    def _steps(self, name: str, widths: Mapping[str, tuple[int, int]], start: int, bundles: list[Tensor]) -> list[float]:
        """Milliseconds that each bundle adds to the group's producers, from `start` channels on."""
        def at(channels: int) -> float:
            return math.fsum(self.table.layer_ms(module, widths[module][0], channels) for module in self.groups[name].producers)
        costs, channels = [], start
        for part in bundles:
            costs.append(at(channels + len(part)) - at(channels))
            channels += len(part)
        return costs

    def _values(self, bundles: Mapping[str, list[Tensor]], importance: Keep) -> dict[str, list[float]]:
        return {name: [float(importance[name][part].to(torch.float64).sum()) for part in parts] for name, parts in bundles.items()}

    def _knapsack(self, values: Mapping[str, list[float]], costs: Mapping[str, list[float]], capacity: float,
                  least: Mapping[str, int]) -> dict[str, int]:
        """Bundles to take per group; `least` where even that costs more than the capacity."""
        unit, room = (capacity / _CAPACITY, _CAPACITY) if capacity > 1e-6 else (1e-6, 0)
        best = max((value for row in values.values() for value in row), default=0.0)
        scale = _VALUE / best if 0 < best < math.inf else 1.0
        flat_values, flat_costs, floor = [], [], 0
        for name, row in costs.items():
            totals = [max(0.0, math.fsum(row[:j + 1])) for j in range(len(row))]
            whole = [0] + [math.ceil(min(total, 2 * abs(capacity) + 2 * unit) / unit) for total in totals]     # rounded up: what fits here fits
            flat_costs += [after - before for before, after in zip(whole, whole[1:])]
            flat_values += [round(min(value * scale, _VALUE)) for value in values[name]]
            floor += whole[least[name]]
        if floor > room:
            return dict(least)
        taken = knapsack(flat_values, flat_costs, [len(row) for row in values.values()], room, min_take=max(least.values(), default=0))
        return dict(zip(values, taken))

    def _add(self, kept: dict[str, Tensor], bundles: Mapping[str, list[Tensor]], importance: Keep, budget: float) -> dict[str, Tensor]:
        """Take of `bundles` what fits beside `kept`, held to the true latency: the poorest go back until it is met, then what fits comes."""
        start = {name: int(mask.sum()) for name, mask in kept.items()}
        now = self.total_ms(start)
        widths = self.widths(start)
        costs = {name: self._steps(name, widths, start[name], parts) for name, parts in bundles.items()}
        values = self._values(bundles, importance)
        none, everything = dict.fromkeys(bundles, 0), {name: len(parts) for name, parts in bundles.items()}
        taken = everything if self._wide(start, bundles, everything) <= budget else self._knapsack(values, costs, budget - now, none)
        taken = self._fitting(start, bundles, taken, none, values, costs, budget)
        # What was given back may have made room for something smaller.
        while room := [name for name, count in taken.items() if count < len(bundles[name])
                       and self._wide(start, bundles, taken | {name: count + 1}) <= budget]:
            richest = max(room, key=lambda name: values[name][taken[name]] / max(costs[name][taken[name]], 1e-9))
            taken[richest] += 1
        return {name: _mask(mask, bundles[name][:taken[name]]) | mask for name, mask in kept.items()}

    def _fitting(self, start: Mapping[str, int], bundles: Mapping[str, list[Tensor]], taken: dict[str, int], least: Mapping[str, int],
                 values: Mapping[str, list[float]], costs: Mapping[str, list[float]], budget: float) -> dict[str, int]:
        """`taken`, with the poorest given back (down to `least`) as long as the true latency is above the budget."""
        while self._wide(start, bundles, taken) > budget and (spare := [name for name, count in taken.items() if count > least[name]]):
            poorest = min(spare, key=lambda name: values[name][taken[name] - 1] / max(costs[name][taken[name] - 1], 1e-9))
            taken[poorest] -= 1
        return taken

    def _wide(self, start: Mapping[str, int], bundles: Mapping[str, list[Tensor]], taken: Mapping[str, int]) -> float:
        """Milliseconds with so many bundles beside `start` channels."""
        return self.total_ms({name: start[name] + sum(map(len, parts[:taken[name]])) for name, parts in bundles.items()})


def _mask(like: Tensor, bundles: list[Tensor]) -> Tensor:
    mask = torch.zeros_like(like)
    for part in bundles:
        mask[part] = True
    return mask

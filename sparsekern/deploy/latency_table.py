"""Measure a latency table: every layer inside running nets, so that its memory traffic and caches are those of a net.

Nets whose layers have all pairs of widths run one after the other, round after round. In each, the time from the start of a layer to the
start of the next one is the layer's: its norm, activation and additions are in it. The whole net runs beside each of them; what it deviates
from its own median by is the machine's doing and is divided out. A point of the table is the median over rounds, nets and equal layers.
"""
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsekern.deploy.latency_plan import LatencyPlan, make_plan, run_hooked
from sparsekern.deploy.progress import Progress
from sparsekern.sparsity.latency import Entry, LatencyTable, fingerprint, read_json, write_json
from sparsekern.sparsity.slim import slim

ROUNDS_FORMAT = "sparsekern-latency-rounds-1"
SAVE_SECONDS = 2.0                              # between two writes of what was measured so far
REST = ""                                       # the name under which a timer gives what comes before the first layer
Timer = Callable[[nn.Module, Tensor], dict[str, float]]


def measure_latency_table(model: nn.Module, shape: Sequence[int], batch: int, out: Path | str, *, device: torch.device | str = "cpu",
                          step: int = 8, points: int = 8, repeats: int = 3, rounds: int = 3, max_rounds: int = 12, spread: float = 0.02,
                          resume: bool = False, overwrite: bool = False, progress: str = "auto", timer: Timer | None = None,
                          backend: str = "own") -> LatencyTable:
    """Measure, write to `out` and return the latency table of a model on this machine, with the threads torch has now.

    Args:
        model: the whole net on `device`, in the memory format it will run in; measured in eval mode.
        shape: (channels, height, width) of an image. batch: images at a time.
        step: channels between the widths measured, best the bundle they are pruned in. points: at most so many widths of each group.
        repeats: inferences each time a net comes up (their median counts); one more goes before them.
        rounds, max_rounds, spread: at least, and at most so many rounds, until nine nets out of ten are known to this share of their latency.
        resume: go on with the rounds of a run that was stopped. overwrite: replace the table there is.
        backend: who follows the coupled channels, as in `find_channel_groups`; training with the table asks the same one.
        timer: (net, images) -> {layer: ms}, "" what comes before the first layer; default `time_layers`.
    Raises:
        ValueError: a setting that cannot work, a table in the way, one of another net or machine, channels that cannot be followed.
    """
    out, now = Path(out), fingerprint(model, batch, shape, device)
    if min(batch, repeats, rounds) < 1 or max_rounds < rounds or not spread > 0:
        raise ValueError(f"latency table: expected batch, repeats and rounds of at least 1, max_rounds of at least rounds and a spread above 0, "
                         f"got {batch}, {repeats}, {rounds}, {max_rounds} and {spread:g}")
    if out.exists() and resume:
        table = LatencyTable.load(out)
        table.check(model, batch, shape, device)
        return table
    if out.exists() and not overwrite:
        raise ValueError(f"latency table: {out} exists; add --overwrite to replace it, or choose another --out")
    images = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0), dtype=next(model.parameters()).dtype).to(device)
    if now["memory_format"] == "channels_last":
        images = images.contiguous(memory_format=torch.channels_last)
    plan = make_plan(model, images[:1], step, points, backend)
    visits = Visits(out.with_name(f"{out.name}.rounds"), {"fingerprint": now, "nets": list(plan.nets), "repeats": repeats,
                                                          "layers": [layer.name for layer in plan.layers]}, resume)
    timer = timer or time_layers
    timer(model, images)
    with Progress(progress, rounds * len(plan.nets)) as bar:
        for number in range(max_rounds):
            order = list(range(len(plan.nets)))
            random.Random(number).shuffle(order)
            bar.show(visits.count(), max(number + 1, rounds) * len(plan.nets), visits.describe())
            for index in order:
                if visits.has(number, index):
                    continue
                net = slim(model, plan.groups, {group.name: torch.arange(group.channels) < plan.nets[index][group.name]
                                                for group in plan.groups if group.name in plan.grids}) if index else model
                timer(net, images)
                before, passes, after = timer(model, images), [timer(net, images) for _ in range(repeats)], timer(model, images)
                whole = [sum(before.values()), sum(after.values())]
                visits.add(number, index, whole, {name: statistics.median(one[name] for one in passes) for name in passes[0]})
                bar.show(visits.count(), None, visits.describe())
            visits.write()
            if number + 1 >= rounds and visits.spread() <= spread:
                break
    table = tabulate(plan, visits, now)
    table.measured["backend"] = backend
    table.save(out)
    visits.path.unlink(missing_ok=True)
    return table


def time_layers(net: nn.Module, images: Tensor) -> dict[str, float]:
    """One inference: milliseconds from each layer's start to the next one's, and under "" those before the first."""
    marks: list[tuple[str, object]] = []
    on_gpu = images.is_cuda

    def mark(module, inputs, name):
        if on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            marks.append((name, event))
        else:
            marks.append((name, time.perf_counter()))
    if on_gpu:
        torch.cuda.synchronize(images.device)
    mark(None, None, REST)
    run_hooked(net, images, mark, nullcontext())
    mark(None, None, REST)
    if on_gpu:
        torch.cuda.synchronize(images.device)
    found: dict[str, float] = defaultdict(float)
    for (name, start), (_, end) in zip(marks, marks[1:]):
        found[name] += start.elapsed_time(end) if on_gpu else 1000 * (end - start)
    return dict(found)


class Visits:
    """What was measured so far: (round, net, milliseconds of the whole net before and after it, {layer: milliseconds}); kept on disk as it
    comes."""

    def __init__(self, path: Path, plan: dict, resume: bool):
        self.path, self.plan, self.written = path, plan, time.monotonic()
        self.rows: list = []
        if resume and path.exists():
            saved = read_json(path, ROUNDS_FORMAT)
            changed = [f"{name} was {saved.get(name)!r}, now {value!r}" if name == "repeats" or name == "fingerprint" else f"other {name}"
                       for name, value in plan.items() if saved.get(name) != value]
            if changed:
                raise ValueError(f"latency table: {path} is of a run with other settings or another machine: {'; '.join(changed)}; remove it "
                                 f"to start again")
            try:
                self.rows = [[int(number), range(len(plan["nets"]))[net], [float(ms) for ms in whole],
                              {name: float(layers[name]) for name in [*plan["layers"], *layers]}] for number, net, whole, layers in saved["visits"]]
            except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
                raise ValueError(f"latency table: {path} is damaged ({error}); remove it to start again") from error
        self.known = {(row[0], row[1]) for row in self.rows}

    def has(self, number: int, net: int) -> bool:
        return (number, net) in self.known

    def count(self) -> int:
        return len(self.rows)

    def add(self, number: int, net: int, whole: list[float], layers: dict[str, float]) -> None:
        self.rows.append([number, net, whole, layers])
        self.known.add((number, net))
        if time.monotonic() - self.written >= SAVE_SECONDS:
            self.write()

    def write(self) -> None:
        write_json(self.path, {"format": ROUNDS_FORMAT, **self.plan, "visits": self.rows})
        self.written = time.monotonic()

    def level(self) -> float:
        """Milliseconds of the whole net, the median of all its runs."""
        return statistics.median(ms for row in self.rows for ms in row[2])

    def scaled(self) -> list[tuple[int, dict[str, float]]]:
        """(net, {layer: milliseconds}) with the machine's drift divided out: what the whole net took in the median of three visits."""
        level, found = self.level(), []
        for place, (_, net, _, layers) in enumerate(self.rows):
            now = statistics.median(ms for row in self.rows[max(0, place - 1):place + 2] for ms in row[2])
            found.append((net, {name: ms * level / now for name, ms in layers.items()}))
        return found

    def totals(self) -> dict[int, list[float]]:
        """{net: milliseconds in every round}."""
        found = defaultdict(list)
        for net, layers in self.scaled():
            found[net].append(sum(layers.values()))
        return found

    def spread(self) -> float:
        """The share of its latency that a net is uncertain by: interquartile range over the root of the number of rounds; 90th percentile."""
        shares = []
        for values in self.totals().values():
            if len(values) < 2:
                return float("inf")
            low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
            shares.append((high - low) / middle / len(values) ** 0.5)
        return sorted(shares)[int(0.9 * (len(shares) - 1))]

    def describe(self) -> str:
        return f"whole net {self.level():.2f} ms, spread {self.spread():.1%}" if len(self.rows) > 1 else ""


def tabulate(plan: LatencyPlan, visits: Visits, now: dict) -> LatencyTable:
    """Medians of all visits, and one factor for all of them that makes the nets measured come out right in the median."""
    samples, rest = defaultdict(list), []
    for index, layers in visits.scaled():
        rest.append(layers.get(REST, 0.0))
        for layer in plan.layers:
            samples[layer.entry, plan.place(layer, plan.nets[index])].append(layers[layer.name])
    entries, names = {}, {}
    for layer in plan.layers:
        if layer.entry not in names:
            names[layer.entry] = f"{len(names)}: {layer.entry}"
            inputs, outputs = plan.axes(layer)
            entries[names[layer.entry]] = Entry(inputs, outputs, tuple(
                tuple(statistics.median(samples[layer.entry, (i, j)]) for j in range(len(outputs))) for i in range(len(inputs or (0,)))))
    table = LatencyTable(now, {layer.name: (names[layer.entry], layer.full) for layer in plan.layers}, entries, statistics.median(rest))
    ratios = []
    for index, values in visits.totals().items():
        widths = {layer.name: _width(layer, plan.nets[index]) for layer in plan.layers}
        ratios.append(statistics.median(values) / table.total_ms(widths))
    factor = statistics.median(ratios)
    table.entries = {name: Entry(e.inputs, e.outputs, tuple(tuple(ms * factor for ms in row) for row in e.ms)) for name, e in entries.items()}
    table.rest_ms *= factor
    table.measured = {"when": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "nets": len(plan.nets), "rounds": max(row[0] for row in visits.rows) + 1,
                      "spread": visits.spread() if visits.spread() < float("inf") else None, "whole_net_ms": visits.level(), "factor": factor,
                      "error_on_measured_nets": statistics.median(abs(1 - factor / ratio) for ratio in ratios)}
    return table


def _width(layer, net: dict[str, int]) -> tuple[int, int]:
    c_out = net[layer.makes] if layer.makes else layer.full[1]
    return (c_out if layer.diagonal else net[layer.feeds] * layer.columns if layer.feeds else layer.full[0]), c_out

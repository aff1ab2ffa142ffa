"""What every layer of a net costs at every width, as it was measured: plain data, one JSON file."""
import bisect
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from sparsekern._machine import cpu_name

FORMAT = "sparsekern-latency-1"
_LONGEST = 1e12                                             # milliseconds
MACHINE = ("device", "threads", "torch")                    # entries of the fingerprint that tell of the machine, not of the net


@dataclass(frozen=True)
class Entry:
    """Milliseconds of one geometry: `ms[i][j]` at inputs[i] channels in and outputs[j] out. Without `inputs` (a depthwise convolution) the
    two are one number, and ms has one row."""
    inputs: tuple[int, ...] | None
    outputs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    def at(self, c_in: int, c_out: int) -> float:
        """Linear between the points of the grid, and down to nothing at 0 channels."""
        column = [_between(self.outputs, row, c_out) for row in self.ms]
        return column[0] if self.inputs is None else _between(self.inputs, column, c_in)


@dataclass
class LatencyTable:
    """Latencies of a model's layers, each with the norms, activations and additions that follow it, for a batch of images.

    `layers` names the entry of every Conv2d and Linear and its channels (in, out) in the full net; `rest_ms` is what no layer accounts for;
    `fingerprint` says for which net and machine it holds, `measured` how it was made.
    """
    fingerprint: dict
    layers: dict[str, tuple[str, tuple[int, int]]]
    entries: dict[str, Entry]
    rest_ms: float = 0.0
    measured: dict = field(default_factory=dict)

    def layer_ms(self, module: str, c_in: int, c_out: int) -> float:
        """Milliseconds of a layer with c_in channels (a Linear's features) in and c_out out.

        Raises:
            ValueError: a layer the table does not have, or more channels than the full net has.
        """
        if module not in self.layers:
            raise ValueError(f"latency table: it has no layer {module!r}; it has {', '.join(list(self.layers)[:6])}, ...")
        name, full = self.layers[module]
        if not (0 <= c_in <= full[0] and 0 <= c_out <= full[1]):
            raise ValueError(f"latency table: {module}: expected 0 to {full[0]} channels in and 0 to {full[1]} out, got {c_in} and {c_out}")
        return self.entries[name].at(c_in, c_out)

    def total_ms(self, widths: Mapping[str, tuple[int, int]]) -> float:
        """Milliseconds of the net whose layers have `widths` = {module: (channels in, channels out)}; a layer left out is whole."""
        foreign = sorted(set(widths) - set(self.layers))
        if foreign:
            self.layer_ms(foreign[0], 0, 0)
        return self.rest_ms + math.fsum(self.layer_ms(name, *widths.get(name, full)) for name, (_, full) in self.layers.items())

    @property
    def full_ms(self) -> float:
        """Of the whole net."""
        return self.total_ms({})

    @property
    def smallest_ms(self) -> float:
        """Of the net in which every layer has the fewest channels that were measured."""
        smallest = {}
        for module, (name, _) in self.layers.items():
            entry = self.entries[name]
            smallest[module] = ((entry.inputs or entry.outputs)[0], entry.outputs[0])
        return self.total_ms(smallest)

    def check(self, model: nn.Module | None = None, batch: int | None = None, shape: Sequence[int] | None = None,
              device: torch.device | str | None = None, machine: bool = True) -> None:
        """Refuse to speak for another net or machine; what is None is not compared.

        Args:
            model: the whole net, not a slimmed one.
            batch, shape: images at a time, and (channels, height, width) of one.
            machine: False accepts a table of another machine: the net is trained here to run there.
        Raises:
            ValueError: naming every entry that differs, as it was and as it is.
        """
        now = fingerprint(model, batch, shape, device)
        compared = [name for name, value in now.items() if value is not None and (machine or name not in MACHINE)]
        wrong = [f"{name} was {self.fingerprint.get(name)!r}, now {now[name]!r}" for name in compared if self.fingerprint.get(name) != now[name]]
        if wrong:
            whose = "machine or setup" if all(text.split()[0] in MACHINE for text in wrong) else "model"
            raise ValueError(f"latency table: made for another {whose}: {'; '.join(wrong)}. Measure one here: sparsekern latency-table")

    def save(self, path: Path | str) -> None:
        """Write the file; it is complete on disk before it gets its name."""
        values = {"format": FORMAT, "fingerprint": self.fingerprint, "rest_ms": self.rest_ms, "measured": self.measured,
                  "layers": {name: {"entry": entry, "channels": list(full)} for name, (entry, full) in self.layers.items()},
                  "entries": {name: {"inputs": entry.inputs and list(entry.inputs), "outputs": list(entry.outputs),
                                     "ms": [[round(value, 6) for value in row] for row in entry.ms]}
                              for name, entry in self.entries.items()}}
        write_json(Path(path), values)

    @classmethod
    def load(cls, path: Path | str) -> "LatencyTable":
        """Read a file that `save` wrote.

        Raises:
            ValueError: it is missing, no such file, or damaged.
        """
        values = read_json(Path(path), FORMAT)
        try:
            entries = {name: Entry(entry["inputs"] and tuple(entry["inputs"]), tuple(entry["outputs"]), tuple(map(tuple, entry["ms"])))
                       for name, entry in values["entries"].items()}
            layers = {name: (layer["entry"], tuple(layer["channels"])) for name, layer in values["layers"].items()}
            table = cls(dict(values["fingerprint"]), layers, entries, float(values["rest_ms"]), dict(values["measured"]))
            _check(table)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"latency table: {path} is damaged ({error}); measure it again: sparsekern latency-table") from error
        return table


def fingerprint(model: nn.Module | None, batch: int | None, shape: Sequence[int] | None, device: torch.device | str | None) -> dict:
    """What a latency depends on beside the widths; None for what is not told."""
    device = None if device is None else torch.device(device)
    on_gpu = device is not None and device.type == "cuda"
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)] if model is not None else []
    first = None if model is None else next(model.parameters(), None)
    last = any(weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous() for weight in weights)
    return {
        "model": None if model is None else geometry_hash(model), "batch": batch, "shape": None if shape is None else list(shape),
        "dtype": None if first is None else str(first.dtype).removeprefix("torch."),
        "memory_format": None if not weights else "channels_last" if last else "contiguous",
        "device": None if device is None else torch.cuda.get_device_name(device) if on_gpu else cpu_name(),
        "threads": None if device is None else 0 if on_gpu else torch.get_num_threads(),
        "torch": None if device is None else str(torch.__version__),
    }


def layer_widths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """{module: (channels in, channels out)} of every Conv2d and Linear, as `LatencyTable.total_ms` takes it; a slimmed net's, too."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            found[name] = (module.in_channels, module.out_channels)
        elif isinstance(module, nn.Linear):
            found[name] = (module.in_features, module.out_features)
    return found


def geometry_hash(model: nn.Module) -> str:
    """Of the names, kinds and shapes of all layers with weights."""
    lines = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), torch.Tensor):
            rest = [str(getattr(module, key, "")) for key in ("stride", "padding", "dilation", "groups")]
            lines.append(" ".join([name, type(module).__name__, str(tuple(module.weight.shape)), *rest]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write_json(path: Path, values: dict) -> None:
    """Whole or not at all: to a file beside it, to the disk, then into its place."""
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_json(path: Path, form: str) -> dict:
    """What `write_json` wrote.

    Raises:
        ValueError: a file that cannot be read, is damaged, or says another format than `form`.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"latency table: cannot read {path}: {error.strerror or error}. Measure one: sparsekern latency-table") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"latency table: {path} is damaged ({error}); measure it again: sparsekern latency-table") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != form:
        raise ValueError(f"latency table: {path} is no such file: expected format {form!r}, got {found!r}")
    return values


def _check(table: LatencyTable) -> None:
    for name, entry in table.entries.items():
        rows = 1 if entry.inputs is None else len(entry.inputs)
        if len(entry.ms) != rows or any(len(row) != len(entry.outputs) for row in entry.ms):
            raise ValueError(f"entry {name}: expected {rows} rows of {len(entry.outputs)} milliseconds")
        for grid in ((1,) if entry.inputs is None else entry.inputs, entry.outputs):
            if not grid or not _are_counts(grid) or list(grid) != sorted(set(grid)):
                raise ValueError(f"entry {name}: expected channel counts from 1 on, ascending, got {list(grid)}")
        if not all(isinstance(value, int | float) and 0 <= value < _LONGEST for row in entry.ms for value in row):
            raise ValueError(f"entry {name}: expected milliseconds of 0 or more")
    if not 0 <= table.rest_ms < _LONGEST:
        raise ValueError(f"rest_ms: expected 0 or more, got {table.rest_ms}")
    for name, (entry, full) in table.layers.items():
        grid = table.entries[entry]
        if not _are_counts(full):
            raise ValueError(f"layer {name}: expected channel counts from 1 on, got {list(full)}")
        if len(full) != 2 or full[1] != grid.outputs[-1] or (grid.inputs is not None and full[0] != grid.inputs[-1]):
            raise ValueError(f"layer {name}: its channels {list(full)} are not the largest of entry {entry}")


def _are_counts(values: Sequence) -> bool:
    return all(type(value) is int and value >= 1 for value in values)


def _between(grid: Sequence[int], values: Sequence[float], x: int) -> float:
    place = bisect.bisect_left(grid, x)
    if grid[min(place, len(grid) - 1)] <= x:
        return values[min(place, len(grid) - 1)]
    x0, y0 = (grid[place - 1], values[place - 1]) if place else (0, 0.0)
    return y0 + (values[place] - y0) * (x - x0) / (grid[place] - x0)

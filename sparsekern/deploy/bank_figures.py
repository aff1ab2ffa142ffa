"""The measured table of a bank as data: read and checked, printed, and asked which sub-net fits."""
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from sparsekern.deploy.bank_measure import timings
from sparsekern.support.provenance import device_info

FORMAT = "sparsekern-bank-report-1"
PATTERNS = ("dense", "unstructured", "n:m", "channel")      # the order in tables; what else there is comes last
_LARGEST_FILE = 1 << 26
_MOST = 1e15                                                # of any figure
SIZES = ("nnz", "parameters", "flops", "file_bytes", "weight_bytes", "peak_bytes", "memory_bytes")


def report_path(bank: Path | str, out: Path | str | None = None) -> Path:
    """Where the report of a bank lies: bank.safetensors -> bank.report.json, beside it or in `out`."""
    bank = Path(bank)
    return (bank.parent if out is None else Path(out)) / bank.with_suffix(".report.json").name


def partial_path(target: Path) -> Path:
    """Where a report lies that is not finished."""
    return target.with_name(f"{target.name}.partial")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def machine(device: torch.device | str) -> dict:
    """What a latency depends on beside net and batch: device, threads (0 on a GPU), instruction set, torch."""
    device = torch.device(device)
    info = device_info(device)
    return info | {"threads": info["threads"] if device.type == "cpu" else 0, "torch": str(torch.__version__)}


def pattern_kind(pattern: str) -> str:
    """dense, unstructured, channel; "n:m" for "2:4"."""
    return "n:m" if ":" in pattern else pattern


def by_pattern(rows: list[dict]) -> list[dict]:
    """Dense first, then pattern by pattern, each in the order of the bank."""
    rank = {kind: place for place, kind in enumerate(PATTERNS)}
    return sorted(rows, key=lambda row: rank.get(pattern_kind(row["pattern"]), len(rank)))


def pareto(rows: list[dict], cost: str = "latency_ms") -> list[dict]:
    """Rows with an accuracy that no other one beats: none costs less and is as accurate, or costs as much and is more accurate; ascending
    in both."""
    front: list[dict] = []
    for row in sorted((row for row in rows if row["accuracy"] is not None), key=lambda row: (row[cost], -row["accuracy"])):
        if not front or row["accuracy"] > front[-1]["accuracy"]:
            front.append(row)
    return front


# ---- choice ----

def fit(source, latency_ms: float | None = None, memory_mb: float | None = None, setup: Mapping | None = None) -> str:
    """The most accurate sub-net that keeps all limits given, by the table that was measured on this machine.

    Equally accurate ones go by lower latency, then by the order of the bank. Sub-nets of unknown accuracy come after all others.

    Args:
        source: a bank (a `SubnetBank` that lies in a file, or the file's path), whose report lies beside it; or a report: its path (.json),
            or what `report_bank` returned.
        latency_ms: at most so many milliseconds a batch of the report's size. memory_mb: at most so many times 10^6 bytes of weights and
            peak of activations together.
        setup: what it is for, any of {"batch": 128, "fold": True, "device": "cpu"}; the report has to be of the same. None: as it was measured.
    Raises:
        ValueError: no limit, or one that is no number of 0 or more; a report that is missing, damaged or not of this bank, machine, number of
            threads and setup; nothing fits (the fastest and the smallest sub-net are named).
    """
    limits = {key: (value, unit, factor) for key, value, unit, factor in (
        ("latency_ms", latency_ms, "ms", 1.0), ("memory_bytes", memory_mb, "MB", 1e6)) if value is not None}
    if not limits:
        raise ValueError("fit: expected latency_ms, memory_mb or both, got no limit")
    for value, unit, _ in limits.values():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST:
            raise ValueError(f"fit: limit in {unit}: expected a number of 0 or more, got {value!r}")
    report = _of(source)
    measured, setup = report["setup"] | {"device": report["machine"]["type"]}, setup or {}
    if wrong := differences({key: measured[key] for key in setup}, setup):
        raise ValueError(f"fit: the report was measured in another setting: {wrong}; measure this one: sparsekern report "
                         f"{report['bank']['file']} {_options(setup)}")
    rows = report["subnets"]
    fitting = [row for row in rows if all(row[key] <= value * factor for key, (value, _, factor) in limits.items())]
    if not fitting:
        wanted = " and ".join(f"{value:g} {unit}" for value, unit, _ in limits.values())
        best = []
        for key, (_, unit, factor) in limits.items():
            row = min(rows, key=lambda row: row[key])
            best.append(f"the {'fastest' if key == 'latency_ms' else 'smallest'}, {row['name']}, takes {row[key] / factor:.4g} {unit}")
        raise ValueError(f"fit: no sub-net measured keeps {wanted}; {'; '.join(best)}")
    return max(fitting, key=lambda row: (-1.0 if row["accuracy"] is None else row["accuracy"], -row["latency_ms"]))["name"]


def _options(setup: Mapping) -> str:
    return " ".join(f"--{'' if value else 'no-'}{key}" if isinstance(value, bool) else f"--{key} {value}" for key, value in setup.items())


def _of(source) -> dict:
    """The checked report of a bank, a path or a report."""
    if isinstance(source, dict):
        report, bank = check_report(source, "report"), None
    else:
        path = source if isinstance(source, str | Path) else getattr(source, "path", None)
        if path is None:
            raise ValueError("fit: this bank lies in no file: save it, and measure it with sparsekern report BANK")
        path = Path(path)
        if path.suffix == ".json":
            report = read_report(path)
            bank = path.with_name(report["bank"]["file"])   # where it is still there, it must be the same
        else:
            report, bank = read_report(report_path(path)), path
            if not bank.is_file():
                raise ValueError(f"fit: {bank} does not exist")
    again = "measure it here: sparsekern report " + report["bank"]["file"]
    if not report["complete"] or not report["subnets"]:
        raise ValueError(f"fit: the report is not finished; {again} --resume")
    if bank is not None and bank.is_file() and sha256(bank) != report["bank"]["sha256"]:
        raise ValueError(f"fit: the report is of another bank than {bank.name} is now; {again}")
    was = report["machine"]
    if was.get("type") == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"fit: the report is of {was.get('name')}, and torch finds no CUDA device here; {again}")
    now = machine("cuda" if was.get("type") == "cuda" else "cpu")
    wrong = differences(was, now)
    if wrong:
        raise ValueError(f"fit: the report is of another machine or setting: {wrong}; {again}")
    return report


def differences(was: dict, now: dict) -> str:
    """In words; empty where there are none."""
    return ", ".join(f"{key} was {was.get(key)!r}, now {now.get(key)!r}" for key in dict.fromkeys([*was, *now]) if was.get(key) != now.get(key))


# ---- reading ----

def read_report(path: Path | str) -> dict:
    """A report that `report_bank` wrote, checked to the last figure.

    Raises:
        ValueError: missing, no such report, or damaged; in one sentence.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"expected at most {_LARGEST_FILE >> 20} MiB, got {path.stat().st_size >> 20}")
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda text: _refuse(f"{text} is no number"))
    except OSError as error:
        raise ValueError(f"bank report: cannot read {path}: {error.strerror or error}; make one: sparsekern report BANK") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"bank report: {path} is damaged ({str(error)[:200]}); make it again: sparsekern report BANK") from error
    return check_report(values, str(path))


def check_report(values, where: str) -> dict:
    """The report as it is, with the figures of its rows worked out again from their rounds.

    Raises:
        ValueError: naming `where` and the first thing that is not as `report_bank` writes it.
    """
    form = values.get("format") if isinstance(values, dict) else None
    if form != FORMAT:
        raise ValueError(f"bank report: {where} is no such report: expected format {FORMAT!r}, got {_short(form)}")
    try:
        return _checked(values)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else _short(error, str)
        raise ValueError(f"bank report: {where} is damaged ({reason}); make it again: sparsekern report BANK") from error


def _checked(values: dict) -> dict:
    bank, setup = values["bank"], values["setup"]
    _need(bank["file"], "bank.file", _is_text)
    _need(bank["file"], "bank.file", lambda name: Path(name).name == name != "..")
    _need(bank["sha256"], "bank.sha256", _is_text)
    _need(bank["bytes"], "bank.bytes", _is_amount)
    _need(bank["subnets"], "bank.subnets", lambda names: isinstance(names, list) and all(map(_is_text, names)))
    _need(bank["model"], "bank.model", lambda model: model is None or _is_text(model["name"]))
    _need(setup["batch"], "setup.batch", _is_count)
    _need(setup["shape"], "setup.shape", lambda shape: isinstance(shape, list) and all(map(_is_count, shape)))
    _need(values["complete"], "complete", lambda value: isinstance(value, bool))
    for name in ("machine", "setup", "versions"):
        _need(values[name], name, lambda found: isinstance(found, dict) and all(map(_is_text, found)))
        for key, value in values[name].items():
            _need(value, f"{name}.{key}", lambda value: value is None or _is_text(value) or _is_amount(value) or isinstance(value, bool | list))
    _need(values["rounds"], "rounds", _is_count)
    for name in ("name", "type"):
        _need(values["machine"][name], f"machine.{name}", _is_text)
    _need(setup["fold"], "setup.fold", lambda value: isinstance(value, bool))
    for name in ("command", "finished"):
        _need(values[name], name, _is_text)
    _need(values["commit"], "commit", _optional(_is_text))
    _need(values["uncommitted_changes"], "uncommitted_changes", _optional(lambda value: isinstance(value, bool)))
    if values["dense"] is not None or values["complete"]:
        _check_figures(values["dense"], "dense", ("latency_ms", "latency_low_ms", "latency_high_ms"), SIZES[1:])
    rows = [_row(row, f"subnets[{place}]") for place, row in enumerate(values["subnets"])]
    _need(len({row["name"] for row in rows}), "subnets", lambda count: count == len(rows))
    return values | {"subnets": rows}


def _row(row: dict, where: str) -> dict:
    for key in ("name", "pattern"):
        _need(row[key], f"{where}.{key}", _is_text)
    _check_figures(row, where, (), SIZES)
    _need(row["sparsity"], f"{where}.sparsity", lambda value: _is_amount(value) and value <= 1)
    _need(row["accuracy"], f"{where}.accuracy", lambda value: value is None or (_is_amount(value) and value <= 1))
    _need(row["times"], f"{where}.times", lambda times: isinstance(times, list) and times and all(
        isinstance(both, list) and len(both) == 2 and all(_is_amount(ms) and ms >= 1e-9 for ms in both) for both in times))
    _need(row["forms"], f"{where}.forms", lambda forms: all(_is_text(form) and _is_count(count) for form, count in forms.items()))
    _need(row["notes"], f"{where}.notes", lambda notes: isinstance(notes, list) and all(map(_is_text, notes)))
    _need(row["difference"], f"{where}.difference", _optional(_is_amount))
    for layer in row["layers"]:
        for key, check in (("layer", _is_text), ("form", _is_text), ("reason", _optional(_is_text)), ("ms", _optional(_is_amount)),
                           ("dense_ms", _optional(_is_amount))):
            _need(layer[key], f"{where}.layers.{key}", check)
    return row | timings(row["times"])


def _check_figures(row: dict, where: str, times: Iterable[str], sizes: Iterable[str]) -> None:
    for key in times:
        _need(row[key], f"{where}.{key}", lambda value: _is_amount(value) and value > 0)
    for key in sizes:
        _need(row[key], f"{where}.{key}", _is_amount)
    _need(row["file_form"], f"{where}.file_form", _is_text)


def _need(value, where: str, check: Callable) -> None:
    if not check(value):
        raise ValueError(f"{where} is {_short(value)}")


def _is_text(value) -> bool:
    """Also nothing that a terminal would obey."""
    return isinstance(value, str) and 0 < len(value) <= 2000 and value.isprintable()


def _is_amount(value) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value < _MOST and math.isfinite(value)


def _is_count(value) -> bool:
    return type(value) is int and 0 < value < _MOST


def _optional(check: Callable) -> Callable:
    return lambda value: value is None or check(value)


def _short(value, form: Callable = repr) -> str:
    text = form(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _refuse(reason: str):
    raise ValueError(reason)


# ---- printing ----

def text_table(report: dict) -> str:
    """The table for a terminal: dense first, then by pattern; below it what is not faster than the dense net."""
    head = ("sub-net", "pattern", "zeros", "accuracy", "ms", "10-90 %", "x dense", "10-90 %", "faster", "memory", "file", "parameters", "FLOPs",
            "layers")
    dense = report["dense"]
    rows = [] if dense is None else [("(the net whole)", "dense", "-", "-", f"{dense['latency_ms']:.3g}",
                                      f"{dense['latency_low_ms']:.3g}-{dense['latency_high_ms']:.3g}", "1", "-", "-", *_sizes(dense), "-")]
    for row in by_pattern(report["subnets"]):
        accuracy = "-" if row["accuracy"] is None else f"{row['accuracy']:.2%}"
        rows.append((row["name"], row["pattern"], f"{row['sparsity']:.2%}", accuracy, f"{row['latency_ms']:.3g}",
                     f"{row['latency_low_ms']:.3g}-{row['latency_high_ms']:.3g}", f"{row['speedup']:.2f}",
                     f"{row['speedup_low']:.2f}-{row['speedup_high']:.2f}", row["faster"], *_sizes(row), forms_text(row)))
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    left = {0, 1, len(head) - 1}
    lines = ["  ".join(cell.ljust(width) if place in left else cell.rjust(width)
                       for place, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in (head, *rows)]
    return "\n".join([*lines, *slower_text(report)])


def forms_text(row: dict) -> str:
    """How many layers run in which form."""
    return ", ".join(f"{count} {form}" for form, count in row["forms"].items()) or "-"


def slower_text(report: dict) -> list[str]:
    """One sentence each about the sub-nets that are slower than the dense net, those about which the rounds do not agree, and those whose
    layers all stayed dense, so that what they gain is folding and memory order, not sparsity."""
    rows = [row for row in by_pattern(report["subnets"]) if pattern_kind(row["pattern"]) != "dense"]
    slower, unclear = ([row for row in rows if row["faster"] == answer] for answer in ("no", "unclear"))
    alike = [row["name"] for row in rows if set(row["forms"]) == {"dense"}]
    found = []
    if slower:
        found.append("Slower than the dense net here: " + ", ".join(f"{row['name']} ({row['speedup']:.2f}x)" for row in slower) + ".")
    if unclear:
        found.append("No clear difference from the dense net: " + ", ".join(f"{row['name']} ({row['speedup']:.2f}x)" for row in unclear) + ".")
    if rows and not found:
        found.append("Every sparse sub-net is faster than the dense net as it stands here.")
    if alike:
        found.append(f"No layer of {', '.join(alike)} is faster sparse here: they run as dense nets, and gain what the dense net gains when it is "
                     f"deployed the same way.")
    whole = [row["speedup"] for row in report["subnets"] if pattern_kind(row["pattern"]) == "dense"]
    return found + [f"The dense net deployed the same way: {speedup:.2f}x." for speedup in whole[:1] if rows]


def _sizes(row: dict) -> tuple[str, ...]:
    return mb(row["memory_bytes"]), mb(row["file_bytes"]), f"{row['parameters']:,.0f}", f"{row['flops']:.3g}"


def mb(size: float) -> str:
    """Bytes as 10^6."""
    return f"{size / 1e6:.2f} MB"

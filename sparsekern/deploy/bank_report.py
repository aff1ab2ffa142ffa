"""Measure every sub-net of a bank on this machine: one JSON report and one page, and the choice of the sub-net that fits."""
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from sparsekern.deploy.bank import SubnetBank
from sparsekern.deploy.bank_figures import FORMAT, check_report, differences, fit, machine, partial_path, read_report, report_path, sha256, text_table
from sparsekern.deploy.bank_measure import deployment_of, held_bytes, pair, peak_bytes, repeats_for, size_of, size_of_whole, timings
from sparsekern.deploy.bank_page import render
from sparsekern.deploy.progress import Progress
from sparsekern.deploy.timing import Timer, time_inference, usable_device
from sparsekern.sparsity.latency import write_json
from sparsekern.support.provenance import commit, finite, uncommitted, versions

__all__ = ["check_report", "fit", "machine", "read_report", "report_bank", "report_path", "text_table"]
SAVE_SECONDS = 2.0                                          # between two writes of what was measured so far


def report_bank(path: Path | str, out: Path | str | None = None, *, batch: int = 128, device: torch.device | str = "cpu",
                threads: int | None = None, rounds: int = 15, fold: bool = True, only: Sequence[str] | None = None, resume: bool = False,
                progress: str = "auto", model: nn.Module | None = None, shape: Sequence[int] | None = None,
                timer: Timer = time_inference) -> dict:
    """Deploy and measure the sub-nets of a bank, each beside the dense net; write BANK.report.json and BANK.report.html.

    All nets come up in every round, in another order each time, each one timed together with the dense net (the whole architecture as PyTorch
    runs it, batch norm not folded). All deployed nets are held in memory at once; `only` limits them.

    Args:
        path: of the bank. out: the directory of the two files; default that of the bank.
        batch: samples at a time. threads: CPU threads while this runs; default torch's.
        rounds: of which medians and spreads are reported. fold: batch norm folded into the layer before it.
        only: names of sub-nets; default all. What a report has of the others
            stays in it, where it is of this bank, machine and setting.
        resume: keep what was measured for this very bank, machine and setting, finished or stopped, and measure the rest. A sub-net that
            is deployed in other forms than before is measured from the start.
        progress: auto, rich, plain or none. model, shape: what the net is, and the shape of a sample, where the bank does not say it.
        timer: (net, images) -> ms of an inference.
    Returns:
        The report as it was written: "subnets" are rows in the order of the bank, "dense" is the row of the dense net; times in ms per batch,
        sizes in bytes, FLOPs per sample. A row has a
        `timings`, `size_of`, `layers` and the rounds themselves, `times` [[ms, ms of the dense net], ...].
    Raises:
        ValueError: a setting that cannot work, a bank or a report that cannot be read or is of something else.
    """
    for name, value in (("batch", batch), ("rounds", rounds), ("threads", 1 if threads is None else threads)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"report: {name}: expected an integer of at least 1, got {value!r}")
    path, device = Path(path), usable_device("report", device)
    bank = SubnetBank.load(path)
    names = _choose(bank.names(), only)
    with _threads(threads):
        shape = _shape(bank, shape)
        report = {
            "format": FORMAT, "complete": False, "bank": {"file": path.name, "sha256": sha256(path), "bytes": path.stat().st_size,
                                                          "subnets": list(bank.names()), "model": bank.meta.get("model")},
            "machine": machine(device), "setup": {"batch": batch, "shape": list(shape), "fold": bool(fold)}, "rounds": rounds,
            "commit": commit(), "uncommitted_changes": uncommitted(), "versions": versions(),
            "command": _command(path, batch, device, rounds, fold, only), "dense": None, "subnets": []}
        target = report_path(path, out)
        run = _Run(report, target, rounds, _known(target, report) if resume else {} if only is None else _others(target, report, names))
        dense = bank.plain(bank.names()[0], model).to(device)           # its zeros are multiplied as all others
        kind = next((weight.dtype for weight in dense.parameters() if weight.is_floating_point()), None)
        images = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)).to(device, kind)
        run.measure(bank, names, dense, images, {"fold": fold, "model": model}, timer, progress)
    return run.report


class _Run:
    """The rows of a report while they are measured; what there is lies on disk all the time."""

    def __init__(self, report: dict, target: Path, rounds: int, known: dict[str, dict]):
        self.report, self.target, self.rounds = report, target, rounds
        self.partial = partial_path(target)
        self.rows: dict[str, dict] = known                  # by name; those the command did not ask for are kept, too
        self.saved = time.monotonic()

    def measure(self, bank, names: Sequence[str], dense: nn.Module, images, options: dict, timer: Timer, progress: str) -> None:
        open_names = [name for name in names if len(self.rows.get(name, {}).get("times", ())) < self.rounds]
        try:
            with Progress(progress, len(open_names) * (self.rounds + 1)) as bar:
                nets, done = {}, 0
                for name in open_names:
                    bar.show(done, None, f"deploying {name}")
                    nets[name] = self.deploy(bank, name, images, options)
                    done += 1
                repeats = repeats_for(dense, images, timer)
                for number in range(self.rounds if nets else 0):
                    for name in random.Random(number).sample(list(nets), len(nets)):
                        times = self.rows[name]["times"]
                        if len(times) == number:            # a resumed row has its first rounds
                            times.append(pair(nets[name], dense, images, repeats, number, timer))
                        done += 1
                        bar.show(done, None, f"round {number + 1}/{self.rounds}, {name}")
                        if time.monotonic() - self.saved >= SAVE_SECONDS:
                            self.save(bank.names())
            self.report["dense"] = self.dense_row(dense, images)
            self.report["complete"] = True
        finally:
            self.save(bank.names())
        page = self.target.with_suffix(".html")
        partial = page.with_name(f".{page.name}.partial")
        partial.write_text(render(self.report), encoding="utf-8")
        partial.replace(page)
        self.partial.unlink(missing_ok=True)

    def deploy(self, bank, name: str, images, options: dict) -> nn.Module:
        subnet = bank.subnet(name)
        plain = bank.plain(name, options["model"])
        net = bank.deploy(name, images.device, len(images), example=images, **options)
        deployment = deployment_of(net)
        forms = Counter(layer["form"] for layer in deployment["layers"])
        row = {"name": name, "pattern": subnet.pattern, "sparsity": subnet.sparsity, "nnz": subnet.nnz, "accuracy": subnet.accuracy,
               **size_of(plain, net, images.shape[1:], forms), "weight_bytes": held_bytes(net), "peak_bytes": peak_bytes(net, images)}
        row = row | {"memory_bytes": row["weight_bytes"] + row["peak_bytes"], "forms": dict(sorted(forms.items())), **deployment}
        before = self.rows.get(name)
        row["times"] = before["times"] if before and _forms(before) == _forms(row) else []
        self.rows[name] = finite(row)
        return net

    def dense_row(self, dense: nn.Module, images) -> dict:
        times = [both[1] for row in self.rows.values() for both in row["times"]]
        figures = timings([(one, one) for one in times])
        weights, peak = held_bytes(dense), peak_bytes(dense, images)
        return {key: figures[key] for key in ("latency_ms", "latency_low_ms", "latency_high_ms")} | {
            **size_of_whole(dense, images.shape[1:]), "weight_bytes": weights, "peak_bytes": peak, "memory_bytes": weights + peak}

    def save(self, order: Sequence[str]) -> None:
        measured = [self.rows[name] for name in order if self.rows.get(name, {}).get("times")]
        if not measured:
            return
        self.report["subnets"] = [row | timings(row["times"]) for row in measured]
        self.report["finished"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(self.target if self.report["complete"] else self.partial, finite(self.report))
        self.saved = time.monotonic()


def _forms(row: dict) -> list[tuple[str, str]]:
    return [(layer["layer"], layer["form"]) for layer in row["layers"]]


def _known(target: Path, report: dict) -> dict[str, dict]:
    """{name: row} of what was measured before, finished or not.

    Raises:
        ValueError: damaged, or of another bank, machine or setting.
    """
    path = partial_path(target) if partial_path(target).exists() else target    # the unfinished one has what the finished one had
    if not path.exists():
        return {}
    found = read_report(path)
    wrong = [text for text in (differences({"bank": found["bank"]["sha256"]}, {"bank": report["bank"]["sha256"]}),
                               differences(found["machine"], report["machine"]), differences(found["setup"], report["setup"])) if text]
    if wrong:
        raise ValueError(f"report: {path} cannot be resumed, it is of something else: {'; '.join(wrong)}; leave out resume to start again")
    return {row["name"]: row for row in found["subnets"] if row["name"] in report["bank"]["subnets"]}


def _others(target: Path, report: dict, names: Sequence[str]) -> dict[str, dict]:
    """{name: row} of the sub-nets that are not measured again."""
    try:
        return {name: row for name, row in _known(target, report).items() if name not in names}
    except ValueError:                                      # of something else: made anew
        return {}


def _choose(names: Sequence[str], only: Sequence[str] | None) -> list[str]:
    wanted = list(names) if only is None else list(only)
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        raise ValueError(f"report: only: expected names among {', '.join(names)}; got {', '.join(map(repr, unknown)) or 'none'}")
    return [name for name in names if name in wanted]


def _shape(bank, shape: Sequence[int] | None) -> tuple[int, ...]:
    shape = (bank.meta.get("model") or {}).get("shape") if shape is None else shape
    if not shape or any(type(size) is not int or size < 1 for size in shape):
        raise ValueError(f"report: shape: expected the sizes of one sample, such as (3, 32, 32), got {shape!r}; where a bank does not say its model, "
                         f"from Python: report_bank(path, model=..., shape=...)")
    return tuple(shape)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _command(path: Path, batch: int, device: torch.device, rounds: int, fold: bool, only: Sequence[str] | None) -> str:
    return (f"sparsekern report {path.name} --batch {batch} --device {device} --threads {torch.get_num_threads()} --rounds {rounds}"
            + ("" if fold else " --no-fold") + (f" --only {','.join(only)}" if only else ""))

"""The race: ours and the peers on the same data in the same run, interleaved, so that a noisy machine is noisy to all.

A benchmark calls `race(...)` once per shape. Results are checked before anything is timed; a contender whose result is wrong
is listed as void. Rows and targets are printed at the end of the run, and written as JSON with --benchmark-report FILE.
"""

import ctypes
import json
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from race_tables import Table, Target

from sparsekern._native import native

_tables: list[Table] = []
_yardsticks: dict[str, float] = {}                      # of the GPU races


def _copy_bandwidth() -> float:
    """GB/s of a large copy, read and written bytes counted: the yardstick of every row."""
    source = torch.rand(64 * 2**20)
    target = torch.empty_like(source)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return 2 * source.numel() * 4 / float(numpy.median(times[2:])) / 1e9


@pytest.fixture(scope="session")
def copy_bandwidth():
    return _copy_bandwidth()


@pytest.fixture(scope="session")
def keep_freed_memory():
    """Outputs reuse memory, as in a training loop; else glibc gives 30 to 100 MB back each round and page faults are all one sees."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        trim, mmap = -1, -3                             # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        libc.mallopt(trim, 2**31 - 1)
        libc.mallopt(mmap, 2**30)


@pytest.fixture
def race(request, benchmark, copy_bandwidth):
    """race(op, shape, contenders, nbytes=..., check=..., targets=...): see the module docstring.

    contenders: {name: callable}; the first is the one pytest-benchmark also records. One that returns a float has timed itself.
    nbytes: bytes that must move, one number or {name: number}: gives GB/s and the share of copy bandwidth.
    check: {name: callable() -> None} raising AssertionError when that contender's result is wrong, run before timing.
    notes: callable(medians in seconds) -> lines to print and keep beside the targets.
    """

    def run(op, shape, contenders, *, nbytes=None, check=None, targets=(), notes=None, rounds=None, budget_s=8.0):
        table = Table(op, shape, targets=[Target(*t) for t in targets])
        _tables.append(table)
        void = {}
        for name, verify in (check or {}).items():
            try:
                verify()
            except AssertionError as error:
                void[name] = f"void: {str(error).splitlines()[0] if str(error) else 'wrong result'}"
        able = {name: run for name, run in contenders.items() if name not in void}
        times = {name: [] for name in able}
        rounds = rounds or request.config.getoption("--race-rounds")
        for name in able:
            able[name]()
        deadline = time.perf_counter() + budget_s
        for index in range(rounds + 3):
            for name, contender in able.items():
                start = time.perf_counter()
                own = contender()
                seconds = own if isinstance(own, float) else time.perf_counter() - start
                if index >= 3:
                    times[name].append(seconds)
            if time.perf_counter() > deadline and index >= 8:
                break
        medians = {name: float(numpy.median(values)) for name, values in times.items()}
        for name in contenders:
            if name in void:
                table.rows.append({"name": name, "void": void[name]})
                continue
            moved = nbytes.get(name) if isinstance(nbytes, dict) else nbytes
            rate = moved / medians[name] / 1e9 if moved else None
            low, high = numpy.percentile(times[name], [10, 90])
            table.rows.append(
                {
                    "name": name,
                    "median_ms": medians[name] * 1e3,
                    "min_ms": min(times[name]) * 1e3,
                    "p10_ms": low * 1e3,
                    "p90_ms": high * 1e3,
                    "rounds": len(times[name]),
                    "bytes": moved,
                    "gb_per_s": rate,
                    "share_of_copy": rate / copy_bandwidth if rate else None,
                }
            )
        table.judge()
        table.notes = notes(medians) if notes else []
        first = next(iter(able), None)
        benchmark.extra_info.update(op=op, shape=shape, rows=table.rows, targets=[str(t) for t in table.targets])
        if first:
            benchmark.pedantic(able[first], rounds=3, warmup_rounds=1)
        assert not any(name in void for name in contenders if name.startswith("sparsekern")), void
        return medians

    return run


@pytest.fixture
def note():
    """note(op, shape, lines): findings that are no race, in the same report."""

    def add(op, shape, lines):
        _tables.append(Table(op, shape, notes=list(lines)))

    return add


@pytest.fixture(scope="session")
def gpu_race():
    """The race of gpu_race.py on the current device; its tables stand in the same report."""
    import gpu_race

    timer = gpu_race.Gpu()
    found = gpu_race.Race(timer, gpu_race.Lab("cuda"), tables=_tables, yard=timer.yardsticks())
    _yardsticks.update(found.yard.known())
    return found


def evidence(bandwidth: float | None) -> dict:
    """What a figure needs beside it: commit, device, versions, command."""

    def git(*args):
        answer = subprocess.run(["git", *args], capture_output=True, text=True, cwd=Path(__file__).parent)
        return answer.stdout.strip() or None

    cpu = (
        next(
            (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
            platform.processor(),
        )
        if Path("/proc/cpuinfo").exists()
        else platform.processor()
    )
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "device": cpu,
        "threads": torch.get_num_threads(),
        "isa": native.isa,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "command": shlex.join(["pytest", *sys.argv[1:]]),
        "copy_gb_per_s": bandwidth,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def pytest_terminal_summary(terminalreporter, config):
    if not _tables:
        return
    record = evidence(_copy_bandwidth())
    write = terminalreporter.write_line
    terminalreporter.section("races (median ms; interleaved; share of copy bandwidth)")
    write(f"{record['device']}, {record['threads']} threads, {record['isa']}, torch {record['torch']}")
    write(f"copy {record['copy_gb_per_s']:.1f} GB/s")
    for table in _tables:
        write(f"\n{table.op}  {table.shape}")
        for row in table.rows:
            if "void" in row:
                write(f"  {row['name']:44} {row['void']}")
                continue
            rate = f"{row['gb_per_s']:8.1f} GB/s {row['share_of_copy']:6.0%}" if row.get("gb_per_s") else ""
            write(f"  {row['name']:44} {row['median_ms']:10.3f}  [{row['p10_ms']:.3f} .. {row['p90_ms']:.3f}] {rate}")
        for line in table.verdicts() + table.notes:
            write(f"  {line}")
    path = config.getoption("--benchmark-report")
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(
            json.dumps(record | {"yardsticks": _yardsticks, "tables": [table.record() for table in _tables]}, indent=1)
        )
        write(f"\nwritten: {path}")

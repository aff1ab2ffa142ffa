"""Ops beside their peers on a GPU, in one process on the same data, taking turns.

    python benchmarks/gpu_race.py [family ...] [--seconds 400] [--report FILE]      # families: masks, masked_sgd, ...

A contender is checked before it is timed; a wrong result voids its row. Times are medians between CUDA events around the replay of a
CUDA graph (around the call where it cannot be captured), with the L2 cache flushed before each, and once more with it warm; beside
them stands the wall time of an eager call until the device is done, and the time until the call returned. `share` is the roofline's
time over the measured one, the roofline being what the same run measured: a large copy, reads from L2, a bf16 matrix product.

The cases of a family are the list CASES of gpu_<family>.py. With a Host instead of a Gpu they run on the CPU, scaled down.
"""
import argparse
import contextlib
import gc
import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from gpu_timer import Contender, Gpu, Host, Yardsticks
from race_tables import Overall, Table, Target
from torch import Tensor

from sparsekern import ops
from sparsekern.ops._register import live_implementation
from sparsekern.testing import tolerance

FAMILIES = ("masks", "masked_sgd", "project_conflict", "select", "growth", "channels", "nm", "sp24", "csr")  # the longest last: it takes what is left
TRAINING = "training_step"                  # a family by itself, for the stage train of scripts/gpu.py
ABSENT, LEFT_OUT, FAILED = "not run on a GPU yet", "left out (time)", "could not be built"


@dataclass(frozen=True)
class Case:
    """One table. `build` makes the contenders; cases of low rank run first."""

    op: str
    shape: str
    build: Callable[["Lab"], dict[str, Contender]]
    targets: tuple[Target, ...] = ()
    needs: tuple[str, ...] = ()             # ops by name; without them the case is not run
    rank: int = 1
    notes: Callable[[Table], list[str]] | None = None


class Lab:
    """Where a case is built: the device, random data, and ours in every implementation that runs there."""

    def __init__(self, device: str, small: bool = False):
        self.device, self.small = torch.device(device), small
        self.generator = torch.Generator(self.device).manual_seed(0)

    def size(self, full: int, small: int) -> int:
        return small if self.small else full

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device).to(dtype)

    def mask(self, *shape: int, density: float) -> Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.device) < density

    def compile(self, function: Callable) -> Callable:
        return function if self.small else torch.compile(function)

    def ours(self, label: str, op: str, make: Callable[[Callable], dict], *, triton: bool = True, **facts) -> dict[str, Contender]:
        """`make(f)` gives run (and check, reset) with fresh operands, calling f as the op; a second row is Triton's where CUDA is live.

        A Triton launcher has no gradient: triton=False where one is asked for.
        """
        packet, live = op.partition(".")[0], live_implementation(op, self.device.type)
        rows = {label: Contender(**make(getattr(ops, packet)), **facts, implementation=live)}
        if triton and live == "cuda" and "triton" in (found := ops.implementations(op)):
            rows[f"{label}, triton"] = Contender(**make(found["triton"]), **facts, implementation="triton")
        return rows


# ---- the race ----

@dataclass
class Race:
    """Runs cases one after the other until the time is up; what is left then is listed as left out."""

    timer: Host | Gpu
    lab: Lab
    deadline: float = math.inf              # time.monotonic()
    tables: list[Table] = field(default_factory=list)
    yard: Yardsticks = field(default_factory=Yardsticks)

    def case(self, case: Case, budget_s: float = 20.0) -> Table:
        table = Table(case.op, case.shape, targets=[Target(t.left, t.sense, t.bound, t.right) for t in case.targets], absent=ABSENT)
        self.tables.append(table)
        if missing := [name for name in case.needs if name.partition(".")[0] not in vars(ops)]:
            table.notes.append(f"there is no {', '.join(missing)} yet")
        elif time.monotonic() > self.deadline:
            table.notes += [LEFT_OUT] if self.deadline > 0 else []
        else:
            try:
                contenders = case.build(self.lab)
                self._run(table, contenders, min(self.deadline, time.monotonic() + budget_s))
            except Exception as error:                      # of whatever kind: the other cases go on
                table.notes.append(f"{FAILED}: {_first_line(error)}")
                self._still_there()
            table.judge()
            table.notes += faster_in_triton(table) + (case.notes(table) if case.notes else [])
        if self.lab.device.type == "cuda" and table.rows:
            contenders = None               # closures hold operands in cycles
            gc.collect()
            with contextlib.suppress(RuntimeError):         # refused after a capture that failed
                torch.cuda.empty_cache()
        return table

    def _run(self, table: Table, contenders: dict[str, Contender], deadline: float) -> None:
        able, void = {}, {}
        for name, one in contenders.items():
            try:
                if one.reset:
                    one.reset()
                result = one.run()
                if one.check:
                    one.check(result)
                if one.reset:
                    one.reset()
                able[name] = self.timer.prepare(one)
            except AssertionError as error:
                void[name] = f"wrong result: {_first_line(error)}"
            except torch.OutOfMemoryError:
                raise
            except Exception as error:                      # compilers have their own
                void[name] = f"does not run: {_first_line(error)}"
                self._still_there()
            result = None
        times = {name: [] for name in able}
        for index in range(self.timer.rounds + self.timer.warm_up):
            for name, (run, _) in able.items():
                seconds = self.timer.seconds(run, contenders[name].reset)
                if index >= self.timer.warm_up:
                    times[name].append(seconds)
            if index >= self.timer.warm_up + 4 and time.monotonic() > deadline:
                break
        for name, one in contenders.items():
            table.rows.append({"name": name, "void": void[name], "implementation": one.implementation} if name in void
                              else self._row(name, one, times[name], *able[name]))

    def _still_there(self) -> None:
        """After an error: raises where the device is lost. Then this process ends, and those of the other families go on."""
        if self.lab.device.type == "cuda":
            torch.cuda.synchronize()

    def _row(self, name: str, one: Contender, times: list[float], run: Callable, timed: str) -> dict:
        median = statistics.median(times)
        low, high = (statistics.quantiles(times, n=10)[k] for k in (0, -1))
        some = min(len(times), 10)
        warm = statistics.median(self.timer.seconds(run, one.reset, cold=False) for _ in range(some))
        walls = [self.timer.wall(one) for _ in range(some)]
        floor, rules = self.yard.floor(one)
        rate = one.hbm / median * 1e-9 if one.hbm else None
        return {"name": name, "implementation": one.implementation, "timed": timed, "rounds": len(times), "median_ms": median * 1e3,
                "min_ms": min(times) * 1e3, "p10_ms": low * 1e3, "p90_ms": high * 1e3, "warm_ms": warm * 1e3,
                "eager_ms": statistics.median(w for w, _ in walls) * 1e3, "host_ms": statistics.median(h for _, h in walls) * 1e3,
                "bytes": one.hbm or None, "gb_per_s": rate, "share_of_copy": rate / self.yard.copy_gb_per_s if rate else None,
                "floor_ms": floor * 1e3 or None, "bound": rules if floor else None, "share": floor / median if floor else None}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def faster_in_triton(table: Table) -> list[str]:
    """Where the Triton kernel should serve instead of the CUDA one."""
    times = table.medians()
    pairs = [(name, times[name], times[f"{name}, triton"]) for name in times if f"{name}, triton" in times]
    return [f"Triton takes {triton / cuda:.2f}x the time of CUDA: {name}" for name, cuda, triton in pairs if triton < 0.97 * cuda]


def load(family: str) -> tuple[list[Case], list[Overall]]:
    """The cases of a family, those with targets first, and its targets over several of them."""
    module = importlib.import_module(f"gpu_{family}")
    return sorted(module.CASES, key=lambda case: case.rank), getattr(module, "OVERALL", [])


# ---- checks that cases share ----

def agrees(got: Tensor, want: Tensor, length: int = 1, dtype: torch.dtype | None = None, peer: bool = False) -> None:
    """Assert that the relative RMS error to a float64 result is small: by the tests' rule, of a peer 1 % (it may round as it likes)."""
    assert got.shape == want.shape, f"shape {list(got.shape)}, expected {list(want.shape)}"
    error = (got.double() - want).square().mean().sqrt()
    scale = want.square().mean().sqrt()
    bound = 1e-2 if peer else tolerance(dtype or got.dtype, length)
    assert bool(error <= bound * scale) or bool(error == 0), f"relative error {float(error / scale):.1e}, allowed {bound:.1e}"


def equal(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape, f"shape {list(got.shape)}, expected {list(want.shape)}"
    wrong = int((got != want).sum())
    assert wrong == 0, f"{wrong} of {want.numel()} elements differ"


def bits_of(mask: Tensor) -> Tensor:
    """Packed words by the reference: operands of a race do not rest on a kernel under test."""
    return ops.implementations("pack_mask")["reference"](mask)


# ---- on its own ----

def show(table: Table) -> None:
    print(f"\n{table.op}  {table.shape}")
    for row in table.rows:
        if "void" in row:
            print(f"  {row['name']:44} {row['implementation']:9} void: {row['void']}")
            continue
        share = f"{row['share']:5.0%} of {row['bound']}" if row["share"] else ""
        print(f"  {row['name']:44} {row['implementation']:9} {row['median_ms'] * 1e3:10.1f} us  warm {row['warm_ms'] * 1e3:10.1f}"
              f"  eager {row['eager_ms'] * 1e3:10.1f}  {row['timed']:6} {share}")
    for line in table.verdicts() + table.notes:
        print(f"  {line}")
    sys.stdout.flush()


def versions() -> dict:
    found = {"torch": torch.__version__}
    try:
        import triton
        found["triton"] = triton.__version__
    except ImportError:
        pass
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="family", help=" | ".join(FAMILIES))
    parser.add_argument("--seconds", type=float, default=math.inf, help="cases that begin later than this are left out")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the tables as JSON, after every case")
    parser.add_argument("--plan", action="store_true", help="run nothing, need no GPU: every case with its targets, not run yet")
    arguments = parser.parse_args()
    started = time.monotonic()
    if unknown := [name for name in arguments.families if name not in (*FAMILIES, TRAINING)]:
        parser.error(f"unknown family {unknown[0]!r}: expected some of {', '.join(FAMILIES)}, {TRAINING}")
    if arguments.plan:
        race = Race(Host(), Lab("cpu"), deadline=-math.inf)
    elif not torch.cuda.is_available():
        sys.exit("gpu_race: no CUDA device")
    else:
        timer = Gpu()
        race = Race(timer, Lab("cuda"), started + arguments.seconds, yard=timer.yardsticks())
        print(f"{timer.name}: " + ", ".join(f"{name} {value}" for name, value in race.yard.known().items()))

    def write() -> None:
        if arguments.report:
            arguments.report.parent.mkdir(parents=True, exist_ok=True)
            draft = arguments.report.with_suffix(".draft")              # whole or not at all: the process may be ended
            draft.write_text(json.dumps({"gpu": None if arguments.plan else race.timer.name, "yardsticks": race.yard.known(), **versions(),
                                                    "tables": [table.record() for table in race.tables]}, indent=1))
            draft.replace(arguments.report)

    loaded = {family: load(family) for family in arguments.families or FAMILIES}
    gc.collect()
    gc.freeze()                             # what was imported stays: later collections look at operands alone
    for cases, overall in loaded.values():
        first = len(race.tables)
        for case in cases:
            show(race.case(case))
            write()
        for table in [one.table(race.tables[first:]) for one in overall]:
            race.tables.append(table)
            show(table)
        write()
    wrong = [f"{table.op} {table.shape} {row['name']}: {row['void']}" for table in race.tables for row in table.rows
             if "void" in row and row["name"].startswith("sparsekern")]
    wrong += [f"{table.op} {table.shape}: {note}" for table in race.tables for note in table.notes if note.startswith(FAILED)]
    for line in wrong:
        print(f"VOID {line}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

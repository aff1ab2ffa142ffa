"""Everything that needs a GPU, in stages that each run alone in a few minutes and write results/gpu-<stage>.json:

    python scripts/gpu.py [build] [test] [sanitize] [bench] [train]      # all by default; make gpu, make gpu-build, ...

build      the standalone programs of tests/native (these need only nvcc), and the extension for the GPU that is here
test       the standalone programs, then every test marked gpu, each file in a process of its own
sanitize   memcheck, racecheck, initcheck and synccheck of compute-sanitizer over the standalone programs
bench      every op beside its peers (benchmarks/gpu_race.py), then kernels by themselves (standalone --bench)
train      whole AST-GC steps on a ResNet-50 beside dense ones; short CIFAR-10 runs where --data holds it

A stage has --seconds; what does not fit is listed as left out (time). Nothing is downloaded. What is built already is not built again;
a stage whose build is missing builds first, out of its own seconds. Without a GPU the stages say what they skip.
"""
import argparse
import contextlib
import functools
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD, RESULTS = ROOT / "build/standalone", ROOT / "results"
STAMP = BUILD / "stamp.json"
PROGRAMS = sorted((ROOT / "tests/native").glob("*_check.cu"))
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
FAMILIES = ("masks", "masked_sgd", "project_conflict", "select", "growth", "channels", "nm", "sp24", "csr")        # of benchmarks/gpu_race.py
STAGES = ("build", "test", "sanitize", "bench", "train")
LEFT_OUT = "left out (time)"
NO_GPU = "no GPU (nvidia-smi finds none)"
PYTEST = (sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider")
LEAST_S = 5.0                               # with less than this left nothing is started


class Clock:
    """The seconds of a stage."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


def run(*command, timeout: float, **kwargs) -> subprocess.CompletedProcess:
    """Runs and captures; a command that runs out of time fails instead of raising."""
    text = [str(c) for c in command]
    print(f"  $ {shlex.join(text)}", flush=True)
    try:
        return subprocess.run(text, capture_output=True, text=True, cwd=ROOT, timeout=timeout, **kwargs)
    except subprocess.TimeoutExpired as late:
        said = late.stdout.decode(errors="replace") if late.stdout else ""
        return subprocess.CompletedProcess(text, 124, said, f"stopped after {timeout:.0f} s")


def answer(*command) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip() if done.returncode == 0 else None


def find(name: str) -> str | None:
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    places = (home / "bin" / name, home / "compute-sanitizer" / name)
    return next((str(p) for p in places if p.exists()), None) or shutil.which(name)


def query(fields: str) -> str | None:
    return answer("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0")


@functools.cache
def gpu() -> str | None:
    """Name and compute capability of the first GPU; None without one."""
    return query("name,compute_cap")


def clocks() -> str | None:
    return query("clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu")


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def evidence() -> dict:
    """What a figure needs beside it. SPARSEKERN_COMMIT names the commit where the tree travels without its .git."""
    nvcc = find("nvcc")
    return {"commit": os.environ.get("SPARSEKERN_COMMIT") or answer("git", "rev-parse", "HEAD"),
            "dirty": bool(answer("git", "status", "--porcelain", "--untracked-files=no")),
            "command": shlex.join([Path(sys.executable).name, *sys.argv]), "device": gpu(), "gpu": query("name"), "driver": query("driver_version"),
            "clocks": clocks(), "nvcc": (answer(nvcc, "--version") or "").splitlines()[-1:] if nvcc else None,
            "python": platform.python_version(), "versions": {name: version(name) for name in ("torch", "triton", "numpy")}}


def row(name: str, done: subprocess.CompletedProcess, started: float, **more) -> dict:
    return {"name": name, "ok": done.returncode == 0, "seconds": round(time.monotonic() - started, 1),
            "output": (done.stdout + done.stderr).strip(), **more}


def attempt(name: str, clock: Clock, *command, limit: float = 1e9, **kwargs) -> dict:
    """One command as a row; left out where no time remains."""
    if clock.left < LEAST_S:
        return {"name": name, "skipped": LEFT_OUT}
    started = time.monotonic()
    return row(name, run(*command, timeout=min(limit, clock.left), **kwargs), started)


def side_by_side(tasks: list, workers: int) -> list[dict]:
    """The rows of tasks (functions) in their order, several at a time; each looks at the clock when its turn comes."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(pool.map(lambda task: task(), tasks))


def cores() -> int:
    return int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)


# ---- build ----

def architecture() -> tuple[str, str]:
    """("9.0a", "90a") of the GPU that is here, of a Hopper where there is none: one target takes half the time of two."""
    device = gpu()
    capability = device.split(",")[1].strip() if device else "9.0"
    capability += "a" if capability.startswith("9") else ""
    return capability, capability.replace(".", "")


def digest() -> str:
    """Of everything that a build depends on."""
    found = hashlib.blake2b(f"{architecture()}{version('torch')}{sys.executable}".encode(), digest_size=16)
    sources = [p for room in ("csrc", "tests/native") for p in (ROOT / room).rglob("*") if p.suffix in (".h", ".cuh", ".cu", ".cpp")]
    for path in sorted([*sources, ROOT / "setup.py"]):
        found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()


def built() -> bool:
    """Whether the last build is of these sources and nothing of it is missing."""
    there = all((BUILD / p.stem).exists() for p in PROGRAMS) and (gpu() is None or any((ROOT / "sparsekern").glob("_C*.so")))
    return there and STAMP.exists() and json.loads(STAMP.read_text()) == digest()


def stage_build(clock: Clock, options) -> list[dict]:
    nvcc = find("nvcc")
    if nvcc is None:
        return [{"name": "build", "skipped": "no nvcc: set CUDA_HOME or install the CUDA toolkit"}]
    if built():
        return [{"name": "build", "skipped": "up to date"}]
    (capability, code), sources = architecture(), digest()             # before: they may change while it runs
    BUILD.mkdir(parents=True, exist_ok=True)

    def compiles(program: Path):
        flags = ("-std=c++17", "-O3", "-lineinfo", "-I", ROOT / "csrc", f"-gencode=arch=compute_{code},code=sm_{code}")
        return lambda: attempt(program.stem, clock, nvcc, *flags, program, "-o", BUILD / program.stem)

    tasks = [compiles(p) for p in PROGRAMS]
    if gpu() is not None:
        environment = os.environ | {"SPARSEKERN_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability, "MAX_JOBS": str(cores())}
        tasks.insert(0, lambda: attempt("extension", clock, sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-e", ".",
                                        env=environment))
    rows = side_by_side(tasks, cores())
    if all(r.get("ok") for r in rows):
        STAMP.write_text(json.dumps(sources))
    return rows if gpu() else [*rows, {"name": "extension", "skipped": "no GPU: pip install -e . builds it for every architecture"}]


def programs(stage: str) -> tuple[list[Path], list[dict]]:
    """The standalone programs that are there, and the rows of those that are not."""
    missing = [{"name": p.stem, "skipped": "not built: its row of the stage build says why"} for p in PROGRAMS if not (BUILD / p.stem).exists()]
    return [BUILD / p.stem for p in PROGRAMS if (BUILD / p.stem).exists()], missing


# ---- test ----

def pytest_files(clock: Clock) -> list[str] | dict:
    """The files that hold tests marked gpu; where pytest fails to collect, its row."""
    collected = attempt("pytest --collect-only", clock, *PYTEST, "tests", "-qq", "--collect-only")
    if not collected.get("ok"):
        return collected
    # "tests/gpu/test_x.py: 12" or, in other versions, one line per test.
    return sorted({line.partition("::")[0].partition(":")[0] for line in collected["output"].splitlines() if line.startswith("tests/")})


def test_file(file: str, clock: Clock) -> dict:
    report = BUILD / f"{file.replace('/', '.')}.xml"
    report.unlink(missing_ok=True)
    done = attempt(file, clock, *PYTEST, file, "-q", f"--junitxml={report}", "--seconds", f"{clock.left - 30:.0f}")
    if not report.exists():
        return done
    counts = ElementTree.parse(report).getroot().find("testsuite").attrib
    kept = {key: int(counts[key]) for key in ("tests", "failures", "errors", "skipped")}
    note = ", ".join(f"{n} {key}" for key, n in kept.items())
    if LEFT_OUT in done["output"]:
        note += f", some {LEFT_OUT}"
    return done | {"note": note, "counts": kept}


def stage_test(clock: Clock, options) -> list[dict]:
    if gpu() is None:
        return [{"name": "test", "skipped": NO_GPU}]
    ready, rows = programs("test")
    rows += side_by_side([lambda p=p: attempt(p.name, clock, p, limit=120) for p in ready], 4)
    files = pytest_files(clock)
    if isinstance(files, dict):
        return [*rows, files]
    # A process per file: a fault on the device ends its context, and with it no other file's tests.
    tested = side_by_side([lambda f=f: test_file(f, clock) for f in files], min(4, cores()))
    if all(r["counts"]["tests"] == r["counts"]["skipped"] for r in tested if "counts" in r):
        tested.append({"name": "pytest -m gpu", "ok": False, "output": "every test was skipped: does torch see the GPU (torch.cuda.is_available())?"})
    return rows + tested


def stage_sanitize(clock: Clock, options) -> list[dict]:
    if gpu() is None:
        return [{"name": "sanitize", "skipped": NO_GPU}]
    sanitizer = find("compute-sanitizer")
    if sanitizer is None:
        return [{"name": "sanitize", "skipped": "no compute-sanitizer: it is in the full CUDA toolkit"}]
    ready, rows = programs("sanitize")
    tasks = [lambda p=p, tool=tool: attempt(f"{p.name} {tool}", clock, sanitizer, "--tool", tool, "--error-exitcode", "9", p, limit=240)
             for tool in SANITIZERS for p in ready]
    return rows + side_by_side(tasks, min(6, cores()))


# ---- bench and train ----

def measurements(text: str) -> list[dict]:
    """The lines of JSON in what a program said."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found += [json.loads(line)] if line.startswith("{") else []
    return found


def race(family: str, clock: Clock, seconds: float) -> tuple[dict, dict]:
    """Its row, and what it wrote: even a race that crashed leaves the cases before that."""
    report = BUILD / f"race-{family}.json"
    BUILD.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    done = attempt(f"race {family}", clock, sys.executable, "benchmarks/gpu_race.py", family, "--seconds", f"{seconds:.0f}", "--report", report,
                   limit=seconds + 60)
    found = json.loads(report.read_text()) if report.exists() else {"tables": []}
    for table in found["tables"]:
        wrong = [f"{r['name']}: {r['void']}" for r in table["rows"] if "void" in r]
        for line in [*wrong, *table["verdicts"]]:
            if not line.startswith(("met: ", "not run")):
                print(f"    {table['op']}, {table['shape']}: {line}")
    verdicts = [line for table in found["tables"] for line in table["verdicts"]]
    left = sum(LEFT_OUT in table["notes"] for table in found["tables"])
    counts = {"met": "met: ", "MISSED": "MISSED: ", "not run": "not run"}
    note = ", ".join(f"{sum(v.startswith(start) for v in verdicts)} {word}" for word, start in counts.items())
    return done | ({"note": note + (f", {left} tables {LEFT_OUT}" if left else "")} if found["tables"] else {}), found


def stage_bench(clock: Clock, options) -> list[dict]:
    if gpu() is None:
        return [{"name": "bench", "skipped": NO_GPU}]
    ready, rows = programs("bench")
    later = min(10.0 * len(ready), clock.left / 4)                      # kept for the programs
    for index, family in enumerate(FAMILIES):
        share = (clock.left - later) / (len(FAMILIES) - index)
        done, found = race(family, clock, max(20.0, share))
        rows.append(done | {"tables": found["tables"], "yardsticks": found.get("yardsticks", {})})
    for program in ready:
        done = attempt(f"{program.name} --bench", clock, program, "--bench", limit=30)
        rows.append(done | {"measured": measurements(done.get("output", ""))})
    return rows


RUNS = {"ast-gc": {"sparsity": [0.9, 0.95, 0.98]}, "dense": {}, "gse": {"sparsity": [0.95]}}


def stage_train(clock: Clock, options) -> list[dict]:
    rows = []
    if gpu() is None:
        rows.append({"name": "race training_step", "skipped": NO_GPU})
    else:
        done, found = race("training_step", clock, min(120, clock.left))
        rows.append(done | {"tables": found["tables"], "yardsticks": found.get("yardsticks", {})})
    data = options.data
    if not any((data / folder).exists() for folder in ("cifar-10-batches-bin", "cifar-10-batches-py")):
        why = "no CIFAR-10 in the folder that --data or SPARSEKERN_DATA names (default data/): neither cifar-10-batches-bin nor -py"
    else:
        why = NO_GPU if gpu() is None else None
    for name, settings in RUNS.items():
        if why:
            rows.append({"name": f"CIFAR-10 {name}", "skipped": why})
            continue
        config = {"algorithm": name, "data_dir": str(data), "epochs": options.epochs, **settings}
        done = attempt(f"CIFAR-10 {name}", clock, sys.executable, "scripts/gpu_train.py", json.dumps(config), limit=200)
        result = next(iter(measurements(done.get("output", ""))[-1:]), {})
        if "stopped after" in done.get("output", "")[-30:]:
            done = {"name": done["name"], "skipped": f"{LEFT_OUT}: not through after {done['seconds']:.0f} s"}
        rows.append(done | ({"result": result, "note": result["words"]} if result else {}))
    return rows


# ---- all of them ----

def summary(rows: list[dict], stage: str) -> None:
    for r in rows:
        verdict = "skipped" if "skipped" in r else "ok" if r["ok"] else "FAILED"
        print(f"{stage:9} {r['name']:44} {verdict:8} {r.get('seconds', ''):>7}  {r.get('skipped') or r.get('note', '')}")
        if verdict == "FAILED":
            print("    " + "\n    ".join(r["output"].splitlines()[-15:]))


def perform(name: str, options) -> list[dict]:
    """One stage, its record written where there is a GPU: without one an older record of a machine that has one stays."""
    print(f"=== {name}", flush=True)
    clock, before = Clock(options.seconds), evidence()
    rows = []
    if name != "build" and before["device"] and not built() and not getattr(options, "tried", False):      # a build that fails fails once
        rows = stage_build(clock, options)
    options.tried = True
    rows += globals()[f"stage_{name}"](clock, options)
    if before["device"] and not all("skipped" in r for r in rows):
        RESULTS.mkdir(exist_ok=True)
        target = RESULTS / f"gpu-{name}.json"
        tables = [table for r in rows for table in r.pop("tables", [])]
        yardsticks = next((r["yardsticks"] for r in rows if r.get("yardsticks")), {})
        more = {"yardsticks": yardsticks, "tables": tables} if name in ("bench", "train") else {}
        for r in rows:
            r["output"] = r.get("output", "")[-4000:]
        target.write_text(json.dumps(before | {"clocks_after": clocks(), "stage": name, "rows": rows} | more, indent=1) + "\n")
        print(f"  written: {target.relative_to(ROOT)}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="stage", help=" | ".join(STAGES))
    parser.add_argument("--seconds", type=float, default=480, help="of each stage (default 480)")
    parser.add_argument("--data", type=Path, default=os.environ.get("SPARSEKERN_DATA", ROOT / "data"), help="folder of CIFAR-10 (default data/)")
    parser.add_argument("--epochs", type=int, default=6, help="of the CIFAR-10 runs (default 6)")
    options = parser.parse_args()
    chosen = options.stages or STAGES
    if unknown := [name for name in chosen if name not in STAGES]:
        parser.error(f"unknown stage {unknown[0]!r}: expected some of {', '.join(STAGES)}")
    performed = [(name, perform(name, options)) for name in chosen]
    print(f"\n{'stage':9} {'what':44} {'result':8} seconds")
    for name, rows in performed:
        summary(rows, name)
    sys.exit(any("skipped" not in r and not r["ok"] for _, rows in performed for r in rows))


if __name__ == "__main__":
    main()

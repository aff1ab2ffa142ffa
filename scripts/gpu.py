"""Everything that needs a GPU, in stages that each run alone in a few minutes:

    python scripts/gpu.py [build] [test] [sanitize] [bench]      # all four by default; make gpu does that

build      the extension for this GPU, and the standalone programs of tests/native (these need only nvcc)
test       the standalone programs, then pytest -m gpu
sanitize   memcheck, racecheck, initcheck and synccheck of compute-sanitizer over the standalone programs
bench      kernels by themselves (standalone --bench), then beside their peers (benchmarks/gpu_*.py)

Each stage writes results/gpu-<stage>.json with what a figure needs beside it, and says so when it has to be skipped.
"""
import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD, RESULTS = ROOT / "build/standalone", ROOT / "results"
PROGRAMS = sorted((ROOT / "tests/native").glob("*_check.cu"))
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
LIMIT_S = 500                               # of one command: a stage must end well inside a ten-minute lease


def run(*command, timeout: float = LIMIT_S, **kwargs) -> subprocess.CompletedProcess:
    """Runs and captures; a command that runs out of time fails instead of raising."""
    text = [str(c) for c in command]
    print(f"  $ {shlex.join(text)}", flush=True)
    try:
        return subprocess.run(text, capture_output=True, text=True, cwd=ROOT, timeout=timeout, **kwargs)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(text, 124, "", f"stopped after {timeout:.0f} s")


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


def gpu() -> str | None:
    """Name and compute capability of the first GPU; None without one."""
    return query("name,compute_cap")


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
            "command": shlex.join([Path(sys.executable).name, *sys.argv]), "device": gpu(), "driver": query("driver_version"),
            "clocks": query("clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"),
            "nvcc": (answer(nvcc, "--version") or "").splitlines()[-1:] if nvcc else None,
            "python": platform.python_version(), "versions": {name: version(name) for name in ("torch", "triton", "numpy")}}


def row(name: str, done: subprocess.CompletedProcess, started: float, **more) -> dict:
    text = (done.stdout + done.stderr).strip()
    return {"name": name, "ok": done.returncode == 0, "seconds": round(time.monotonic() - started, 1), "output": text[-4000:], **more}


def stage_build() -> list[dict]:
    nvcc, device, rows = find("nvcc"), gpu(), []
    if nvcc is None:
        return [{"name": "build", "skipped": "no nvcc: set CUDA_HOME or install the CUDA toolkit"}]
    # Only for the GPU that is here: half the time.
    capability = device.split(",")[1].strip() if device else "9.0"
    code = capability.replace(".", "") + ("a" if capability.startswith("9") else "")
    BUILD.mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        started = time.monotonic()
        done = run(nvcc, "-std=c++17", "-O3", "-lineinfo", "-I", ROOT / "csrc", f"-gencode=arch=compute_{code},code=sm_{code}", program,
                   "-o", BUILD / program.stem)
        rows.append(row(program.stem, done, started))
    if device is None:
        return [*rows, {"name": "extension", "skipped": "no GPU: pip install -e . builds it for every architecture"}]
    started = time.monotonic()
    environment = os.environ | {"SPARSEKERN_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability + ("a" if code.endswith("a") else "")}
    done = run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-e", ".", env=environment)
    return [*rows, row("extension", done, started)]


def built(stage: str) -> list[Path] | list[dict]:
    """The standalone programs; instead of them the row that says why the stage is skipped."""
    if gpu() is None:
        return [{"name": stage, "skipped": "no GPU (nvidia-smi finds none)"}]
    programs = [BUILD / p.stem for p in PROGRAMS if (BUILD / p.stem).exists()]
    return programs or [{"name": stage, "skipped": "no standalone programs: run the stage build first"}]


def stage_test() -> list[dict]:
    programs, rows = built("test"), []
    if isinstance(programs[0], dict) and gpu() is None:
        return programs
    for program in programs:
        started = time.monotonic()
        rows.append(program if isinstance(program, dict) else row(program.name, run(program), started))
    started, report = time.monotonic(), BUILD / "pytest.xml"
    done = run(sys.executable, "-m", "pytest", "tests", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}")
    counts = ElementTree.parse(report).getroot().find("testsuite").attrib if report.exists() else {}
    kept = {key: int(counts[key]) for key in ("tests", "failures", "errors", "skipped") if key in counts}
    # pytest says 5 when nothing was collected: no test ran, which is no success.
    return [*rows, row("pytest -m gpu", done, started, **({"note": ", ".join(f"{n} {key}" for key, n in kept.items())} if kept else {}))]


def stage_sanitize() -> list[dict]:
    programs, sanitizer = built("sanitize"), find("compute-sanitizer")
    if isinstance(programs[0], dict):
        return programs
    if sanitizer is None:
        return [{"name": "sanitize", "skipped": "no compute-sanitizer: it is in the full CUDA toolkit"}]
    rows = []
    for program in programs:
        for tool in SANITIZERS:
            started = time.monotonic()
            done = run(sanitizer, "--tool", tool, "--error-exitcode", "9", program, timeout=120)
            rows.append(row(f"{program.name} {tool}", done, started))
    return rows


def measurements(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def stage_bench() -> list[dict]:
    programs = built("bench")
    if isinstance(programs[0], dict):
        return programs
    rows = []
    commands = [(p.name, (p, "--bench")) for p in programs]
    commands += [(p.stem, (sys.executable, p)) for p in sorted((ROOT / "benchmarks").glob("gpu_*.py"))]
    for name, command in commands:
        started = time.monotonic()
        done = run(*command, timeout=200)
        rows.append(row(name, done, started, measured=measurements(done.stdout)))
        for line in rows[-1]["measured"]:
            print("    " + "  ".join(f"{key} {value}" for key, value in line.items()))
    return rows


def main() -> None:
    stages = {"build": stage_build, "test": stage_test, "sanitize": stage_sanitize, "bench": stage_bench}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="stage", help=" | ".join(stages))
    chosen = parser.parse_args().stages or list(stages)
    if unknown := [name for name in chosen if name not in stages]:
        parser.error(f"unknown stage {unknown[0]!r}: expected one of {', '.join(stages)}")
    device, summary = gpu(), []
    for name in chosen:
        print(f"=== {name}", flush=True)
        rows = stages[name]()
        summary += [(name, r) for r in rows]
        if device is None or all("skipped" in r for r in rows):        # an older record of a machine with a GPU stays
            continue
        RESULTS.mkdir(exist_ok=True)
        target = RESULTS / f"gpu-{name}.json"
        target.write_text(json.dumps(evidence() | {"stage": name, "rows": rows}, indent=1) + "\n")
        print(f"  written: {target.relative_to(ROOT)}")
    print(f"\n{'stage':9} {'what':40} {'result':8} seconds")
    for name, r in summary:
        verdict = "skipped" if "skipped" in r else "ok" if r["ok"] else "FAILED"
        print(f"{name:9} {r['name']:40} {verdict:8} {r.get('seconds', ''):>7}  {r.get('skipped') or r.get('note', '')}")
        if verdict == "FAILED":
            print("    " + "\n    ".join(r["output"].splitlines()[-15:]))
    sys.exit(any("skipped" not in r and not r["ok"] for _, r in summary))


if __name__ == "__main__":
    main()

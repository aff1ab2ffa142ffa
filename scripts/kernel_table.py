"""Every GPU kernel of the repository: for what it was compiled, what it takes, where it was emulated, and whether a GPU has run it.

    python scripts/kernel_table.py                # the built extension; writes results/kernels.md and results/kernels.json
    python scripts/kernel_table.py --compile      # csrc/cuda/*.cu compiled afresh: also counts spills
    python scripts/kernel_table.py --no-triton    # without compiling the Triton kernels ahead of time

A kernel's variants (template arguments, rows of an AOT table) share a line: registers and shared memory are the most of any. Shared
memory is what the binary states; a CUDA kernel may ask for more when it is launched. "Emulated" names the programs of tests/native that
include the kernel's source and run under csrc/simt, and the files of tests/cuda that call its ops; Triton kernels run in Triton's
interpreter. "Run on a GPU" is the commit at which results/gpu-test.json saw one of its programs or test files pass.
"""
import argparse
import functools
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import check_cuda_resources as cuda  # noqa: E402

ROOT = cuda.ROOT
CSRC, TESTS = ROOT / "csrc", ROOT / "tests"
DECLARED = r"^\w[\w:<>]* (launch_\w+)\("          # a launcher's name behind its type: declared or defined


@functools.cache
def included(path: Path) -> set[Path]:
    """The file and what it includes of csrc, however deep."""
    found, todo = set(), [path]
    while todo:
        here = todo.pop()
        if here in found:
            continue
        found.add(here)
        for name in re.findall(r'^#include "([^"]+)"', here.read_text(), re.MULTILINE):
            todo += [p for p in (CSRC / name, here.parent / name) if p.exists()]
    return found


def homes() -> dict[str, Path]:
    """kernel -> the .cuh that defines it."""
    found = {}
    for path in sorted((CSRC / "cuda").glob("*.cuh")):
        for name in re.findall(r"__global__\b[^;{]*?\b(\w+_kernel)\(", path.read_text(), re.DOTALL):
            found[name] = path
    return found


@functools.cache
def uses(source: Path) -> set[str]:
    """The launchers that a source names, itself or in a header of csrc/cuda with code in it; a declaration is no use."""
    texts = [p.read_text() for p in included(source) if p.parent.name == "cuda" and p.suffix != ".cuh"]
    return {name for text in texts for name in re.findall(r"\blaunch_\w+", re.sub(rf"{DECLARED}[^;{{]*", "", text, flags=re.MULTILINE))}


@functools.cache
def ops_of(home: Path) -> set[str]:
    """Names of the ops whose bindings launch what this file defines, also by way of other launchers."""
    public = {name for p in (CSRC / "cuda").glob("*.h") for name in re.findall(DECLARED, p.read_text(), re.MULTILINE)}
    sources = {p: (public & set(re.findall(DECLARED, p.read_text(), re.MULTILINE)), uses(p)) for p in (CSRC / "cuda").glob("*.cu")}
    launchers = {name for p, (defined, _) in sources.items() if home in included(p) for name in defined}
    while more := {name for defined, used in sources.values() if used & launchers for name in defined} - launchers:
        launchers |= more
    bindings = [p for p in (CSRC / "cuda").glob("*_op.cpp") if uses(p) & launchers]
    return {name.partition(".")[0] for p in bindings for name in re.findall(r'\bimpl\("([\w.]+)"', p.read_text())}


def named(text: str, words: set[str]) -> bool:
    return any(re.search(rf"\b{re.escape(word)}\b", text) for word in words)


def emulated(home: Path) -> list[str]:
    programs = [p for p in sorted((TESTS / "native").glob("*_check.cu")) if home in included(p)]
    ops = ops_of(home)
    files = [p for p in sorted((TESTS / "cuda").glob("test_*.py")) if named(p.read_text(), ops) or (ops and "op_names" in p.read_text())]
    return [str(p.relative_to(ROOT)) for p in programs + files]


def passed(record: dict) -> dict[str, str]:
    """program or test file -> the commit at which it passed on a GPU."""
    def ran(row: dict) -> bool:
        counts = row.get("counts")
        return row.get("ok", False) and (counts is None or counts["tests"] > counts["skipped"])
    return {row["name"]: (record.get("commit") or "unknown")[:10] for row in record.get("rows", []) if ran(row)}


def gpu_runs() -> dict[str, str]:
    path = ROOT / "results/gpu-test.json"
    return passed(json.loads(path.read_text())) if path.exists() else {}


def on_a_gpu(runs: dict[str, str], proofs: list[str]) -> str:
    names = {Path(proof).stem if proof.startswith("tests/native") else proof for proof in proofs}
    return next((commit for name, commit in runs.items() if name in names), "not yet")


def gpu_tests(ops: set[str]) -> list[str]:
    files = [p for p in sorted((TESTS / "gpu").glob("test_*.py")) if named(p.read_text(), ops) or "op_names" in p.read_text()]
    return [str(p.relative_to(ROOT)) for p in files] if ops else []


def cuda_rows(afresh: bool, runs: dict[str, str]) -> list[dict]:
    kernels, spills = cuda.gather(afresh)
    names, where = cuda.short_names({symbol for symbol, _ in kernels}), homes()
    found: dict[str, dict] = {}
    for (symbol, arch), data in kernels.items():
        base = names[symbol].partition("<")[0]
        row = found.setdefault(base, {"kernel": base, "kind": "CUDA", "variants": set(), "targets": defaultdict(lambda: [0, 0]),
                                      "spills": 0, "stack": 0})
        row["variants"].add(symbol)
        most = row["targets"][arch]
        most[:] = max(most[0], data["REG"]), max(most[1], data["SHARED"])
        row["spills"] = max(row["spills"], spills.get(symbol, 0))
        row["stack"] = max(row["stack"], data["STACK"], data["LOCAL"])
    for base, row in found.items():
        home = where.get(base)
        proofs = emulated(home) if home else []
        row |= {"source": str(home.relative_to(ROOT)) if home else "a library", "variants": len(row["variants"]), "targets": dict(row["targets"]),
                "emulated": proofs, "gpu": on_a_gpu(runs, proofs + (gpu_tests(ops_of(home)) if home else []))}
    return sorted(found.values(), key=lambda row: (row["source"], row["kernel"]))


def triton_rows(runs: dict[str, str]) -> list[dict]:
    import check_triton_aot as aot
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(aot.KERNELS.glob("*.py")):
            if path.stem == "__init__":
                continue
            proofs = [p for p in (TESTS / f"test_{path.stem}_triton.py", TESTS / f"test_{path.stem}.py") if p.exists()
                      and re.search("interpret|each_implementation", p.read_text())]
            # Where a CUDA kernel is live a test of the op runs that one; only a file that speaks of Triton shows anything.
            tests = [name for name in gpu_tests({path.stem, f"{path.stem}_"}) if "triton" in (ROOT / name).read_text().lower()]
            for entry in getattr(importlib.import_module(f"sparsekern.triton_kernels.{path.stem}"), "AOT", []):
                name = entry["kernel"].__name__
                row = found.setdefault(name, {"kernel": name, "kind": "Triton", "source": str(path.relative_to(ROOT)), "variants": 0, "targets": {},
                                              "spills": 0, "stack": 0, "emulated": [str(p.relative_to(ROOT)) for p in proofs],
                                              "gpu": on_a_gpu(runs, tests)})
                row["variants"] += 1
                for architecture in aot.ARCHITECTURES:
                    figures = aot.figures(entry, architecture, folder)
                    most = row["targets"].setdefault(f"sm_{architecture}", [0, 0])
                    most[:] = max(most[0], figures["REG"]), max(most[1], figures["SHARED"])
                    row["spills"], row["stack"] = max(row["spills"], figures["LOCAL"]), max(row["stack"], figures["STACK"])
    return sorted(found.values(), key=lambda row: (row["source"], row["kernel"]))


def markdown(rows: list[dict], command: str) -> str:
    targets = sorted({target for row in rows for target in row["targets"]})
    count = {kind: sum(row["kind"] == kind for row in rows) for kind in ("CUDA", "Triton")}
    absent = [row["kernel"] for row in rows if row["kind"] == "CUDA" and not row["emulated"] and row["source"] != "a library"]
    run = sum(row["gpu"] != "not yet" for row in rows)
    lines = ["# GPU kernels", "", f"`{command}`: {count['CUDA']} CUDA and {count['Triton']} Triton kernels; {run} of them have run on a GPU. "
             "Registers and bytes of shared memory are the most of any variant; shared memory is what the binary states.", "",
             "Compiled but not emulated: " + (", ".join(absent) or "none") + ".", "",
             "| kernel | source | variants | " + " | ".join(f"{target}: registers, shared" for target in targets)
             + " | spills, stack | emulated by | run on a GPU |", "| --- | --- | --- |" + " --- |" * (len(targets) + 3)]
    for row in rows:
        cells = [", ".join(map(str, row["targets"][target])) if target in row["targets"] else "" for target in targets]
        proofs = ", ".join(Path(proof).stem for proof in row["emulated"]) or "no"
        cells = [row["kernel"], row["source"], str(row["variants"]), *cells, f"{row['spills']}, {row['stack']}", proofs, row["gpu"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="compile the sources instead of reading the built extension")
    parser.add_argument("--no-triton", action="store_true", help="leave the Triton kernels out")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of kernels.md and kernels.json (default results/)")
    arguments = parser.parse_args()
    runs = gpu_runs()
    rows = cuda_rows(arguments.compile, runs) + ([] if arguments.no_triton else triton_rows(runs))
    command = " ".join(["python scripts/kernel_table.py"] + ["--compile"] * arguments.compile + ["--no-triton"] * arguments.no_triton)
    commit = subprocess.run(["git", "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    command += f" at commit {commit}" if commit else ""
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "kernels.md").write_text(markdown(rows, command))
    (arguments.out / "kernels.json").write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
    print(markdown(rows, command), end="")


if __name__ == "__main__":
    main()

"""Hold every compiled CUDA kernel against what its source promises: registers, stack, spills, instructions. Needs no GPU.

    python scripts/check_cuda_resources.py              # the built extension, all its architectures
    python scripts/check_cuda_resources.py --compile    # compile csrc/cuda/*.cu afresh, every warning an error; prints spills

Lines of csrc/cuda/*.cuh that start a comment with these words are read; a pattern is the start of a kernel's name, and the
longest that fits counts. A kernel without a budget is an error.

    // budget: masked_sgd_kernel<float 64              most registers
    // promise: masked_sgd_kernel LDG.E.128 no-fp64    instructions that must occur; no-fp64: no double arithmetic
    // allow-stack: some_kernel 32                     bytes of stack; 0 where nothing is said
"""
import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FP64 = {"DADD", "DFMA", "DMUL", "DSETP", "DMNMX"}
ARCHES = {"sm_80": "compute_80", "sm_90a": "compute_90a"}


def tool(name: str) -> str | None:
    """A CUDA binary tool from the PATH, the toolkit, or the triton wheel."""
    spec = importlib.util.find_spec("triton")
    folders = [Path("/usr/local/cuda/bin")] + ([Path(spec.origin).parent / "backends/nvidia/bin"] if spec and spec.origin else [])
    return shutil.which(name) or next((str(f / name) for f in folders if (f / name).exists()), None)


def output(*command) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def promises(kind: str) -> dict[str, str]:
    found = {}
    for path in sorted((ROOT / "csrc/cuda").glob("*.cuh")):
        for line in path.read_text().splitlines():
            if match := re.match(rf"// {kind}: (\S+) (.+)", line):
                found[match[1]] = match[2]
    return found


def lookup(table: dict[str, str], kernel: str) -> str | None:
    fitting = [pattern for pattern in table if kernel.startswith(pattern)]
    return table[max(fitting, key=len)] if fitting else None


def short_names(mangled: set[str]) -> dict[str, str]:
    """masked_sgd_kernel<float, float, 80> for each symbol."""
    names = sorted(mangled)
    if not shutil.which("c++filt") or not names:
        return {name: re.sub(r"^_Z.*?(\d+)([a-z]\w*_kernel).*", r"\2", name) for name in names}
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.splitlines()
    short = {}
    for name, text in zip(names, plain):
        # The name ends where its template arguments close, or at the parameter list.
        start = re.search(r"\w+(?=[<(])", re.sub(r"\(anonymous namespace\)::", "", text.replace("sparsekern::", "").replace("cuda::", "")))
        text = start.string[start.start():]
        depth, end = 0, len(text)
        for i, c in enumerate(text):
            depth += (c == "<") - (c == ">")
            if c == "(" and depth == 0:
                end = i
                break
        short[name] = text[:end]
    return short


def read(binary: Path, cuobjdump: str) -> dict[tuple[str, str], dict]:
    """(kernel symbol, architecture) -> resources and the set of instructions."""
    found: dict[tuple[str, str], dict] = defaultdict(lambda: {"ops": set()})
    arch = ""
    for line in output(cuobjdump, "-res-usage", binary).splitlines():
        if match := re.search(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function (\S+):", line):
            symbol = match[1]
        elif "REG:" in line:
            found[symbol, arch].update({key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", line)})
    for line in output(cuobjdump, "-sass", binary).splitlines():
        if match := re.search(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.search(r"Function : (\S+)", line):
            symbol = match[1]
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", line):
            found[symbol, arch]["ops"].add(match[1])
    return {key: value for key, value in found.items() if "REG" in value}


def compile_all(folder: Path) -> tuple[list[Path], dict[str, int]]:
    """One fat object per source, and the largest spill of each kernel."""
    nvcc = tool("nvcc") or sys.exit("check_cuda_resources: nvcc is not on the PATH and not in /usr/local/cuda/bin")
    objects, spills = [], {}
    for source in sorted((ROOT / "csrc/cuda").glob("*.cu")):
        target = folder / f"{source.stem}.o"
        codes = [f"-gencode=arch={virtual},code={real}" for real, virtual in ARCHES.items()]
        log = output(nvcc, "-std=c++17", "-O3", "-I", ROOT / "csrc", "--threads", "2", "-Xptxas", "-v", "-Werror", "all-warnings", *codes,
                     "-c", source, "-o", target)
        symbol = ""
        for line in log.splitlines():
            if match := re.search(r"Function properties for (\S+)", line):
                symbol = match[1]
            elif match := re.search(r"(\d+) bytes spill stores", line):
                spills[symbol] = max(spills.get(symbol, 0), int(match[1]))
        objects.append(target)
    return objects, spills


def occurs(wanted: str, ops: set[str]) -> bool:
    """LDG.E.128 also as LDG.E.EF.128: same instruction, all modifiers there."""
    base, *parts = wanted.split(".")
    return any(op.split(".")[0] == base and set(parts) <= set(op.split(".")) for op in ops)


def complaints(name: str, data: dict, spill: int, tables: dict[str, dict[str, str]]) -> list[str]:
    budget = lookup(tables["budget"], name)
    bad = [] if budget else ["no `// budget:` line"]
    if budget and data["REG"] > int(budget):
        bad.append(f"{data['REG']} registers, budget {budget}")
    allowed = int((lookup(tables["allow-stack"], name) or "0").split()[0])
    if max(data["STACK"], data["LOCAL"]) > allowed:
        bad.append(f"{max(data['STACK'], data['LOCAL'])} bytes of stack, allowed {allowed}")
    if spill:
        bad.append(f"{spill} bytes of spills")
    for wanted in (lookup(tables["promise"], name) or "").split():
        if wanted == "no-fp64":
            double = sorted({op for op in data["ops"] if op.split(".")[0] in FP64})
            bad += [f"double arithmetic: {', '.join(double)}"] if double else []
        elif not occurs(wanted, data["ops"]):
            bad.append(f"no {wanted}")
    return bad


def gather(afresh: bool) -> tuple[dict[tuple[str, str], dict], dict[str, int]]:
    """What `read` finds in the built extension, or in the sources compiled afresh, and then the spills of each kernel."""
    cuobjdump = tool("cuobjdump")
    if cuobjdump is None:
        raise SystemExit("check_cuda_resources: no cuobjdump; it is in the CUDA toolkit and in the triton wheel (pip install triton)")
    with tempfile.TemporaryDirectory() as folder:
        spills: dict[str, int] = {}
        if afresh:
            binaries, spills = compile_all(Path(folder))
        else:
            binaries = sorted((ROOT / "sparsekern").glob("_C*.so"))
            sources = [p for room in ("cuda", "common", "simt") for p in (ROOT / "csrc" / room).glob("*") if p.suffix != ".cpp"]
            if not binaries or binaries[0].stat().st_mtime < max(p.stat().st_mtime for p in sources):
                raise SystemExit("check_cuda_resources: the extension is missing or older than its sources: pip install -e ., or --compile")
        kernels = {key: value for binary in binaries for key, value in read(binary, cuobjdump).items()}
    if not kernels:
        raise SystemExit("check_cuda_resources: no CUDA kernels in the extension: built without nvcc (SPARSEKERN_CUDA=1 insists on it)")
    return kernels, spills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="compile the sources instead of reading the built extension")
    arguments = parser.parse_args()
    kernels, spills = gather(arguments.compile)
    names = short_names({symbol for symbol, _ in kernels})
    tables = {kind: promises(kind) for kind in ("budget", "promise", "allow-stack")}
    width = max(map(len, names.values()))
    print(f"{'kernel':{width}}  arch    registers (budget)  stack  spills  shared")
    failed = 0
    for (symbol, arch), data in sorted(kernels.items(), key=lambda item: (names[item[0][0]], item[0][1])):
        name, spill = names[symbol], spills.get(symbol, 0)
        bad = complaints(name, data, spill, tables)
        failed += bool(bad)
        shown = str(spill) if arguments.compile else "-" if data["STACK"] else "0"      # a kernel without a stack spills nothing
        budget = lookup(tables["budget"], name) or "?"
        print(f"{name:{width}}  {arch:6} {data['REG']:6} ({budget:>3}) {data['STACK']:14} {shown:>7} {data['SHARED']:7}"
              + (f"   FAILS: {'; '.join(bad)}" if bad else ""))
    print(f"{len(kernels)} kernels, {failed} outside what their sources promise")
    sys.exit(failed != 0)


if __name__ == "__main__":
    main()

"""Compile every Triton kernel ahead of time for sm_80 and sm_90, without a GPU, and fail on spills or too much shared memory.

    python scripts/check_triton_aot.py [module ...]      # names of files in triton_kernels/; all by default

What is compiled is each module's table AOT; its format is in triton_kernels/__init__.py. The report is one line per kernel
and architecture: registers, stack, shared memory, local memory, from cuobjdump -res-usage of the cubin.
"""
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)                # before triton is imported: its decorator decides
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what 3.10 changes; launches that need it off say so

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

KERNELS = Path(__file__).resolve().parent.parent / "triton_kernels"
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
ARCHITECTURES = (80, 90)
SHARED_LIMIT = 227 * 1024


def source(row: dict) -> ASTSource:
    """The row in the kernel's own parameter order; a missing or unknown parameter is an error."""
    names, signature = row["kernel"].arg_names, row["signature"]
    if set(names) != set(signature):
        raise ValueError(f"signature: expected the parameters {names}, got {list(signature)}")
    constants = {name for name, kind in signature.items() if kind == "constexpr"}
    if constants != set(row["constexprs"]):
        raise ValueError(f"constexprs: expected values of {sorted(constants)}, got {sorted(row['constexprs'])}")
    return ASTSource(fn=row["kernel"], signature={name: signature[name] for name in names}, constexprs=row["constexprs"],
                     attrs=row.get("attrs", {}))


def usage(cubin: bytes, folder: str) -> dict[str, int]:
    """REG, STACK, SHARED, LOCAL of the one kernel in a cubin."""
    path = Path(folder) / "kernel.cubin"
    path.write_bytes(cubin)
    text = subprocess.run([CUOBJDUMP, "-res-usage", path], check=True, capture_output=True, text=True).stdout
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    if set(found) != {"REG", "STACK", "SHARED", "LOCAL"}:
        raise ValueError(f"cuobjdump -res-usage: expected REG, STACK, SHARED and LOCAL, got {text!r}")
    return found


def figures(row: dict, architecture: int, folder: str) -> dict[str, int]:
    """REG, STACK, SHARED, LOCAL of a row compiled for an architecture; SHARED counts what a launch asks for, too."""
    options = {key: row[key] for key in ("num_warps", "num_stages") if key in row}
    kernel = triton.compile(source(row), target=GPUTarget("cuda", architecture, 32), options=options)
    found = usage(kernel.asm["cubin"], folder)
    return found | {"SHARED": max(found["SHARED"], kernel.metadata.shared)}


def check(module: str, folder: str) -> tuple[int, list[str]]:
    """Compile a module's table; the number of cubins and what is wrong with them."""
    loaded = importlib.import_module(f"sparsekern.triton_kernels.{module}")
    table, faults = getattr(loaded, "AOT", []), []
    own = {name for name, value in vars(loaded).items()
           if isinstance(value, JITFunction) and name.endswith("_kernel") and value.fn.__module__ == loaded.__name__}
    listed = {row["kernel"].__name__ for row in table}
    faults += [f"{module}.{name}: not in the module's AOT table" for name in sorted(own - listed)]
    count = 0
    for row in table:
        label = f"{module}.{row['kernel'].__name__}" + (f" [{row['name']}]" if "name" in row else "")
        for architecture in ARCHITECTURES:
            try:
                found = figures(row, architecture, folder)
            except Exception as error:                  # the report goes on; any kind of failure is a fault of this row
                faults.append(f"{label} sm_{architecture}: {type(error).__name__}: {error}")
                continue
            count += 1
            shared = found["SHARED"]
            words = f"{found['REG']:4d} registers  {found['STACK']:4d} stack  {shared:7d} shared  {found['LOCAL']:4d} local"
            print(f"sm_{architecture}  {words}  {label}")
            if found["STACK"] or found["LOCAL"]:
                faults.append(f"{label} sm_{architecture}: spills or keeps a stack: STACK {found['STACK']}, LOCAL {found['LOCAL']}")
            if shared > SHARED_LIMIT:
                faults.append(f"{label} sm_{architecture}: {shared} bytes of shared memory, limit {SHARED_LIMIT}")
    return count, faults


def main(arguments: list[str]) -> int:
    modules = arguments or sorted(path.stem for path in KERNELS.glob("*.py") if path.stem != "__init__")
    start, total, faults = time.perf_counter(), 0, []
    with tempfile.TemporaryDirectory() as folder:
        for module in modules:
            count, more = check(module, folder)
            total, faults = total + count, faults + more
    print(f"{total} cubins of {len(modules)} modules in {time.perf_counter() - start:.1f} s, triton {triton.__version__}")
    for fault in faults:
        print(f"FAULT {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

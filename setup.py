"""Builds sparsekern._C (the C++ kernels always, the CUDA kernels when nvcc is found) and sparsekern._host (helpers without torch).

SPARSEKERN_CUDA = auto (default: CUDA when nvcc is found), 0 (never), 1 (an error without nvcc).
Without any C++ compiler the install still succeeds and the package runs on its PyTorch references.
"""
import json
import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
CUDA_ARCHES = "8.0;9.0a"                   # what CI compiles; TORCH_CUDA_ARCH_LIST overrides


def cuda_home() -> str | None:
    """A folder with both nvcc and the runtime headers; a wrapper script named nvcc does not count."""
    wanted = os.environ.get("SPARSEKERN_CUDA", "auto").lower()
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"SPARSEKERN_CUDA: expected auto, 0 or 1, got {wanted!r}")
    if wanted == "0":
        return None
    nvcc = shutil.which("nvcc")
    guesses = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    guesses += [str(Path(nvcc).resolve().parent.parent)] if nvcc else []
    for guess in filter(None, guesses):
        if (Path(guess) / "bin/nvcc").exists() and (Path(guess) / "include/cuda_runtime.h").exists():
            return guess
    if wanted == "1":
        raise SystemExit("SPARSEKERN_CUDA=1 asks for the CUDA kernels, but no CUDA toolkit was found (looked at CUDA_HOME, CUDA_PATH, "
                         f"/usr/local/cuda and nvcc on the PATH: {nvcc}). Install nvcc 13 or set SPARSEKERN_CUDA=auto.")
    return None


def compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def extension():
    home = cuda_home()
    if home:
        os.environ["CUDA_HOME"] = home     # before cpp_extension is imported: it looks only once
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHES)
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 2))
    import torch
    from torch.utils import cpp_extension

    sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc/cpu").glob("*.cpp"))
    headers = sorted(str(p) for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cuh"))
    # No -march: variants for AVX2 and AVX-512 are picked at run time. No contraction: every variant rounds alike.
    cxx = ["-O2", "-g0", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wextra",
           "-Wno-maybe-uninitialized", "-Wno-uninitialized", "-Wno-unused-parameter", "-Wno-unknown-pragmas"]
    nvcc = ["-O3", "--threads", "2", "-Xptxas", "-v", "-Xcompiler", "-ffp-contract=off"]
    link, macros = ["-fopenmp"], []
    if home:
        cpp_extension.CUDA_HOME = home     # a CPU-only torch leaves it None, whatever the environment says
        sources += sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc/cuda").glob("*.cu"))
        sources += sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc/cuda").glob("*_op.cpp"))
        macros.append(("SPARSEKERN_WITH_CUDA", "1"))
        # torch's own runtime where there is one; else static, so that the result imports without a driver.
        link += [f"-L{home}/lib64"] + (["-lcudart"] if torch.version.cuda else ["-lcudart_static", "-ldl", "-lrt", "-lpthread"])
        # The weak symbol that gives the current stream (csrc/cuda/stream.h) does not pull this library in by itself.
        link += ["-Wl,--no-as-needed", "-ltorch_cuda", "-Wl,--as-needed"] if torch.version.cuda else []
    ext = cpp_extension.CppExtension("sparsekern._C", sources, include_dirs=[str(ROOT / "csrc")] + ([f"{home}/include"] if home else []),
                                     define_macros=macros, depends=headers, py_limited_api=True,
                                     extra_compile_args={"cxx": cxx, "nvcc": nvcc}, extra_link_args=link)
    # One file of plain C++ for plain Python numbers; pybind11's headers come with torch.
    host = Extension("sparsekern._host", ["csrc/host/module.cpp"], include_dirs=[str(ROOT / "csrc"), *cpp_extension.include_paths()], language="c++",
                     depends=headers, extra_compile_args=["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-Wno-maybe-uninitialized"])
    info = {"torch": torch.__version__, "cuda": bool(home), "arches": os.environ.get("TORCH_CUDA_ARCH_LIST") if home else None}

    class Build(cpp_extension.BuildExtension):
        def run(self):
            if compiler() is None:
                print("sparsekern: no C++ compiler found; installing without compiled kernels (PyTorch references serve)", file=sys.stderr)
                self.extensions = []
                return
            super().run()
            target = Path(self.get_ext_fullpath("sparsekern._C")).parent
            target.mkdir(parents=True, exist_ok=True)
            (target / "_build.json").write_text(json.dumps(info))
            if self.inplace:
                (ROOT / "sparsekern/_build.json").write_text(json.dumps(info))

    return [ext, host], Build


def packages() -> list[str]:
    inside = [".".join(p.relative_to(ROOT).parent.parts) for p in sorted((ROOT / "sparsekern").rglob("__init__.py"))]
    return inside + ["sparsekern.triton_kernels"]


if __name__ == "__main__":
    extensions, Build = extension()
    setup(
        packages=packages(),
        # The folder stays at the top, where kernel readers look for it; the import name is ours alone.
        package_dir={"sparsekern.triton_kernels": "triton_kernels"},
        package_data={"sparsekern": ["_build.json"]},
        ext_modules=extensions,
        cmdclass={"build_ext": Build},
    )

"""Every CUDA binding, launcher and kernel from the tensors on, twice: on a GPU, and as host C++ over the emulator of csrc/simt.

The emulated lane compiles csrc/cuda/*.cu and *_op.cpp with the C++ compiler into one library whose ops take CPU tensors and stand in
a namespace of their own. It shows wrong indices, sizes, dtypes, strides, tails and barriers; not races, memory faults or speed.
"""
import os
import shutil
from pathlib import Path

import pytest
import torch

from sparsekern import ops
from sparsekern._native import native

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"


class Lane:
    """Where CUDA ops run: `op(name)` is the op ("topk_mask.int_k" names an overload), `put` brings tensors there."""

    def __init__(self, namespace, device: str):
        self.namespace, self.device, self.emulated = namespace, torch.device(device), device == "cpu"

    def op(self, name: str):
        packet, _, overload = name.partition(".")
        return getattr(getattr(self.namespace, packet), overload or "default")

    def put(self, value):
        """A tensor, or lists and dicts of them, copied to the device; anything else as it is."""
        if isinstance(value, torch.Tensor):
            return value.clone() if self.emulated else value.to(self.device)
        if isinstance(value, dict):
            return {key: self.put(item) for key, item in value.items()}
        return type(value)(self.put(item) for item in value) if isinstance(value, (list, tuple)) else value


def _emulated_library() -> None:
    """Builds (only what changed) and loads it; every op's schema is that of the real one."""
    from torch.utils import cpp_extension

    build = ROOT / "build/simt"
    build.mkdir(parents=True, exist_ok=True)
    sources = [str(path) for path in sorted((CSRC / "cuda").glob("*_op.cpp"))]
    for path in sorted((CSRC / "cuda").glob("*.cu")):
        twin = build / f"{path.stem}_simt.cpp"
        text = f'#include "simt/simt.h"\n#include "cuda/{path.name}"\n'
        if not twin.exists() or twin.read_text() != text:
            twin.write_text(text)
        sources.append(str(twin))
    library = torch.library.Library("sparsekern_simt", "DEF")
    for name in ops.op_names():
        packet, _, overload = name.partition(".")
        schema = str(torch._C._get_schema(f"sparsekern::{packet}", overload))
        library.define(schema.removeprefix("sparsekern::"))
    globals()["_library"] = library                                     # ops live as long as the object does
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 2))
    flags = ["-DSPARSEKERN_SIMT", "-O1", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wno-unknown-pragmas", "-Wno-attributes"]
    cpp_extension.load("sparsekern_simt", sources, extra_cflags=flags, extra_include_paths=[str(CSRC)], build_directory=str(build),
                       is_python_module=False, with_cuda=False)


@pytest.fixture(scope="session")
def _emulated():
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler for the emulated CUDA kernels")
    _emulated_library()
    return Lane(torch.ops.sparsekern_simt, "cpu")


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def lane(request):
    """The CUDA implementation of every op, emulated and (where there is a GPU) real."""
    if request.param == "emulated":
        return request.getfixturevalue("_emulated")
    if not native.cuda:
        pytest.skip("built without CUDA")
    return Lane(torch.ops.sparsekern, "cuda")

"""Every CUDA binding, launcher and kernel from the tensors on, twice: on a GPU, and as host C++ over the emulator of csrc/simt.

The emulated lane compiles csrc/cuda/*.cu and *_op.cpp with the C++ compiler into one library whose ops take CPU tensors and stand in
a namespace of their own. It shows wrong indices, sizes, dtypes, strides, tails and barriers; not races, memory faults or speed.
"""
import ctypes
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

    def has(self, name: str) -> bool:
        """Whether the op has CUDA C++ of its own."""
        space, key = ("sparsekern_simt", "CPU") if self.emulated else ("sparsekern", "CUDA")
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"{space}::{name}", key)

    def shuffle(self, seed: int) -> None:
        """Emulated threads of a block take turns in an order drawn from `seed` (0: in order); a GPU has its own."""
        if self.emulated:
            switch = ctypes.CDLL(str(ROOT / "build/simt/sparsekern_simt.so")).sparsekern_simt_shuffle
            switch(ctypes.c_uint64(seed))

    def put(self, value):
        """A tensor, or lists and dicts of them, copied to the device; anything else as it is."""
        if isinstance(value, torch.Tensor):
            return value.clone() if self.emulated else value.to(self.device)
        if isinstance(value, dict):
            return {key: self.put(item) for key, item in value.items()}
        return type(value)(self.put(item) for item in value) if isinstance(value, (list, tuple)) else value


def _emulated_library() -> torch.library.Library:
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
    switch = build / "shuffle_simt.cpp"                                 # the order of the emulated threads
    switch.write_text('#include "simt/simt.h"\nextern "C" __attribute__((visibility("default"))) void sparsekern_simt_shuffle(uint64_t seed) '
                      "{ simt::shuffle = seed; }\n") if not switch.exists() else None
    sources.append(str(switch))
    library = torch.library.Library("sparsekern_simt", "DEF")
    for name in ops.op_names():
        packet, _, overload = name.partition(".")
        schema = str(torch._C._get_schema(f"sparsekern::{packet}", overload))
        library.define(schema.removeprefix("sparsekern::"))
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 2))
    flags = ["-DSPARSEKERN_SIMT", "-O1", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wno-unknown-pragmas", "-Wno-attributes"]
    cpp_extension.load("sparsekern_simt", sources, extra_cflags=flags, extra_include_paths=[str(CSRC)], build_directory=str(build),
                       is_python_module=False, with_cuda=False)
    return library                                                      # the ops live as long as this object does


@pytest.fixture(scope="session")
def _emulated():
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler for the emulated CUDA kernels")
    library = _emulated_library()
    yield Lane(torch.ops.sparsekern_simt, "cpu")
    del library


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def lane(request):
    """The CUDA implementation of every op, emulated and (where there is a GPU) real."""
    if request.param == "emulated":
        return request.getfixturevalue("_emulated")
    if not native.cuda:
        pytest.skip("built without CUDA")
    return Lane(torch.ops.sparsekern, "cuda")

"""Loads the compiled kernels if they are there, and knows why not if they are not."""
import ctypes
import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Native:
    """What the compiled extension offers. `reason` says why it is absent."""
    available: bool
    reason: str = ""
    path: str = ""
    torch: str = ""
    cuda: bool = False
    arches: str | None = None
    library: ctypes.CDLL | None = None

    @property
    def isa(self) -> str:
        """The CPU instruction set in use: "scalar", "avx2" or "avx512"; "none" without compiled kernels."""
        return ctypes.string_at(self.library.sparsekern_isa()).decode() if self.available else "none"

    def set_isa(self, name: str) -> str:
        """Force an instruction set (tests do); "auto" goes back to the best one. Returns the one in use."""
        if not self.available:
            return "none"
        if self.library.sparsekern_set_isa(name.encode()) != 0:
            raise ValueError(f"set_isa: expected auto, scalar, avx2 or avx512 as this CPU supports them, got {name!r}")
        return self.isa


def _load() -> Native:
    if os.environ.get("SPARSEKERN_NATIVE") == "0":
        return Native(False, "switched off by SPARSEKERN_NATIVE=0")
    here = Path(__file__).parent
    found = sorted(here.glob("_C*.so")) + sorted(here.glob("_C*.pyd"))
    if not found:
        return Native(False, "not built: no _C library beside the package (no C++ compiler at install time?)")
    record = here / "_build.json"
    built = json.loads(record.read_text()) if record.exists() else {}
    running = torch.__version__.split("+")[0].split(".")[:2]
    if built and built["torch"].split("+")[0].split(".")[:2] != running:
        return Native(False, f"built against torch {built['torch']}, running {torch.__version__}: run pip install -e . again")
    try:
        torch.ops.load_library(str(found[0]))
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return Native(False, f"{found[0].name} does not load: {error}")
    library.sparsekern_isa.restype = ctypes.c_void_p
    return Native(True, path=str(found[0]), torch=built.get("torch", "unknown"), cuda=built.get("cuda", False),
                  arches=built.get("arches"), library=library)


def _load_host():
    """The host helpers; None where they were not built for this Python."""
    if os.environ.get("SPARSEKERN_NATIVE") == "0":
        return None
    try:
        return importlib.import_module("sparsekern._host")
    except ImportError:
        return None


native = _load()
host = _load_host()

"""Where figures come from: versions, device and commit; and the finite JSON they are written as."""
import math
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from sparsekern import _version
from sparsekern._machine import cpu_name
from sparsekern._native import native


def finite(value):
    """The same nested value as plain JSON, with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.ndim == 0):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def versions() -> dict[str, str | None]:
    try:
        import triton
        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    return {"sparsekern": _version.__version__, "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
            "triton": triton_version, "cuda": torch.version.cuda}


def device_info(device: torch.device) -> dict:
    """What the run ran on."""
    info = {"type": device.type, "name": cpu_name(), "threads": torch.get_num_threads(), "isa": native.isa, "platform": sys.platform}
    if device.type == "cuda":
        info["name"] = torch.cuda.get_device_name(device)
        info["memory"] = torch.cuda.get_device_properties(device).total_memory
    return info


def commit() -> str | None:
    """The git commit of the package if it runs from a checkout of its own, else None."""
    return _git("rev-parse", "HEAD")


def uncommitted() -> bool | None:
    """Whether tracked files of that checkout differ from the commit."""
    status = _git("status", "--porcelain", "--untracked-files=no")
    return None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    root = Path(_version.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

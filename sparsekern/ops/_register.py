"""The one helper of the ops: define a schema, register its reference, its fake kernel and its Triton launcher.

The dispatcher picks by device: csrc/cpu and csrc/cuda register themselves on the CPU and CUDA keys when the extension is
loaded; a Triton launcher takes the CUDA key where no native kernel holds it (or SPARSEKERN_PREFER=triton is set); the
reference serves every device that has nothing else, and says so once.
"""
import importlib
import os
import warnings
from collections.abc import Callable

import torch

from sparsekern._native import native  # noqa: F401  the compiled kernels are in place before any schema is defined

_library = torch.library.Library("sparsekern", "DEF")
_overrides = torch.library.Library("sparsekern", "IMPL")
_references: dict[str, Callable] = {}
_launchers: dict[str, Callable] = {}
_on_triton: set[str] = set()                                            # ops whose CUDA key a Triton launcher holds


def define(schema: str) -> None:
    """Define one op (or overload) in the namespace `sparsekern`."""
    _library.define(schema, tags=[torch.Tag.pt2_compliant_tag])


def reference(name: str) -> Callable:
    """Register the decorated function as the op's plain-PyTorch implementation for any device."""
    def decorate(function: Callable) -> Callable:
        _references[name] = function
        _library.impl(name, function, "CompositeExplicitAutograd")
        return function
    return decorate


def fake(name: str) -> Callable:
    """Register the decorated function as the op's shape rule."""
    return torch.library.register_fake(f"sparsekern::{name}", lib=_library)


def autograd(name: str, backward: Callable, setup_context: Callable) -> None:
    """Register the op's gradient."""
    torch.library.register_autograd(f"sparsekern::{name}", backward, setup_context=setup_context, lib=_library)


def autograd_kernel(name: str) -> Callable:
    """Register the decorated function on the Autograd key, for ops with keyword-only tensors, which `autograd` cannot take."""
    def decorate(function: Callable) -> Callable:
        _library.impl(name, function, "Autograd")
        return function
    return decorate


def composed(name: str, key: str) -> Callable:
    """Register the decorated function, which puts library calls together, as the op's implementation on one dispatch key."""
    def decorate(function: Callable) -> Callable:
        _library.impl(name, function, key)
        return function
    return decorate


def autocast_kernel(name: str) -> Callable:
    """Register the decorated function as the op's rule under autocast; it gets the autocast dtype before the op's own arguments."""
    def decorate(function: Callable) -> Callable:
        for key, device in (("AutocastCPU", "cpu"), ("AutocastCUDA", "cuda")):
            def cast(*args, key=key, device=device, **kwargs):
                with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))):
                    return function(torch.get_autocast_dtype(device), *args, **kwargs)
            _library.impl(name, cast, key)
        return function
    return decorate


def has_kernel(name: str, key: str) -> bool:
    """Whether a kernel of its own is registered for the op on this dispatch key."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"sparsekern::{name}", key)


def uses_triton(name: str, module: str | None = None) -> None:
    """Offer `triton_kernels/<module>.py`'s function `name` for the op; it takes the CUDA key where nothing native does.

    The overloads of an op share one launcher, named like the op.
    """
    def launch(*args, **kwargs):
        return _triton_function(name, module)(*args, **kwargs)
    _launchers[name] = launch
    native_cuda = has_kernel(name, "CUDA")
    if native_cuda and os.environ.get("SPARSEKERN_PREFER", "") != "triton":
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                 # replacing a native kernel is what was asked for
        if triton_reason() is None:
            _overrides.impl(name, launch, "CUDA", allow_override=native_cuda)
            _on_triton.add(name)


def triton_reason() -> str | None:
    """None when Triton can be imported, else why not."""
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"triton does not import ({error}); it comes with CUDA builds of torch, or pip install triton"
    return None


def _triton_function(name: str, module: str | None) -> Callable:
    packet = name.partition(".")[0]                                     # overloads share one launcher
    return getattr(importlib.import_module(f"sparsekern.triton_kernels.{module or packet.rstrip('_')}"), packet)


def implementations(name: str) -> dict[str, Callable]:
    """Every implementation of an op by name: reference, cpu, cuda, triton (those that exist in this build)."""
    packet, _, overload = name.partition(".")
    found = {"reference": _references[name]}
    op = getattr(getattr(torch.ops.sparsekern, packet), overload or "default")
    if has_kernel(name, "CPU"):
        found["cpu"] = op
    if live_implementation(name, "cuda") == "cuda":
        found["cuda"] = op
    if name in _launchers and triton_reason() is None:
        found["triton"] = _launchers[name]
    return found


def live_implementation(name: str, device_type: str) -> str:
    """Which implementation the dispatcher takes on this kind of device: cpu, cuda, triton or reference."""
    if not has_kernel(name, device_type.upper()):
        return "reference"
    return "triton" if device_type == "cuda" and name in _on_triton else device_type


def op_names() -> list[str]:
    """All ops that are defined, overloads by their dotted names."""
    return sorted(_references)

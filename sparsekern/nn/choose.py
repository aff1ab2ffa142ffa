"""Which product a sparse layer should use: all are measured here, at the user's batch."""
import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsekern._native import native

_LEAST, _MOST, _BUDGET_S, _CLEAR = 3, 9, 0.5, 3.0            # rounds of one measurement; a ratio past _CLEAR needs only the least
_LARGEST = 1 << 32                                           # bytes of a dense weight that is still formed to be measured
_SETTINGS = ("kernel_size", "stride", "padding", "dilation", "groups", "n", "m", "gradient", "refresh")
_measured: dict[tuple, dict[str, float]] = {}


@dataclass(frozen=True)
class Choice:
    """The quicker product of a layer, what both took (median milliseconds; None: not measured), and the reason in words.

    The times are those of forward and backward, or of the forward pass alone where a layer is for inference only.
    """
    backend: str
    sparse_ms: float | None
    dense_ms: float | None
    reason: str


def choose_backend(layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Choice:
    """Measure a layer on an input of `shape` (and `dtype`, default that of its values) with every product; ties go to the dense one.

    A few interleaved runs of forward and backward (gradients of input, values and bias), or of the forward pass of a layer for
    inference, under the present number of threads and autocast state, remembered per size, number of nonzeros (in steps of a fifth),
    input, type and threads. The layer is left as it is.

    Args:
        layer: with `backends`, "dense" the last of them; without a dense product above 4 GiB.
    """
    stored = _stored(layer)
    size = layer.rows * layer.cols * stored.element_size()
    if size > _LARGEST:
        return Choice(layer.backends[0], None, None, f"not measured: the dense weight alone would take {size / 2**30:.1f} GiB")
    dtype = dtype or stored.dtype
    key = _key(layer, tuple(shape), dtype)
    if key not in _measured:
        _measured[key] = _measure(layer, shape, dtype)
    times = _measured[key]
    sparse = min(layer.backends[:-1], key=times.get)
    sparse_ms, dense_ms = times[sparse], times["dense"]
    name, faster = "sparse" if sparse == "csr" else sparse, sparse_ms < dense_ms
    ratio = dense_ms / sparse_ms if faster else sparse_ms / dense_ms
    verdict = f"{name} is {ratio:.1f}x as fast" if faster else f"{name} takes {ratio:.1f}x the time, so the dense product is kept"
    return Choice(sparse if faster else "dense", sparse_ms, dense_ms, f"input {list(shape)}: {verdict}")


def _stored(layer: nn.Module) -> Tensor:
    return layer.values if hasattr(layer, "values") else layer.weight


def _key(layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> tuple:
    stored = _stored(layer)
    kind = stored.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    settings = tuple(getattr(layer, name, None) for name in _SETTINGS)
    return (type(layer).__name__, layer.rows, layer.cols, settings, round(4 * math.log2(max(1, layer.nnz))), layer.bias is None, shape, dtype,
            stored.dtype, autocast, str(stored.device), torch.get_num_threads(), native.isa)


def _measure(layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, float]:
    twins, backends = {}, layer.backends
    run = _forward if getattr(layer, "inference_only", False) else _forward_and_backward
    for backend in backends:
        twins[backend] = copy.deepcopy(layer).requires_grad_()
        twins[backend].backend = backend
    draw = torch.Generator().manual_seed(0)                 # the global random state is the user's
    x = torch.randn(shape, generator=draw).to(_stored(layer).device, dtype).requires_grad_()
    times: dict[str, list[float]] = {backend: [] for backend in backends}
    started = time.perf_counter()
    for index in range(_MOST + 1):
        for backend, twin in twins.items():
            seconds = run(twin, x)
            if index:                                       # the first one makes plans and warms up
                times[backend].append(seconds * 1e3)
        if index:
            medians = {backend: sorted(seen)[len(seen) // 2] for backend, seen in times.items()}
            best = min(medians[backend] for backend in backends[:-1])
            clear = max(best, medians["dense"]) > _CLEAR * min(best, medians["dense"])
            if time.perf_counter() - started > _BUDGET_S or (index >= _LEAST and clear):
                break
    return medians


@torch.enable_grad()
def _forward_and_backward(layer: nn.Module, x: Tensor) -> float:
    started = _now(x.device)
    y = layer(x)
    torch.autograd.grad(y, [x, *layer.parameters()], y.detach())
    return _now(x.device) - started


@torch.no_grad()
def _forward(layer: nn.Module, x: Tensor) -> float:
    started = _now(x.device)
    layer(x)
    return _now(x.device) - started


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

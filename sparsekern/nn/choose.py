"""Which product a sparse layer should use: both are measured, forward and backward, here and at the user's batch."""
import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern._native import native
from sparsekern.nn.sparse_weight import BACKENDS, SparseWeight

_LEAST, _MOST, _BUDGET_S, _CLEAR = 3, 9, 0.5, 3.0            # rounds of one measurement; a ratio past _CLEAR needs only the least
_LARGEST = 1 << 32                                           # bytes of a dense weight that is still formed to be measured
_measured: dict[tuple, dict[str, float]] = {}


@dataclass(frozen=True)
class Choice:
    """The quicker product of a layer, what both took (median milliseconds, forward and backward; None: not measured), and the reason in words."""
    backend: str
    sparse_ms: float | None
    dense_ms: float | None
    reason: str


def choose_backend(layer: SparseWeight, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Choice:
    """Measure a layer on an input of `shape` (and `dtype`, default that of its values) with both products; ties go to the dense one.

    A few interleaved runs of forward and backward (gradients of input, values and bias) under the present number of threads and autocast
    state, remembered per size, number of nonzeros (in steps of a fifth), input, type and threads. The layer is left as it is.
    """
    size = layer.rows * layer.cols * layer.values.element_size()
    if size > _LARGEST:
        return Choice("csr", None, None, f"not measured: the dense weight alone would take {size / 2**30:.1f} GiB")
    dtype = dtype or layer.values.dtype
    key = _key(layer, tuple(shape), dtype)
    if key not in _measured:
        _measured[key] = _measure(layer, shape, dtype)
    sparse_ms, dense_ms = (_measured[key][backend] for backend in BACKENDS)
    backend, ratio = ("csr", dense_ms / sparse_ms) if sparse_ms < dense_ms else ("dense", sparse_ms / dense_ms)
    verdict = f"sparse is {ratio:.1f}x as fast" if backend == "csr" else f"sparse takes {ratio:.1f}x the time, so the dense product is kept"
    return Choice(backend, sparse_ms, dense_ms, f"input {list(shape)}: {verdict}")


def _key(layer: SparseWeight, shape: tuple[int, ...], dtype: torch.dtype) -> tuple:
    kind = layer.values.device.type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    geometry = tuple(getattr(layer, name, None) for name in ("kernel_size", "stride", "padding", "dilation", "groups"))
    return (type(layer).__name__, layer.rows, layer.cols, geometry, round(4 * math.log2(max(1, layer.nnz))), layer.bias is None, shape, dtype,
            layer.values.dtype, autocast, str(layer.values.device), torch.get_num_threads(), native.isa)


def _measure(layer: SparseWeight, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, float]:
    twins = {}
    for backend in BACKENDS:
        twins[backend] = copy.deepcopy(layer).requires_grad_()
        twins[backend].backend = backend
    draw = torch.Generator().manual_seed(0)                 # the global random state is the user's
    x = torch.randn(shape, generator=draw).to(layer.values.device, dtype).requires_grad_()
    times: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    started = time.perf_counter()
    for index in range(_MOST + 1):
        for backend, twin in twins.items():
            seconds = _forward_and_backward(twin, x)
            if index:                                       # the first one makes plans and warms up
                times[backend].append(seconds * 1e3)
        if index:
            sparse, dense = (sorted(times[backend])[len(times[backend]) // 2] for backend in BACKENDS)
            if time.perf_counter() - started > _BUDGET_S or (index >= _LEAST and max(sparse, dense) > _CLEAR * min(sparse, dense)):
                break
    return {"csr": sparse, "dense": dense}


@torch.enable_grad()
def _forward_and_backward(layer: SparseWeight, x: Tensor) -> float:
    started = _now(x.device)
    y = layer(x)
    torch.autograd.grad(y, [x, *layer.parameters()], y.detach())
    return _now(x.device) - started


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

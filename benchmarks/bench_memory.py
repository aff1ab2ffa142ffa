"""Peak memory of training one sparse layer, weighed from outside: a process of its own for each case.

The rise of the resident peak over the process before the layer existed, so construction and every temporary of kernels and optimizer count,
against "the nnz formula": 24 bytes per nonzero (value, momentum, gradient, column, transposed row and position, 4 bytes each), 8 per row
and column, and the activations (input, output and their gradients). glibc is told to give large blocks back when they are freed: the peak
is what lives at one time, not what an allocator hoards.
"""
import ctypes
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

CASES = {
    "linear 4096 x 4096, 90 %": {"rows": 4096, "cols": 4096, "sparsity": 0.9, "batch": 128},
    "linear 4096 x 4096, 98 %": {"rows": 4096, "cols": 4096, "sparsity": 0.98, "batch": 128},
    "linear 16384 x 16384, 99 %": {"rows": 16384, "cols": 16384, "sparsity": 0.99, "batch": 64},
    "linear 200000 x 200000, 99.99 %": {"rows": 200_000, "cols": 200_000, "sparsity": 0.9999, "batch": 8},
    "linear 200000 x 200000, 99.99 %, larger batch": {"rows": 200_000, "cols": 200_000, "sparsity": 0.9999, "batch": 128},
    "convolution 128 x 128 x 3 x 3 on 16 x 16, 90 %": {"rows": 128, "cols": 128, "sparsity": 0.9, "batch": 128, "size": 16},
    "convolution 1024 x 1024 x 3 x 3 on 8 x 8, 90 %": {"rows": 1024, "cols": 1024, "sparsity": 0.9, "batch": 16, "size": 8},
}
TARGET = 1.15


@pytest.mark.parametrize("update", ["fused", "torch"])
@pytest.mark.parametrize("name", CASES)
def bench_peak(note, name, update):
    case = CASES[name] | {"update": update}
    answer = subprocess.run([sys.executable, __file__, json.dumps(case)], capture_output=True, text=True,
                            env=os.environ | {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"})
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    ratio = found["rise"] / found["formula"]
    note("memory", f"{name}, batch {case['batch']}, {update} SGD with momentum", [
        f"peak rises by {found['rise'] / 2**20:.1f} MiB; formula {found['formula'] / 2**20:.1f} MiB ({found['activations'] / 2**20:.1f} of it "
        f"activations); dense weight, gradient and momentum would be {found['dense'] / 2**20:.0f} MiB",
        f"{'met' if ratio <= TARGET else 'MISSED'}: at most {TARGET}x the formula: {ratio:.3f}x"])


def weigh(rows: int, cols: int, sparsity: float, batch: int, update: str, size: int = 0) -> dict[str, int]:
    """Bytes: rise of the peak over the process before the layer, and what the formula allows."""
    import torch

    from sparsekern import ops
    from sparsekern.nn import SparseConv2d, SparseLinear

    def train(rows, cols, sparsity, batch, size, steps):
        if size:
            layer, shape = SparseConv2d.from_shape(cols, rows, 3, sparsity=sparsity, padding=1), (batch, cols, size, size)
        else:
            layer, shape = SparseLinear.from_shape(cols, rows, sparsity=sparsity), (batch, cols)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        momenta = [torch.zeros_like(parameter) for parameter in layer.parameters()] if update == "fused" else []
        x = torch.randn(shape, requires_grad=True)
        for _ in range(steps):
            y = layer(x)
            incoming = torch.ones_like(y)
            y.backward(incoming)
            if update == "fused":
                parameters = list(layer.parameters())
                ops.packed_sgd_(parameters, [parameter.grad for parameter in parameters], momenta, lr=0.1, momentum=0.9)
            else:
                optimizer.step()
            optimizer.zero_grad()
            x.grad = None
        return layer.nnz, layer.rows * layer.cols, layer.rows + layer.cols, 2 * 4 * (x.numel() + y.numel())

    train(64, 64, 0.5, 4, size and 4, 2)                       # libraries, thread pools and imports are there
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)                       # what imports left free must not serve the layer
    before = _resident("VmRSS")
    nnz, places, lines, activations = train(rows, cols, sparsity, batch, size, 3)
    return {"rise": _resident("VmHWM") - before, "formula": 24 * nnz + 8 * lines + activations, "activations": activations, "dense": 12 * places}


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(weigh(**json.loads(sys.argv[1]))))

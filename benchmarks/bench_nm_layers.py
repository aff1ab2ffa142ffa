"""N:M layers as a user has them: packed inference and training steps beside dense layers of the same size."""
import copy

import pytest
import torch
from steps import trained
from torch import nn

from sparsekern.nn import NMConv2d, NMLinear
from sparsekern.testing import assert_close


def inferred(layer, x):
    @torch.no_grad()
    def run():
        return layer(x)
    return run


def as_backend(layer, backend):
    twin = copy.deepcopy(layer)
    twin.backend = backend
    return twin


def right(candidate, x, want, reduction):
    return lambda: assert_close(candidate(x), want, reduction=reduction)


# With the bounds that nm_spmm has for its product alone: transposing in and out must not show.
INFERENCE = {(1, 4): 2.0, (1, 8): 4.0, (1, 16): 7.0}


@pytest.mark.parametrize("n, m", INFERENCE, ids=str)
def bench_packed_linear(race, n, m):
    layer, x = NMLinear(4096, 4096, n, m), torch.randn(256, 4096)
    packed, dense = layer.pack(backend="packed"), nn.Linear(4096, 4096)
    layers = {"sparsekern packed": packed, "sparsekern masked": layer, "torch dense": dense}
    want = layer.to_dense().double()(x.double())
    race("PackedNMLinear", f"4096 -> 4096, batch 256, {n}:{m}, inference", {name: inferred(candidate, x) for name, candidate in layers.items()},
         check={name: right(layers[name], x, want, 4096 // m * n) for name in ("sparsekern packed", "sparsekern masked")},
         targets=[("sparsekern packed", ">=", INFERENCE[n, m], "torch dense")], rounds=8,
         notes=lambda medians: [f"stored: {(packed.values.nbytes + packed.index.nbytes) / dense.weight.nbytes:.3f} of the dense weight's bytes"])


TRAINING = [
    (1, 4, "straight_through", "forward", None), (1, 8, "straight_through", "forward", 1.2), (1, 8, "straight_through", "fixed", 1.5),
    (1, 16, "straight_through", "forward", 1.5), (1, 8, "masked", "fixed", 2.0), (2, 4, "sr_ste", "forward", None)]


@pytest.mark.parametrize("n, m, gradient, refresh, target", TRAINING, ids=str)
def bench_training_step(race, n, m, gradient, refresh, target):
    layer, x = NMLinear(4096, 4096, n, m, gradient=gradient, refresh=refresh), torch.randn(256, 4096, requires_grad=True)
    layers = {"sparsekern csr": as_backend(layer, "csr"), "sparsekern dense": layer, "torch dense": nn.Linear(4096, 4096)}
    incoming, want = torch.randn(256, 4096), layer.to_dense().double()(x.detach().double())
    targets = [("sparsekern csr", ">=", target, "torch dense")] if target else []
    race("NMLinear", f"4096 -> 4096, batch 256, {n}:{m}, {gradient}, {refresh}, forward and backward",
         {name: trained(candidate, x, incoming) for name, candidate in layers.items()},
         check={name: right(layers[name], x, want, 4096 // m * n) for name in ("sparsekern csr", "sparsekern dense")},
         targets=[*targets, ("sparsekern dense", "<=", 1.3, "torch dense")], budget_s=15.0)


CONVOLUTIONS = [(128, 16, 3, 1, 4), (128, 16, 3, 1, 8), (256, 8, 3, 1, 16), (256, 16, 1, 1, 8)]


@pytest.mark.parametrize("width, size, kernel, n, m", CONVOLUTIONS)
def bench_packed_conv2d(race, width, size, kernel, n, m, batch=64):
    layer, x = NMConv2d(width, width, kernel, n, m, padding=kernel // 2), torch.randn(batch, width, size, size)
    packed = layer.pack(backend="packed")
    layers = {"sparsekern csr": as_backend(packed, "csr"), "sparsekern packed": packed, "torch dense": layer.to_dense()}
    want = layer.to_dense().double()(x.double())
    race("PackedNMConv2d", f"{width} -> {width}, {kernel}x{kernel} on {size}x{size}, batch {batch}, {n}:{m}, inference",
         {name: inferred(candidate, x) for name, candidate in layers.items()},
         check={name: right(layers[name], x, want, packed.cols // m * n) for name in ("sparsekern csr", "sparsekern packed")},
         targets=[("sparsekern csr", "<=", 1.0, "torch dense")], budget_s=15.0)


@pytest.mark.parametrize("gradient, refresh", [("straight_through", "forward"), ("masked", "fixed")])
def bench_conv2d_training_step(race, gradient, refresh, width=128, size=16, batch=64):
    layer = NMConv2d(width, width, 3, 1, 8, padding=1, gradient=gradient, refresh=refresh)
    x = torch.randn(batch, width, size, size, requires_grad=True)
    layers = {"sparsekern csr": as_backend(layer, "csr"), "sparsekern dense": layer, "torch dense": layer.to_dense()}
    want = layer.to_dense().double()(x.detach().double())
    race("NMConv2d", f"{width} -> {width}, 3x3 on {size}x{size}, batch {batch}, 1:8, {gradient}, {refresh}, forward and backward",
         {name: trained(candidate, x, torch.ones_like(layer(x))) for name, candidate in layers.items()},
         check={name: right(layers[name], x, want, layer.cols // 8) for name in ("sparsekern csr", "sparsekern dense")},
         targets=[("sparsekern csr", "<=", 1.0, "torch dense"), ("sparsekern dense", "<=", 1.3, "torch dense")], budget_s=15.0)

"""Activity sums: what they cost beside a plain sum of the same tensor, and beside unfolding it."""
import pytest
import torch
import torch.nn.functional as F

from sparsekern import ops
from sparsekern.ops.philox import random_signs

SEED = torch.tensor(1)


def close(got, want):
    def verify():
        torch.testing.assert_close(got(), want(), rtol=1e-3, atol=0.5)
    return verify


@pytest.mark.parametrize("positions, features, what", [(256, 4096, "a linear layer's batch"), (64 * 197, 768, "tokens of ViT-B")])
def bench_features(race, positions, features, what):
    x, sign = torch.randn(positions, features), random_signs(SEED, 0, positions).float()
    race("activity", f"{what}: {positions} x {features}", {
        "sparsekern": lambda: ops.activity(x),
        "sparsekern signed": lambda: ops.activity(x, signed=True, seed=SEED),
        "x.sum(0) (a floor: one read)": lambda: x.sum(0),
        "x.abs().sum(0)": lambda: x.abs().sum(0),
        "torch.linalg.vector_norm(x, 1, 0)": lambda: torch.linalg.vector_norm(x, 1, 0),
        "sign @ x (signs made before)": lambda: sign @ x,
    }, nbytes={"sparsekern": 4 * x.numel(), "sparsekern signed": 4 * x.numel(), "x.sum(0) (a floor: one read)": 4 * x.numel()},
        check={"sparsekern": close(lambda: ops.activity(x), lambda: x.abs().sum(0)),
               "sparsekern signed": close(lambda: ops.activity(x, signed=True, seed=SEED), lambda: sign @ x)},
        targets=[("sparsekern", "<=", 1.2, "x.sum(0) (a floor: one read)"), ("sparsekern", ">=", 2, "x.abs().sum(0)")])


@pytest.mark.parametrize("shape, kernel, stride", [((128, 64, 32, 32), 3, 1), ((128, 128, 16, 16), 3, 1), ((128, 256, 8, 8), 3, 1),
                                                   ((8, 3, 224, 224), 7, 2)])
def bench_windows(race, shape, kernel, stride):
    x, window = torch.randn(shape), {"stride": stride, "padding": kernel // 2}
    outputs = ((shape[2] - 1) // stride + 1) * ((shape[3] - 1) // stride + 1)
    sign = random_signs(SEED, 0, shape[0] * outputs).float().view(shape[0], 1, outputs)

    def unfolded():
        return F.unfold(x, kernel, **window)

    gradient = x.permute(0, 2, 3, 1)
    race("activity", f"a {kernel}x{kernel} convolution's input {list(shape)}", {
        "sparsekern": lambda: ops.activity(x, kernel_size=kernel, **window),
        "sparsekern signed": lambda: ops.activity(x, signed=True, seed=SEED, kernel_size=kernel, **window),
        "sparsekern as an output gradient": lambda: ops.activity(gradient),
        "x.sum((0, 2, 3)) (a floor: one read)": lambda: x.sum((0, 2, 3)),
        "x.abs().sum((0, 2, 3))": lambda: x.abs().sum((0, 2, 3)),
        "unfold, abs, sum": lambda: unfolded().abs().sum((0, 2)),
        "unfold, times signs, sum": lambda: (unfolded() * sign).sum((0, 2)),
    }, nbytes={name: 4 * x.numel() for name in ("sparsekern", "sparsekern signed", "x.sum((0, 2, 3)) (a floor: one read)")},
        check={"sparsekern": close(lambda: ops.activity(x, kernel_size=kernel, **window), lambda: unfolded().abs().sum((0, 2))),
               "sparsekern signed": close(lambda: ops.activity(x, signed=True, seed=SEED, kernel_size=kernel, **window),
                                          lambda: (unfolded() * sign).sum((0, 2)))},
        targets=[("sparsekern", ">=", 10, "unfold, abs, sum"), ("sparsekern signed", ">=", 10, "unfold, times signs, sum")])

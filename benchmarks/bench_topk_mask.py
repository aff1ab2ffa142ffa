"""Selection of the k largest magnitudes: one pass over the scores, whatever their distribution."""
import numpy as np
import pytest
import torch

from sparsekern import ops
from sparsekern.testing import resnet50_shapes

N = 25_600_000


def scores(kind):
    x = torch.randn(N)
    return {"normal": lambda: x, "all equal": lambda: torch.ones(N), "two values": lambda: (x > 0).float() + 1,
            "sorted": lambda: x.sort().values,
            "narrow": lambda: 1 + 3e-5 * torch.rand(N), "1% NaN": lambda: torch.where(torch.rand(N) < 0.01, torch.nan, x)}[kind]()


def check(got, x, k):
    """Exactly k, nothing left out that beats what is taken: against a full sort of the magnitudes."""
    mask, magnitude = got[0][0], x.abs().nan_to_num(-1.0)
    assert mask.sum() == k and magnitude[mask].min() >= magnitude[~mask].max()


def topk_scatter(x, k):
    return torch.zeros(x.numel(), dtype=torch.bool).scatter_(0, torch.topk(x.abs().flatten(), k, sorted=False).indices, True)


def kthvalue_compare(x, k):
    magnitude = x.abs()
    return magnitude >= torch.kthvalue(magnitude, N - k + 1).values


def partition_compare(x, k):
    magnitude = np.abs(x.numpy())
    return magnitude >= np.partition(magnitude, N - k)[N - k]


@pytest.mark.parametrize("share", [0.01, 0.02, 0.1, 0.5])
def bench_topk_mask(race, share):
    x, k = scores("normal"), int(share * N)
    race("topk_mask", f"25.6M normal, {share:.0%}", {
        "sparsekern bool": lambda: ops.topk_mask([x], k),
        "sparsekern packed": lambda: ops.topk_mask([x], k, packed=True),
        "sparsekern threshold only": lambda: ops.select_threshold([x], k),
        "torch x > 1 (a floor: one compare)": lambda: x > 1,
        "torch.topk + scatter": lambda: topk_scatter(x, k),
        "torch.kthvalue + compare": lambda: kthvalue_compare(x, k),
        "numpy.partition + compare": lambda: partition_compare(x, k),
    }, nbytes={"sparsekern bool": 5 * N, "sparsekern packed": 4.125 * N, "sparsekern threshold only": 4 * N,
               "torch x > 1 (a floor: one compare)": 5 * N},
        check={"sparsekern bool": lambda: check(ops.topk_mask([x], k), x, k)},
        targets=[("sparsekern bool", ">=", 20, "torch.topk + scatter"),
                 ("sparsekern bool", ">=", 3, "numpy.partition + compare")] if share == 0.1 else [],
        budget_s=20)


@pytest.mark.parametrize("share", [0.1, 0.5])
def bench_distributions(race, share):
    kinds, k = ["normal", "all equal", "two values", "sorted", "narrow", "1% NaN"], int(share * N)
    data = {f"sparsekern {kind}": scores(kind) for kind in kinds}
    race("topk_mask", f"25.6M by distribution, {share:.0%}", {name: (lambda x=x: ops.topk_mask([x], k)) for name, x in data.items()},
         nbytes=5 * N, check={name: (lambda x=x: check(ops.topk_mask([x], k), x, k)) for name, x in data.items()},
         targets=[(name, "<=", 1.5, "sparsekern normal") for name in list(data)[1:]])


@pytest.mark.parametrize("shape", ["ResNet-50, 54 weights", "10,000 x 1K"])
def bench_segments(race, shape):
    shapes = [s for s in resnet50_shapes() if len(s) > 1] if shape.startswith("ResNet") else [(1000,)] * 10_000
    lists = [torch.randn(s) for s in shapes]
    k, total = [x.numel() // 10 for x in lists], sum(x.numel() for x in lists)
    race("topk_mask", f"{shape}, 10%", {
        "sparsekern segments": lambda: ops.topk_mask(lists, k),
        "sparsekern global": lambda: ops.topk_mask(lists, total // 10, global_=True),
        "torch.topk + scatter, a loop": lambda: [topk_scatter(x, n) for x, n in zip(lists, k)],
    }, nbytes=5 * total,
        check={"sparsekern segments": lambda: [check([[m]], x, n) for m, x, n in zip(ops.topk_mask(lists, k)[0], lists, k)]})

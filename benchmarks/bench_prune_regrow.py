"""Drop and grow in one call against the usual sequence of torch calls."""
import pytest
import torch

from sparsekern import ops
from sparsekern.testing import random_masks, resnet50_shapes


def by_torch(masks, weights, grads, numbers, momenta):
    """What RigL-style code does per layer: two topk calls, scatters and multiplications."""
    for mask, weight, grad, k, momentum in zip(masks, weights, grads, numbers, momenta):
        on, inf = mask.view(-1), float("inf")
        drop = torch.topk(torch.where(on, weight.view(-1).abs(), inf), k, largest=False, sorted=False).indices
        grow = torch.topk(torch.where(on, -1.0, grad.view(-1).abs()), k, sorted=False).indices
        on[drop], on[grow] = False, True
        weight.view(-1)[grow] = 0
        momentum.view(-1)[drop] = 0
        momentum.view(-1)[grow] = 0


@pytest.mark.parametrize("shape", ["25.6M flat", "ResNet-50, 54 weights"])
def bench_prune_regrow(race, shape):
    shapes = [(25_600_000,)] if shape == "25.6M flat" else [s for s in resnet50_shapes() if len(s) > 1]
    weights = [torch.randn(s) for s in shapes]
    grads, masks, momenta = [torch.randn(s) for s in shapes], random_masks(weights, 0.1), [torch.randn(s) for s in shapes]
    numbers = [int(0.3 * m.sum()) for m in masks]
    total = sum(w.numel() for w in weights)

    def state():
        return [[x.clone() for x in items] for items in (masks, weights, momenta)]

    ours, packed, theirs = state(), state(), state()
    packed[0] = [ops.pack_mask(m) for m in packed[0]]

    def run(mine):
        return ops.prune_regrow_(mine[0], mine[1], grads, numbers, numbers, on_grow="zero", momentum_buffers=mine[2])

    def verify():
        mine, other = state(), state()
        run(mine)
        by_torch(other[0], other[1], grads, numbers, other[2])
        # Equal up to ties, which torch settles as it likes: the same numbers, and nearly everywhere the same elements.
        for a, b in zip(mine[0], other[0]):
            assert a.sum() == b.sum() and (a ^ b).sum() <= 2e-5 * a.numel() + 4

    race("prune_regrow_", f"{shape}, 10% dense, 30% exchanged", {
        "sparsekern bool": lambda: run(ours),
        "sparsekern packed": lambda: run(packed),
        "torch.topk twice, scatters": lambda: by_torch(theirs[0], theirs[1], grads, numbers, theirs[2]),
    }, nbytes={"sparsekern bool": 11 * total, "sparsekern packed": 8.375 * total}, check={"sparsekern bool": verify}, budget_s=15)

"""The masked weight: hiding weights should cost what copying them costs, and a layer should not feel the call."""

import pytest
import torch
from torch.nn.utils import prune

from sparsekern import ops
from sparsekern.testing import resnet50_shapes

LISTS = {"ResNet-50, 161 tensors": resnet50_shapes(), "ResNet-50, 54 prunable": [s for s in resnet50_shapes() if len(s) > 1]}
pytestmark = pytest.mark.usefixtures("keep_freed_memory")


@pytest.mark.parametrize("shape", LISTS)
def bench_forward(race, shape):
    weights = [torch.randn(s) for s in LISTS[shape]]
    masks = [torch.rand(w.shape) >= 0.9 for w in weights]
    bits, floats = [ops.pack_mask(m) for m in masks], [m.float() for m in masks]
    pruned = [prune.CustomFromMask(m) for m in floats]
    zero, elements = torch.zeros(()), sum(w.numel() for w in weights)

    def right(masks, dtype=torch.float32):
        def verify():
            for got, w, m in zip(ops.masked_weight(weights, masks, dtype=dtype), weights, floats):
                assert torch.equal(got, torch.where(m.bool(), w, zero).to(dtype))
        return verify

    race("masked_weight", f"{shape}, forward, fp32, 90% sparse", {
        "sparsekern list, bool": lambda: ops.masked_weight(weights, masks),
        "sparsekern one by one, bool": lambda: [ops.masked_weight(w, m) for w, m in zip(weights, masks)],
        "sparsekern list, bits": lambda: ops.masked_weight(weights, bits),
        "sparsekern list, bool, to bf16": lambda: ops.masked_weight(weights, masks, dtype=torch.bfloat16),
        "w.clone()": lambda: [w.clone() for w in weights],
        "w * bool mask": lambda: [w * m for w, m in zip(weights, masks)],
        "w * float mask": lambda: [w * m for w, m in zip(weights, floats)],
        "torch._foreach_mul float masks": lambda: torch._foreach_mul(weights, floats),
        "torch.where": lambda: [torch.where(m, w, zero) for w, m in zip(weights, masks)],
        "torch.nn.utils.prune": lambda: [p.compute_mask(w, torch.ones_like(w)).mul(w) for p, w in zip(pruned, weights)],
        "w * bool mask, then bf16": lambda: [(w * m).bfloat16() for w, m in zip(weights, masks)],
    }, nbytes={"sparsekern list, bool": 9 * elements, "sparsekern one by one, bool": 9 * elements, "sparsekern list, bits": 8.125 * elements,
               "sparsekern list, bool, to bf16": 7 * elements, "w.clone()": 8 * elements, "w * bool mask": 9 * elements,
               "w * float mask": 12 * elements},
        check={"sparsekern list, bool": right(masks), "sparsekern list, bits": right(bits),
               "sparsekern list, bool, to bf16": right(masks, torch.bfloat16)},
        targets=[("sparsekern list, bool", "<=", 1.2, "w.clone()"), ("sparsekern list, bool", ">=", 1.3, "w * bool mask")], budget_s=20.0)


@pytest.mark.parametrize("size", [64])
def bench_overhead(race, size):
    """Forward and backward of one small layer: what Python and the dispatcher cost, 100 calls a round."""
    weight = torch.randn(size, size, requires_grad=True)
    mask, incoming = torch.rand(size, size) >= 0.9, torch.randn(size, size)
    zero = torch.zeros(())

    def calls(masked):
        def run():
            for _ in range(100):
                torch.autograd.grad(masked(), weight, incoming)
        return run

    def verify():
        (grad,) = torch.autograd.grad(ops.masked_weight(weight, mask), weight, incoming)
        assert torch.equal(grad, torch.where(mask, incoming, zero))

    race("masked_weight", f"[{size}, {size}], forward and backward, 100 calls (ms / 100 calls = 10 us / call)", {
        "sparsekern": calls(lambda: ops.masked_weight(weight, mask)),
        "sparsekern dense_grad": calls(lambda: ops.masked_weight(weight, mask, dense_grad=True)),
        "w * bool mask": calls(lambda: weight * mask),
        "torch.where": calls(lambda: torch.where(mask, weight, zero)),
    }, check={"sparsekern": verify}, targets=[("sparsekern", "<=", 1.5, "w * bool mask")])

"""Channel scores: one pass over weights and masks should cost what reading them costs."""
import pytest
import torch

from sparsekern import ops
from sparsekern.testing import assert_close, double, resnet50_shapes

SHAPES = [s for s in resnet50_shapes() if len(s) > 1]


@pytest.mark.parametrize("second", [False, True], ids=["one mask", "two masks"])
def bench_channel_scores(race, copy_bandwidth, second):
    weights = [torch.randn(s) for s in SHAPES]
    a, b = ([torch.rand(s) < density for s in SHAPES] for density in (0.1, 0.2))
    bits_a, bits_b = [ops.pack_mask(m) for m in a], [ops.pack_mask(m) for m in b]
    beta, elements = 0.75, sum(w.numel() for w in weights)

    def ours(a, b):
        return ops.channel_scores(weights, a, b if second else None, beta=beta)

    def torch_way():
        if second:
            return [((beta * x + (1 - beta) * y) * w.abs()).flatten(1).sum(1) for w, x, y in zip(weights, a, b)]
        return [(beta * x * w.abs()).flatten(1).sum(1) for w, x in zip(weights, a)]

    def verify(a, b):
        want = ops.implementations("channel_scores")["reference"](double(weights), a, b if second else None, beta=beta)
        for got, other in zip(ours(a, b), want):
            assert_close(got, other, reduction=4096)

    masks = 2 if second else 1
    read = {"sparsekern, bools": (4 + masks) * elements, "sparsekern, bits": (4 + masks / 8) * elements, "torch, bools": (4 + masks) * elements}
    source, target = torch.rand(elements * (4 + masks) // 8), torch.empty(elements * (4 + masks) // 8)
    race("channel_scores", f"ResNet-50, {len(SHAPES)} weights, {masks} mask{'s' * second}", {
        "sparsekern, bools": lambda: ours(a, b), "sparsekern, bits": lambda: ours(bits_a, bits_b), "torch, bools": torch_way,
        "a copy of as many bytes, read and written": lambda: target.copy_(source),
    }, nbytes=read | {"a copy of as many bytes, read and written": (4 + masks) * elements},
        check={"sparsekern, bools": lambda: verify(a, b), "sparsekern, bits": lambda: verify(bits_a, bits_b)},
        targets=[("sparsekern, bools", "<=", 1.25, "a copy of as many bytes, read and written")])

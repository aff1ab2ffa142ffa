"""Masked SGD: masking should be free, and a packed update should cost what its nonzeros cost."""
import pytest
import torch

from sparsekern import ops
from sparsekern.testing import assert_close, resnet50_shapes

SCALARS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
SHAPES = {"25.6M flat": [(25_600_000,)], "ResNet-50, 161 tensors": resnet50_shapes(), "1000 x 1K": [(1024,)] * 1000}


def lists(shapes):
    params = [torch.randn(s) for s in shapes]
    return params, [torch.randn(s) for s in shapes], [torch.zeros(s) for s in shapes]


def fused_sgd(params, grads, masks=None, on="params"):
    """torch's own fused SGD, and what pruning code puts around it."""
    own = [torch.nn.Parameter(p.clone()) for p in params]
    grads = [g.clone() for g in grads]
    for p, g in zip(own, grads):
        p.grad = g
    optimizer = torch.optim.SGD(own, lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)

    def step():
        if masks and on == "grads":
            torch._foreach_mul_(grads, masks)
        optimizer.step()
        if masks and on == "params":
            with torch.no_grad():
                torch._foreach_mul_(own, masks)
    return step


@pytest.mark.parametrize("sparsity", [0.9])
@pytest.mark.parametrize("shape", SHAPES)
def bench_masked_sgd(race, shape, sparsity):
    params, grads, buffers = lists(SHAPES[shape])
    masks = [torch.rand(p.shape) >= sparsity for p in params]
    bits, floats = [ops.pack_mask(m) for m in masks], [m.float() for m in masks]
    elements = sum(p.numel() for p in params)

    def ours(form):
        mine, v = [p.clone() for p in params], [b.clone() for b in buffers]
        return lambda: ops.masked_sgd_(mine, grads, v, form, **SCALARS)

    def right(form):
        def verify():
            mine, v = [p.clone() for p in params], [b.clone() for b in buffers]
            ops.masked_sgd_(mine, grads, v, form, **SCALARS)
            for p, start, g, m in zip(mine, params, grads, masks):
                assert_close(p, torch.where(m, start.double() - 0.1 * (g.double() + 1e-4 * start.double()), start.double()))
        return verify

    race("masked_sgd_", f"{shape}, {sparsity:.0%} sparse", {
        "sparsekern bool": ours(masks),
        "sparsekern bits": ours(bits),
        "sparsekern dense (no mask)": ours([None] * len(params)),
        "torch fused SGD, no mask": fused_sgd(params, grads),
        "torch fused SGD + float-mask params": fused_sgd(params, grads, floats),
        "torch fused SGD + bool-mask params": fused_sgd(params, grads, masks),
        "torch float-mask grads + fused SGD": fused_sgd(params, grads, floats, "grads"),
    }, nbytes={"sparsekern bool": 21 * elements, "sparsekern bits": 20.125 * elements, "sparsekern dense (no mask)": 20 * elements,
               "torch fused SGD, no mask": 20 * elements, "torch fused SGD + float-mask params": 32 * elements},
        check={"sparsekern bool": right(masks), "sparsekern bits": right(bits)},
        targets=[("sparsekern bool", "<=", 1.15, "torch fused SGD, no mask"),
                 ("sparsekern bool", ">=", 1.8, "torch fused SGD + float-mask params"),
                 ("sparsekern bool", ">=", 6, "torch fused SGD + bool-mask params")] if elements > 1e7 else [])


@pytest.mark.parametrize("sparsity", [0.9, 0.95])
def bench_packed_sgd(race, sparsity):
    (param,), (grad,), (buffer,) = lists([(25_600_000,)])
    mask = torch.rand(param.shape) >= sparsity
    index = mask.nonzero().flatten().to(torch.int32)
    value, momentum, packed = param[mask], buffer[mask], grad[mask]
    dense = [param.clone()], [grad], [buffer.clone()], [None]
    nnz = value.numel()

    def verify():
        mine = value.clone()
        ops.packed_sgd_([mine], [grad], [momentum.clone()], [index], **SCALARS)
        other, v = param.clone(), buffer.clone()
        ops.masked_sgd_([other], [grad], [v], [mask], **SCALARS)
        assert torch.equal(mine, other[mask])

    race("packed_sgd_", f"25.6M, {sparsity:.0%} sparse ({nnz} nonzeros)", {
        "sparsekern packed gradient": lambda: ops.packed_sgd_([value], [packed], [momentum], **SCALARS),
        "sparsekern gathered gradient": lambda: ops.packed_sgd_([value], [grad], [momentum], [index], **SCALARS),
        "sparsekern dense pass": lambda: ops.masked_sgd_(*dense, **SCALARS),
    }, nbytes={"sparsekern packed gradient": 20 * nnz, "sparsekern dense pass": 20 * param.numel()},
        check={"sparsekern gathered gradient": verify},
        targets=[("sparsekern packed gradient", ">=", 7, "sparsekern dense pass"),
                 ("sparsekern gathered gradient", ">=", 3, "sparsekern dense pass")] if sparsity == 0.9 else [])

"""N:M masks: choosing n of every m should cost what reading the weights costs, not a sort."""
import pytest
import torch

from sparsekern import ops
from sparsekern.ops.nm_mask import transposable_patterns

SIZE = 4096


def topk_mask(x, n, m):
    """What one writes in torch."""
    groups = x.view(-1, m)
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, groups.abs().topk(n, dim=1).indices, True).view_as(x)



@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (2, 8), (4, 8), (1, 16), (8, 32)])
def bench_mask(race, n, m):
    x = torch.randn(SIZE, SIZE)
    turned = x.t().contiguous()

    def verify():
        assert torch.equal(ops.nm_mask(x, n, m), topk_mask(x, n, m)), "not the n largest"
        assert torch.equal(ops.nm_mask(turned, n, m, dim=0), topk_mask(x, n, m).t()), "not the n largest along the first dimension"

    contenders = {
        "sparsekern": lambda: ops.nm_mask(x, n, m),
        "sparsekern dim=0": lambda: ops.nm_mask(turned, n, m, dim=0),
        "sparsekern packed": lambda: ops.nm_mask(x, n, m, packed=True),
        "view, topk, scatter": lambda: topk_mask(x, n, m),
        "x > 0 (a mask without a choice)": lambda: x > 0,
    }
    race("nm_mask", f"[{SIZE}, {SIZE}], {n}:{m}, fp32", contenders, nbytes={name: 5 * x.numel() for name in contenders if "view" not in name},
         check={"sparsekern": verify}, targets=[("sparsekern", ">=", 30.0 if (n, m) == (2, 4) else 10.0, "view, topk, scatter")], rounds=8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape, dim", [((SIZE, SIZE - 1), -1), ((512, 512, 3, 3), 1)], ids=str)
def bench_odd_shapes(race, shape, dim, dtype):
    """A short last group in every line; a convolution's input channels, nine apart."""
    x = torch.randn(shape).to(dtype)

    def padded():
        lines = torch.nn.functional.pad(x.movedim(dim, -1), (0, -x.shape[dim] % 4)).contiguous()
        return topk_mask(lines, 2, 4)[..., :x.shape[dim]].movedim(-1, dim)

    race("nm_mask", f"{list(shape)}, dim = {dim}, 2:4, {dtype}", {
        "sparsekern": lambda: ops.nm_mask(x, 2, 4, dim=dim), "pad, view, topk, scatter": padded,
    }, nbytes={"sparsekern": (x.element_size() + 1) * x.numel()}, rounds=8,
         targets=[("sparsekern", ">=", 10.0, "pad, view, topk, scatter")])


@pytest.mark.parametrize("n, m", [(2, 4), (1, 16)])
def bench_apply(race, n, m):
    x, y = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)

    def multiply():
        y.mul_(topk_mask(y, n, m))

    race("nm_apply_", f"[{SIZE}, {SIZE}], {n}:{m}, fp32", {
        "sparsekern": lambda: ops.nm_apply_(x, n, m), "x *= view, topk, scatter": multiply, "x *= 1 (read and write)": lambda: y.mul_(1.0),
    }, nbytes={"sparsekern": 8 * x.numel(), "x *= 1 (read and write)": 8 * x.numel()},
         targets=[("sparsekern", ">=", 10.0, "x *= view, topk, scatter")], rounds=8)


def bench_transposable(race):
    x = torch.randn(1024, 1024)
    patterns = transposable_patterns().float().view(90, 16)

    def by_product():
        """Block sums as one product with the patterns, the usual way."""
        blocks = x.abs().view(256, 4, 256, 4).transpose(1, 2).reshape(-1, 16)
        return patterns[(blocks @ patterns.t()).argmax(1)].view(256, 256, 4, 4).transpose(1, 2).reshape(1024, 1024)

    def verify():
        got = (ops.nm_mask_transposable(x) * x.abs()).double().sum()
        assert abs(got - (by_product() * x.abs()).double().sum()) <= 1e-7 * got, "not the best patterns"

    race("nm_mask_transposable", "[1024, 1024], fp32", {
        "sparsekern": lambda: ops.nm_mask_transposable(x), "product with 90 patterns": by_product,
        "sparsekern 2:4 along rows only": lambda: ops.nm_mask(x, 2, 4),
    }, check={"sparsekern": verify}, targets=[("sparsekern", ">=", 10.0, "product with 90 patterns")], rounds=8)

"""What of conflict projection and PCGrad only a GPU can show: decisions inside a replayed graph, long sums, large lists."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern._native import native
from sparsekern.testing import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not native.cuda, reason="built without CUDA")]


def test_a_replayed_graph_decides_anew():
    a, b = [torch.randn(300_001, device="cuda")], [torch.randn(300_001, device="cuda")]
    stats = torch.zeros(1, 4, device="cuda")
    ops.project_conflict_([a[0].clone()], b, stats=stats)               # loads modules, asks for device properties
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.project_conflict_(a, b, stats=stats)
    for sign in (1.0, -1.0, 1.0):
        a[0].normal_()
        b[0].copy_(sign * a[0] + torch.randn_like(a[0]))
        before = a[0].clone()
        graph.replay()
        torch.cuda.synchronize()
        assert (stats[0, 3] == 1) == (sign < 0) and torch.equal(a[0], before) == (sign > 0)
        if sign < 0:
            assert abs(a[0].double() @ b[0].double()) <= 1e-5 * a[0].double().norm() * b[0].double().norm()


def test_long_sums_are_exact_enough():
    n = (1 << 24) + 4096 * 4                                            # where naive fp32 stops counting
    a, stats = torch.ones(n, device="cuda"), torch.empty(1, 4, device="cuda")
    b = torch.tensor([1.0, -1, -1, -1], device="cuda").repeat(n // 4)
    ops.project_conflict_([a], [b], eps=math.inf, stats=stats)
    assert stats[0, :2].tolist() == [-n / 2, float(n)]
    assert ops.task_gram([a, b], 2).tolist() == [[float(n), -n / 2], [-n / 2, float(n)]]


def test_large_lists_agree_with_float64():
    shapes = [(5_000_011,), (3, 1_000_003), (7,), (65_536, 33)]
    tasks = [[torch.randn(s, device="cuda") for s in shapes] for _ in range(3)]
    tasks[1] = [x - y for x, y in zip(tasks[1], tasks[0])]
    want, stats = [x.double() for x in tasks[0]], torch.empty(1, 4, device="cuda")
    others = [x.double() for x in tasks[1]]
    d, q = sum((x * y).sum() for x, y in zip(want, others)), sum((y * y).sum() for y in others)
    mine = [x.clone() for x in tasks[0]]
    ops.project_conflict_(mine, tasks[1], stats=stats)
    for x, y, other in zip(mine, want, others):
        assert_close(x, y - d / q * other)
    torch.testing.assert_close(stats[0, :2].double(), torch.stack([d, q]), rtol=1e-5, atol=0)
    order = torch.tensor([[1, 2], [2, 0], [0, 1]], device="cuda")
    flat = [x for task in tasks for x in task]
    reference = ops.implementations("pcgrad_combine")["reference"](flat, 3, order)
    first = ops.pcgrad_combine(flat, 3, order)
    for x, y in zip(first, reference):
        assert_close(x, y, reduction=16)
    assert all(torch.equal(x, y) for x, y in zip(first, ops.pcgrad_combine(flat, 3, order)))

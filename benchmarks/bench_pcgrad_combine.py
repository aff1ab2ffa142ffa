"""PCGrad of several tasks: two passes over the gradients, where pairwise projections take a pass and more for each pair."""
import pytest
import torch

from sparsekern import ops
from sparsekern.testing import assert_close, double, resnet50_shapes

SHAPES = {"ResNet-50, 161 tensors": resnet50_shapes(), "1000 x 1K": [(1024,)] * 1000}


def gradients(shapes, tasks):
    """Every other task against the ones before it: about half of the visits change something."""
    shared = [torch.randn(s) for s in shapes]
    return [[torch.randn_like(s) + 0.3 * (-1) ** t * s for s in shared] for t in range(tasks)]


def added(parts):
    total = parts[0]
    for part in parts[1:]:
        torch._foreach_add_(total, part)
    return total


def python_loop(tasks, order):
    """As published ports do it: numbers on the host, tensor by tensor."""
    parts = []
    for i, visits in enumerate(order.tolist()):
        mine = [g.clone() for g in tasks[i]]
        for j in visits:
            d = sum((x * y).sum().item() for x, y in zip(mine, tasks[j]))
            if d < 0:
                c = d / sum((y * y).sum().item() for y in tasks[j])
                for x, y in zip(mine, tasks[j]):
                    x -= c * y
        parts.append(mine)
    return added(parts)


def pairwise(tasks, order):
    parts = []
    for i, visits in enumerate(order.tolist()):
        mine = [g.clone() for g in tasks[i]]
        for j in visits:
            ops.project_conflict_(mine, tasks[j])
        parts.append(mine)
    return added(parts)


def flat_products(tasks, order):
    """The same idea in plain torch: the products by a matrix product of flat copies, the recursion in Python."""
    rows = torch.stack([torch.cat([g.flatten() for g in task]) for task in tasks])
    gram, weights = (rows @ rows.t()).tolist(), torch.zeros(len(tasks))
    for i, visits in enumerate(order.tolist()):
        mine = [float(k == i) for k in range(len(tasks))]
        for j in visits:
            d = sum(c * gram[k][j] for k, c in enumerate(mine))
            if d < 0:
                mine[j] -= d / gram[j][j]
        weights += torch.tensor(mine)
    out = weights @ rows
    return [part.view_as(g) for part, g in zip(out.split([g.numel() for g in tasks[0]]), tasks[0])]


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def bench_pcgrad_combine(race, shape, count):
    tasks = gradients(SHAPES[shape], count)
    order = torch.stack([torch.randperm(count - 1) for _ in range(count)])
    order += order >= torch.arange(count)[:, None]
    flat, elements = [g for task in tasks for g in task], sum(g.numel() for g in tasks[0])

    def verify():
        small = [[g.flatten()[:300] for g in task[:20]] for task in tasks]
        want = python_loop([double(task) for task in small], order)
        for other in (pairwise(small, order), ops.pcgrad_combine([g for task in small for g in task], count, order)):
            for x, y in zip(other, want):
                assert_close(x, y, reduction=64)

    race("pcgrad_combine", f"{shape}, {count} tasks", {
        "sparsekern": lambda: ops.pcgrad_combine(flat, count, order),
        "sparsekern task_gram alone": lambda: ops.task_gram(flat, count),
        "sparsekern pairwise project_conflict_": lambda: pairwise(tasks, order),
        "torch, products of flat copies": lambda: flat_products(tasks, order),
        "Python loop with .item()": lambda: python_loop(tasks, order),
    }, nbytes={"sparsekern": (8 * count + 4) * elements, "sparsekern task_gram alone": 4 * count * elements}, check={"sparsekern": verify},
        targets=[("sparsekern", ">=", 3, "sparsekern pairwise project_conflict_")] if count == 8 else [], rounds=10)

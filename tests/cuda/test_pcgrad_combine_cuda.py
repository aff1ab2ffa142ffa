"""task_gram and pcgrad_combine through their CUDA bindings against sequential PCGrad in float64."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern.testing import assert_close, double

GRAM, COMBINE = "task_gram", "pcgrad_combine"
SHAPES = [(0,), (), (33,), (17, 13), (5, 0, 3), (4099,), (8200,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def reference(op, *arguments, **options):
    return ops.implementations(op)["reference"](*arguments, **options)


def others(tasks):
    rows = [torch.randperm(tasks - 1) for _ in range(tasks)]
    return torch.stack([row + (row >= i) for i, row in enumerate(rows)])


def conflicting(tasks, shapes=SHAPES, dtype=torch.float32):
    shared = [torch.randn(s) for s in shapes]
    return [(torch.randn(s.shape) + (-1) ** t * s).to(dtype) for t in range(tasks) for s in shared]


def test_worked_examples(lane):
    # <a, b> = -1, |a|^2 = 1, |b|^2 = 2. a becomes a + b / 2 = (0.5, 0.5), b becomes b + a = (0, 1).
    grads, order = lane.put([torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])]), lane.put(torch.tensor([[1], [0]]))
    assert lane.op(COMBINE)(grads, 2, order)[0].tolist() == [0.5, 1.5]
    assert lane.op(COMBINE)(grads, 2, order, reduction="mean")[0].tolist() == [0.25, 0.75]
    assert lane.op(GRAM)(grads, 2).tolist() == [[1.0, -1.0], [-1.0, 2.0]]
    # With c = (0, -1): a and c become (0.5, 0) and (-0.5, -0.5), b is gone; the other order leaves a at (0.5, 0.5).
    grads = grads + lane.put([torch.tensor([0.0, -1.0])])
    assert lane.op(COMBINE)(grads, 3, lane.put(torch.tensor([[1, 2], [0, 2], [0, 1]])))[0].tolist() == [0.0, -0.5]
    assert lane.op(COMBINE)(grads, 3, lane.put(torch.tensor([[2, 1], [0, 2], [0, 1]])))[0].tolist() == [0.0, 0.0]
    one = lane.put([torch.tensor([1.0, -2.0, 0.0])])
    assert lane.op(COMBINE)(one, 1, lane.put(torch.empty(1, 0, dtype=torch.int64)))[0].tolist() == [1.0, -2.0, 0.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 5, 8])
def test_agrees_with_float64(lane, dtype, tasks):
    grads, order = conflicting(tasks, dtype=dtype), others(tasks)
    want = reference(COMBINE, double(grads), tasks, order, reduction="mean")
    for got, oracle in zip(lane.op(COMBINE)(lane.put(grads), tasks, lane.put(order), reduction="mean"), want):
        assert got.dtype == dtype
        assert_close(got.cpu(), oracle, dtype=dtype, reduction=64 if dtype == torch.float32 else 1)
    gram = lane.op(GRAM)(lane.put(grads), tasks).cpu()
    assert gram.dtype == torch.float32 and torch.equal(gram, gram.t())
    assert_close(gram, reference(GRAM, double(grads), tasks), reduction=16)


@pytest.mark.parametrize("tasks", [9, 17])
def test_many_tasks_go_in_tiles(lane, tasks):
    grads, order = conflicting(tasks, [(70,), (3,)]), others(tasks)
    for got, oracle in zip(lane.op(COMBINE)(lane.put(grads), tasks, lane.put(order)), reference(COMBINE, double(grads), tasks, order)):
        assert_close(got.cpu(), oracle, reduction=1024)
    assert_close(lane.op(GRAM)(lane.put(grads), tasks).cpu(), reference(GRAM, double(grads), tasks), reduction=16)


def test_mixed_dtypes_layouts_and_views(lane):
    grads = conflicting(3, [(6, 3, 5, 5), (40, 9), (77,)])
    for t in range(3):
        grads[3 * t + 1] = grads[3 * t + 1].bfloat16()
    order = others(3)
    want = reference(COMBINE, double(grads), 3, order)
    mine = lane.put(grads)
    for t in range(3):                                                   # misaligned, each in its own way
        mine[3 * t + 2] = torch.cat([mine[3 * t + 2][:t + 1], mine[3 * t + 2]])[t + 1:]
    mine[0], mine[7] = mine[0].to(memory_format=torch.channels_last), mine[7].t().contiguous().t()
    mine[5] = mine[5].repeat_interleave(2)[::2]
    before = [g.clone() for g in mine]
    for got, oracle, first in zip(lane.op(COMBINE)(mine, 3, lane.put(order)), want, grads):
        assert got.dtype == first.dtype
        assert_close(got.cpu(), oracle)
    assert all(torch.equal(x, y) for x, y in zip(mine, before))


def test_views_give_the_sums_of_copies(lane):
    flat = lane.put(torch.randn(3 * 4177 + 2))
    views = [flat[1 + 4177 * t:1 + 4177 * (t + 1)] for t in range(3)]
    assert torch.equal(lane.op(GRAM)(views, 3), lane.op(GRAM)([v.clone() for v in views], 3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_product_that_is_not_finite_changes_nothing(lane, bad):
    grads, order = conflicting(3, [(40,)]), torch.tensor([[1, 2], [2, 0], [1, 0]])
    grads[1][7], grads[0][7], grads[2][7] = bad, 0.0, 0.0
    got = lane.op(COMBINE)(lane.put(grads), 3, lane.put(order))[0].cpu()
    assert_close(got, reference(COMBINE, double(grads), 3, order)[0])
    assert_close(got - grads[1], reference(COMBINE, double([grads[0], grads[2]]), 2, torch.tensor([[1], [0]]))[0]
                 + torch.zeros(40).index_fill(0, torch.tensor([7]), math.nan), reduction=16)


def test_an_order_that_names_no_other_task_is_passed_over(lane):
    grads, order = conflicting(3, [(40,)]), torch.tensor([[1, 2], [1, 2], [-1, 7]])
    got = lane.op(COMBINE)(lane.put(grads), 3, lane.put(order))[0].cpu()
    parts = [lane.op(COMBINE)(lane.put(grads), 3, lane.put(torch.tensor([order[0].tolist(), [2, 2], [9, 9]])))[0].cpu()]
    assert torch.equal(got, parts[0]) and got.isfinite().all()


def test_long_lists(lane):
    # Two launches per pass.
    grads, order = conflicting(2, [(1 + i % 5,) for i in range(350)]), others(2)
    got = lane.op(COMBINE)(lane.put(grads), 2, lane.put(order))
    assert_close(torch.cat([x.cpu() for x in got]), torch.cat(reference(COMBINE, double(grads), 2, order)))


@pytest.mark.parametrize("change, error, words", [
    ({"num_tasks": 65}, ValueError, r"pcgrad_combine: num_tasks: expected 1 to 64, got 65"),
    ({"num_tasks": 3}, ValueError, r"grads: expected the same number of tensors for each of 3 tasks, .* got 2 in all"),
    ({"grads": [torch.ones(4), torch.ones(3)]}, ValueError, r"grads\[1\]: expected shape \[4\], got \[3\]"),
    ({"grads": [torch.ones(4), torch.ones(4).half()]}, TypeError, r"grads\[1\]: expected Float like grads\[0\], got Half"),
    ({"grads": [torch.ones(4).double()] * 2}, TypeError, r"grads: expected float32, bfloat16 or float16 on a CUDA device, got Double"),
    ({"order": torch.tensor([[1], [0]]).int()}, TypeError, r"order: expected int64, got Int"),
    ({"order": torch.tensor([1, 0])}, ValueError, r"order: expected shape \[2, 1\], got \[2\]"),
    ({"reduction": "max"}, ValueError, r'reduction: expected "sum" or "mean", got "max"'),
])
def test_misuse(lane, change, error, words):
    given = {"grads": [torch.ones(4), torch.ones(4)], "num_tasks": 2, "order": torch.tensor([[1], [0]])} | change
    with pytest.raises(error, match=words):
        lane.op(COMBINE)(**lane.put(given))

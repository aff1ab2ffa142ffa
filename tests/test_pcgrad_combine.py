"""task_gram and pcgrad_combine: all products of the tasks' gradients, and what sequential PCGrad makes of them."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import native
from sparsekern.testing import assert_close, awkward_shapes, double, each_implementation, threads

GRAM, COMBINE = "task_gram", "pcgrad_combine"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(0,), (), (33,), (17, 13), (5, 0, 3), (4099,)]
each = pytest.mark.parametrize("name", each_implementation(COMBINE))


def call(name, *args, op=COMBINE, **kwargs):
    return ops.implementations(op)[name](*args, **kwargs)


def others(tasks, generator=None):
    """A random order in which every task visits the others."""
    rows = [torch.randperm(tasks - 1, generator=generator) for _ in range(tasks)]
    return torch.stack([row + (row >= i) for i, row in enumerate(rows)])


def conflicting(tasks, shapes=SHAPES, dtype=torch.float32):
    """Gradients that share a part with random sign, task after task."""
    shared = [torch.randn(s) for s in shapes]
    return [(torch.randn(s.shape) + (-1) ** t * s).to(dtype) for t in range(tasks) for s in shared]


def pcgrad(grads, tasks, order, mean=False):
    """As published, with Python numbers: project against the others one after the other, then add."""
    tensors = len(grads) // tasks
    rows = [torch.cat([g.double().flatten() for g in grads[t * tensors:(t + 1) * tensors]]) for t in range(tasks)]
    total = torch.zeros_like(rows[0])
    for i, visits in enumerate(order.tolist()):
        g = rows[i].clone()
        for j in visits:
            d, q = (g @ rows[j]).item(), (rows[j] @ rows[j]).item()
            if d < 0 and q > 0 and math.isfinite(d) and math.isfinite(q):
                g -= d / q * rows[j]
        total += g
    parts = (total / tasks if mean else total).split([g.numel() for g in grads[:tensors]])
    return [part.view(g.shape) for part, g in zip(parts, grads)]


# ---- worked examples ----

@each
def test_worked_example_two_tasks(name):
    # <a, b> = -1, |a|^2 = 1, |b|^2 = 2. a becomes a + b / 2 = (0.5, 0.5), b becomes b + a = (0, 1).
    grads, order = [torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])], torch.tensor([[1], [0]])
    assert call(name, grads, 2, order)[0].tolist() == [0.5, 1.5]
    assert call(name, grads, 2, order, reduction="mean")[0].tolist() == [0.25, 0.75]
    assert call(name, grads, 2, op=GRAM).tolist() == [[1.0, -1.0], [-1.0, 2.0]]


@each
def test_worked_example_agreement_is_the_plain_sum(name):
    grads = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.5])]
    assert call(name, grads, 2, torch.tensor([[1], [0]]))[0].tolist() == [4.0, 2.5]


@each
def test_worked_example_three_tasks_depend_on_the_order(name):
    # a = (1, 0), b = (-1, 1), c = (0, -1): <a, b> = -1, <a, c> = 0, <b, c> = -1; |b|^2 = 2, the others 1.
    # a visits b: (1, 0) + b / 2 = (0.5, 0.5); then c, product -0.5: (0.5, 0.5) + c / 2 = (0.5, 0).
    # a visits c first: 0, nothing; then b: (0.5, 0.5).
    # b visits a: (0, 1); then c, product -1: (0, 0). c visits a: 0; then b, product -1: c + b / 2 = (-0.5, -0.5).
    grads = [torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0]), torch.tensor([0.0, -1.0])]
    assert call(name, grads, 3, torch.tensor([[1, 2], [0, 2], [0, 1]]))[0].tolist() == [0.0, -0.5]
    assert call(name, grads, 3, torch.tensor([[2, 1], [0, 2], [0, 1]]))[0].tolist() == [0.0, 0.0]


@each
def test_products_run_over_all_tensors(name):
    # By themselves the first tensors conflict; together the products are 9 - 1.
    grads = [torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([-1.0]), torch.tensor([3.0])]
    assert [x.item() for x in call(name, grads, 2, torch.tensor([[1], [0]]))] == [0.0, 6.0]
    assert call(name, grads, 2, op=GRAM).tolist() == [[10.0, 8.0], [8.0, 10.0]]


@each
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_product_that_is_not_finite_changes_nothing(name, bad):
    # Task 1 is broken: nobody visits it, it visits nobody; the others are as if alone, and its values come out in their places.
    grads = conflicting(3, [(40,)])
    grads[1][7] = bad
    grads[0][7] = grads[2][7] = 0.0
    want = pcgrad([grads[0], grads[2]], 2, torch.tensor([[1], [0]]))[0] + grads[1]
    got = call(name, grads, 3, torch.tensor([[1, 2], [2, 0], [1, 0]]))[0]
    assert_close(got, want)
    assert got[7].isnan() if math.isnan(bad) else got[7] == bad


@each
def test_zero_gradients_and_one_task(name):
    zero, one = torch.zeros(3), torch.tensor([1.0, -2.0, 0.0])
    assert call(name, [zero, one], 2, torch.tensor([[1], [0]]))[0].tolist() == one.tolist()
    assert call(name, [one], 1, torch.empty(1, 0, dtype=torch.int64))[0].tolist() == one.tolist()


# ---- agreement ----

@each
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 5, 8, 11])
def test_agrees_with_sequential_pcgrad(name, dtype, tasks):
    grads, order = conflicting(tasks, dtype=dtype), others(tasks)
    for got, want in zip(call(name, grads, tasks, order, reduction="mean"), pcgrad(double(grads), tasks, order, mean=True)):
        assert got.dtype == dtype
        # fp32 sums of products decide how much is taken away: about the square root of their length in last digits.
        assert_close(got, want, dtype=dtype, reduction=64 if dtype == torch.float32 else 4099 if dtype == torch.float64 else 1)
    gram = call(name, grads, tasks, op=GRAM)
    rows = torch.stack([torch.cat([g.double().flatten() for g in grads[t * len(SHAPES):(t + 1) * len(SHAPES)]]) for t in range(tasks)])
    assert gram.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and torch.equal(gram, gram.t())
    assert_close(gram, rows @ rows.t(), reduction=16)


@each
def test_two_tasks_are_two_projections(name):
    grads = conflicting(2)
    a, b = grads[:len(SHAPES)], grads[len(SHAPES):]
    mine, theirs = double(a), double(b)
    ops.project_conflict_(mine, double(b))
    ops.project_conflict_(theirs, double(a))
    for got, x, y in zip(call(name, grads, 2, torch.tensor([[1], [0]])), mine, theirs):
        assert_close(got, x + y)


@each
def test_mixed_dtypes_layouts_and_views(name):
    shapes = [(6, 3, 5, 5), (40, 9), (77,)]
    grads = conflicting(3, shapes)
    for t in range(3):
        grads[3 * t + 1] = grads[3 * t + 1].bfloat16()
        grads[3 * t + 2] = torch.cat([torch.zeros(t + 1), grads[3 * t + 2]])[t + 1:]
    grads[0], grads[7] = grads[0].to(memory_format=torch.channels_last), grads[7].t().contiguous().t()
    grads[5] = grads[5].repeat_interleave(2)[::2]
    before, order = [g.clone() for g in grads], others(3)
    got = call(name, grads, 3, order)
    for mine, want, first in zip(got, pcgrad(double(grads), 3, order), grads):
        assert mine.dtype == first.dtype
        assert_close(mine, want)
    assert all(torch.equal(x, y) for x, y in zip(grads, before))


def test_same_bits_for_every_isa_and_thread_count():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    grads, order, seen = conflicting(5, [(70001,), (1 << 18,), (33, 5)]), others(5), []
    for isa in ("scalar", "avx2", "avx512"):
        for count in (1, 2):
            try:
                native.set_isa(isa)
            except ValueError:
                continue
            with threads(count):
                seen.append(ops.pcgrad_combine(grads, 5, order) + [ops.task_gram(grads, 5)])
    native.set_isa("auto")
    assert all(torch.equal(x, y) for other in seen[1:] for x, y in zip(seen[0], other))


def test_every_isa_agrees_on_odd_sizes(isa):
    for dtype in (torch.float32, torch.bfloat16):
        grads, order = conflicting(3, awkward_shapes, dtype), others(3)
        for got, want in zip(call("cpu", grads, 3, order), pcgrad(double(grads), 3, order)):
            assert_close(got, want)


@given(st.integers(1, 7), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_any_tasks_in_any_order(tasks, n, seed):
    generator = torch.Generator().manual_seed(seed)
    grads, order = [torch.randn(n, generator=generator).double() for _ in range(tasks)], others(tasks, generator)
    # What cancels leaves rounding errors of what was added.
    error = (ops.pcgrad_combine(grads, tasks, order)[0] - pcgrad(grads, tasks, order)[0]).norm()
    assert error <= 1e-12 * sum(g.norm() for g in grads)


# ---- citizenship ----

def test_empty_lists():
    assert ops.pcgrad_combine([], 3, others(3)) == []
    assert torch.equal(ops.task_gram([], 3), torch.zeros(3, 3))


def test_opcheck():
    grads = conflicting(3, [(5, 3), (4,)])
    torch.library.opcheck(torch.ops.sparsekern.task_gram.default, (grads, 3))
    torch.library.opcheck(torch.ops.sparsekern.pcgrad_combine.default, (grads, 3, others(3)), {"reduction": "mean"})


def test_compiles_whole():
    def step(grads, order):
        return [g * 2 for g in ops.pcgrad_combine(grads, 2, order)] + [ops.task_gram(grads, 2)]

    grads, order = conflicting(2, [(33,), (4, 2)]), others(2)
    want = step(grads, order)
    assert all(torch.equal(x, y) for x, y in zip(torch.compile(step, fullgraph=True)(grads, order), want))


# ---- misuse ----

@each
@pytest.mark.parametrize("change, error, words", [
    ({"num_tasks": 0}, ValueError, r"pcgrad_combine: num_tasks: expected 1 to 64, got 0"),
    ({"num_tasks": 65}, ValueError, r"num_tasks: expected 1 to 64, got 65"),
    ({"num_tasks": 3}, ValueError, r"grads: expected the same number of tensors for each of 3 tasks, .* got 2 in all"),
    ({"grads": [torch.ones(4), torch.ones(3)]}, ValueError, r"grads\[1\]: expected shape \[4\], got \[3\]"),
    ({"grads": [torch.ones(4), torch.ones(4).double()]}, TypeError, r"grads\[1\]: expected .*[Ff]loat.* like grads\[0\], got .*[Dd]ouble|float64"),
    ({"grads": [torch.ones(4).int()] * 2}, TypeError, r"grads\[0\]: expected float32, bfloat16, float16 or float64, got .*[Ii]nt"),
    ({"order": torch.tensor([[1], [0]]).int()}, TypeError, r"order: expected int64, got .*[Ii]nt"),
    ({"order": torch.tensor([1, 0])}, ValueError, r"order: expected shape \[2, 1\], got \[2\]"),
    ({"order": torch.tensor([[1], [1]])}, ValueError, r"order: expected row 1 to name the other tasks of 2, got 1"),
    ({"order": torch.tensor([[2], [0]])}, ValueError, r"order: expected row 0 to name the other tasks of 2, got 2"),
    ({"order": torch.tensor([[-1], [0]])}, ValueError, r"order: expected row 0 to name the other tasks of 2, got -1"),
    ({"reduction": "max"}, ValueError, r'reduction: expected "sum" or "mean", got "max"'),
])
def test_misuse(name, change, error, words):
    given = {"grads": [torch.ones(4), torch.ones(4)], "num_tasks": 2, "order": torch.tensor([[1], [0]])} | change
    with pytest.raises(error, match=words):
        call(name, **given)


def test_misuse_gram():
    with pytest.raises(ValueError, match="task_gram: num_tasks: expected 1 to 64, got 0"):
        ops.task_gram([torch.ones(2)], 0)

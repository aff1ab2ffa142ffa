"""nm_mask, nm_apply_ and nm_mask_transposable: exactly n of every m, ties by index, the best transposable pattern."""
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import native
from sparsekern.ops import nm_apply_, nm_mask, nm_mask_transposable
from sparsekern.ops.nm_mask import transposable_patterns
from sparsekern.testing import each_implementation, threads

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
RATIOS = [(2, 4), (1, 4), (3, 4), (0, 4), (4, 4), (1, 2), (2, 8), (1, 16), (3, 5), (7, 12), (1, 1), (5, 33), (63, 64)]
# Flat groups, short last groups, lines shorter than a group, units that do not fill sixteen lanes, inner sizes around sixteen.
SHAPES = [((), -1), ((1,), 0), ((3,), 0), ((4096,), 0), ((5, 3), 1), ((7, 128), -1), ((33, 70), -1), ((33, 70), 0), ((130, 17), 0), ((64, 16), 0),
          ((6, 20, 3, 3), 1), ((6, 20, 3, 3), 0), ((3, 9, 32), 1), ((0, 4), 1), ((4, 0), 1), ((2, 0, 5), 0)]


def call(op, name, *args, **kwargs):
    return ops.implementations(op)[name](*args, **kwargs)


def special(shape, dtype):
    """Few different values: ties everywhere, zeros of both signs, NaN and inf."""
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, math.nan, math.inf, -math.inf, 0.5])
    return values[torch.randint(len(values), shape)].to(dtype)


def by_hand(line, n, m, use_abs=True):
    """The definition, one group at a time."""
    kept = []
    for at in range(0, len(line), m):
        group = [abs(v) if use_abs else v for v in line[at:at + m]]
        best = sorted(range(len(group)), key=lambda i: (math.isnan(group[i]), 0.0 if math.isnan(group[i]) else -group[i], i))[:n]
        kept += [i in best for i in range(len(group))]
    return kept


# ---- worked examples ----

@pytest.mark.parametrize("name", each_implementation("nm_mask"))
def test_worked_example(name):
    x = torch.tensor([[1.0, -4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0], [0.0, -0.0, math.nan, 0.0, math.nan, math.nan, math.nan, 7.0]])
    assert call("nm_mask", name, x, 2, 4).int().tolist() == [[0, 1, 1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0, 0, 1]]
    assert call("nm_mask", name, x, 2, 4, use_abs=False).int().tolist() == [[0, 0, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0, 0, 1]]
    assert call("nm_mask", name, x, 1, 2, dim=0).int().tolist() == [[1, 1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0, 1]]
    # Bits 1, 2, 4, 5 and 8, 9, 12, 15.
    assert call("nm_mask", name, x, 2, 4, packed=True).tolist() == [0b1001_0011_0011_0110]


@pytest.mark.parametrize("name", each_implementation("nm_mask"))
def test_worked_example_short_last_group(name):
    # Groups [1 2 3 4] [5 6]: the short one keeps min(n, 2).
    x = torch.arange(1.0, 7)
    assert call("nm_mask", name, x, 3, 4).int().tolist() == [0, 1, 1, 1, 1, 1]
    assert call("nm_mask", name, x, 1, 4).int().tolist() == [0, 0, 0, 1, 0, 1]


@pytest.mark.parametrize("name", each_implementation("nm_apply_"))
def test_worked_example_apply(name):
    x = torch.tensor([-0.0, math.nan, -3.0, 1.0, -0.0, -0.0, -0.0, -0.0])
    call("nm_apply_", name, x, 2, 4)
    assert x.tolist() == [0, 0, -3, 1, 0, 0, 0, 0] and x.signbit().tolist() == [False, False, True, False, True, True, False, False]


@pytest.mark.parametrize("name", each_implementation("nm_mask_transposable"))
def test_worked_example_transposable(name):
    #     [9 8 0 0]    the two largest of every row would put three into column 0
    # x = [7 0 6 0]
    #     [5 0 0 1]
    #     [0 0 1 1]
    x = torch.tensor([[9.0, 8, 0, 0], [7, 0, -6, 0], [5, 0, 0, 1], [0, 0, 1, 1]])
    assert call("nm_mask_transposable", name, x).int().tolist() == [[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]]
    # All equal: the first pattern, rows (0, 1) (0, 1) (2, 3) (2, 3).
    assert call("nm_mask_transposable", name, torch.ones(4, 4)).int().tolist() == [[1, 1, 0, 0]] * 2 + [[0, 0, 1, 1]] * 2


# ---- agreement ----

@pytest.mark.parametrize("use_abs", [True, False], ids=["abs", "signed"])
def test_reference_is_the_definition(use_abs):
    for n, m in RATIOS:
        for x in (torch.randn(5, 130), special((5, 130), torch.float32), torch.randn(7, m + 3), torch.randn(3, max(m - 1, 1))):
            got = call("nm_mask", "reference", x, n, m, use_abs=use_abs)
            assert got.tolist() == [by_hand(line, n, m, use_abs) for line in x.tolist()]


def assert_agrees(name, dtype, ratios=RATIOS, shapes=SHAPES):
    for (n, m), (shape, dim) in itertools.product(ratios, shapes):
        for x in (torch.randn(shape).to(dtype), special(shape, dtype)) if (n, m) == (2, 4) else (special(shape, dtype),):
            for use_abs in (True, False):
                want = call("nm_mask", "reference", x, n, m, dim=dim, use_abs=use_abs)
                got = call("nm_mask", name, x, n, m, dim=dim, use_abs=use_abs)
                assert got.dtype == torch.bool and torch.equal(got, want), (n, m, shape, dim, use_abs)
            packed = call("nm_mask", name, x, n, m, dim=dim, packed=True)
            kept = call("nm_mask", "reference", x, n, m, dim=dim)
            assert torch.equal(packed, ops.pack_mask(kept))
            applied = x.clone()
            call("nm_apply_", name, applied, n, m, dim=dim)
            assert torch.equal(bits(applied), bits(torch.where(kept, x, torch.zeros_like(x))))


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_cpu_agrees(isa, dtype):
    assert_agrees("cpu", dtype)


@pytest.mark.skipif("triton" not in each_implementation("nm_mask"), reason="Triton runs on a GPU or in its interpreter")
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_triton_agrees(dtype):
    assert_agrees("triton", dtype, [(2, 4), (0, 4), (1, 16)], [((3,), 0), ((5, 70), 1), ((9, 17), 0), ((2, 9, 2), 1), ((0, 4), 1)])
    assert_agrees("triton", dtype, [(3, 5), (5, 33)], [((), -1), ((3, 70), 1), ((35, 3), 0)])


@pytest.mark.parametrize("name", each_implementation("nm_mask"))
def test_strides(name):
    wide = torch.randn(4, 10, 3, 20)
    for x in (wide.to(memory_format=torch.channels_last), wide.permute(3, 1, 0, 2), wide[::2, :, 1:], wide[:, :1].expand(4, 8, 3, 20)):
        for dim in range(4):
            got = call("nm_mask", name, x, 2, 4, dim=dim)
            assert got.stride() == torch.empty_like(x).stride()
            assert torch.equal(got, call("nm_mask", "reference", x.contiguous(), 2, 4, dim=dim))
            assert torch.equal(call("nm_mask", name, x, 2, 4, dim=dim, packed=True), ops.pack_mask(got))
    for x in (wide.to(memory_format=torch.channels_last), wide.permute(3, 1, 0, 2), wide[1:3]):
        want = torch.where(nm_mask(x, 1, 8, dim=1), x, 0.0)
        x = x.clone() if name == "reference" else torch.empty_like(x).copy_(x)
        call("nm_apply_", name, x, 1, 8, dim=1)
        assert torch.equal(x, want)


def test_misaligned_views(isa):
    flat = torch.randn(5000)
    for at in (1, 3, 7):
        for n, m in ((2, 4), (3, 7), (1, 16)):
            x = flat[at:at + 4000].view(40, 100)
            assert torch.equal(nm_mask(x, n, m), nm_mask(x.clone(), n, m))
            around = flat.clone()
            nm_apply_(around[at:at + 4000].view(40, 100), n, m)
            assert torch.equal(around[:at], flat[:at]) and torch.equal(around[at + 4000:], flat[at + 4000:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_kept_nan_keeps_its_payload(isa, dtype):
    pattern = torch.tensor([-3, 0x7F81, 0x7C01, 5, -0x8000] * 5, dtype=torch.int16)
    x = (pattern.to(torch.int32) << 16 | 1).view(torch.float32) if dtype == torch.float32 else pattern.view(dtype)
    applied = x.clone()
    nm_apply_(applied, 4, 4)
    assert torch.equal(bits(applied), bits(x))


def test_same_bits_for_every_thread_count():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    for x, dim in ((torch.randn(700, 1001), 1), (torch.randn(701, 1000), 0), (torch.randn(64, 128, 9, 9), 1)):
        for n, m in ((2, 4), (3, 10)):
            one = nm_mask(x, n, m, dim=dim)
            with threads(2):
                assert torch.equal(nm_mask(x, n, m, dim=dim), one)
    x = torch.randn(1000, 1004)
    one = nm_mask_transposable(x)
    with threads(2):
        assert torch.equal(nm_mask_transposable(x), one)


def test_a_million_groups(isa):
    x = torch.randint(-3, 4, (1_000_000, 4)).float()
    size = x.abs()
    # Element i is kept where fewer than two others come before it.
    before = torch.stack([sum((size[:, j] > size[:, i]) | ((size[:, j] == size[:, i]) & (j < i)) for j in range(4) if j != i) for i in range(4)], 1)
    assert torch.equal(nm_mask(x.flatten(), 2, 4).view(-1, 4), before < 2)


# ---- transposable masks ----

def test_there_are_90_patterns():
    patterns = transposable_patterns()
    assert len(patterns) == 90 and (patterns.sum(1) == 2).all() and (patterns.sum(2) == 2).all()
    kept = patterns.nonzero()[:, 2].view(90, 8).tolist()
    assert kept == sorted(kept)
    every = [p for p in itertools.product([False, True], repeat=16) if all(sum(p[4 * i:4 * i + 4]) == 2 == sum(p[i::4]) for i in range(4))]
    assert len(every) == 90 and set(every) == {tuple(p) for p in patterns.flatten(1).tolist()}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_transposable_agrees(isa, dtype):
    for shape in ((4, 4), (8, 12), (4, 256), (12, 260), (64, 516), (0, 4), (4, 0), (20, 64)):
        for x in (torch.randn(shape).to(dtype), special(shape, dtype), torch.randint(-2, 3, shape).to(dtype)):
            want = call("nm_mask_transposable", "reference", x)
            assert torch.equal(call("nm_mask_transposable", "cpu", x), want)
            assert torch.equal(call("nm_mask_transposable", "cpu", x.t().contiguous().t()), want)


@pytest.mark.parametrize("name", each_implementation("nm_mask_transposable"))
def test_transposable_is_optimal(name):
    """Against all 90 patterns; small whole numbers, so that sums are exact and ties many."""
    x = torch.randint(-9, 10, (160, 200)).float()
    blocks = x.abs().view(40, 4, 50, 4).transpose(1, 2).reshape(-1, 1, 4, 4)
    sums = (blocks * transposable_patterns()).sum((2, 3))
    best = transposable_patterns()[sums.argmax(1)].view(40, 50, 4, 4).transpose(1, 2).reshape(160, 200)
    mask = call("nm_mask_transposable", name, x)
    assert torch.equal((x.abs() * mask).view(40, 4, 50, 4).sum((1, 3)).flatten(), sums.amax(1))
    assert torch.equal(mask, best)                                      # argmax takes the first of equal ones
    real = torch.randn(160, 200)
    sums = (real.double().abs().view(40, 4, 50, 4).transpose(1, 2).reshape(-1, 1, 4, 4) * transposable_patterns()).sum((2, 3)).amax(1)
    got = (real.double().abs() * call("nm_mask_transposable", name, real)).view(40, 4, 50, 4).sum((1, 3)).flatten()
    assert (got >= sums * (1 - 1e-6)).all()


def test_transposable_takes_what_is_too_large_to_add_up(isa):
    x = torch.full((4, 4), 3e38)
    assert torch.equal(nm_mask_transposable(x), transposable_patterns()[0])
    x = torch.zeros(4, 4)
    x[[0, 1, 2, 3], [3, 3, 0, 0]] = torch.tensor([math.inf, -3e38, math.inf, 3e37])
    assert nm_mask_transposable(x)[[0, 1, 2, 3], [3, 3, 0, 0]].all()
    x = torch.full((4, 4), math.nan)
    x[0, 3] = x[3, 0] = 1e-30
    assert nm_mask_transposable(x)[0, 3] and nm_mask_transposable(x)[3, 0]


# ---- properties ----

@given(st.integers(1, 64), st.floats(0, 1), st.integers(1, 300), st.integers(1, 9), st.sampled_from([0, 1]), st.sampled_from(TYPES),
       st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_counts_and_order(m, fraction, length, others, dim, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    n = round(fraction * m)
    x = torch.randint(-5, 6, (length, others), generator=generator).to(dtype)
    x = x if dim == 0 else x.t().contiguous()
    mask, size = nm_mask(x, n, m, dim=dim), x.abs().double()
    for at in range(0, length, m):
        part, values = mask.narrow(dim, at, min(m, length - at)), size.narrow(dim, at, min(m, length - at))
        assert (part.sum(dim) == min(n, part.shape[dim])).all()
        least = torch.where(part, values, math.inf).amin(dim)
        assert (torch.where(part, -1.0, values).amax(dim) <= least).all()
    applied = x.clone()
    nm_apply_(applied, n, m, dim=dim)
    assert torch.equal(applied, torch.where(mask, x, torch.zeros_like(x)))
    again = applied.clone()
    nm_apply_(again, n, m, dim=dim)
    assert torch.equal(again, applied)


@given(st.integers(1, 12), st.integers(1, 90), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_transposable_holds_both_ways(rows, cols, seed):
    x = torch.randn(4 * rows, 4 * cols, generator=torch.Generator().manual_seed(seed))
    mask = nm_mask_transposable(x)
    assert (mask.view(-1, 4).sum(1) == 2).all() and (mask.t().reshape(-1, 4).sum(1) == 2).all()
    assert torch.equal(mask, nm_mask_transposable(-x)) and torch.equal(mask, nm_mask_transposable(4 * x))


# ---- citizenship ----

def test_opcheck():
    x = torch.randn(6, 10)
    for options in ({}, {"dim": 0, "use_abs": False}, {"packed": True}):
        torch.library.opcheck(torch.ops.sparsekern.nm_mask.default, (x, 2, 4), options)
    torch.library.opcheck(torch.ops.sparsekern.nm_apply_.default, (x, 2, 4), {"dim": 0})
    torch.library.opcheck(torch.ops.sparsekern.nm_mask_transposable.default, (torch.randn(8, 12),))


def test_compiles_whole():
    def step(weight, x):
        mask = nm_mask(weight, 2, 4)
        nm_apply_(weight, 2, 4)
        return x @ (weight * mask * nm_mask_transposable(weight)).t()

    weight, x = torch.randn(8, 12), torch.randn(3, 12)
    one, other = weight.clone(), weight.clone()
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(other, x), step(one, x))
    assert torch.equal(one, other)


def test_parameters_are_taken():
    weight = torch.nn.Parameter(torch.randn(4, 8))
    mask = nm_mask(weight, 2, 4)
    nm_apply_(weight, 2, 4)
    assert weight.is_leaf and not mask.requires_grad and torch.equal(weight != 0, mask) and not nm_mask_transposable(weight).requires_grad


def test_autograd_notices_the_edit():
    leaf = torch.randn(8, requires_grad=True)
    saved = leaf * 1
    loss = (saved * saved).sum()
    nm_apply_(saved.detach(), 2, 4)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---- misuse ----

@pytest.mark.parametrize("arguments, options, error, words", [
    ((torch.ones(8), 5, 4), {}, ValueError, "n: expected 0 to m = 4 elements kept of each group, got 5; n is the number kept"),
    ((torch.ones(8), -1, 4), {}, ValueError, "n: expected 0 to m = 4 elements kept of each group, got -1"),
    ((torch.ones(8), 2, 65), {}, ValueError, "m: expected a group of 1 to 64 elements, got 65"),
    ((torch.ones(8), 0, 0), {}, ValueError, "m: expected a group of 1 to 64 elements, got 0"),
    ((torch.ones(8), 2, 4), {"dim": 1}, ValueError, "dim: expected a dimension from -1 to 0, got 1"),
    ((torch.ones(2, 8), 2, 4), {"dim": -3}, ValueError, "dim: expected a dimension from -2 to 1, got -3"),
    ((torch.ones(()), 1, 4), {"dim": 1}, ValueError, "dim: expected a dimension from -1 to 0, got 1"),
    ((torch.ones(8).int(), 2, 4), {}, TypeError, "x: expected float32, bfloat16, float16 or float64, got"),
])
@pytest.mark.parametrize("op", ["nm_mask", "nm_apply_"])
def test_misuse(op, arguments, options, error, words):
    for name in each_implementation(op):
        with pytest.raises(error, match=f"{op}: {words}"):
            call(op, name, *arguments, **options)


@pytest.mark.parametrize("name", each_implementation("nm_apply_"))
def test_apply_needs_a_dense_tensor(name):
    with pytest.raises(ValueError, match=r"nm_apply_: x: expected a dense tensor .*, got sizes \[4, 4\] with strides \[8, 2\]"):
        call("nm_apply_", name, torch.ones(4, 8)[:, ::2], 2, 4)


@pytest.mark.parametrize("arguments, error, words", [
    ((torch.ones(4, 4), 1, 4), ValueError, "n, m: expected 2 of 4, the only transposable pattern there is a kernel for, got 1 of 4"),
    ((torch.ones(4, 6),), ValueError, r"x: expected a matrix with sides divisible by 4, got shape \[4, 6\]"),
    ((torch.ones(3, 4),), ValueError, r"x: expected a matrix with sides divisible by 4, got shape \[3, 4\]"),
    ((torch.ones(4, 4, 4),), ValueError, r"x: expected a matrix with sides divisible by 4, got shape \[4, 4, 4\]"),
    ((torch.ones(4, 4).long(),), TypeError, "x: expected float32, bfloat16, float16 or float64, got"),
])
@pytest.mark.parametrize("name", each_implementation("nm_mask_transposable"))
def test_misuse_of_transposable(name, arguments, error, words):
    with pytest.raises(error, match=f"nm_mask_transposable: {words}"):
        call("nm_mask_transposable", name, *arguments)

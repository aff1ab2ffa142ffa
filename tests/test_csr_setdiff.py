"""csr_setdiff: what is new among sampled positions, sorted, once each, with -1 behind."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import native
from sparsekern.ops import csr_setdiff
from sparsekern.testing import each_implementation, random_csr, threads

EACH = pytest.mark.parametrize("name", each_implementation("csr_setdiff"))


def call(name, rows, cols, crow, col, n_cols):
    return ops.implementations("csr_setdiff")[name](rows, cols, crow, col, n_cols)


def ints(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def same(a, b):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b))


def samples(rows, cols, count):
    return torch.randint(rows, (count,), dtype=torch.int32), torch.randint(cols, (count,), dtype=torch.int32)


# ---- worked examples ----

@EACH
def test_by_hand(name):
    # Active: (0, 1), (0, 3), (2, 0). (0, 3) is active, (2, 2) comes twice, row 1 has nothing.
    crow, col = ints(0, 2, 2, 3), ints(1, 3, 0)
    rows, cols, count = call(name, ints(2, 0, 0, 2, 0), ints(2, 3, 0, 2, 2), crow, col, 4)
    assert rows.tolist() == [0, 0, 2, -1, -1] and cols.tolist() == [0, 2, 2, -1, -1]
    assert count.shape == () and count == 3 and count.dtype == torch.int64 and rows.dtype == cols.dtype == torch.int32


@EACH
def test_padding_is_left_out(name):
    rows, cols, count = call(name, ints(-1, 1, 0, 1), ints(-1, 0, -7, 1), ints(0, 0, 1), ints(1), 2)
    assert rows.tolist() == [1, -1, -1, -1] and cols.tolist() == [0, -1, -1, -1] and count == 1


@EACH
@pytest.mark.parametrize("rows, cols", [(0, 0), (0, 5), (4, 0), (4, 5)])
def test_nothing_to_do(name, rows, cols):
    crow, none = torch.zeros(rows + 1, dtype=torch.int64), ints()
    assert same(call(name, none, none, crow, none, cols), (none, none, torch.tensor(0)))
    assert same(call(name, ints(-1), ints(-1), crow, none, cols), (ints(-1), ints(-1), torch.tensor(0)))


@EACH
def test_all_or_nothing_is_active(name):
    full = torch.arange(0, 13, 3), torch.arange(3, dtype=torch.int32).repeat(4)
    rows, cols = samples(4, 3, 300)
    assert call(name, rows, cols, *full, 3)[2] == 0
    rows, cols, count = call(name, rows, cols, torch.zeros(5, dtype=torch.int32), ints(), 3)
    assert count == 12 and (3 * rows + cols)[:12].tolist() == list(range(12))


# ---- agreement ----

@pytest.mark.parametrize("sparsity", [1.0, 0.999, 0.9, 0.5, 0.0])
@pytest.mark.parametrize("rows, cols", [(1, 1), (1, 64), (3, 65), (50, 40), (7, 9001), (2, 300_000), (600, 129), (20_000, 3)])
def test_cpu_agrees(isa, rows, cols, sparsity):
    crow, col, _ = random_csr(rows, cols, sparsity, index64=cols % 2 == 0)
    for count in (1, 5, 4000):
        drawn = samples(rows, cols, count)
        assert same(call("cpu", *drawn, crow, col, cols), call("reference", *drawn, crow, col, cols))


@EACH
def test_the_widest_matrix(name):
    crow, col = ints(0, 2, 2), ints(7, 2**31 - 1)
    rows, cols = samples(2, 2**31 - 1, 3000)
    cols[:200] = torch.randint(20, (200,))
    cols[200:210], rows[200:205] = 2**31 - 1, 0
    got = call(name, rows, cols, crow, col, 2**31)
    keys = set(zip(rows.tolist(), cols.tolist())) - {(0, 7), (0, 2**31 - 1)}
    assert list(zip(got[0].tolist(), got[1].tolist()))[:got[2]] == sorted(keys) and got[2] == len(keys)


def test_same_bits_for_every_thread_count_and_order():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    crow, col, _ = random_csr(500, 700, 0.9)
    rows, cols = samples(500, 700, 150_000)
    want = csr_setdiff(rows, cols, crow, col, 700)
    order = torch.randperm(len(rows))
    for count in (1, 2, 3):
        with threads(count):
            assert same(csr_setdiff(rows, cols, crow, col, 700), want)
            assert same(csr_setdiff(rows[order], cols[order], crow, col, 700), want)


@EACH
def test_strided_and_unchanged_arguments(name):
    crow, col, _ = random_csr(30, 20, 0.8)
    pairs = torch.stack(samples(30, 20, 99), dim=1)
    before = pairs.clone()
    want = call(name, pairs[:, 0].contiguous(), pairs[:, 1].contiguous(), crow, col, 20)
    assert same(call(name, pairs[:, 0], pairs[:, 1], crow, col, 20), want) and torch.equal(pairs, before)
    assert same(call(name, *want[:2], crow, col, 20), want)                       # done twice, nothing more happens


@EACH
def test_columns_that_are_not_sorted_do_no_harm(name):
    # Which are found may be told by csr_validate only; no memory access rests on order.
    rows, cols, count = call(name, ints(0, 0, 0, 1), ints(4, 2, 0, 3), ints(0, 3, 6), ints(4, 4, 1, 3, 0, 3), 5)
    assert rows[:count].tolist() == [0, 0] and cols[:count].tolist() == [0, 2]


# ---- properties ----

@given(st.integers(1, 12), st.integers(1, 12), st.data())
@settings(max_examples=200, deadline=None)
def test_is_the_difference_of_two_sets(rows, cols, data):
    place = st.tuples(st.integers(0, rows - 1), st.integers(0, cols - 1))
    drawn, active = data.draw(st.lists(place, max_size=60)), data.draw(st.sets(place))
    crow = torch.tensor([sum(r < row for r, _ in active) for row in range(rows + 1)])
    col = ints(*(c for _, c in sorted(active)))
    r, c, count = csr_setdiff(ints(*(r for r, _ in drawn)), ints(*(c for _, c in drawn)), crow, col, cols)
    assert list(zip(r.tolist(), c.tolist())) == sorted(set(drawn) - active) + [(-1, -1)] * (len(drawn) - int(count))


# ---- citizenship ----

def test_opcheck():
    crow, col, _ = random_csr(9, 11, 0.7)
    torch.library.opcheck(torch.ops.sparsekern.csr_setdiff.default, (*samples(9, 11, 40), crow, col, 11))


def test_compiles_whole():
    crow, col, _ = random_csr(9, 11, 0.7)

    def new(rows, cols):
        r, c, count = csr_setdiff(rows, cols.clamp(max=10), crow, col, 11)
        return r + 1, c, count

    drawn = samples(9, 11, 40)
    assert same(torch.compile(new, fullgraph=True)(*drawn), new(*drawn))


# ---- misuse ----

@pytest.mark.parametrize("change, error, words", [
    ({"rows": torch.tensor([0, 1])}, TypeError, "rows: expected int32, got"),
    ({"cols": torch.tensor([0.0, 1.0])}, TypeError, "cols: expected int32, got"),
    ({"cols": ints(1)}, ValueError, r"cols: expected one dimension and the length of rows, got shape \[1\]"),
    ({"rows": ints(0, 1).view(1, 2)}, ValueError, r"rows: expected one dimension and the length of rows, got shape \[1, 2\]"),
    ({"rows": ints(0, 3)}, ValueError, r"rows, cols: expected positions inside 3 x 4, got \(3, 1\) at 1"),
    ({"cols": ints(4, 9)}, ValueError, r"rows, cols: expected positions inside 3 x 4, got \(0, 4\) at 0"),
    ({"crow": ints()}, ValueError, "crow: expected 1 row pointers for 0 rows, got 0"),
    ({"crow": ints(0, 1, 0, 2)}, ValueError, "crow: expected row pointers that never fall, got 1 then 0 at row 1"),
    ({"crow": ints(0, 1, 1, 3)}, ValueError, r"crow: expected the last row pointer to be the number of columns stored \(2\), got 3"),
    ({"crow": torch.ones(4)}, TypeError, "crow: expected int32 or int64"),
    ({"col": ints(0, -1)}, ValueError, r"col: expected columns in \[0, 4\), got -1 in row 1, position 1"),
    ({"col": torch.tensor([0, 1])}, TypeError, "col: expected int32"),
    ({"n_cols": -1}, ValueError, "expected a shape with sides >= 0"),
])
@EACH
def test_misuse(name, change, error, words):
    arguments = {"rows": ints(0, 1), "cols": ints(0, 1), "crow": ints(0, 1, 2, 2), "col": ints(0, 3), "n_cols": 4} | change
    with pytest.raises(error, match="csr_setdiff: " + words):
        call(name, **arguments)

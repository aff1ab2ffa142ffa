"""csr_setdiff through its CUDA binding: exactly the reference's positions."""
import pytest
import torch

from sparsekern import ops
from sparsekern.testing import random_csr


def ints(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def samples(rows, cols, count):
    return torch.randint(rows, (count,), dtype=torch.int32), torch.randint(cols, (count,), dtype=torch.int32)


def assert_agrees(lane, *arguments):
    got, want = lane.op("csr_setdiff")(*lane.put(list(arguments))), ops.implementations("csr_setdiff")["reference"](*arguments)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype and torch.equal(one.cpu(), other)


def test_by_hand(lane):
    # Active: (0, 1), (0, 3), (2, 0). (0, 3) is active, (2, 2) comes twice, row 1 has nothing; padding and what is outside are left out.
    pattern = [ints(0, 2, 2, 3), ints(1, 3, 0)]
    rows, cols, count = lane.op("csr_setdiff")(*lane.put([ints(2, 0, -1, 0, 2, 0, 3, 0, 1), ints(2, 3, 0, 0, 2, 2, 0, 4, -5), *pattern]), 4)
    assert rows.tolist() == [0, 0, 2] + [-1] * 6 and cols.tolist() == [0, 2, 2] + [-1] * 6
    assert count.shape == () and count == 3 and count.dtype == torch.int64 and rows.dtype == cols.dtype == torch.int32


@pytest.mark.parametrize("rows, cols", [(0, 0), (0, 5), (4, 0), (4, 5)])
def test_nothing_to_do(lane, rows, cols):
    crow, none = torch.zeros(rows + 1, dtype=torch.int64), ints()
    assert_agrees(lane, none, none, crow, none, cols)
    assert_agrees(lane, ints(-1), ints(-1), crow, none, cols)


@pytest.mark.parametrize("sparsity", [1.0, 0.9, 0.5, 0.0])
@pytest.mark.parametrize("rows, cols", [(1, 1), (1, 64), (3, 65), (50, 40), (3, 4100), (2, 100_000), (300, 3)])
def test_agrees_with_the_reference(lane, rows, cols, sparsity):
    if rows * cols * (1 - sparsity) > 20_000:
        return
    crow, col, _ = random_csr(rows, cols, sparsity, index64=cols % 2 == 0)
    for count in (1, 5, 1500):
        assert_agrees(lane, *samples(rows, cols, count), crow, col, cols)


def test_most_places_in_one_row(lane):
    crow, col, _ = random_csr(40, 500, 0.9)
    rows, cols = samples(40, 500, 2000)
    rows[100:1900] = 17
    assert_agrees(lane, rows, cols, crow, col, 500)


def test_the_widest_matrix(lane):
    crow, col = ints(0, 2, 2), ints(7, 2**31 - 1)
    rows, cols = samples(2, 2**31 - 1, 24)
    cols[:10] = torch.randint(9, (10,))
    cols[10:14], rows[10:12], rows[12:14] = 2**31 - 1, 0, 1
    got = lane.op("csr_setdiff")(*lane.put([rows, cols, crow, col]), 2**31)
    keys = set(zip(rows.tolist(), cols.tolist())) - {(0, 7), (0, 2**31 - 1)}
    assert list(zip(got[0].tolist(), got[1].tolist()))[:got[2]] == sorted(keys) and got[2] == len(keys)


def test_strided_and_unchanged_arguments(lane):
    crow, col, _ = random_csr(30, 20, 0.8)
    pairs = torch.stack(samples(30, 20, 99), dim=1)
    there = lane.put(pairs)
    want = ops.csr_setdiff(*pairs.t().contiguous(), crow, col, 20)
    got = lane.op("csr_setdiff")(there[:, 0], there[:, 1], *lane.put([crow, col]), 20)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want)) and torch.equal(there.cpu(), pairs)


def test_columns_that_are_not_sorted_do_no_harm(lane):
    rows, cols, count = lane.op("csr_setdiff")(*lane.put([ints(0, 0, 0, 1), ints(4, 2, 0, 3), ints(0, 3, 6), ints(4, 4, 1, 3, 0, 3)]), 5)
    assert rows[:count].tolist() == [0, 0] and cols[:count].tolist() == [0, 2]


@pytest.mark.parametrize("change, error, words", [
    ({"rows": torch.tensor([0, 1])}, TypeError, "rows: expected int32, got"),
    ({"cols": torch.tensor([0.0, 1.0])}, TypeError, "cols: expected int32, got"),
    ({"cols": ints(1)}, ValueError, r"cols: expected one dimension and the length of rows, got shape \[1\]"),
    ({"rows": ints(0, 1).view(1, 2)}, ValueError, r"rows: expected one dimension and the length of rows, got shape \[1, 2\]"),
    ({"crow": ints()}, ValueError, "crow: expected 1 row pointers for 0 rows, got 0"),
    ({"crow": torch.ones(4)}, TypeError, "crow: expected int32 or int64"),
    ({"col": torch.tensor([0, 1])}, TypeError, "col: expected int32"),
    ({"n_cols": -1}, ValueError, "expected a shape with sides >= 0"),
])
def test_misuse(lane, change, error, words):
    arguments = {"rows": ints(0, 1), "cols": ints(0, 1), "crow": ints(0, 1, 2, 2), "col": ints(0, 3), "n_cols": 4} | change
    with pytest.raises(error, match="csr_setdiff: " + words):
        lane.op("csr_setdiff")(**lane.put(arguments))

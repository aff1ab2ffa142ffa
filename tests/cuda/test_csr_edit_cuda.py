"""csr_from_mask, csr_validate and csr_replace through their CUDA bindings: exactly the reference's patterns."""
import math

import pytest
import torch
from test_csr_edit import FAULTS, REPLACE, SOUND, bools, change, ints, replaced_densely

from sparsekern import ops
from sparsekern.testing import random_csr

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


def assert_same(got, want):
    for one, other in zip(got, want, strict=True):
        if isinstance(other, list | tuple):
            assert_same(one, other)
        else:
            assert one.dtype == other.dtype and torch.equal(one.cpu(), other)


def reference(op, *args, **kwargs):
    return ops.implementations(op)["reference"](*args, **kwargs)


# ---- csr_from_mask ----

@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (3, 8), (37, 50), (16, 3, 3, 3), (3, 8191), (5, 4096), (9000, 1), (1, 16385)], ids=str)
def test_from_mask(lane, shape):
    for density, index64, dtype in ((0.0, False, F32), (0.1, True, BF16), (0.5, False, F64), (1.0, True, torch.bool)):
        mask, values = torch.rand(shape) < density, (torch.randn(shape) * 100).to(dtype)
        want = reference("csr_from_mask", mask, values, index64=index64)
        assert_same(lane.op("csr_from_mask")(lane.put(mask), lane.put(values), index64=index64), want)
        assert_same(lane.op("csr_from_mask")(lane.put(mask), lane.put(values), nnz=int(mask.sum()), index64=index64), want)
        assert_same(lane.op("csr_from_mask")(lane.put(mask)), reference("csr_from_mask", mask))


def test_from_mask_of_any_layout(lane):
    mask, values = torch.rand(6, 4, 5, 3) < 0.3, torch.randn(6, 4, 5, 3)
    want = reference("csr_from_mask", mask, values)
    last = torch.channels_last
    flat, flat_values = torch.zeros(367, dtype=torch.bool), torch.zeros(361)
    flat[7:].copy_(mask.flatten()), flat_values[1:].copy_(values.flatten())
    mask_7, values_1 = lane.put(flat)[7:].view(6, 4, 5, 3), lane.put(flat_values)[1:].view(6, 4, 5, 3)         # misaligned
    for m, v in ((mask.to(memory_format=last), values), (mask, values.to(memory_format=last))):
        assert_same(lane.op("csr_from_mask")(lane.put(m).to(memory_format=last), lane.put(v)), want)
    assert_same(lane.op("csr_from_mask")(mask_7, values_1), want)
    raw = torch.tensor([[0, 2, 255], [128, 0, 1]], dtype=torch.uint8).view(torch.bool)
    got = lane.op("csr_from_mask")(lane.put(raw))
    assert got[0].tolist() == [0, 2, 4] and got[1].tolist() == [1, 2, 0, 2]


def test_from_mask_keeps_within_a_wrong_count(lane):
    mask, values = torch.ones(3, 5, dtype=torch.bool), torch.arange(15.0).view(3, 5)
    crow, col, val = lane.op("csr_from_mask")(lane.put(mask), lane.put(values), nnz=7)
    assert crow.tolist() == [0, 5, 10, 15] and col.tolist() == [0, 1, 2, 3, 4, 0, 1] and val.tolist() == list(range(7))
    mask[1:] = False
    crow, col, val = lane.op("csr_from_mask")(lane.put(mask), lane.put(values), nnz=7)
    assert crow.tolist() == [0, 5, 5, 5] and col.tolist() == [0, 1, 2, 3, 4, -1, -1] and val.tolist() == [0, 1, 2, 3, 4, 0, 0]


@pytest.mark.parametrize("arguments, options, error, words", [
    ((torch.ones(2, 3),), {}, TypeError, "csr_from_mask: mask: expected bool, got"),
    ((bools(True),), {}, ValueError, r"csr_from_mask: mask: expected two dimensions or more, got shape \[1\]"),
    ((torch.ones(2, 3, dtype=torch.bool), torch.ones(3, 2)), {}, ValueError, r"values: expected the mask's shape \[2, 3\], got \[3, 2\]"),
    ((torch.ones(2, 3, dtype=torch.bool),), {"nnz": 9}, ValueError, r"nnz: expected the number of entries that are on \(at most 6\), got 9"),
    ((torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 3, dtype=torch.complex128)), {}, TypeError, "values: expected elements of at most 8 bytes"),
])
def test_misuse_of_from_mask(lane, arguments, options, error, words):
    with pytest.raises(error, match=words):
        lane.op("csr_from_mask")(*lane.put(arguments), **options)


# ---- csr_validate ----

@pytest.mark.parametrize("index64", [True, False])
@pytest.mark.parametrize("arguments, finding, words", FAULTS)
def test_worked_examples_of_faults(lane, arguments, finding, words, index64):
    crow, *rest = arguments
    got = lane.op("csr_validate")(lane.put(crow if index64 else crow.int()), *lane.put(rest))
    assert got.dtype == torch.int64 and tuple(got.tolist()) == finding


def test_validate_agrees_on_broken_patterns(lane):
    generator = torch.Generator().manual_seed(1)

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    for turn in range(40):
        rows, cols = draw(0, 7), draw(0, 7)
        crow, col, val = random_csr(rows, cols, (0.0, 0.5, 0.9)[turn % 3], seed=turn, index64=turn % 2 == 0, dtype=(F32, BF16, F16, F64)[turn % 4])
        for tensor in (crow, col):
            if tensor.numel() and draw(0, 2):
                tensor[draw(0, tensor.numel())] = draw(-2, 10)
        if val.numel() and draw(0, 2):
            val[draw(0, val.numel())] = (math.inf, -math.inf, math.nan)[turn % 3]
        got = lane.op("csr_validate")(*lane.put([crow, col]), rows, cols, lane.put(val))
        assert_same([got], [reference("csr_validate", crow, col, rows, cols, val)])


def test_validate_finds_the_lowest_fault(lane):
    crow, col, val = random_csr(50, 100, 0.5)
    assert_same([lane.op("csr_validate")(*lane.put([crow, col]), 50, 100, lane.put(val))], [torch.tensor([0, -1, -1])])
    col[2000], col[701] = -1, 100
    want = [5, int((crow.long() <= 701).sum()) - 1, 701]
    assert lane.op("csr_validate")(*lane.put([crow, col]), 50, 100, lane.put(val)).tolist() == want


def test_misuse_of_validate(lane):
    for changed, words in (((torch.zeros(4), SOUND[1]), "crow: expected int32 or int64"), ((SOUND[0], SOUND[1].long()), "col: expected int32, got")):
        with pytest.raises(TypeError, match="csr_validate: " + words):
            lane.op("csr_validate")(*lane.put(changed), 3, 4)
    with pytest.raises(TypeError, match="csr_validate: val: expected float32, bfloat16, float16 or float64, got"):
        lane.op("csr_validate")(*lane.put(SOUND[:2]), 3, 4, lane.put(SOUND[1]))


# ---- csr_replace ----

@pytest.mark.parametrize("shape", [(1, 40, 0.5, 0.5), (37, 50, 0.8, 0.3), (30, 200, 0.5, 0.3), (5, 300, 0.5, 1.0), (12, 64, 0.0, 0.1),
                                   (50, 20, 0.95, 0.0), (0, 5, 0.5, 0.5), (5, 0, 0.5, 0.5)], ids=str)
def test_replace(lane, shape):
    height, width, sparsity, share = shape
    for seed, (index64, same_count) in enumerate([(False, True), (True, False)]):
        crow, col, vals, drop, rows, cols, take = change(height, width, sparsity, share, seed, index64, same_count)
        vals = [*vals, vals[0] > 0]
        nnz = int(col.numel() - drop.sum() + take.sum())
        shuffle = torch.randperm(rows.numel())
        inserted = [torch.randn(rows.numel()).to(val.dtype) for val in vals]
        arguments = lane.put([crow, col, vals, drop, rows[shuffle], cols[shuffle], take[shuffle]])
        want = replaced_densely(crow, col, vals, drop, rows, cols, take, None, width)
        assert_same(lane.op("csr_replace")(*arguments, nnz=nnz), want)
        want = replaced_densely(crow, col, vals, drop, rows, cols, take, inserted, width)
        assert_same(lane.op("csr_replace")(*arguments, inserted=lane.put([grown[shuffle] for grown in inserted]), nnz=nnz), want)
        assert arguments[1].cpu().equal(col)


def test_replace_in_wide_rows(lane):
    # Several windows of marks in a row, entries far apart, and a column at the very end.
    crow, col = torch.tensor([0, 4, 4, 7]), ints(5, 32_767, 32_768, 2**31 - 2, 3, 70_000, 140_000)
    rows, cols, take = ints(2, 0, 1, 0, 0), ints(99_999, 2**31 - 1, 40_000, 65_600, 32_769), bools(True, True, True, True, True)
    drop, val, new = bools(False, True, False, False, False, False, True), torch.arange(7.0), torch.arange(5.0) * 10
    got = lane.op("csr_replace")(*lane.put([crow, col, [val], drop, rows, cols, take]), inserted=[lane.put(new)], nnz=10)
    assert_same(got, reference("csr_replace", crow, col, [val], drop, rows, cols, take, inserted=[new], nnz=10))


def test_replace_moves_more_arrays_than_a_launch_takes(lane):
    crow, col, vals, drop, rows, cols, take = change(6, 30, 0.5, 0.3, 2)
    vals = [vals[k % 4] for k in range(18)]
    want = reference("csr_replace", crow, col, vals, drop, rows, cols, take)
    assert_same(lane.op("csr_replace")(*lane.put([crow, col, vals, drop, rows, cols, take])), want)
    assert_same(lane.op("csr_replace")(*lane.put([crow, col, [], drop, rows, cols, take])), [want[0], want[1], []])


def test_replace_takes_strided_and_misaligned_tensors(lane):
    crow, col, vals, drop, rows, cols, take = change(20, 30, 0.6, 0.3, 1)
    want = reference("csr_replace", crow, col, vals, drop, rows, cols, take)

    def spread(tensor):
        return lane.put(tensor)[:, None].expand(-1, 2).contiguous()[:, 0]

    def shifted(tensor):
        return lane.put(torch.cat([tensor[:1], tensor]))[1:]

    for turn in (spread, shifted):
        assert_same(lane.op("csr_replace")(turn(crow), turn(col), [turn(v) for v in vals], turn(drop), turn(rows), turn(cols), turn(take)), want)


def test_replace_stays_inside_on_wrong_counts(lane):
    crow, col, val = torch.tensor([0, 2, 3]), ints(0, 2, 1), torch.tensor([1.0, 2.0, 3.0])
    nothing = ints(), ints(), bools()
    got = lane.op("csr_replace")(*lane.put([crow, col, [val], bools(False, False, False), *nothing]), nnz=2)      # three stay
    assert got[0].tolist() == [0, 2, 3] and got[1].tolist() == [0, 2] and got[2][0].tolist() == [1.0, 2.0]
    got = lane.op("csr_replace")(*lane.put([crow, col, [val], bools(False, True, False), *nothing]))              # two stay
    assert got[0].tolist() == [0, 1, 2] and got[1].tolist() == [0, 1, 0] and got[2][0].tolist() == [1.0, 3.0, 0.0]
    # A candidate twice: one of the two comes; what its place held is column 0.
    got = lane.op("csr_replace")(*lane.put([crow, col, [val], bools(True, True, False), ints(0, 0), ints(1, 1), bools(True, True)]))
    assert got[0].tolist() == [0, 2, 3] and got[1].tolist() == [1, 0, 1] and got[2][0].tolist() == [0.0, 0.0, 3.0]
    got = lane.op("csr_replace")(*lane.put([crow, col, [val], bools(True, False, False), ints(7), ints(1), bools(True)]))    # no such row
    assert got[0].tolist() == [0, 1, 2] and got[1].tolist() == [2, 1, 0]


@pytest.mark.parametrize("changes, error, words", [
    ({"drop": bools(True)}, ValueError, r"drop: expected shape \[3\] like the nonzeros, got \[1\]"),
    ({"drop": ints(1, 0, 0)}, TypeError, "drop: expected .*(bool|Bool), got"),
    ({"rows": ints(1, 0).long()}, TypeError, "rows: expected .*[iI]nt.*, got"),
    ({"take": bools(True)}, ValueError, r"take: expected shape \[2\] like the rows, got \[1\]"),
    ({"vals": [torch.ones(3), torch.ones(2)]}, ValueError, r"vals\[1\]: expected shape \[3\] like the nonzeros, got \[2\]"),
    ({"inserted": []}, ValueError, "inserted: expected a list of 1 tensors like vals, got 0"),
    ({"inserted": [torch.ones(2).double()]}, TypeError, r"inserted\[0\]: expected .* like vals\[0\], got"),
    ({"nnz": 6}, ValueError, "nnz: expected at most 5 nonzeros after the change, got 6"),
    ({"crow": torch.tensor([0.0, 2.0, 3.0])}, TypeError, "crow: expected int32 or int64, got"),
    ({"crow": torch.tensor([[0, 3]])}, ValueError, r"crow: expected one dimension, got shape \[1, 2\]"),
])
def test_misuse_of_replace(lane, changes, error, words):
    with pytest.raises(error, match="csr_replace: " + words):
        lane.op("csr_replace")(**lane.put(REPLACE | changes))

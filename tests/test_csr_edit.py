"""csr_from_mask, csr_validate with check_csr, csr_replace: patterns made, checked and changed, never through a dense matrix."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern.ops import check_csr, csr_from_mask, csr_replace, csr_validate
from sparsekern.testing import each_implementation, random_csr, threads

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAMES = each_implementation("csr_replace")


def call(op, name, *args, **kwargs):
    return ops.implementations(op)[name](*args, **kwargs)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def bools(*values):
    return torch.tensor(values, dtype=torch.bool)


def row_of(crow, nnz):
    return torch.repeat_interleave(torch.arange(crow.numel() - 1), crow.diff().long(), output_size=nnz)


# ---- csr_from_mask ----

@pytest.mark.parametrize("name", each_implementation("csr_from_mask"))
def test_worked_example_from_mask(name):
    mask = torch.tensor([[[False, True], [True, False]], [[False, False], [False, False]], [[True, True], [False, True]]])
    crow, col, val = call("csr_from_mask", name, mask, torch.arange(12.0).view(3, 2, 2))
    assert crow.tolist() == [0, 2, 2, 5] and col.tolist() == [1, 2, 0, 1, 3] and val.tolist() == [1.0, 2.0, 8.0, 9.0, 11.0]
    assert crow.dtype == col.dtype == torch.int32
    crow, col, val = call("csr_from_mask", name, mask, nnz=5, index64=True)
    assert crow.dtype == torch.int64 and crow.tolist() == [0, 2, 2, 5] and val.shape == (0,)


@pytest.mark.parametrize("name", each_implementation("csr_from_mask"))
def test_from_mask_agrees_with_torch(name):
    for shape in ((0, 5), (5, 0), (1, 1), (3, 8), (37, 50), (16, 3, 3, 3), (200, 1003)):
        for density in (0.0, 0.1, 1.0):
            mask = torch.rand(shape) < density
            for dtype in (*TYPES, torch.int64, torch.bool):
                values = (torch.randn(shape) * 100).to(dtype)
                crow, col, val = call("csr_from_mask", name, mask, values)
                flat = mask.flatten(1)
                assert crow.tolist() == [0, *flat.sum(1).cumsum(0).tolist()]
                assert torch.equal(col.long(), flat.nonzero()[:, 1]) and torch.equal(val, values[mask]) and val.dtype == dtype


@pytest.mark.parametrize("name", each_implementation("csr_from_mask"))
def test_from_mask_of_any_layout(name):
    mask, values = torch.rand(6, 4, 5, 3) < 0.3, torch.randn(6, 4, 5, 3)
    want = call("csr_from_mask", name, mask, values)
    last = torch.channels_last
    wide = torch.zeros(6, 4, 5, 6, dtype=torch.bool)
    wide[..., ::2] = mask
    spread = values[..., None].expand(6, 4, 5, 3, 2)[..., 1]
    for m, v in ((mask.to(memory_format=last), values), (mask, values.to(memory_format=last)), (wide[..., ::2], spread)):
        assert all(torch.equal(x, y) for x, y in zip(call("csr_from_mask", name, m, v), want))


def test_no_gradient_flows():
    crow, col, val = csr_from_mask(torch.ones(2, 2, dtype=torch.bool), torch.randn(2, 2, requires_grad=True))
    assert not val.requires_grad
    _, _, (new,) = csr_replace(crow, col, [val.requires_grad_()], bools(True, False, False, False), ints(0), ints(0), bools(True),
                               inserted=[torch.ones(1, requires_grad=True)])
    assert not new.requires_grad and new[0] == 1


def test_bools_that_are_not_one_count_once():
    raw = torch.tensor([[0, 2, 255], [128, 0, 1]], dtype=torch.uint8)
    crow, col, _ = csr_from_mask(raw.view(torch.bool))
    assert crow.tolist() == [0, 2, 4] and col.tolist() == [1, 2, 0, 2]


@pytest.mark.parametrize("arguments, options, error, words", [
    ((torch.ones(2, 3),), {}, TypeError, "csr_from_mask: mask: expected bool, got"),
    ((bools(True),), {}, ValueError, r"csr_from_mask: mask: expected two dimensions or more, got shape \[1\]"),
    ((torch.ones(2, 3, dtype=torch.bool), torch.ones(3, 2)), {}, ValueError, r"values: expected the mask's shape \[2, 3\], got \[3, 2\]"),
    ((torch.ones(2, 3, dtype=torch.bool),), {"nnz": 5}, ValueError, r"nnz: expected the number of entries that are on \(6\), got 5"),
])
@pytest.mark.parametrize("name", each_implementation("csr_from_mask"))
def test_misuse_of_from_mask(name, arguments, options, error, words):
    with pytest.raises(error, match=words):
        call("csr_from_mask", name, *arguments, **options)


# ---- csr_validate and check_csr ----

SOUND = (torch.tensor([0, 2, 2, 4]), ints(1, 3, 0, 2), 3, 4)
FAULTS = [  # what is passed, (code, row, position), what check_csr says
    (SOUND, (0, -1, -1), None),
    ((torch.tensor([0, 2, 4]), ints(1, 3, 0, 2), 3, 4), (1, -1, -1), "crow: expected 4 row pointers for 3 rows, got 3"),
    ((torch.tensor([], dtype=torch.int64), ints(), 0, 4), (1, -1, -1), "crow: expected 1 row pointers for 0 rows, got 0"),
    ((torch.tensor([1, 2, 2, 4]), ints(1, 3, 0, 2), 3, 4), (2, 0, 0), "crow: expected to start at 0, got 1"),
    ((torch.tensor([0, 3, 2, 4]), ints(1, 3, 0, 2), 3, 4), (3, 1, 2), "crow: expected row pointers that never fall, got 3 then 2 at row 1"),
    ((torch.tensor([0, 2, 2, 9]), ints(1, 3, 0, 2), 3, 4), (4, 2, 3), r"crow: expected the last .* number of columns stored \(4\), got 9"),
    ((torch.tensor([0, 2, 2, 4]), ints(1, 4, 0, 2), 3, 4), (5, 0, 1), r"col: expected columns in \[0, 4\), got 4 in row 0, position 1"),
    ((torch.tensor([0, 2, 2, 4]), ints(1, 3, -7, 2), 3, 4), (5, 2, 2), r"col: expected columns in \[0, 4\), got -7 in row 2, position 2"),
    ((torch.tensor([0, 2, 2, 4]), ints(3, 1, 2, 2), 3, 4), (6, 0, 1), "col: expected columns that rise within a row, got 3 then 1 in row 0"),
    ((torch.tensor([0, 2, 2, 4]), ints(1, 3, 2, 2), 3, 4), (7, 2, 3), "col: expected each column once in a row, got column 2 twice in row 2"),
    ((*SOUND, torch.ones(3)), (8, -1, -1), "val: expected 4 values like the columns, got 3"),
    ((*SOUND, torch.tensor([1, math.nan, math.inf, 1])), (9, 0, 1), "val: expected finite values, got nan in column 3 in row 0, position 1"),
    ((*SOUND, torch.tensor([1, 1, -math.inf, 1]).bfloat16()), (9, 2, 2), "val: expected finite values, got -inf in column 0"),
    # The lowest position wins, and a wrong column before a wrong value.
    ((torch.tensor([0, 2, 2, 4]), ints(1, 3, 9, 2), 3, 4, torch.tensor([1, 1, math.nan, 1])), (5, 2, 2), "col: .* got 9 in row 2"),
    ((torch.tensor([0, 2, 2, 4]), ints(1, 3, 2, 2), 3, 4, torch.tensor([math.nan, 1, 1, 1])), (9, 0, 0), "val: .* got nan"),
    ((torch.tensor([0, 0]), ints(), 1, 0), (0, -1, -1), None),
    ((torch.tensor([0]), ints(), 0, 0, torch.ones(0)), (0, -1, -1), None),
]


@pytest.mark.parametrize("index64", [True, False])
@pytest.mark.parametrize("arguments, finding, words", FAULTS)
@pytest.mark.parametrize("name", each_implementation("csr_validate"))
def test_worked_examples_of_faults(name, arguments, finding, words, index64):
    crow, *rest = arguments
    crow = crow if index64 else crow.int()
    got = call("csr_validate", name, crow, *rest)
    assert got.dtype == torch.int64 and tuple(got.tolist()) == finding
    if words is None:
        check_csr(crow, *rest)
    else:
        with pytest.raises(ValueError, match="check_csr: " + words):
            check_csr(crow, *rest)
        with pytest.raises(ValueError, match="my_layer: " + words):
            check_csr(crow, *rest, op="my_layer")


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_validate_agrees_with_its_reference_on_broken_patterns(data):
    rows, cols = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 6))
    crow, col, val = random_csr(rows, cols, data.draw(st.sampled_from([0.0, 0.5, 0.9])), seed=data.draw(st.integers(0, 99)))
    for tensor in (crow, col):
        for _ in range(data.draw(st.integers(0, 2))):
            if tensor.numel():
                tensor[data.draw(st.integers(0, tensor.numel() - 1))] = data.draw(st.integers(-2, 9))
    if val.numel() and data.draw(st.booleans()):
        val[data.draw(st.integers(0, val.numel() - 1))] = math.inf
    findings = [call("csr_validate", name, crow, col, rows, cols, val).tolist() for name in each_implementation("csr_validate")]
    assert all(finding == findings[0] for finding in findings)


def test_validate_finds_the_lowest_fault_with_every_thread_count():
    crow, col, val = random_csr(500, 1000, 0.5)
    col[200_000], col[70_001] = -1, 1000
    want = [5, int((crow.long() <= 70_001).sum()) - 1, 70_001]
    for count in (1, 2):
        with threads(count):
            assert csr_validate(crow, col, 500, 1000, val).tolist() == want


@pytest.mark.parametrize("name", each_implementation("csr_validate"))
def test_misuse_of_validate(name):
    with pytest.raises(TypeError, match="csr_validate: crow: expected int32 or int64, got"):
        call("csr_validate", name, torch.zeros(4), SOUND[1], 3, 4)
    with pytest.raises(TypeError, match="csr_validate: col: expected int32, got"):
        call("csr_validate", name, SOUND[0], SOUND[1].long(), 3, 4)
    with pytest.raises(TypeError, match="csr_validate: val: expected float32, bfloat16, float16 or float64, got"):
        call("csr_validate", name, *SOUND, SOUND[1])


# ---- csr_replace ----

def replaced_densely(crow, col, vals, drop, rows, cols, take, inserted, width):
    """The same through dense matrices of positions: [rows, width] of where an entry comes from."""
    height, nnz = crow.numel() - 1, col.numel()
    origin = torch.full((height, width), -1)
    row = row_of(crow, nnz)
    origin[row[~drop], col.long()[~drop]] = torch.arange(nnz)[~drop]
    origin[rows.long()[take], cols.long()[take]] = nnz + torch.arange(rows.numel())[take]
    on = origin >= 0
    source = origin[on]
    arrays = [torch.cat([val, torch.zeros(rows.numel(), dtype=val.dtype) if inserted is None else inserted[i]])[source] for i, val in enumerate(vals)]
    return torch.cat([torch.zeros(1), on.sum(1).cumsum(0)]).to(crow.dtype), on.nonzero()[:, 1].int(), arrays


def change(height, width, sparsity, share, seed, index64=False, same_count=True):
    """A pattern with arrays, some nonzeros to drop and some of its inactive places, sorted, to take."""
    generator = torch.Generator().manual_seed(seed)
    crow, col, val = random_csr(height, width, sparsity, seed=seed, index64=index64)
    active = torch.zeros(height, width, dtype=torch.bool)
    active[row_of(crow, col.numel()), col.long()] = True
    drop = torch.rand(col.numel(), generator=generator) < share
    rows, cols = (~active).nonzero().int().t()
    chosen = torch.randperm(rows.numel(), generator=generator)[:rows.numel() // 2 + 1].sort().values
    rows, cols = rows[chosen].contiguous(), cols[chosen].contiguous()
    wanted = min(int(drop.sum()), rows.numel()) if same_count else rows.numel() // 3
    take = torch.zeros(rows.numel(), dtype=torch.bool)
    take[torch.randperm(rows.numel(), generator=generator)[:wanted]] = True
    return crow, col, [val, val.bfloat16(), val.double() * 3, torch.arange(val.numel())], drop, rows, cols, take


def assert_equal(got, want):
    assert torch.equal(got[0], want[0]) and got[0].dtype == want[0].dtype and torch.equal(got[1], want[1]) and got[1].dtype == torch.int32
    assert len(got[2]) == len(want[2])
    for one, other in zip(got[2], want[2]):
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_worked_example_replace(name):
    # [[., 1, ., 2], [., ., ., .], [3, ., 4, .]]: 2 and 3 leave; (1, 0) and (0, 0) come; (2, 1) is not taken, -1 is no place.
    crow, col, val = torch.tensor([0, 2, 2, 4]), ints(1, 3, 0, 2), torch.tensor([1.0, 2.0, 3.0, 4.0])
    drop, take = bools(False, True, True, False), bools(True, True, False, True)
    rows, cols = ints(1, 0, 2, -1), ints(0, 0, 1, -1)
    new_crow, new_col, (new, momentum) = call("csr_replace", name, crow, col, [val, val * 10], drop, rows, cols, take)
    assert new_crow.tolist() == [0, 2, 3, 4] and new_col.tolist() == [0, 1, 0, 2]
    assert new.tolist() == [0.0, 1.0, 0.0, 4.0] and momentum.tolist() == [0.0, 10.0, 0.0, 40.0]
    grown = torch.tensor([5.0, 6.0, 7.0, 8.0])
    _, _, (new,) = call("csr_replace", name, crow, col, [val], drop, rows, cols, take, inserted=[grown])
    assert new.tolist() == [6.0, 1.0, 5.0, 4.0]
    assert crow.tolist() == [0, 2, 2, 4] and col.tolist() == [1, 3, 0, 2] and val.tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("name", NAMES)
def test_the_count_may_change(name):
    crow, col, val = torch.tensor([0, 2]), ints(0, 2), torch.tensor([1.0, 2.0])
    nothing = torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.int32), bools()
    got = call("csr_replace", name, crow, col, [val], bools(True, False), *nothing, nnz=1)
    assert got[0].tolist() == [0, 1] and got[1].tolist() == [2] and got[2][0].tolist() == [2.0]
    got = call("csr_replace", name, crow, col, [val], bools(True, True), *nothing, nnz=0)
    assert got[0].tolist() == [0, 0] and got[1].shape == (0,) and got[2][0].shape == (0,)
    got = call("csr_replace", name, *got, bools(), ints(0, 0), ints(1, 0), bools(True, True), nnz=2)
    assert got[0].tolist() == [0, 2] and got[1].tolist() == [0, 1] and got[2][0].tolist() == [0.0, 0.0]
    # A place that is freed may be taken again at once: its value starts anew.
    got = call("csr_replace", name, crow, col, [val], bools(True, False), ints(0), ints(0), bools(True))
    assert got[1].tolist() == [0, 2] and got[2][0].tolist() == [0.0, 2.0]
    empty = call("csr_replace", name, torch.tensor([0]), ints(), [], bools(), *nothing)
    assert empty[0].tolist() == [0] and empty[1].shape == (0,) and empty[2] == []


@pytest.mark.parametrize("name", NAMES)
def test_replace_agrees(name):
    for seed, (height, width, sparsity, share) in enumerate([(1, 40, 0.5, 0.5), (37, 50, 0.8, 0.3), (300, 200, 0.9, 0.3), (5, 3000, 0.5, 1.0),
                                                             (64, 64, 0.0, 0.1), (50, 20, 0.95, 0.0), (0, 5, 0.5, 0.5), (5, 0, 0.5, 0.5)]):
        for index64 in (False, True):
            for same_count in (False, True):
                crow, col, vals, drop, rows, cols, take = change(height, width, sparsity, share, seed, index64, same_count)
                nnz = int(col.numel() - drop.sum() + take.sum())
                inserted = [torch.randn(rows.numel()).to(val.dtype) for val in vals]
                for grown in (None, inserted):
                    want = replaced_densely(crow, col, vals, drop, rows, cols, take, grown, width)
                    got = call("csr_replace", name, crow, col, vals, drop, rows, cols, take, inserted=grown, nnz=nnz)
                    assert_equal(got, want)
                    check_csr(got[0], got[1], height, width)
                shuffle = torch.randperm(rows.numel())
                got = call("csr_replace", name, crow, col, vals, drop, rows[shuffle], cols[shuffle], take[shuffle],
                           inserted=[grown[shuffle] for grown in inserted], nnz=nnz)
                assert_equal(got, want)


def test_replace_does_not_depend_on_threads():
    arguments = change(400, 1000, 0.7, 0.3, 0)
    results = []
    for count in (1, 2):
        with threads(count):
            results.append(csr_replace(*arguments))
    assert_equal(*results)


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**20))
@settings(max_examples=60, deadline=None)
def test_what_stays_keeps_its_values(height, width, sparsity, share, seed):
    crow, col, vals, drop, rows, cols, take = change(height, width, sparsity, share, seed, same_count=False)
    new_crow, new_col, new_vals = csr_replace(crow, col, vals, drop, rows, cols, take, nnz=int(col.numel() - drop.sum() + take.sum()))
    check_csr(new_crow, new_col, height, width)
    before = {(r, c): e for e, (r, c) in enumerate(zip(row_of(crow, col.numel()).tolist(), col.tolist())) if not drop[e]}
    after = {(r, c): e for e, (r, c) in enumerate(zip(row_of(new_crow, new_col.numel()).tolist(), new_col.tolist()))}
    came = set(zip(rows[take].tolist(), cols[take].tolist()))
    assert set(after) == set(before) | came and not set(before) & came
    for place, e in after.items():
        for val, new in zip(vals, new_vals):
            assert new[e] == (val[before[place]] if place in before else 0)


def test_strided_inputs_of_replace():
    crow, col, vals, drop, rows, cols, take = change(20, 30, 0.6, 0.3, 1)
    want = csr_replace(crow, col, vals, drop, rows, cols, take)

    def spread(tensor):
        return tensor[:, None].expand(-1, 2).contiguous()[:, 0]

    got = csr_replace(spread(crow), spread(col), [spread(v) for v in vals], spread(drop), spread(rows), spread(cols), spread(take))
    assert_equal(got, want)


REPLACE = {"crow": torch.tensor([0, 2, 3]), "col": ints(0, 2, 1), "vals": [torch.ones(3)], "drop": bools(True, False, False), "rows": ints(1, 0),
           "cols": ints(0, 1), "take": bools(True, False)}


@pytest.mark.parametrize("changes, error, words", [
    ({"drop": bools(True)}, ValueError, r"csr_replace: drop: expected shape \[3\] like the nonzeros, got \[1\]"),
    ({"drop": ints(1, 0, 0)}, TypeError, "csr_replace: drop: expected .*(bool|Bool), got"),
    ({"rows": ints(1, 0).long()}, TypeError, "csr_replace: rows: expected .*[iI]nt.*, got"),
    ({"cols": ints(0)}, ValueError, r"csr_replace: cols: expected shape \[2\] like the rows, got \[1\]"),
    ({"take": bools(True)}, ValueError, r"csr_replace: take: expected shape \[2\] like the rows, got \[1\]"),
    ({"vals": [torch.ones(3), torch.ones(2)]}, ValueError, r"csr_replace: vals\[1\]: expected shape \[3\] like the nonzeros, got \[2\]"),
    ({"inserted": []}, ValueError, "csr_replace: inserted: expected a list of 1 tensors like vals, got 0"),
    ({"inserted": [torch.ones(3)]}, ValueError, r"csr_replace: inserted\[0\]: expected shape \[2\] like the rows, got \[3\]"),
    ({"inserted": [torch.ones(2).double()]}, TypeError, r"csr_replace: inserted\[0\]: expected .* like vals\[0\], got"),
    ({"take": bools(True, True)}, ValueError, r"csr_replace: nnz: expected 3 nonzeros after the change, got 4 \(3 - 1 dropped \+ 2 taken\)"),
    ({"nnz": 5}, ValueError, "csr_replace: nnz: expected 5 nonzeros after the change, got 3"),
    ({"rows": ints(2, 0)}, ValueError, r"csr_replace: rows: expected rows in \[0, 2\), got 2 at 0"),
    ({"rows": ints(1, 1), "cols": ints(0, 0), "take": bools(True, True), "nnz": 4}, ValueError,
     "csr_replace: rows, cols: expected distinct and inactive candidates, got row 1, column 0 twice"),
    ({"cols": ints(1, 1)}, ValueError, "csr_replace: rows, cols: expected distinct and inactive candidates, got row 1, column 1 twice"),
    ({"crow": torch.tensor([0, 4, 3])}, ValueError, "csr_replace: crow: expected row pointers that never fall"),
    ({"col": ints(0, -2, 1)}, ValueError, "csr_replace: col: expected columns in .*, got -2 in row 0, position 1"),
])
@pytest.mark.parametrize("name", NAMES)
def test_misuse_of_replace(name, changes, error, words):
    with pytest.raises(error, match=words):
        call("csr_replace", name, **(REPLACE | changes))


# ---- citizenship ----

def test_opcheck():
    mask = torch.rand(5, 6) < 0.5
    nnz = int(mask.sum())
    torch.library.opcheck(torch.ops.sparsekern.csr_from_mask.default, (mask, torch.randn(5, 6)), {"nnz": nnz})
    torch.library.opcheck(torch.ops.sparsekern.csr_from_mask.default, (mask, torch.randn(5, 6)))
    crow, col, vals, drop, rows, cols, take = change(5, 6, 0.5, 0.3, 0)
    torch.library.opcheck(torch.ops.sparsekern.csr_validate.default, (crow, col, 5, 6, vals[0]))
    torch.library.opcheck(torch.ops.sparsekern.csr_replace.default, (crow, col, vals, drop, rows, cols, take))


def test_compiles_whole():
    crow, col, vals, drop, rows, cols, take = change(5, 6, 0.5, 0.3, 0)
    mask = torch.rand(5, 6) < 0.5

    def step(mask, *arguments):
        made = csr_from_mask(mask, nnz=int_nnz)
        changed = csr_replace(*arguments)
        return made[0] * 2, csr_validate(changed[0], changed[1], 5, 6), changed[2][0] + 1

    int_nnz = int(mask.sum())
    arguments = (mask, crow, col, vals, drop, rows, cols, take)
    for got, want in zip(torch.compile(step, fullgraph=True)(*arguments), step(*arguments)):
        assert torch.equal(got, want)

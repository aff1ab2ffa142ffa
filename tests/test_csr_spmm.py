"""csr_plan, csr_spmm and csr_spmm_t: sums over stored entries only, the same bits on any number of threads and instruction set."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import native
from sparsekern.ops import csr_plan, csr_spmm, csr_spmm_t
from sparsekern.testing import assert_close, each_implementation, random_csr, threads

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NAMES = [name for name in each_implementation("csr_spmm") if name != "triton"]          # Triton's agreement: test_csr_spmm_triton.py
# (rows, cols, sparsity, N): vectors, rows and columns that do not fill a panel, tall and flat matrices, empty ones.
SHAPES = [(37, 53, 0.8, 70), (1, 1, 0.0, 1), (16, 64, 0.5, 16), (130, 17, 0.9, 33), (5, 300, 0.5, 128), (64, 40, 1.0, 48), (0, 5, 0.5, 7),
          (5, 0, 0.5, 7), (9, 11, 0.3, 0), (50, 700, 0.99, 64), (33, 1100, 0.7, 100), (3, 20000, 0.999, 20)]


def call(op, name, *args, **kwargs):
    return ops.implementations(op)[name](*args, **kwargs)


def make(rows, cols, sparsity, dtype=torch.float32, seed=0):
    """(crow, col, val), the plan, and the dense matrix in float64."""
    crow, col, val = random_csr(rows, cols, sparsity, seed=seed, dtype=dtype)
    return (crow, col, val), csr_plan(crow, col, rows, cols), densify(crow, col, val, rows, cols)


def densify(crow, col, val, rows, cols):
    dense = torch.zeros(rows, cols, dtype=torch.float64)
    of_row = torch.repeat_interleave(torch.arange(rows), crow.diff().long())
    dense[of_row, col.long()] = val.detach().double()
    return dense


# ---- worked examples ----
#     [1 0 2]   crow 0 2 2 3    transposed: columns 0, 2 | - | ... -> crow_t 0 2 2 3, row_t 0 2 0, perm 0 2 1
# W = [0 0 0]   col  0 2 0
#     [3 0 0]   val  1 2 3
CROW, COL, VAL = torch.tensor([0, 2, 2, 3], dtype=torch.int32), torch.tensor([0, 2, 0], dtype=torch.int32), torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize("name", NAMES)
def test_worked_example_plan(name):
    row_order, crow_t, row_t, perm = call("csr_plan", name, CROW.long(), COL, 3, 3)
    assert row_order.tolist() == [0, 2, 1] and crow_t.tolist() == [0, 2, 2, 3] and row_t.tolist() == [0, 2, 0] and perm.tolist() == [0, 2, 1]
    assert row_order.dtype == row_t.dtype == perm.dtype == torch.int32 and crow_t.dtype == torch.int64


@pytest.mark.parametrize("name", NAMES)
def test_worked_example_products(name):
    b = torch.tensor([[1.0, 10.0], [7.0, 7.0], [2.0, 20.0]])
    assert call("csr_spmm", name, CROW, COL, VAL, b, 3, 3).tolist() == [[5, 50], [0, 0], [3, 30]]
    bias = torch.tensor([0.5, -1.0, 0.0])
    assert call("csr_spmm", name, CROW, COL, VAL, b, 3, 3, bias=bias).tolist() == [[5.5, 50.5], [-1, -1], [3, 30]]
    _, *transposed = csr_plan(CROW, COL, 3, 3)
    assert call("csr_spmm_t", name, *transposed, VAL, b, 3, 3).tolist() == [[7, 70], [0, 0], [2, 20]]


@pytest.mark.parametrize("name", NAMES)
def test_worked_example_only_stored_entries_carry_nan_and_inf(name):
    b = torch.tensor([[1.0], [math.nan], [math.inf]])
    assert call("csr_spmm", name, CROW, COL, VAL, b, 3, 3).flatten().tolist() == [math.inf, 0.0, 3.0]
    nan = call("csr_spmm", name, CROW, COL, torch.tensor([1.0, 0.0, 3.0]), b, 3, 3).flatten()       # a stored zero times inf
    assert nan[0].isnan() and nan[1:].tolist() == [0.0, 3.0]


# ---- agreement ----

def assert_agrees(name, dtype, value_type=None, shapes=SHAPES):
    for rows, cols, sparsity, n in shapes:
        (crow, col, val), (row_order, *transposed), dense = make(rows, cols, sparsity, value_type or dtype)
        reduction = max(int(crow.diff().max()) if rows else 1, 1)
        b, bias, tall = torch.randn(cols, n).to(dtype), torch.randn(rows).to(value_type or dtype), torch.randn(rows, n).to(dtype)
        got = call("csr_spmm", name, crow.long(), col, val, b, rows, cols, bias=bias, row_order=row_order)
        assert got.dtype == dtype and got.is_contiguous()
        assert_close(got, dense @ b.double() + bias.double()[:, None], reduction=reduction)
        assert_close(call("csr_spmm", name, crow, col, val, b, rows, cols), dense @ b.double(), reduction=reduction)
        assert_close(call("csr_spmm_t", name, *transposed, val, tall, rows, cols), dense.t() @ tall.double(), reduction=reduction)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_cpu_agrees(isa, dtype):
    assert_agrees("cpu", dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_reference_agrees(dtype):
    assert_agrees("reference", dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_values_beside_half_operands(name, dtype):
    assert_agrees(name, dtype, torch.float32, SHAPES[:4])


@pytest.mark.parametrize("name", NAMES)
def test_strided_operands(name):
    (crow, col, val), (_, *transposed), dense = make(45, 61, 0.7)
    wide = torch.randn(130, 150)
    views = [wide[:61, :48], wide[:61, 3:52], wide[:80, :61].t(), wide[:122:2, :50], wide[:61, :100:2],
             wide[0, :61, None].expand(61, 20), wide[:61, :1]]
    for b in views:
        for dtype in (torch.float32, torch.bfloat16):
            assert_close(call("csr_spmm", name, crow, col, val.to(dtype), b.to(dtype), 45, 61),
                         densify(crow, col, val.to(dtype), 45, 61) @ b.to(dtype).double(), reduction=61)
        tall = b.t()[:, :45].t() if b.shape[1] == 61 else b[:45]
        assert_close(call("csr_spmm_t", name, *transposed, val[:], tall, 45, 61), dense.t() @ tall.double(), reduction=45)
    assert torch.equal(call("csr_spmm", name, crow.repeat_interleave(2)[::2], col.repeat_interleave(2)[::2], val.repeat_interleave(2)[::2],
                            views[0], 45, 61), call("csr_spmm", name, crow, col, val, views[0], 45, 61))


@pytest.mark.parametrize("name", NAMES)
def test_plan_is_the_stable_transpose(name):
    for rows, cols, sparsity, _ in SHAPES:
        (crow, col, val), _, _ = make(rows, cols, sparsity)
        row_order, crow_t, row_t, perm = call("csr_plan", name, crow, col, rows, cols)
        of_row = torch.repeat_interleave(torch.arange(rows), crow.diff().long())
        pairs = sorted((int(c), int(r), e) for e, (r, c) in enumerate(zip(of_row, col)))
        assert row_t.tolist() == [r for _, r, _ in pairs] and perm.tolist() == [e for _, _, e in pairs]
        assert crow_t.tolist() == torch.searchsorted(col.sort().values, torch.arange(cols + 1, dtype=torch.int32)).tolist()
        lengths = crow.diff().tolist()
        assert row_order.tolist() == sorted(range(rows), key=lambda r: (-lengths[r], r))


def test_same_bits_for_every_instruction_set_and_thread_count():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    # 100 and 33 outputs do not fill the last panel; the others are read in place and split in the middle of a panel.
    for rows, cols, sparsity, n in [(301, 700, 0.8, 100), (150, 1500, 0.8, 33), (400, 40_000, 0.999, 64), (900, 900, 0.97, 160)]:
        for dtype in TYPES:
            (crow, col, val), (_, *transposed), _ = make(rows, cols, sparsity, dtype)
            b, tall = torch.randn(cols, n).to(dtype), torch.randn(rows, n).to(dtype)
            results = []
            for level, counts in (("scalar", (1,)), ("avx2", (2,)), ("avx512", (1, 2, 3))):
                try:
                    native.set_isa(level)
                except ValueError:
                    continue
                for count in counts:
                    with threads(count):
                        results.append((csr_spmm(crow, col, val, b, rows, cols), csr_spmm_t(*transposed, val, tall, rows, cols)))
            native.set_isa("auto")
            assert all(torch.equal(got, want) for result in results[1:] for got, want in zip(result, results[0]))


# ---- properties ----

@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.integers(1, 70), st.sampled_from(TYPES), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_rows_and_columns_of_the_result_stand_alone(rows, cols, sparsity, n, dtype, seed):
    """A permutation of W's rows permutes the result, a part of b's columns gives that part, and W.T twice is W: all bit for bit."""
    (crow, col, val), (_, crow_t, row_t, perm), _ = make(rows, cols, sparsity, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(cols, n, generator=generator).to(dtype)
    whole = csr_spmm(crow, col, val, b, rows, cols)
    order = torch.randperm(rows, generator=generator)
    counts = crow.diff()[order]
    taken = torch.cat([torch.arange(int(crow[r]), int(crow[r + 1])) for r in order]) if rows else torch.arange(0)
    moved = torch.cat([crow.new_zeros(1), counts.cumsum(0).int()])
    assert torch.equal(csr_spmm(moved, col[taken], val[taken], b, rows, cols), whole[order])
    some = int(torch.randint(0, n + 1, (), generator=generator))
    assert torch.equal(csr_spmm(crow, col, val, b[:, some:], rows, cols), whole[:, some:])
    assert torch.equal(csr_spmm_t(crow, col, torch.arange(val.numel()).int(), val, b, cols, rows), whole)
    _, crow_tt, row_tt, back = csr_plan(crow_t, row_t, cols, rows)
    assert torch.equal(crow_tt, crow) and torch.equal(row_tt, col) and torch.equal(perm[back.long()], torch.arange(val.numel()).int())


@pytest.mark.parametrize("name", NAMES)
def test_a_huge_matrix_is_never_dense(name):
    rows = cols = 200_000                                   # 160 GB as a dense matrix
    col = torch.randint(cols, (4 * rows,), dtype=torch.int32).view(rows, 4).sort(1).values.flatten()
    crow, val, b = torch.arange(0, 4 * rows + 1, 4, dtype=torch.int32), torch.randn(4 * rows), torch.randn(cols, 3)
    got = call("csr_spmm", name, crow, col, val, b, rows, cols)
    want = (val.double()[:, None] * b.double()[col.long()]).view(rows, 4, 3).sum(1)
    assert_close(got, want, reduction=4)


# ---- gradients ----

def test_gradcheck():
    (crow, col, val), (_, *transposed), _ = make(6, 9, 0.6, torch.float64)
    val, b, bias, tall = (t.requires_grad_() for t in (val, torch.randn(9, 4).double(), torch.randn(6).double(), torch.randn(6, 4).double()))
    for function, inputs in ((lambda v, b, c: csr_spmm(crow, col, v, b, 6, 9, bias=c), (val, b, bias)),
                             (lambda v, b: csr_spmm_t(*transposed, v, b, 6, 9), (val, tall))):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_gradients_have_the_types_of_their_inputs():
    (crow, col, val), (_, *transposed), _ = make(6, 9, 0.6)
    leaves = [val.requires_grad_(), torch.randn(9, 4).bfloat16().requires_grad_(), torch.randn(6, requires_grad=True)]
    csr_spmm(crow, col, leaves[0], leaves[1], 6, 9, bias=leaves[2]).sum().backward()
    assert [leaf.grad.dtype for leaf in leaves] == [torch.float32, torch.bfloat16, torch.float32] and leaves[2].grad.tolist() == [4.0] * 6


# ---- citizenship ----

@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")      # opcheck looks at its own copies
def test_opcheck():
    (crow, col, val), (row_order, *transposed), _ = make(6, 9, 0.6)
    val, b, bias, tall = (t.requires_grad_() for t in (val, torch.randn(9, 4), torch.randn(6), torch.randn(6, 4)))
    torch.library.opcheck(torch.ops.sparsekern.csr_plan.default, (crow, col, 6, 9))
    torch.library.opcheck(torch.ops.sparsekern.csr_spmm.default, (crow, col, val, b, 6, 9), {"bias": bias, "row_order": row_order})
    torch.library.opcheck(torch.ops.sparsekern.csr_spmm_t.default, (*transposed, val, tall, 6, 9))


def test_compiles_whole():
    (crow, col, val), _, _ = make(6, 9, 0.6)
    b, tall = torch.randn(9, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    val.requires_grad_()

    def loss(val, b, tall):
        _, *transposed = csr_plan(crow, col, 6, 9)
        return csr_spmm(crow, col, val, b, 6, 9).square().sum() + csr_spmm_t(*transposed, val, tall, 6, 9).square().sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        value = function(val, b, tall)
        results.append((value, *torch.autograd.grad(value, (val, b, tall))))
    for got, want in zip(results[1], results[0]):
        torch.testing.assert_close(got, want)


# ---- misuse ----

BAD_PATTERNS = [
    ({"crow": CROW[:3]}, ValueError, "crow: expected 4 row pointers for 3 rows, got 3"),
    ({"crow": CROW + 1}, ValueError, "crow: expected to start at 0, got 1"),
    ({"crow": torch.tensor([0, 3, 2, 3], dtype=torch.int32)}, ValueError, "expected row pointers that never fall, got 3 then 2 at row 1"),
    ({"crow": torch.tensor([0, 2, 2, 9], dtype=torch.int32)}, ValueError, "expected the last row pointer to be the number of columns stored"),
    ({"crow": CROW.float()}, TypeError, "crow: expected int32 or int64, got"),
    ({"col": COL.long()}, TypeError, "col: expected int32, got"),
    ({"col": COL.view(3, 1)}, ValueError, "col: expected one dimension, got shape"),
    ({"col": torch.tensor([0, 3, 0], dtype=torch.int32)}, ValueError, r"expected columns in \[0, 3\), got 3 in row 0, position 1"),
    ({"col": torch.tensor([0, 2, -1], dtype=torch.int32)}, ValueError, r"expected columns in \[0, 3\), got -1 in row 2, position 2"),
]


@pytest.mark.parametrize("changed, error, words", BAD_PATTERNS + [
    ({"val": VAL[:2]}, ValueError, r"val: expected shape \[3\], got"),
    ({"val": VAL.double()}, TypeError, "val: expected"),
    ({"val": VAL.half()}, TypeError, "val: expected"),
    ({"b": torch.ones(2, 2)}, ValueError, r"b: expected shape \[3, N\], got"),
    ({"b": torch.ones(3)}, ValueError, r"b: expected shape \[3, N\], got"),
    ({"b": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "b: expected float32, bfloat16, float16 or float64, got"),
    ({"bias": torch.ones(2)}, ValueError, r"bias: expected shape \[3\], got"),
    ({"row_order": torch.tensor([0, 1, 3], dtype=torch.int32)}, ValueError, r"row_order: expected positions in \[0, 3\), got 3 at 2"),
    ({"algo": "magic"}, ValueError, "algo: expected 'auto', got 'magic'"),
])
@pytest.mark.parametrize("name", NAMES)
def test_misuse(name, changed, error, words):
    given = {"crow": CROW, "col": COL, "val": VAL, "b": torch.ones(3, 2), "bias": None, "row_order": None, "algo": "auto"} | changed
    with pytest.raises(error, match=f"csr_spmm: {words}" if ":" in words else words):
        call("csr_spmm", name, given["crow"], given["col"], given["val"], given["b"], 3, 3, bias=given["bias"], row_order=given["row_order"],
             algo=given["algo"])


@pytest.mark.parametrize("changed, error, words", BAD_PATTERNS)
@pytest.mark.parametrize("name", NAMES)
def test_misuse_of_the_plan(name, changed, error, words):
    given = {"crow": CROW, "col": COL} | changed
    with pytest.raises(error, match=words):
        call("csr_plan", name, given["crow"], given["col"], 3, 3)


@pytest.mark.parametrize("name", NAMES)
def test_misuse_of_the_transposed_product(name):
    _, crow_t, row_t, perm = csr_plan(CROW, COL, 3, 3)
    for bad, error, words in (((crow_t, row_t, perm[:2]), ValueError, "csr_spmm_t: perm: expected 3 positions, got 2"),
                              ((crow_t, row_t, perm + 1), ValueError, r"csr_spmm_t: perm: expected positions in \[0, 3\), got 3 at 1"),
                              ((crow_t, row_t, perm.long()), TypeError, "csr_spmm_t: perm: expected int32, got"),
                              ((crow_t, row_t + 1, perm), ValueError, r"csr_spmm_t: row_t: expected columns in \[0, 3\), got 3"),
                              ((crow_t[1:], row_t, perm), ValueError, "csr_spmm_t: crow_t: expected 4 row pointers")):
        with pytest.raises(error, match=words):
            call("csr_spmm_t", name, *bad, VAL, torch.ones(3, 2), 3, 3)


def test_a_pattern_written_after_its_check_is_checked_again():
    col = COL.clone()
    csr_spmm(CROW, col, VAL, torch.ones(3, 2), 3, 3)
    col[1] = 7
    with pytest.raises(ValueError, match="got 7 in row 0"):
        csr_spmm(CROW, col, VAL, torch.ones(3, 2), 3, 3)

"""csr_sddmm and coo_sddmm: dots of rows at the places of a pattern or of a list, for row-major and column-major operands."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import native
from sparsekern.ops import coo_sddmm, csr_sddmm
from sparsekern.testing import assert_close, each_implementation, random_csr, threads

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# rows, cols, length, sparsity: one of everything, odd, whole panels, several panels, long rows, all, none, empty sides.
SHAPES = [(1, 1, 1, 0.0), (37, 50, 70, 0.8), (5, 7, 16, 0.5), (33, 129, 128, 0.6), (20, 300, 129, 0.3), (17, 64, 400, 0.0), (9, 11, 5, 1.0),
          (0, 4, 3, 0.5), (4, 0, 3, 0.5), (4, 6, 0, 0.5)]


def csr(name, *args, **kwargs):
    return ops.implementations("csr_sddmm")[name](*args, **kwargs)


def coo(name, *args, **kwargs):
    return ops.implementations("coo_sddmm")[name](*args, **kwargs)


def by_columns(tensor):
    return tensor.t().contiguous().t()


def row_of(crow, nnz):
    return torch.repeat_interleave(torch.arange(crow.numel() - 1), crow.diff().long(), output_size=nnz)


def dots(a, b, rows, cols):
    """The definition, in float64."""
    return (a.double()[rows.long()] * b.double()[cols.long()]).sum(1)


# ---- worked examples ----

A, B = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0], [9.0, -10.0]])


@pytest.mark.parametrize("name", each_implementation("csr_sddmm"))
def test_worked_example_csr(name):
    # Row 0 has columns 0 and 2: 1*5 + 2*6 and 1*9 - 2*10; row 1 has column 1: 3*7 + 4*8.
    crow, col = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1], dtype=torch.int32)
    assert csr(name, crow, col, A, B).tolist() == [17.0, -11.0, 53.0]


@pytest.mark.parametrize("name", each_implementation("coo_sddmm"))
def test_worked_example_coo(name):
    # Unsorted, with a repeated place; what lies past the count may be anything.
    rows, cols = torch.tensor([1, 0, 1, -1, 99], dtype=torch.int32), torch.tensor([1, 0, 1, -1, 7], dtype=torch.int32)
    assert coo(name, rows, cols, torch.tensor(3), A, B).tolist() == [53.0, 17.0, 53.0, 0.0, 0.0]
    assert coo(name, rows, cols, torch.tensor([0]), A, B).tolist() == [0.0] * 5


@pytest.mark.parametrize("name", each_implementation("csr_sddmm"))
def test_worked_example_of_rounding(name):
    # 256 + 1 needs nine bits: the sum is taken in fp32 and rounded once; summed in bfloat16 it would stay at 256 to the end.
    crow, col = torch.tensor([0, 1]), torch.tensor([0], dtype=torch.int32)
    a = torch.tensor([[256.0, 1.0, 1.0, 1.0, 1.0]], dtype=torch.bfloat16)
    assert csr(name, crow, col, a, torch.ones_like(a)).tolist() == [260.0]


# ---- agreement ----

def assert_csr_agrees(name, dtype):
    for rows, cols, length, sparsity in SHAPES:
        crow, col, _ = random_csr(rows, cols, sparsity, index64=rows % 2 == 0)
        a, b = torch.randn(rows, length).to(dtype), torch.randn(cols, length).to(dtype)
        got = csr(name, crow, col, a, b)
        assert got.dtype == dtype and got.shape == col.shape
        assert_close(got, dots(a, b, row_of(crow, col.numel()), col), reduction=length)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_cpu_agrees(isa, dtype):
    assert_csr_agrees("cpu", dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", [n for n in each_implementation("csr_sddmm") if n != "cpu"])
def test_agrees(name, dtype):
    assert_csr_agrees(name, dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", each_implementation("coo_sddmm"))
def test_coo_agrees(name, dtype):
    for rows, cols, length, _ in SHAPES[:-3]:
        a, b = torch.randn(rows, length).to(dtype), torch.randn(cols, length).to(dtype)
        for count in (0, 1, 200):
            for sort in (False, True):
                row, col = torch.randint(rows, (200,), dtype=torch.int32), torch.randint(cols, (200,), dtype=torch.int32)
                row = row.sort().values if sort else row
                got = coo(name, row, col, torch.tensor(count), a, b)
                assert_close(got[:count], dots(a, b, row[:count], col[:count]), reduction=length)
                assert got.dtype == dtype and not got[count:].any()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_layouts_give_the_same_bits(isa, dtype):
    for rows, cols, length, sparsity in SHAPES:
        crow, col, _ = random_csr(rows, cols, sparsity)
        a, b = torch.randn(rows, length).to(dtype), torch.randn(cols, length).to(dtype)
        want = csr_sddmm(crow, col, a, b)
        wide = torch.randn(rows + 3, 2 * length + 1).to(dtype)
        wide[:rows, :2 * length:2] = a
        spread = b[:, :, None].expand(cols, length, 2)[:, :, 1]
        for x, y in ((by_columns(a), by_columns(b)), (a, by_columns(b)), (wide[:rows, :2 * length:2], b), (a, spread)):
            assert torch.equal(csr_sddmm(crow, col, x, y), want)
    same = torch.ones(1, 40, dtype=dtype).expand(6, 40)                           # strides of 0
    assert torch.equal(csr_sddmm(torch.tensor([0, 2]), torch.tensor([0, 5], dtype=torch.int32), same[:1], same), torch.full((2,), 40, dtype=dtype))


@pytest.mark.parametrize("name", each_implementation("csr_sddmm"))
def test_unsorted_and_repeated_columns_are_no_danger(name):
    """Order is csr_validate's business; the dots are right all the same."""
    crow, col = torch.tensor([0, 40, 40, 100]), torch.randint(3000, (100,), dtype=torch.int32)
    a, b = torch.randn(3, 130), torch.randn(3000, 130)
    assert_close(csr(name, crow, col, a, b), dots(a, b, row_of(crow, 100), col), reduction=130)


def test_long_dots_are_summed_in_parts():
    """fp32 partials of a few thousand elements, added up in fp64: products of 1 + 2^-16 lose nothing, which one fp32 sum would."""
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    length = 2**21 + 5
    crow, col = torch.tensor([0, 2]), torch.tensor([0, 1], dtype=torch.int32)
    a, b = torch.ones(1, length), torch.full((2, length), 1 + 2**-16)
    b[1] = torch.randn(length)
    want = dots(a, b, torch.zeros(2), col)
    got = csr_sddmm(crow, col, a, b)
    assert got[0] == want[0].float()
    assert abs(got[1] - want[1]) < 1e-6 * b[1].double().abs().sum()
    assert torch.equal(got, csr_sddmm(crow, col, by_columns(a), by_columns(b)))
    half = csr_sddmm(crow, col, torch.full((1, length), 2.0**-10).bfloat16(), b.bfloat16())
    assert half.dtype == torch.bfloat16 and half[0] == 2048.0


def test_same_bits_for_every_thread_count_and_isa():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    crow, col, _ = random_csr(300, 2000, 0.9)
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(300, 200).to(dtype), torch.randn(2000, 200).to(dtype)
        with threads(1):
            want = csr_sddmm(crow, col, a, b)
        with threads(2):
            assert torch.equal(csr_sddmm(crow, col, a, b), want)
        try:
            for isa in ("scalar", "avx2", "avx512"):
                try:
                    native.set_isa(isa)
                except ValueError:
                    continue
                assert torch.equal(csr_sddmm(crow, col, a, b), want), isa
        finally:
            native.set_isa("auto")


@pytest.mark.parametrize("name", each_implementation("csr_sddmm"))
def test_nan_comes_from_the_rows_asked_for_only(name):
    a, b = torch.randn(4, 20), torch.randn(5, 20)
    a[1, 3], b[2, 7], b[4, 0] = math.nan, math.inf, math.nan
    crow, col = torch.tensor([0, 2, 3, 4, 4]), torch.tensor([0, 1, 3, 2], dtype=torch.int32)
    got = csr(name, crow, col, a, b)
    assert got[:2].isfinite().all() and got[2].isnan() and got[3].isinf()


# ---- properties ----

@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 300), st.floats(0, 1), st.sampled_from(TYPES), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_is_the_dense_product_at_the_pattern(rows, cols, length, sparsity, dtype, transposed, seed):
    crow, col, _ = random_csr(rows, cols, sparsity, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rows, length, generator=generator).to(dtype), torch.randn(cols, length, generator=generator).to(dtype)
    row = row_of(crow, col.numel())
    x = by_columns(a) if transposed else a
    got = csr_sddmm(crow, col, x, b)
    assert_close(got, (a.double() @ b.double().t())[row, col.long()], reduction=length)
    shuffle = torch.randperm(col.numel(), generator=generator)
    assert torch.equal(coo_sddmm(row[shuffle].int(), col[shuffle], torch.tensor(col.numel()), x, b), got[shuffle])


# ---- gradients ----

def test_gradcheck():
    crow, col, _ = random_csr(5, 6, 0.5)
    a, b = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: csr_sddmm(crow, col, a, b), (a, b))
    assert torch.autograd.gradgradcheck(lambda a, b: csr_sddmm(crow, col, a, b), (a, b))
    rows, cols = torch.tensor([4, 0, 4, 2, 9], dtype=torch.int32), torch.tensor([5, 1, 5, 0, 9], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda a, b: coo_sddmm(rows, cols, torch.tensor(4), a, b), (a, b))
    assert torch.autograd.gradgradcheck(lambda a, b: coo_sddmm(rows, cols, torch.tensor(4), a, b), (a, b))


def test_only_the_gradients_asked_for():
    crow, col, _ = random_csr(5, 6, 0.5)
    a, b = torch.randn(5, 3), torch.randn(6, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(csr_sddmm(crow, col, a, b).sum(), b)
    dense = torch.zeros(5, 6)
    dense[row_of(crow, col.numel()), col.long()] = 1
    assert_close(grad, dense.double().t() @ a.double(), reduction=5)
    assert a.grad is None and not csr_sddmm(crow, col, a, b.detach()).requires_grad


# ---- citizenship ----

@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_opcheck():
    crow, col, _ = random_csr(5, 6, 0.5)
    a, b = torch.randn(5, 3, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    torch.library.opcheck(torch.ops.sparsekern.csr_sddmm.default, (crow, col, a, b))
    rows = row_of(crow, col.numel()).int()
    torch.library.opcheck(torch.ops.sparsekern.coo_sddmm.default, (rows, col, torch.tensor(7), a, b))


def test_compiles_whole():
    crow, col, _ = random_csr(5, 6, 0.5)
    rows = row_of(crow, col.numel()).int()

    def loss(a, b):
        return csr_sddmm(crow, col, a.t(), b).square().sum() + coo_sddmm(rows, col, torch.tensor(7), a.t(), b).sum()

    arguments = torch.randn(3, 5, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        value = function(*arguments)
        results.append((value, *torch.autograd.grad(value, arguments)))
    for got, want in zip(results[1], results[0]):
        torch.testing.assert_close(got, want)


# ---- misuse ----

CROW, COL = torch.tensor([0, 1, 2]), torch.tensor([0, 2], dtype=torch.int32)
ROWS = torch.tensor([0, 1], dtype=torch.int32)
CHECKED = [n for n in each_implementation("csr_sddmm") if n != "triton"]                  # devices trust patterns: they would have to read back


@pytest.mark.parametrize("arguments, error, words", [
    ((CROW, COL, A.int(), B.int()), TypeError, "csr_sddmm: a: expected float32, bfloat16, float16 or float64, got"),
    ((CROW, COL, A, B.double()), TypeError, "csr_sddmm: b: expected .* like a, got"),
    ((CROW, COL, A[0], B), ValueError, r"csr_sddmm: a: expected two dimensions, got shape \[2\]"),
    ((CROW, COL, A, B[:, :1]), ValueError, "csr_sddmm: b: expected 2 columns like a, got 1"),
    ((CROW, COL, A[:1], B), ValueError, "csr_sddmm: crow: expected 2 row pointers for 1 rows, got 3"),
    ((CROW, COL.long(), A, B), TypeError, "csr_sddmm: col: expected int32, got"),
])
@pytest.mark.parametrize("name", each_implementation("csr_sddmm"))
def test_misuse(name, arguments, error, words):
    with pytest.raises(error, match=words):
        csr(name, *arguments)


@pytest.mark.parametrize("arguments, words", [
    ((CROW, COL, A, B[:2]), r"csr_sddmm: col: expected columns in \[0, 2\), got 2 in row 1, position 1"),
    ((CROW, COL - 1, A, B), r"csr_sddmm: col: expected columns in \[0, 3\), got -1 in row 0, position 0"),
    ((CROW.flip(0), COL, A, B), "csr_sddmm: crow: expected to start at 0, got 2"),
    ((torch.tensor([0, 3, 2]), COL, A, B), "csr_sddmm: crow: expected row pointers that never fall, got 3 then 2 at row 1"),
    ((CROW, COL[:1], A, B), "csr_sddmm: crow: expected the last row pointer to be the number of columns stored"),
])
@pytest.mark.parametrize("name", CHECKED)
def test_malformed_patterns(name, arguments, words):
    with pytest.raises(ValueError, match=words):
        csr(name, *arguments)


@pytest.mark.parametrize("name", CHECKED)
def test_misuse_of_algo(name):
    with pytest.raises(ValueError, match="csr_sddmm: algo: expected 'auto', got 'fast'"):
        csr(name, CROW, COL, A, B, algo="fast")


@pytest.mark.parametrize("arguments, error, words", [
    ((ROWS, COL, torch.tensor(2), A, B.half()), TypeError, "coo_sddmm: b: expected .* like a"),
    ((ROWS.long(), COL, torch.tensor(2), A, B), TypeError, "coo_sddmm: rows: expected int32, got"),
    ((ROWS, COL, torch.tensor(2.0), A, B), TypeError, "coo_sddmm: count: expected int32 or int64, got"),
    ((ROWS, COL, torch.tensor([1, 2]), A, B), ValueError, r"coo_sddmm: count: expected one element, got shape \[2\]"),
])
@pytest.mark.parametrize("name", each_implementation("coo_sddmm"))
def test_misuse_of_coo(name, arguments, error, words):
    with pytest.raises(error, match=words):
        coo(name, *arguments)


@pytest.mark.parametrize("arguments, words", [
    ((ROWS, COL[:1], torch.tensor(1), A, B), r"coo_sddmm: cols: expected shape \[2\] like the rows, got \[1\]"),
    ((ROWS, COL, torch.tensor(3), A, B), "coo_sddmm: count: expected 0 to 2, got 3"),
    ((ROWS, COL, torch.tensor(-1), A, B), "coo_sddmm: count: expected 0 to 2, got -1"),
    ((ROWS, COL, torch.tensor(2), A[:1], B), r"coo_sddmm: rows: expected rows in \[0, 1\), got 1 at 1"),
    ((ROWS, -COL, torch.tensor(2), A, B), r"coo_sddmm: cols: expected cols in \[0, 3\), got -2 at 1"),
])
@pytest.mark.parametrize("name", CHECKED)
def test_malformed_places(name, arguments, words):
    with pytest.raises(ValueError, match=words):
        coo(name, *arguments)

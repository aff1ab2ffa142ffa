"""csr_sddmm and coo_sddmm through their CUDA bindings against the float64 reference, every way."""
import math

import pytest
import torch

from sparsekern.testing import assert_close, random_csr

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# rows, cols, length, sparsity: one of everything, odd, whole chunks, several rounds of eight lanes, empty rows, long rows, all, none, empty sides.
SHAPES = [(1, 1, 1, 0.0), (37, 50, 70, 0.8), (5, 7, 16, 0.5), (33, 129, 128, 0.9), (200, 9, 8, 0.98), (2, 300, 40, 0.3), (17, 64, 136, 0.0),
          (9, 11, 5, 1.0), (0, 4, 3, 0.5), (4, 0, 3, 0.5), (4, 6, 0, 0.5)]
TURNS = {
    "rows": lambda t: t,
    "columns": lambda t: t.t().contiguous().t(),
    "every other": lambda t: torch.stack([t, t], 2)[:, :, 1],
    "slice": lambda t: torch.cat([t[:, :1], t], 1)[:, 1:],
    "beside nan": lambda t: torch.cat([t, t.new_full((len(t), 16), math.nan)], 1)[:, :t.shape[1]],
}


def row_of(crow, nnz):
    return torch.repeat_interleave(torch.arange(crow.numel() - 1), crow.diff().long(), output_size=nnz)


def dots(a, b, rows, cols):
    """The definition, in float64."""
    return (a.double()[rows.long()] * b.double()[cols.long()]).sum(1)


def csr(lane, crow, col, a, b, **options):
    return lane.op("csr_sddmm")(*lane.put([crow, col]), a, b, **options).cpu()


@pytest.mark.parametrize("algo", ["auto", "gather", "staged", "dense"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_agrees(lane, dtype, algo):
    for rows, cols, length, sparsity in SHAPES:
        crow, col, _ = random_csr(rows, cols, sparsity, index64=rows % 2 == 0)
        a, b = torch.randn(rows, length).to(dtype), torch.randn(cols, length).to(dtype)
        got = csr(lane, crow, col, *lane.put([a, b]), algo=algo)
        assert got.dtype == dtype and got.shape == col.shape
        assert_close(got, dots(a, b, row_of(crow, col.numel()), col), reduction=length)


@pytest.mark.parametrize("dtype", TYPES[:2], ids=str)
def test_layouts_give_the_same_bits(lane, dtype):
    for rows, cols, length in ((37, 70, 72), (40, 33, 67)):
        crow, col, _ = random_csr(rows, cols, 0.9)
        a, b = torch.randn(rows, length).to(dtype), torch.randn(cols, length).to(dtype)
        want, staged = (csr(lane, crow, col, *lane.put([a, b]), algo=algo) for algo in ("gather", "staged"))
        for x in TURNS.values():
            for y in TURNS.values():
                assert torch.equal(csr(lane, crow, col, x(lane.put(a)), y(lane.put(b)), algo="gather"), want)
            assert torch.equal(csr(lane, crow, col, x(lane.put(a)), x(lane.put(b)), algo="staged"), staged)
            assert_close(csr(lane, crow, col, x(lane.put(a)), b.to(lane.device), algo="dense"), want.double(), reduction=length)


def test_hand_worked(lane):
    # Row 0 has columns 0 and 2: 1*5 + 2*6 and 1*9 - 2*10; row 1 has column 1: 3*7 + 4*8.
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0], [7.0, 8.0], [9.0, -10.0]])
    for algo in ("gather", "staged", "dense"):
        assert csr(lane, torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1]).int(), *lane.put([a, b]), algo=algo).tolist() == [17.0, -11.0, 53.0]
    rows, cols = torch.tensor([1, 0, 1, -1, 99]).int(), torch.tensor([1, 0, 1, -1, 7]).int()
    for count in (torch.tensor(3), torch.tensor([3]).int()):
        assert lane.op("coo_sddmm")(*lane.put([rows, cols, count, a, b])).tolist() == [53.0, 17.0, 53.0, 0.0, 0.0]
    assert lane.op("coo_sddmm")(*lane.put([rows, cols, torch.tensor(0), a, b])).tolist() == [0.0] * 5
    # 256 + 1 needs nine bits: summed in bfloat16 it would stay at 256 to the end.
    x = torch.tensor([[256.0, 1.0, 1.0, 1.0, 1.0]], dtype=torch.bfloat16)
    for algo in ("gather", "staged", "dense"):
        assert csr(lane, torch.tensor([0, 1]), torch.tensor([0]).int(), *lane.put([x, torch.ones_like(x)]), algo=algo).tolist() == [260.0]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_lists_of_places(lane, dtype):
    for rows, cols, length, samples in ((37, 50, 70, 100), (6, 5, 256, 40000)):            # gathered; dense, but for float64
        a, b = torch.randn(rows, length).to(dtype), torch.randn(cols, length).to(dtype)
        for count in (0, 45, samples) if samples < 1000 else (samples - 7,):
            row, col = torch.randint(rows, (samples,)).int(), torch.randint(cols, (samples,)).int()
            row[count:], col[count:] = -1, 1 << 30                                         # not looked at
            got = lane.op("coo_sddmm")(*lane.put([row, col, torch.tensor(count), a]), lane.put(b.t().contiguous()).t()).cpu()
            assert_close(got[:count], dots(a, b, row[:count], col[:count]), reduction=length)
            assert got.dtype == dtype and not got[count:].any()


def test_the_dense_way_goes_by_bands_of_rows(lane):
    crow, col, _ = random_csr(300, 20000, 0.9999)
    a, b = torch.randn(300, 3), torch.randn(20000, 3)
    assert_close(csr(lane, crow, col, *lane.put([a, b]), algo="dense"), dots(a, b, row_of(crow, col.numel()), col), reduction=3)


def test_places_give_the_bits_of_the_pattern(lane):
    crow, col, _ = random_csr(50, 60, 0.9)
    a, b = lane.put([torch.randn(50, 100), torch.randn(60, 100)])
    want, shuffle = csr(lane, crow, col, a, b, algo="gather"), torch.randperm(col.numel())
    row = row_of(crow, col.numel()).int()
    got = lane.op("coo_sddmm")(*lane.put([row[shuffle], col[shuffle], torch.tensor(col.numel())]), a, b).cpu()
    assert torch.equal(got, want[shuffle])


def test_long_dots_are_summed_in_passes(lane):
    """5,000 columns take two passes; beyond 2^20 the sum keeps what its additions lose: ones behind a large number."""
    crow, col = torch.tensor([0, 2, 3]), torch.tensor([0, 1, 1]).int()
    for dtype in TYPES:
        a, b = torch.randn(2, 5000).to(dtype), torch.randn(2, 5000).to(dtype)
        for algo in ("gather", "staged"):
            assert_close(csr(lane, crow, col, *lane.put([a, b]), algo=algo), dots(a, b, torch.tensor([0, 0, 1]), col), reduction=5000)
    length = 2**20 + 4096
    a, b = torch.ones(1, length), torch.zeros(2, length)
    b[0, :4096], b[0, 4096::4096] = 2.0**14, 1.0                                           # 2^26 and 256 ones that fp32 would drop one by one
    b[1] = torch.randn(length)
    got, want = csr(lane, crow[:2], col[:2], *lane.put([a, b])), dots(a, b, torch.zeros(2), col[:2])
    assert got[0] == 2.0**26 + 256 and abs(got[1] - want[1]) < 1e-6 * b[1].double().abs().sum()
    b[1, 5] = math.inf
    assert csr(lane, crow[:2], col[:2], *lane.put([a, b]))[1] == math.inf


def test_nan_comes_from_the_rows_asked_for_only(lane):
    a, b = torch.randn(4, 20), torch.randn(5, 20)
    a[1, 3], b[2, 7], b[4, 0] = math.nan, math.inf, math.nan
    crow, col = torch.tensor([0, 2, 3, 4, 4]), torch.tensor([0, 1, 3, 2]).int()
    for algo in ("gather", "staged", "dense"):
        got = csr(lane, crow, col, *lane.put([a, b]), algo=algo)
        assert got[:2].isfinite().all() and got[2].isnan() and got[3].isinf()


CROW, COL, ROWS = torch.tensor([0, 1, 2]), torch.tensor([0, 2]).int(), torch.tensor([0, 1]).int()
A, B = torch.ones(2, 2), torch.ones(3, 2)


@pytest.mark.parametrize("arguments, error, words", [
    ((CROW, COL, A.int(), B.int()), TypeError, "csr_sddmm: a: expected float32, bfloat16, float16 or float64, got"),
    ((CROW, COL, A, B.double()), TypeError, "csr_sddmm: b: expected .* like a, got"),
    ((CROW, COL, A[0], B), ValueError, r"csr_sddmm: a: expected two dimensions, got shape \[2\]"),
    ((CROW, COL, A, B[:, :1]), ValueError, "csr_sddmm: b: expected 2 columns like a, got 1"),
    ((CROW, COL, A[:1], B), ValueError, "csr_sddmm: crow: expected 2 row pointers for 1 rows, got 3"),
    ((CROW, COL.long(), A, B), TypeError, "csr_sddmm: col: expected int32, got"),
])
def test_misuse(lane, arguments, error, words):
    with pytest.raises(error, match=words):
        lane.op("csr_sddmm")(*lane.put(arguments))


@pytest.mark.parametrize("arguments, error, words", [
    ((ROWS, COL, torch.tensor(2), A, B.half()), TypeError, "coo_sddmm: b: expected .* like a"),
    ((ROWS.long(), COL, torch.tensor(2), A, B), TypeError, "coo_sddmm: rows: expected int32, got"),
    ((ROWS, COL[:1], torch.tensor(1), A, B), ValueError, r"coo_sddmm: cols: expected shape \[2\] like the rows, got \[1\]"),
    ((ROWS, COL, torch.tensor(2.0), A, B), TypeError, "coo_sddmm: count: expected int32 or int64, got"),
    ((ROWS, COL, torch.tensor([1, 2]), A, B), ValueError, r"coo_sddmm: count: expected one element, got shape \[2\]"),
])
def test_misuse_of_places(lane, arguments, error, words):
    with pytest.raises(error, match=words):
        lane.op("coo_sddmm")(*lane.put(arguments))


def test_misuse_of_algo(lane):
    with pytest.raises(ValueError, match="csr_sddmm: algo: expected 'auto', 'gather', 'staged' or 'dense', got 'fast'"):
        csr(lane, CROW, COL, *lane.put([A, B]), algo="fast")

"""The Triton launchers of csr_sddmm (both ways) and coo_sddmm against the reference in float64, and the choice between the ways."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern.testing import assert_close, each_implementation, random_csr

pytestmark = pytest.mark.skipif("triton" not in each_implementation("csr_sddmm"), reason="Triton runs on a GPU or in its interpreter")

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def launch(op, *args, **kwargs):
    return ops.implementations(op)["triton"](*args, **kwargs)


def wide(op, *args):
    return ops.implementations(op)["reference"](*(t.double() if t.is_floating_point() else t for t in args))


def assert_agrees(crow, col, a, b, algo):
    got = launch("csr_sddmm", crow, col, a, b, algo=algo)
    assert got.dtype == a.dtype and got.shape == col.shape
    assert_close(got, wide("csr_sddmm", crow, col, a, b), reduction=a.shape[1])


# ---- a pattern ----

@pytest.mark.parametrize("algo", ["gather", "dense", "auto"])
def test_by_hand(algo):
    # [[1, 2], [3, 4]] [[1, 0], [0, 1], [1, 1]]^T = [[1, 2, 3], [3, 4, 7]] at (0, 1), (1, 0), (1, 2)
    crow, col = torch.tensor([0, 1, 3]).int(), torch.tensor([1, 0, 2]).int()
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert launch("csr_sddmm", crow, col, a, b, algo=algo).tolist() == [2, 3, 7]


@pytest.mark.parametrize("algo", ["gather", "dense"])
@pytest.mark.parametrize("index64", [False, True])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_dtypes_agree_with_float64(dtype, index64, algo):
    crow, col, _ = random_csr(21, 150, 0.9, index64=index64)
    assert_agrees(crow, col, torch.randn(21, 37).to(dtype), torch.randn(150, 37).to(dtype), algo)


@pytest.mark.parametrize("algo", ["gather", "dense"])
@pytest.mark.parametrize("rows, cols, n, sparsity", [
    (1, 1, 1, 0.0), (1, 300, 3, 0.1), (129, 5, 150, 0.5), (70, 70, 1, 0.0), (66, 200, 20, 0.98), (5, 6, 4, 1.0), (7, 8, 0, 0.5), (0, 8, 4, 0.5),
    (8, 0, 4, 0.5)])
def test_shapes(rows, cols, n, sparsity, algo):
    # Below, at and above a tile; full tiles; rows split among programs; nothing stored; empty sides.
    crow, col, _ = random_csr(rows, cols, sparsity)
    assert_agrees(crow, col, torch.randn(rows, n), torch.randn(cols, n), algo)


@pytest.mark.parametrize("algo", ["gather", "dense"])
def test_rows_of_very_different_lengths(algo):
    lengths = torch.tensor([0, 200, 0, 1, 64, 65, 0])
    crow = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    col = torch.cat([torch.randperm(200)[:n].sort().values for n in lengths.tolist()]).int()
    assert_agrees(crow, col, torch.randn(7, 10), torch.randn(200, 10), algo)


def test_a_program_of_several_tiles(monkeypatch):
    # With fewer programs than tiles the place of a row's next entry is carried from tile to tile.
    from sparsekern.triton_kernels import csr_sddmm
    crow, col, _ = random_csr(70, 500, 0.9)
    for programs in (1, 5, 100):
        monkeypatch.setattr(csr_sddmm, "PROGRAMS", programs)
        assert_agrees(crow, col, torch.randn(70, 8), torch.randn(500, 8), "dense")
        assert_agrees(crow, col, torch.randn(70, 8), torch.randn(500, 8), "gather")


@pytest.mark.parametrize("algo", ["gather", "dense"])
def test_any_strides(algo):
    crow, col, _ = random_csr(9, 80, 0.8)
    a, b = torch.randn(9, 12), torch.randn(80, 12)
    want = launch("csr_sddmm", crow, col, a, b, algo=algo)
    for turn in (lambda t: t.t().contiguous().t(), lambda t: torch.stack([t, t], 2)[:, :, 1], lambda t: torch.cat([t, t], 1)[:, :12]):
        assert torch.equal(launch("csr_sddmm", crow, col, turn(a), b, algo=algo), want)
        assert torch.equal(launch("csr_sddmm", crow, col, a, turn(b), algo=algo), want)
    assert_agrees(crow, col, torch.ones(()).expand(9, 12), b, algo)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")             # the interpreter computes with numpy
@pytest.mark.parametrize("algo", ["gather", "dense"])
def test_nan_and_inf_stay_in_their_row_and_column(algo):
    crow, col = torch.tensor([0, 2, 4]).int(), torch.tensor([0, 1, 0, 1]).int()
    a, b = torch.tensor([[math.nan, 1.0], [1.0, 1.0]]), torch.tensor([[1.0, 1.0], [math.inf, 1.0]])
    got = launch("csr_sddmm", crow, col, a, b, algo=algo)
    assert got[:2].isnan().all() and got[2:].tolist() == [2, math.inf]


def test_the_model_takes_gathering_for_few_entries_and_tiles_for_many():
    from sparsekern.triton_kernels.csr_sddmm import cheaper
    total = 4096 * 4096
    a, b = (torch.empty(4096, 512, device="meta") for _ in range(2))
    ways = [cheaper(int(total * (1 - s)), a, b) for s in (0.5, 0.9, 0.99, 0.999)]
    assert ways == ["dense", "dense", "gather", "gather"]
    half = [cheaper(int(total * (1 - s)), a.bfloat16(), b.bfloat16()) for s in (0.5, 0.9, 0.96, 0.999)]
    assert half == ["dense", "dense", "dense", "gather"]
    assert cheaper(int(total * 0.01), a.t().contiguous().t(), b.t().contiguous().t()) == "dense"            # gathering a column fetches whole sectors
    assert cheaper(total, a.double(), b.double()) == "gather"


# ---- a list of places ----

def test_places_by_hand():
    rows, cols = torch.tensor([1, 0, 1, -1, 99]).int(), torch.tensor([2, 1, 0, -1, 99]).int()
    a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert launch("coo_sddmm", rows, cols, torch.tensor(3), a, b).tolist() == [7, 2, 3, 0, 0]
    assert launch("coo_sddmm", rows, cols, torch.tensor([0]).int(), a, b).tolist() == [0] * 5
    assert launch("coo_sddmm", rows[:0], cols[:0], torch.tensor(0), a, b).shape == (0,)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_places_agree_with_float64(dtype):
    rows, cols, count = torch.randint(30, (77,)).int(), torch.randint(40, (77,)).int(), torch.tensor(70)
    for a, b in ((torch.randn(30, 150), torch.randn(40, 150)), (torch.randn(9, 30).t(), torch.randn(9, 40).t())):
        a, b = a.to(dtype), b.to(dtype)
        got = launch("coo_sddmm", rows, cols, count, a, b)
        assert got.dtype == dtype and got[70:].eq(0).all()
        assert_close(got, wide("coo_sddmm", rows, cols, count, a, b), reduction=a.shape[1])


# ---- misuse ----

A, B, CROW, COL = torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 1, 2]).int(), torch.tensor([0, 3]).int()


@pytest.mark.parametrize("op, arguments, error, words", [
    ("csr_sddmm", (CROW, COL, A, B.half()), TypeError, "b: expected torch.float32 like a, got torch.float16"),
    ("csr_sddmm", (CROW, COL, A.int(), B), TypeError, "a: expected float32, bfloat16, float16 or float64, got torch.int32"),
    ("csr_sddmm", (CROW, COL, A, B[0]), ValueError, r"b: expected two dimensions, got shape \[3\]"),
    ("csr_sddmm", (CROW, COL, A, B[:, :2]), ValueError, "b: expected 3 columns like a, got 2"),
    ("csr_sddmm", (CROW, COL, A[:1], B), ValueError, "crow: expected 2 row pointers for 1 rows, got 3"),
    ("csr_sddmm", (CROW, COL.long(), A, B), TypeError, "col: expected int32, got torch.int64"),
    ("coo_sddmm", (COL, COL[:1], torch.tensor(1), A, B), ValueError, r"cols: expected 2 positions, got shape \[1\]"),
    ("coo_sddmm", (COL.long(), COL, torch.tensor(1), A, B), TypeError, "rows: expected int32, got torch.int64"),
    ("coo_sddmm", (COL, COL, torch.tensor(1.0), A, B), TypeError, "count: expected int32 or int64, got torch.float32"),
    ("coo_sddmm", (COL, COL, torch.tensor([1, 2]), A, B), ValueError, r"count: expected one element, got shape \[2\]"),
])
def test_misuse(op, arguments, error, words):
    with pytest.raises(error, match=f"{op}: {words}"):
        launch(op, *arguments)


def test_an_unknown_way_is_named():
    with pytest.raises(ValueError, match="csr_sddmm: algo: expected 'auto', 'gather' or 'dense', got 'tiles'"):
        launch("csr_sddmm", CROW, COL, A, B, algo="tiles")

"""csr_spmm and csr_spmm_t through their CUDA bindings against the float64 reference."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern.ops import csr_plan
from sparsekern.testing import assert_close, random_csr

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
TYPES = [(F32, F32), (BF16, BF16), (F16, F16), (F32, BF16), (F32, F16), (F64, F64)]             # of values, of the dense operand
ids = {"ids": lambda types: "-".join(str(t)[6:] for t in types)}
# (rows, cols, sparsity, N): columns that do not fill a group or a panel, tall and flat matrices, empty ones.
SHAPES = [(37, 53, 0.8, 70), (1, 1, 0.0, 1), (9, 64, 0.5, 16), (13, 17, 0.9, 33), (5, 300, 0.5, 128), (8, 40, 1.0, 24), (0, 5, 0.5, 7),
          (5, 0, 0.5, 7), (9, 11, 0.3, 0), (6, 21, 0.4, 3)]
ALGOS = ["scalar", "staged", "densify"]


def wide(op, *args, **kwargs):
    """The reference with every floating tensor in float64."""
    def double(t):
        return t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t
    return ops.implementations(op)["reference"](*map(double, args), **{key: double(value) for key, value in kwargs.items()})


def make(rows, cols, sparsity, dtype=F32, index64=False):
    crow, col, val = random_csr(rows, cols, sparsity, dtype=dtype, index64=index64)
    return (crow, col, val), csr_plan(crow, col, rows, cols)


def assert_near(got, want, like):
    assert got.dtype == like.dtype and got.is_contiguous()
    assert_close(got.cpu(), want, reduction=16)


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("types", TYPES, **ids)
def test_agrees_with_the_reference(lane, types, algo):
    if types[0] == F64 and algo != "scalar":
        pytest.skip("float64 has one algorithm")
    for rows, cols, sparsity, n in SHAPES:
        matrix, (row_order, *transposed) = make(rows, cols, sparsity, types[0], index64=n % 2 == 0)
        b, tall, bias = torch.randn(cols, n).to(types[1]), torch.randn(rows, n).to(types[1]), torch.randn(rows).to(types[0])
        spmm, spmm_t = lane.op("csr_spmm"), lane.op("csr_spmm_t")
        got = spmm(*lane.put([*matrix, b]), rows, cols, row_order=lane.put(row_order), bias=lane.put(bias), algo=algo)
        assert_near(got, wide("csr_spmm", *matrix, b, rows, cols, bias=bias), b)
        assert torch.equal(got, spmm(*lane.put([*matrix, b]), rows, cols, bias=lane.put(bias), algo=algo))      # neither order nor run shows
        assert_near(spmm_t(*lane.put([*transposed, matrix[2], tall]), rows, cols, algo=algo),
              wide("csr_spmm_t", *transposed, matrix[2], tall, rows, cols), b)


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_operands_of_any_strides(lane, dtype, algo):
    (crow, col, val), (_, *transposed) = make(21, 61, 0.7, dtype)
    space = torch.randn(130, 150).to(dtype)
    views = [space[:61, :48], space[:61, 3:52], space[:80, :61].t(), space[:80, 1:62].t(), space[:122:2, :50], space[:61, :100:2],
             space[0, :61, None].expand(61, 20), space[:61, :1], space.flatten()[1:61 * 64 + 1].view(61, 64)]
    for b in views:
        placed = lane.put(space).as_strided(b.shape, b.stride(), b.storage_offset())
        got = lane.op("csr_spmm")(*lane.put([crow, col, val]), placed, 21, 61, algo=algo)
        assert_near(got, wide("csr_spmm", crow, col, val, b, 21, 61), b)
        # A chain in column order, whichever kernel: the same bits (but for the dense product, which rounds its own way).
        if algo == "staged":
            assert torch.equal(got, lane.op("csr_spmm")(*lane.put([crow, col, val]), placed, 21, 61, algo="scalar"))
    tall = space[:21, :40].t().contiguous().t()
    assert_near(lane.op("csr_spmm_t")(*lane.put([*transposed, val]), lane.put(space)[:40, :21].t(), 21, 61, algo=algo),
          wide("csr_spmm_t", *transposed, val, space[:40, :21].t(), 21, 61), tall)
    doubled = [t.repeat_interleave(2)[::2] for t in lane.put([crow, col, val])]
    assert torch.equal(lane.op("csr_spmm")(*doubled, lane.put(views[0]), 21, 61, algo=algo),
                       lane.op("csr_spmm")(*lane.put([crow, col, val, views[0]]), 21, 61, algo=algo))


@pytest.mark.parametrize("algo", ["auto", *ALGOS])
def test_nan_and_inf_come_from_stored_entries_only(lane, algo):
    crow, col, val = torch.tensor([0, 1, 3, 3], dtype=torch.int32), torch.tensor([0, 0, 2], dtype=torch.int32), torch.tensor([1.0, 0.0, 2.0])
    bias = torch.tensor([0.5, 0.0, 1.0])
    for b in (torch.tensor([[1.0], [math.inf], [math.nan]]).expand(3, 9), torch.tensor([[1.0], [math.inf], [math.nan]]).repeat(1, 70),
              torch.tensor([[1.0] * 9, [math.inf] * 9, [math.nan] * 9]).t().contiguous().t()):
        for dtype in (F32, BF16):
            got = lane.op("csr_spmm")(*lane.put([crow, col, val.to(dtype), b.to(dtype)]), 3, 3, bias=lane.put(bias.to(dtype)), algo=algo).cpu()
            assert got[0].eq(1.5).all() and got[1].isnan().all() and got[2].eq(1).all()


@pytest.mark.parametrize("algo", ["auto", *ALGOS])
def test_more_rows_of_b_than_one_tile_holds(lane, algo):
    (crow, col, val), (row_order, *transposed) = make(3, 2100, 0.97)
    b, tall = torch.randn(2100, 6), torch.randn(3, 6)
    got = lane.op("csr_spmm")(*lane.put([crow, col, val, b]), 3, 2100, row_order=lane.put(row_order), algo=algo)
    assert_near(got, wide("csr_spmm", crow, col, val, b, 3, 2100), b)
    transposed_product = lane.op("csr_spmm_t")(*lane.put([*transposed, val, tall]), 3, 2100, algo=algo)
    assert_near(transposed_product, wide("csr_spmm_t", *transposed, val, tall, 3, 2100), b)


def test_a_huge_matrix_is_never_dense(lane):
    rows = cols = 3000 if lane.emulated else 200_000        # 160 GB as a dense matrix
    col = torch.randint(cols, (rows, 2), dtype=torch.int32).sort(1).values.flatten()
    crow, val, b = torch.arange(0, 2 * rows + 1, 2, dtype=torch.int32), torch.randn(2 * rows), torch.randn(cols, 1)
    got = lane.op("csr_spmm")(*lane.put([crow, col, val, b]), rows, cols)
    assert_close(got.cpu(), (val.double()[:, None] * b.double()[col.long()]).view(rows, 2, 1).sum(1), reduction=2)


CROW, COL, VAL = torch.tensor([0, 2, 2, 3], dtype=torch.int32), torch.tensor([0, 2, 0], dtype=torch.int32), torch.tensor([1.0, 2.0, 3.0])


def test_worked_example(lane):
    b = torch.tensor([[1.0, 10.0], [7.0, 7.0], [2.0, 20.0]])
    assert lane.op("csr_spmm")(*lane.put([CROW, COL, VAL, b]), 3, 3).tolist() == [[5, 50], [0, 0], [3, 30]]
    _, *transposed = csr_plan(CROW, COL, 3, 3)
    assert lane.op("csr_spmm_t")(*lane.put([*transposed, VAL, b]), 3, 3).tolist() == [[7, 70], [0, 0], [2, 20]]


def test_a_bias_beyond_float16_is_not_narrowed_before_it_is_added(lane):
    rows, cols, n = 64, 512, 64                                         # all stored: a dense product would be cheapest
    crow, col = (torch.arange(rows + 1) * cols).int(), torch.arange(cols).repeat(rows).int()
    val, b, bias = torch.ones(rows * cols).half(), torch.full((cols, n), -100.0).half(), torch.full((rows,), 1e5)
    got = lane.op("csr_spmm")(*lane.put([crow, col, val, b]), rows, cols, bias=lane.put(bias))
    assert got.eq(1e5 - 100 * cols).all()


@pytest.mark.parametrize("changed, error, words", [
    ({"crow": CROW[:3]}, ValueError, "crow: expected 4 row pointers for 3 rows, got 3"),
    ({"crow": CROW.float()}, TypeError, "crow: expected int32 or int64, got"),
    ({"col": COL.long()}, TypeError, "col: expected int32, got"),
    ({"col": COL.view(3, 1)}, ValueError, "col: expected one dimension, got shape"),
    ({"val": VAL[:2]}, ValueError, r"val: expected shape \[3\], got"),
    ({"val": VAL.double()}, TypeError, "val: expected"),
    ({"val": VAL.half()}, TypeError, "val: expected"),
    ({"b": torch.ones(2, 2)}, ValueError, r"b: expected shape \[3, N\], got"),
    ({"b": torch.ones(3)}, ValueError, r"b: expected shape \[3, N\], got"),
    ({"b": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "b: expected float32, bfloat16, float16 or float64, got"),
    ({"bias": torch.ones(2)}, ValueError, r"bias: expected shape \[3\], got"),
    ({"row_order": torch.zeros(2, dtype=torch.int32)}, ValueError, "row_order: expected 3 positions, got 2"),
    ({"algo": "magic"}, ValueError, "algo: expected 'auto', 'scalar', 'staged' or 'densify', got 'magic'"),
    ({"val": VAL.to("meta")}, ValueError, r"val: expected a tensor on \w+(:0)?, got meta; move it with \.to\(\)"),
])
def test_misuse(lane, changed, error, words):
    given = {"crow": CROW, "col": COL, "val": VAL, "b": torch.ones(3, 2), "bias": None, "row_order": None, "algo": "auto"} | changed
    placed = {key: lane.put(t) if isinstance(t, torch.Tensor) and t.device.type != "meta" else t for key, t in given.items()}
    # The kernel itself: with a tensor on another device the dispatcher would not reach it.
    op = lane.op("csr_spmm")
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU if lane.emulated else torch._C.DispatchKey.CUDA)
    with pytest.raises(error, match=f"csr_spmm: {words}"):
        op.redispatch(key, placed["crow"], placed["col"], placed["val"], placed["b"], 3, 3, row_order=placed["row_order"], bias=placed["bias"],
                      algo=placed["algo"])

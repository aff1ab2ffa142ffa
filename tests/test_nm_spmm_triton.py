"""The Triton launcher of nm_spmm against the reference in float64."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern.ops import nm_mask, nm_pack
from sparsekern.testing import assert_close, each_implementation

pytestmark = pytest.mark.skipif("triton" not in each_implementation("nm_spmm"), reason="Triton runs on a GPU or in its interpreter")

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
TYPES = [(F32, F32), (BF16, BF16), (F16, F16), (F32, BF16), (F32, F16), (F64, F64)]                         # of values, of b
ids = {"ids": lambda types: "-".join(str(t)[6:] for t in types)}
# (rows, cols, n, m, v, N): both kernels, groups of all kinds, blocks that are not full, nothing at all.
SHAPES = [(5, 52, 1, 4, 1, 70), (1, 4, 2, 4, 1, 1), (4, 70, 3, 7, 4, 130), (3, 64, 1, 64, 3, 20), (6, 33, 3, 3, 3, 31), (32, 48, 2, 16, 16, 70),
          (64, 64, 2, 16, 64, 9), (32, 40, 1, 8, 32, 65), (0, 8, 2, 4, 1, 7), (5, 0, 2, 4, 1, 7), (9, 12, 0, 4, 1, 5), (32, 12, 0, 4, 16, 5),
          (9, 12, 2, 4, 3, 0)]


def launch(*args, **kwargs):
    return ops.implementations("nm_spmm")["triton"](*args, **kwargs)


def make(rows, cols, n, m, v=1, dtype=F32):
    x = torch.randn(rows, cols)
    if x.numel():
        x = torch.where(nm_mask(torch.rand(rows // v, cols), n, m).repeat_interleave(v, 0), x, 0.0)
    x = x.to(dtype)
    return x, *nm_pack(x, n, m, v=v)


def test_by_hand():
    values, index = torch.tensor([[5.0, 7, 0, 2], [0, 0, 3, 4]]), torch.tensor([[1, 3, 0, 3], [0, 1, 0, 1]], dtype=torch.uint8)
    b = torch.arange(8.0)[:, None] * torch.tensor([1.0, 10.0])
    assert launch(values, index, b, 2, 4, 8).tolist() == [[40, 400], [32, 320]]
    assert launch(values, index, b, 2, 4, 8, bias=torch.tensor([0.5, -1.0])).tolist() == [[40.5, 400.5], [31, 319]]
    assert launch(values, index[:1], b, 2, 4, 8, v=2)[:, 0].tolist() == [40, 40]
    index[0, 3] = 200                                                   # a position that is none counts as the last one
    assert launch(values, index, b, 2, 4, 8).tolist() == [[40, 400], [32, 320]]


@pytest.mark.parametrize("types", TYPES, **ids)
def test_agrees_with_float64(types):
    for rows, cols, n, m, v, width in SHAPES:
        x, values, index = make(rows, cols, n, m, v, types[0])
        b, bias = torch.randn(cols, width).to(types[1]), torch.randn(rows).to(types[0])
        got = launch(values, index, b, n, m, cols, v=v, bias=bias)
        assert got.dtype == types[1] and got.is_contiguous() and got.shape == (rows, width)
        assert_close(got, x.double() @ b.double() + bias.double()[:, None], reduction=max(cols // m * n, 1))
        assert_close(launch(values, index, b, n, m, cols, v=v), x.double() @ b.double(), reduction=max(cols // m * n, 1))


@pytest.mark.parametrize("v", [1, 16])
def test_any_strides(v):
    x, values, index = make(32, 64, 2, 8, v)
    space = torch.randn(130, 150)
    for b in (space[:64, :48], space[:64, 3:52], space[:80, :64].t(), space[:128:2, :50], space[:64, :100:2], space[0, :64, None].expand(64, 20)):
        got = launch(values.t().contiguous().t(), index.t().contiguous().t(), b, 2, 8, 64, v=v)
        assert_close(got, x.double() @ b.double(), reduction=16)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")             # the interpreter computes with numpy
@pytest.mark.parametrize("v", [1, 16])
def test_only_stored_elements_carry_nan_and_inf(v):
    index = torch.zeros(16 // v, 3, dtype=torch.uint8)                  # columns 0, 4 and 8, fewer than a step takes
    values, b = torch.ones(16, 3), torch.ones(12, 5)
    b[1], b[6], b[11] = math.nan, math.inf, -math.inf
    assert launch(values, index, b, 1, 4, 12, v=v).eq(3).all()
    values[:, 1], b[4, 0] = 0.0, math.inf                               # a stored 0 times inf
    got = launch(values, index, b, 1, 4, 12, v=v)
    assert got[:, 0].isnan().all() and got[:, 1:].eq(2).all()


VALUES, INDEX, B = torch.ones(2, 4), torch.zeros(2, 4, dtype=torch.uint8), torch.ones(8, 2)


@pytest.mark.parametrize("changed, error, words", [
    ({"n": 5}, ValueError, "n: expected 0 to m = 4 elements kept of each group, got 5"),
    ({"m": 0}, ValueError, "m: expected a group of 1 to 64 elements, got 0"),
    ({"cols": 9}, ValueError, "cols: expected a multiple of m = 4, got 9"),
    ({"cols": 12}, ValueError, r"values: expected shape \[rows, 6\], got \[2, 4\]"),
    ({"values": VALUES.half()}, TypeError, "values: expected"),
    ({"index": INDEX[:1]}, ValueError, r"index: expected shape \[2, 4\], got \[1, 4\]"),
    ({"index": INDEX.int()}, TypeError, "index: expected uint8, got"),
    ({"b": B[:7]}, ValueError, r"b: expected shape \[8, N\], got \[7, 2\]"),
    ({"b": B.int()}, TypeError, "b: expected float32, bfloat16, float16 or float64, got"),
    ({"bias": torch.ones(3)}, ValueError, r"bias: expected shape \[2\], got \[3\]"),
    ({"v": 0}, ValueError, "v: expected at least 1 row that shares its columns, got 0"),
    ({"v": 3}, ValueError, r"values: expected rows divisible by v = 3, got shape \[2, 4\]"),
])
def test_misuse(changed, error, words):
    given = {"values": VALUES, "index": INDEX, "b": B, "n": 2, "m": 4, "cols": 8} | changed
    with pytest.raises(error, match=f"nm_spmm: {words}"):
        launch(*[given.pop(key) for key in ("values", "index", "b", "n", "m", "cols")], **given)

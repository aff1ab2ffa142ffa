"""nm_spmm through its CUDA binding against the float64 reference. tests/native/nm_cost_check.cpp says which algorithm a shape takes."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern.ops import nm_mask, nm_pack
from sparsekern.testing import assert_close

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
TYPES = [(F32, F32), (BF16, BF16), (F16, F16), (F32, BF16), (F32, F16), (F64, F64)]             # of values, of the dense operand
ids = {"ids": lambda types: "-".join(str(t)[6:] for t in types)}
# (rows, cols, n, m, v, N): what fills no group and no panel, every layout, nothing at all.
SHAPES = [(37, 52, 1, 4, 1, 70), (1, 4, 2, 4, 1, 1), (32, 70, 3, 7, 4, 48), (20, 64, 1, 64, 5, 20), (12, 33, 3, 3, 3, 31), (6, 33, 1, 33, 2, 64),
          (5, 30, 5, 10, 1, 100), (0, 8, 2, 4, 1, 7), (5, 0, 2, 4, 1, 7), (9, 12, 0, 4, 1, 5), (9, 12, 2, 4, 3, 0), (32, 48, 2, 16, 16, 24)]
SCALAR, STAGED, TOGETHER = (64, 128, 1, 8, 1, 2), (72, 512, 1, 8, 1, 96), (256, 512, 1, 8, 4, 64)
TENSOR_CORES, DENSE = (64, 256, 2, 16, 64, 96), (128, 256, 1, 2, 1, 160)                        # 16-bit; float32


def make(rows, cols, n, m, v=1, dtype=F32):
    """A dense matrix with n of m columns kept in every v rows, and its packed form."""
    x = torch.randn(rows, cols)
    if x.numel():
        x = torch.where(nm_mask(torch.rand(rows // v, cols), n, m).repeat_interleave(v, 0), x, 0.0)
    x = x.to(dtype)
    return x, *nm_pack(x, n, m, v=v)


def run(lane, values, index, b, n, m, cols, v, bias=None):
    return lane.op("nm_spmm")(*lane.put([values, index, b]), n, m, cols, v=v, bias=lane.put(bias))


def assert_agrees(lane, shape, types, bias=True):
    rows, cols, n, m, v, width = shape
    x, values, index = make(rows, cols, n, m, v, types[0])
    b, bias = torch.randn(cols, width).to(types[1]), torch.randn(rows).to(types[0]) if bias else None
    got = run(lane, values, index, b, n, m, cols, v, bias)
    want = x.double() @ b.double() + (0 if bias is None else bias.double()[:, None])
    assert got.dtype == b.dtype and got.is_contiguous() and got.shape == (rows, width)
    assert_close(got.cpu(), want, reduction=max(cols // m * n, 1))
    assert torch.equal(got, run(lane, values, index, b, n, m, cols, v, bias)), "another run gave other bits"


@pytest.mark.parametrize("types", TYPES, **ids)
def test_agrees_with_the_reference(lane, types):
    for shape in SHAPES:
        assert_agrees(lane, shape, types)
        assert_agrees(lane, shape, types, bias=False)


@pytest.mark.parametrize("shape, types", [(SCALAR, TYPES[0]), (STAGED, TYPES[0]), (STAGED, TYPES[3]), (TOGETHER, TYPES[0]), (TENSOR_CORES, TYPES[1]),
                                          (TENSOR_CORES, TYPES[2]), (TENSOR_CORES, TYPES[4]), (DENSE, TYPES[0]), (DENSE, TYPES[1])], ids=str)
def test_every_algorithm_agrees(lane, shape, types):
    assert_agrees(lane, shape, types)


@pytest.mark.parametrize("shape, dtype", [(SCALAR, F32), (STAGED, F32), (TENSOR_CORES, BF16), (DENSE, F32)], ids=str)
def test_operands_of_any_strides(lane, shape, dtype):
    rows, cols, n, m, v, width = shape
    x, values, index = make(rows, cols, n, m, v, dtype)
    space = torch.randn(2 * cols + 3, 2 * max(width, cols) + 3).to(dtype)
    values, index = values.t().contiguous().t(), index.repeat_interleave(2, 1)[:, ::2]
    for b in (space[:cols, :width], space[:cols, 3:width + 3], space[:width, :cols].t(), space[:2 * cols:2, :width], space[:cols, :2 * width:2],
              space[0, :cols, None].expand(cols, width)):
        placed = lane.put(space).as_strided(b.shape, b.stride(), b.storage_offset())
        got = lane.op("nm_spmm")(lane.put(values), lane.put(index), placed, n, m, cols, v=v)
        assert_close(got.cpu(), x.double() @ b.double(), reduction=cols // m * n)


@pytest.mark.parametrize("shape, dtype", [(SCALAR, F32), (STAGED, F32), (TOGETHER, F32), (TENSOR_CORES, BF16), (DENSE, F32)], ids=str)
def test_nan_and_inf_come_from_stored_elements_only(lane, shape, dtype):
    rows, cols, n, m, v, width = shape
    x, values, index = make(rows, cols, n, m, v, dtype)
    x[0, x[0] != 0] = 1.0                                               # below: a stored zero, which counts
    values[0] = 1.0
    values[-1] = 0.0
    b = torch.randn(cols, width).to(dtype)
    bad = {int(k) for k in torch.randint(cols, (3,))} | {m - 1}
    b[list(bad)] = torch.tensor([math.nan, math.inf, -math.inf, math.nan])[:len(bad), None].to(dtype)
    got = run(lane, values, index, b, n, m, cols, v)
    stored = ops.nm_spmm(torch.ones_like(values), index, (~b.isfinite()).to(dtype), n, m, cols, v=v) > 0
    assert torch.equal(~got.cpu().isfinite(), stored)
    want = ops.implementations("nm_spmm")["reference"](values.double(), index, b.double(), n, m, cols, v=v)
    assert torch.equal(got.cpu().isnan(), want.isnan())


def test_a_position_outside_of_its_group_reads_the_last_one(lane):
    b = torch.arange(8.0)[:, None] * torch.tensor([1.0, 10.0])
    index = torch.tensor([[1, 200, 0, 4], [0, 1, 0, 255]], dtype=torch.uint8)
    values = torch.tensor([[5.0, 7, 0, 2], [0, 0, 3, 4]])
    assert run(lane, values, index, b, 2, 4, 8, 1).tolist() == [[5 + 21 + 14, 400], [12 + 28, 400]]


def test_worked_example(lane):
    values, index = torch.tensor([[5.0, 7, 0, 2], [0, 0, 3, 4]]), torch.tensor([[1, 3, 0, 3], [0, 1, 0, 1]], dtype=torch.uint8)
    b = torch.arange(8.0)[:, None] * torch.tensor([1.0, 10.0])
    assert run(lane, values, index, b, 2, 4, 8, 1).tolist() == [[40, 400], [32, 320]]
    assert run(lane, values, index, b, 2, 4, 8, 1, torch.tensor([0.5, -1.0])).tolist() == [[40.5, 400.5], [31, 319]]
    assert run(lane, values, index[:1], b, 2, 4, 8, 2)[:, 0].tolist() == [40, 40]


def test_a_bias_beyond_float16_is_not_narrowed_before_it_is_added(lane):
    rows, cols, n, m, v, width = DENSE
    values, index = nm_pack(torch.ones(rows, 2 * cols).half(), 2, 2)
    b, bias = torch.full((2 * cols, width), -100.0).half(), torch.full((rows,), 1e5)
    assert run(lane, values, index, b, 2, 2, 2 * cols, 1, bias).eq(1e5 - 100 * 2 * cols).all()


VALUES, INDEX, B = torch.ones(2, 4), torch.zeros(2, 4, dtype=torch.uint8), torch.ones(8, 2)


@pytest.mark.parametrize("changed, error, words", [
    ({"n": 5}, ValueError, "n: expected 0 to m = 4 elements kept of each group, got 5"),
    ({"m": 65}, ValueError, "m: expected a group of 1 to 64 elements, got 65"),
    ({"cols": 9}, ValueError, "cols: expected a multiple of m = 4, got 9"),
    ({"cols": 12}, ValueError, r"values: expected shape \[rows, 6\], got \[2, 4\]"),
    ({"values": VALUES.double()}, TypeError, "values: expected"),
    ({"values": VALUES.half()}, TypeError, "values: expected"),
    ({"index": INDEX[:1]}, ValueError, r"index: expected shape \[2, 4\], got \[1, 4\]"),
    ({"index": INDEX.int()}, TypeError, "index: expected uint8, got"),
    ({"b": B[:7]}, ValueError, r"b: expected shape \[8, N\], got \[7, 2\]"),
    ({"b": B.int()}, TypeError, "b: expected float32, bfloat16, float16 or float64, got"),
    ({"bias": torch.ones(3)}, ValueError, r"bias: expected shape \[2\], got \[3\]"),
    ({"bias": torch.ones(2).double()}, TypeError, "bias: expected"),
    ({"v": 0}, ValueError, "v: expected at least 1 row that shares its columns, got 0"),
    ({"v": 3}, ValueError, r"values: expected rows divisible by v = 3, got shape \[2, 4\]"),
    ({"index": INDEX.to("meta")}, ValueError, r"index: expected a tensor on \w+(:0)?, got meta; move it with \.to\(\)"),
])
def test_misuse(lane, changed, error, words):
    given = {"values": VALUES, "index": INDEX, "b": B, "bias": None, "n": 2, "m": 4, "cols": 8, "v": 1} | changed
    placed = {key: lane.put(t) if isinstance(t, torch.Tensor) and t.device.type != "meta" else t for key, t in given.items()}
    # The kernel itself: with a tensor on another device the dispatcher would not reach it.
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU if lane.emulated else torch._C.DispatchKey.CUDA)
    with pytest.raises(error, match=f"nm_spmm: {words}"):
        lane.op("nm_spmm").redispatch(key, *[placed[name] for name in ("values", "index", "b", "n", "m", "cols")], v=placed["v"], bias=placed["bias"])

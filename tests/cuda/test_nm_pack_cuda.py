"""nm_pack through its CUDA binding: the reference's values and places, bit for bit; of too many non-zeros the n largest."""
import itertools
import math

import pytest
import torch

from sparsekern.ops._register import implementations
from sparsekern.ops.nm_spmm import nm_columns

TYPES = [torch.float32, torch.bfloat16, torch.float16]
# (rows, cols, n, m, v): all widths of a group, several tiles to a row, bands, nothing at all.
CASES = [(37, 52, 1, 4, 1), (1, 4, 2, 4, 1), (16, 64, 2, 8, 1), (13, 48, 1, 16, 1), (32, 70, 3, 7, 4), (10, 64, 1, 64, 5), (24, 36, 3, 3, 3),
         (6, 33, 1, 33, 2), (5, 30, 5, 10, 1), (0, 8, 2, 4, 1), (5, 0, 2, 4, 1), (9, 12, 0, 4, 1), (8, 1280, 10, 64, 4), (3, 1100, 2, 4, 1),
         (7, 40, 1, 1, 7), (3, 96, 8, 32, 3)]


def reference(name, *arguments, **options):
    return implementations(name)["reference"](*arguments, **options)


def bits(tensor):
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.element_size()])


def assert_agrees(lane, x, n, m, v=1, there=None):
    got, want = lane.op("nm_pack")(lane.put(x) if there is None else there, n, m, v=v), reference("nm_pack", x, n, m, v=v)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype and torch.equal(bits(one.cpu()), bits(other)), (n, m, v, list(x.shape))
    return got


def make(rows, cols, n, m, v, dtype):
    """n of m columns kept in every v rows, some of them zero, too, some NaN or inf or tiny."""
    kept = reference("nm_mask", torch.rand(rows // v, cols), n, m).repeat_interleave(v, 0)
    values = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 6e-8, -1e-41, 1.0, -2.0, 3.0, 0.1])
    return torch.where(kept, values[torch.randint(len(values), (rows, cols))], 0.0).to(dtype)


def test_by_hand(lane):
    x = torch.tensor([[0.0, 5, 0, 7, 0, 0, 0, 2], [0, 0, 0, 0, 3, 4, 0, 0]])
    values, index = lane.op("nm_pack")(lane.put(x), 2, 4)
    assert values.tolist() == [[5, 7, 0, 2], [0, 0, 3, 4]] and index.tolist() == [[1, 3, 0, 3], [0, 1, 0, 1]] and index.dtype == torch.uint8
    values, index = lane.op("nm_pack")(lane.put(x[:, [0, 1, 2, 3, 4, 5, 6, 6]]), 2, 4, v=2)
    assert index.tolist() == [[1, 3, 0, 1]] and values.tolist() == [[5, 7, 0, 0], [0, 0, 3, 4]]


def test_the_largest_of_too_many(lane):
    x = torch.tensor([[1.0, -4, 3, 2, 5, 5, -5, 5, math.nan, 9, -math.inf, 8]])
    values, index = lane.op("nm_pack")(lane.put(x), 2, 4)
    assert index.tolist() == [[1, 2, 0, 1, 0, 2]] and values[0, [0, 1, 2, 3, 5]].tolist() == [-4, 3, 5, 5, -math.inf] and values[0, 4].isnan()
    # Two rows by the sums of their magnitudes: 3, 4, 3, 5 of the first group; 1 and inf, then 2 and 2, the first, of the second.
    pair = torch.tensor([[1.0, -4, 3, 0, 1, 1, 1, 0], [2, 0, 0, 5, 0, math.inf, -1, 2]])
    values, index = lane.op("nm_pack")(lane.put(pair), 2, 4, v=2)
    assert index.tolist() == [[1, 3, 1, 2]] and values.tolist() == [[-4, 0, 1, 1], [0, 5, math.inf, -1]]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_agrees_with_the_reference(lane, dtype):
    for rows, cols, n, m, v in CASES:
        x = make(rows, cols, n, m, v, dtype)
        assert_agrees(lane, x, n, m, v)
        turned = x.t().contiguous().t()
        assert_agrees(lane, turned, n, m, v, there=lane.put(turned))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_2_4_pattern_comes_back(lane, dtype):
    kinds = torch.tensor([1.5, -2.0, math.nan, math.inf, -math.inf, 2.0**-14]).to(dtype)
    rows = []
    for places in itertools.chain.from_iterable(itertools.combinations(range(4), k) for k in range(3)):
        for chosen in itertools.product(kinds, repeat=len(places)):
            row = torch.zeros(4, dtype=dtype)
            for place, value in zip(places, chosen):
                row[place] = value
            rows.append(row)
    x = torch.stack(rows)
    values, index = assert_agrees(lane, x, 2, 4)
    back = torch.zeros_like(x).scatter_(1, nm_columns(index.cpu(), 2, 4).long(), values.cpu())
    assert torch.equal(bits(back), bits(x)) and (index[:, 0] < index[:, 1]).all()
    assert_agrees(lane, torch.where(x == 0, -0.0, x), 2, 4)


def test_views(lane):
    flat = make(1, 4000, 2, 4, 1, torch.float32).flatten()
    wide = lane.put(flat)
    for at in (4, 8, 12):
        assert_agrees(lane, flat[at:at + 480].view(12, 40), 2, 4, there=wide[at:at + 480].view(12, 40))
    shifted = torch.cat([torch.ones(1), flat])
    assert_agrees(lane, shifted[1:].view(40, 100), 2, 4, there=lane.put(shifted)[1:].view(40, 100))
    grid = flat.view(40, 100)
    assert_agrees(lane, grid[::2, 4:60], 2, 4, there=wide.view(40, 100)[::2, 4:60])


def test_repeats_have_equal_bits(lane):
    x = lane.put(torch.randn(8, 640))                                   # far too many non-zeros
    one = lane.op("nm_pack")(x, 3, 20, v=4)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(lane.op("nm_pack")(x, 3, 20, v=4), one))


def test_bad_input(lane):
    for x, options, error, words in ((torch.ones(2, 6), {}, ValueError, r"x: expected a matrix with columns divisible by m = 4, got shape \[2, 6\]"),
                                     (torch.ones(3, 8), {"v": 2}, ValueError, r"x: expected rows divisible by v = 2, got shape \[3, 8\]"),
                                     (torch.ones(3, 8), {"v": 0}, ValueError, "v: expected at least 1 row"),
                                     (torch.ones(3, 8).int(), {}, TypeError, "x: expected float32, bfloat16, float16 or float64, got Int"),
                                     (torch.ones(3, 8).double(), {}, TypeError, "x: expected float32, bfloat16 or float16 on a CUDA device")):
        with pytest.raises(error, match=f"nm_pack: {words}"):
            lane.op("nm_pack")(lane.put(x), 2, 4, **options)
    with pytest.raises(ValueError, match="nm_pack: n: expected 0 to m = 4"):
        lane.op("nm_pack")(lane.put(torch.ones(3, 8)), 5, 4)

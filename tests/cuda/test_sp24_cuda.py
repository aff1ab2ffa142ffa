"""sp24_compress and sp24_decompress through their CUDA bindings: exactly the reference, and torch's own order."""
import itertools
import math

import pytest
import torch
from torch.sparse import _semi_structured_conversions as torchs

from sparsekern import ops
from sparsekern.ops import nm_mask, nm_mask_transposable
from sparsekern.ops._register import implementations

HALVES = [torch.bfloat16, torch.float16]
LAYOUTS = ["sm80", "linear"]


def reference(name, *args, **kwargs):
    return implementations(name)["reference"](*args, **kwargs)


def same(got, want):
    def bits(t):
        return t.cpu().contiguous().view(torch.int16)
    return len(got) == len(want) and all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b)) for a, b in zip(got, want))


def special(shape, dtype):
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, math.nan, math.inf, -math.inf, 0.5, 6e-8, 3e38])
    return values[torch.randint(len(values), shape)].to(dtype)


def every_mask():
    """bool [64, 64]: all 16 masks of a group in every position of a row, and in every row."""
    mask = torch.tensor([[m >> i & 1 for i in range(4)] for m in range(16)]).bool()
    return torch.stack([torch.cat([mask[(r + g) % 16] for g in range(16)]) for r in range(64)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_agrees(lane, dtype, layout):
    compress, decompress = lane.op("sp24_compress"), lane.op("sp24_decompress")
    for shape in ((32, 64), (96, 64), (64, 640), (0, 64), (64, 0)):
        for x in (torch.randn(shape).to(dtype), special(shape, dtype)):
            mask = torch.rand(shape) < 0.5
            for given in (None, mask, ops.pack_mask(mask), torch.empty(0, dtype=torch.bool)):
                got = compress(lane.put(x), mask=lane.put(given), layout=layout)
                want = reference("sp24_compress", x, mask=given, layout=layout)
                assert same(got, want), (shape, layout)
                assert same([decompress(*got[:2], list(shape), layout=layout)], [reference("sp24_decompress", *want[:2], list(shape), layout=layout)])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_both_ways(lane, dtype):
    for shape, layout in itertools.product(((64, 64), (128, 192), (0, 64)), LAYOUTS):
        for x in (torch.randn(shape).to(dtype), special(shape, dtype)):
            mask = nm_mask_transposable(torch.randn(shape)) & (torch.rand(shape) < 0.9)
            for given in (None, mask, ops.pack_mask(mask)):             # None: the pattern is searched
                got = lane.op("sp24_compress")(lane.put(x), mask=lane.put(given), both=True, layout=layout)
                assert same(got, reference("sp24_compress", x, mask=given, both=True, layout=layout)), (shape, layout)


def test_every_mask_in_every_position(lane):
    for x in (torch.randn(64, 64).half(), special((64, 64), torch.float16)):
        got = lane.op("sp24_compress")(lane.put(x), mask=lane.put(every_mask()))
        assert same(got, reference("sp24_compress", x, mask=every_mask()))


def test_torchs_cutlass_order(lane):
    x = torch.randn(96, 192).bfloat16()
    dense = torch.where(nm_mask(x, 2, 4), x, 0)
    v, e, _, _ = lane.op("sp24_compress")(lane.put(x))
    assert same([v, e], torchs.sparse_semi_structured_from_dense_cutlass(dense))
    assert same([lane.op("sp24_decompress")(v, e, [96, 192])], [dense])


def test_every_nibble(lane):
    nibbles = torch.stack([(torch.arange(16) + r) % 16 for r in range(32)])
    e = (nibbles.view(32, 4, 4) << torch.arange(0, 16, 4)).sum(-1).to(torch.int16)
    v = torch.randn(32, 32).bfloat16()
    assert same([lane.op("sp24_decompress")(lane.put(v), lane.put(e), [32, 64], layout="linear")],
                [reference("sp24_decompress", v, e, [32, 64], layout="linear")])


def test_strided_and_misaligned(lane):
    wide = torch.randn(70 * 200 + 9).half()
    for at in (1, 3, 8):
        flat = lane.put(wide)[at:at + 64 * 128]
        for x in (flat.view(64, 128), flat.view(128, 64).t(), lane.put(wide)[at:at + 64 * 200].view(64, 200)[:, 2:130]):
            mask = lane.put(torch.rand(64 * 128 + 9) < 0.5)[at:at + 64 * 128].view(64, 128)
            assert same(lane.op("sp24_compress")(x, mask=mask), reference("sp24_compress", x.cpu(), mask=mask.cpu()))
        v, e, _, _ = lane.op("sp24_compress")(flat.view(64, 128))
        shifted = torch.empty(v.numel() + 3, dtype=v.dtype, device=v.device)[3:].view_as(v).copy_(v)
        assert same([lane.op("sp24_decompress")(shifted, e, [64, 128])], [reference("sp24_decompress", v.cpu(), e.cpu(), [64, 128])])


def test_bad_input(lane):
    x = lane.put(torch.randn(64, 64).half())
    v, e, _, _ = lane.op("sp24_compress")(x)
    for error, words, op, args, options in (
            (TypeError, "sp24_compress: x: expected bfloat16 or float16 on a CUDA device, got Float", "sp24_compress", (x.float(),), {}),
            (TypeError, "sp24_compress: x: expected float32, bfloat16, float16 or float64", "sp24_compress", (x.int(),), {}),
            (ValueError, r"rows divisible by 32 and columns by 64 .*got shape \[31, 64\]", "sp24_compress", (x[:31],), {}),
            (ValueError, "rows divisible by 64 and columns by 64", "sp24_compress", (x[:32],), {"both": True}),
            (ValueError, 'layout: expected "sm80" or "linear", got "x"', "sp24_compress", (x,), {"layout": "x"}),
            (ValueError, "mask: expected a bool mask of shape", "sp24_compress", (x,), {"mask": x[:32] > 0}),
            (TypeError, "mask: expected a bool mask, packed int32 words", "sp24_compress", (x,), {"mask": x}),
            (ValueError, "mask: expected 128 contiguous int32 words", "sp24_compress", (x,), {"mask": x[0].int()}),
            (TypeError, "sp24_decompress: v: expected bfloat16 or float16 on a CUDA device", "sp24_decompress", (v.float(), e, [64, 64]), {}),
            (TypeError, "sp24_decompress: e: expected int16", "sp24_decompress", (v, e.int(), [64, 64]), {}),
            (ValueError, r"sp24_decompress: e: expected shape \[64, 4\]", "sp24_decompress", (v, e[:32], [64, 64]), {}),
            (ValueError, r"sp24_decompress: shape: expected \[64, 64\]", "sp24_decompress", (v, e, [64, 60]), {})):
        with pytest.raises(error, match=words):
            lane.op(op)(*args, **options)

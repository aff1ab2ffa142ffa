"""masked_weight through its CUDA binding: the reference's bits."""
import pytest
import torch

from sparsekern import ops
from sparsekern.ops._register import implementations
from sparsekern.testing import awkward_shapes, random_masks

reference = implementations("masked_weight.list")["reference"]
HALVES = [torch.bfloat16, torch.float16]
FLOATS = [torch.float32, *HALVES]


def assert_same(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want):
        assert a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a.cpu().nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))


def check(lane, weights, masks, **options):
    assert_same(lane.op("masked_weight.list")(lane.put(weights), lane.put(masks), **options), reference(weights, masks, **options))


@pytest.mark.parametrize("form", ["bool", "bits", "none"])
@pytest.mark.parametrize("to", [None, *FLOATS], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_agrees_with_the_reference(lane, dtype, to, form):
    weights = [torch.randn(s).to(dtype) for s in awkward_shapes[:-1]]
    masks = random_masks(weights, 0.4)
    for weight, mask in zip(weights, masks):
        weight[~mask] = float("nan")                                    # never shows
    if form != "bool":
        masks = [ops.pack_mask(m) if form == "bits" else torch.empty(0, dtype=torch.bool) for m in masks]
    check(lane, weights, masks, dtype=to)


def test_by_hand(lane):
    weight, mask = torch.tensor([1.0, float("inf"), -2.0, float("nan")]), torch.tensor([True, False, True, False])
    got = lane.op("masked_weight")(lane.put(weight), lane.put(mask)).cpu()
    assert got.tolist() == [1.0, 0.0, -2.0, 0.0] and not got.signbit()[1]
    assert lane.op("masked_weight")(lane.put(torch.tensor([1.00390625])), lane.put(mask[:1]), dtype=torch.bfloat16).item() == 1.0     # ties to even


def test_mixed_dtypes_and_masks_in_one_list(lane):
    weights = [torch.randn(70), torch.randn(33).bfloat16(), torch.randn(0), torch.randn(9, 5), torch.randn(41).bfloat16()]
    masks = random_masks(weights, 0.5)
    masks[1], masks[3] = ops.pack_mask(masks[1]), torch.empty(0, dtype=torch.bool)
    check(lane, weights, masks)
    check(lane, weights, masks, dtype=torch.float16)


def test_unaligned_views(lane):
    flat, bits = lane.put(torch.randn(5000)), lane.put(torch.rand(5000) < 0.5)
    for shift in (1, 2, 3, 5):
        weight, mask = flat[shift:-shift], bits[1:1 - 2 * shift] if shift > 1 else bits[1:-1]
        want = torch.where(mask, weight, 0.0)
        assert torch.equal(lane.op("masked_weight")(weight, mask), want)
        assert torch.equal(lane.op("masked_weight")(weight, mask, dtype=torch.bfloat16), want.bfloat16())


def test_layouts(lane):
    weight, mask = torch.randn(6, 5, 3, 3), torch.rand(6, 5, 3, 3) < 0.5
    last = torch.channels_last
    for w, m in [(weight.to(memory_format=last), mask), (weight.to(memory_format=last), mask.to(memory_format=last)),
                 (weight, mask.to(memory_format=last)), (weight[:, ::2], mask[:, ::2]), (weight[0, 0].t(), mask[0, 0])]:
        w, m = lane.put(w), lane.put(m)                                 # a copy keeps the strides of what is dense
        got = lane.op("masked_weight")(w, m)
        assert got.stride() == torch.empty_like(w).stride() and torch.equal(got, torch.where(m, w, 0.0))
    w = lane.put(weight)[:, ::2]                                        # not dense
    assert torch.equal(lane.op("masked_weight")(w, lane.put(mask)[:, ::2]), torch.where(lane.put(mask)[:, ::2], w, 0.0))


def test_a_long_list(lane):
    weights = [torch.randn(1 + k % 7) for k in range(100)]
    check(lane, weights, random_masks(weights, 0.5))


def test_bad_input(lane):
    op, w, m = lane.op("masked_weight"), lane.put(torch.zeros(4, 8)), lane.put(torch.ones(4, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"masks\[0\]: expected a bool mask of shape \[4, 8\], got \[8\]"):
        op(w, m[0])
    with pytest.raises(TypeError, match="bool mask, packed int32 words or an empty tensor, got Float"):
        op(w, w)
    with pytest.raises(ValueError, match="packed mask goes with a row-major tensor"):
        op(w.t(), lane.put(torch.zeros(1, dtype=torch.int32)))
    with pytest.raises(TypeError, match="weights: expected float32, bfloat16 or float16 on a CUDA device, got Double"):
        op(w.double(), m)
    with pytest.raises(TypeError, match="dtype: expected float32, bfloat16 or float16 on a CUDA device, got Int"):
        op(w, m, dtype=torch.int32)
    with pytest.raises(ValueError, match="masks: expected a list of 2 tensors"):
        lane.op("masked_weight.list")([w, w], [m])

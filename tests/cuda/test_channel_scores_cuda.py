"""channel_scores through its CUDA binding against the float64 reference."""
import pytest
import torch

from sparsekern import ops
from sparsekern.ops._register import implementations
from sparsekern.testing import assert_close, double, random_masks

reference = implementations("channel_scores")["reference"]
NONE = torch.empty(0, dtype=torch.bool)
SHAPES = [(1,), (9,), (0,), (0, 3), (4, 0), (5, 1), (40, 9), (7, 64), (33, 65), (6, 3, 3, 3), (3, 1030), (2, 2049), (2, 4097), (64, 27)]


def assert_agrees(lane, weights, *masks, there=None, beta=0.75):
    got = lane.op("channel_scores")(lane.put(weights) if there is None else there, *lane.put(list(masks)), beta=beta)
    for one, other in zip(got, reference(double(weights), *masks, beta=beta), strict=True):
        assert one.dtype == torch.float32
        assert_close(one, other, reduction=4096)
    return got


@pytest.mark.parametrize("two", [None, "bool", "bits", "none"])
@pytest.mark.parametrize("form", ["bool", "bits", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_agrees_with_the_reference(lane, dtype, form, two):
    weights = [torch.randn(s).to(dtype) for s in SHAPES]
    masks = [random_masks(weights, 0.3) for _ in range(1 if two is None else 2)]
    if "none" not in (form, two):
        for i, weight in enumerate(weights):
            weight[~torch.stack([m[i] for m in masks]).any(0)] = float("nan")       # hidden: never shows
    given = [[m if kind == "bool" else ops.pack_mask(m) if kind == "bits" else NONE for m in ms] for ms, kind in zip(masks, (form, two))]
    got = assert_agrees(lane, weights, *given)
    again = lane.op("channel_scores")(lane.put(weights), *lane.put(given), beta=0.75)
    assert all(torch.equal(a, b) for a, b in zip(got, again))


def test_by_hand(lane):
    weight, a = torch.tensor([[1.0, -2.0, 4.0], [-8.0, 16.0, float("nan")]]), torch.tensor([[True, True, False], [False, False, False]])
    b = torch.tensor([[False, True, True], [True, False, False]])
    assert lane.op("channel_scores")(lane.put([weight]), lane.put([a]), lane.put([b]), beta=0.75)[0].tolist() == [3.75, 2.0]
    assert lane.op("channel_scores")(lane.put([weight]), lane.put([NONE]))[0].nan_to_num(-1.0).tolist() == [7.0, -1.0]


def test_layouts_and_unaligned_views(lane):
    weight, mask = torch.randn(6, 5, 3, 4), torch.rand(6, 5, 3, 4) < 0.5
    there, last = lane.put(weight), torch.channels_last
    for w in (there.to(memory_format=last), there.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), torch.stack([there, there], -1)[..., 0]):
        assert_agrees(lane, [weight], [mask], [~mask], there=[w])
    assert_agrees(lane, [weight], [mask.to(memory_format=last)], [~mask])
    for shift in (1, 2, 5):
        flat = torch.cat([torch.zeros(shift), weight.flatten()])
        assert_agrees(lane, [weight.view(6, 60)], [mask.view(6, 60)], there=[lane.put(flat)[shift:].view(6, 60)])


def test_mixed_dtypes_and_a_long_list(lane):
    weights = [torch.randn(1 + k % 4, 1 + k % 9).to((torch.float32, torch.bfloat16)[k % 2]) for k in range(200)]
    assert_agrees(lane, weights, random_masks(weights, 0.5))


def test_bad_input(lane):
    op, w, m = lane.op("channel_scores"), lane.put(torch.zeros(3, 4)), lane.put(torch.ones(3, 4, dtype=torch.bool))
    for error, words, arguments in [
            (ValueError, r"masks_a\[0\]: expected a bool mask of shape \[3, 4\], got \[4\]", ([w], [m[0]])),
            (ValueError, "masks_b: expected a list of 1 tensors", ([w], [m], [])),
            (ValueError, "packed mask goes with a row-major tensor", ([w.t()], [lane.put(torch.zeros(1, dtype=torch.int32))])),
            (ValueError, r"weights\[0\]: expected \[channels, ...\], got a scalar", ([w[0, 0]], [m[0, 0]])),
            (TypeError, "weights: expected float32, bfloat16 or float16 on a CUDA device, got Double", ([w.double()], [m])),
            (TypeError, "weights: expected float32, bfloat16, float16 or float64, got Int", ([w.int()], [m]))]:
        with pytest.raises(error, match=words):
            op(*arguments)

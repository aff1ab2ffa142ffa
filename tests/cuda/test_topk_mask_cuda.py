"""topk_mask and select_threshold from the tensors on: exactly k, ties to the lowest index, NaN last, on a GPU and emulated."""
import math

import pytest
import torch
from test_topk_mask import MISUSE

from sparsekern import ops
from sparsekern.testing import awkward_shapes

NAN, INF = math.nan, math.inf
TYPES = [torch.float32, torch.bfloat16, torch.float16]
NONE = torch.empty(0, dtype=torch.bool)


def call(lane, scores, k, **kwargs):
    name = "topk_mask" if isinstance(k, torch.Tensor) else "topk_mask.int_k"
    masks, thresholds, counts = lane.op(name)(lane.put(scores), lane.put(k), **lane.put(kwargs))
    return [m.cpu() for m in masks], thresholds.cpu(), counts.cpu()


def reference(scores, k, **kwargs):
    return ops.implementations("topk_mask" if isinstance(k, torch.Tensor) else "topk_mask.int_k")["reference"](scores, k, **kwargs)


def same(a, b):
    return all(torch.equal(x, y) and x.shape == y.shape for x, y in zip(a[0], b[0], strict=True)) and a[1].dtype == b[1].dtype and \
        torch.equal(a[1].nan_to_num(7e4), b[1].nan_to_num(7e4)) and torch.equal(a[2], b[2])


# ---- worked examples ----

def test_magnitudes_per_tensor(lane):
    masks, thresholds, counts = call(lane, [torch.tensor([1.0, -5.0, 3.0, -2.0]), torch.tensor([[0.5], [0.25]])], [2, 1])
    assert [m.tolist() for m in masks] == [[False, True, True, False], [[True], [False]]]
    assert thresholds.tolist() == [3.0, 0.5] and counts.tolist() == [2, 1]


def test_global_ties_go_to_the_earlier_tensor(lane):
    masks, thresholds, counts = call(lane, [torch.tensor([1.0, 2.0]), torch.tensor([-2.0, 2.0, 3.0, 2.0])], [3], global_=True)
    assert [m.tolist() for m in masks] == [[False, True], [True, False, True, False]]
    assert thresholds.tolist() == [2.0] and counts.tolist() == [3]


@pytest.mark.parametrize("largest", [True, False])
def test_nan_comes_last_either_way_and_zeros_are_equal(lane, largest):
    x = torch.tensor([NAN, -0.0, 0.0, NAN])
    masks, thresholds, _ = call(lane, [x, x, x], torch.tensor([1, 2, 3]), largest=largest, use_abs=False)
    assert [m.nonzero().flatten().tolist() for m in masks] == [[1], [1, 2], [0, 1, 2]]
    assert thresholds[:2].tolist() == [0.0, 0.0] and thresholds[2].isnan() and math.copysign(1, thresholds[0]) == 1


def test_signed_smallest_with_infinities_packed(lane):
    x = torch.tensor([INF, -1.0, -INF, 5.0, -2.0] + [0.0] * 30)
    masks, thresholds, _ = call(lane, [x, x], [2, 35], largest=False, use_abs=False, packed=True)
    assert masks[0].tolist() == [0b10100, 0] and masks[1].tolist() == [-1, 0b111] and thresholds.tolist() == [-2.0, INF]


def test_only_eligible_elements_count(lane):
    x, able = torch.tensor([9.0, 8.0, 7.0, 6.0]), torch.tensor([False, True, False, True])
    for mask in (able, ops.pack_mask(able)):
        masks, thresholds, counts = call(lane, [x, x], [9, 1], eligible=[mask, NONE])
        assert masks[0].tolist() == able.tolist() and masks[1].tolist() == [True, False, False, False]
        assert thresholds.tolist() == [6.0, 9.0] and counts.tolist() == [2, 1]


def test_nothing_to_take(lane):
    masks, thresholds, counts = call(lane, [torch.ones(3), torch.ones(0), torch.tensor(2.0), torch.tensor(2.0)], [-4, 5, 1, 0])
    assert [m.tolist() for m in masks] == [[False] * 3, [], True, False]
    assert thresholds.isnan().tolist() == [True, True, False, True] and counts.tolist() == [0, 0, 1, 0]
    none = torch.zeros(0, dtype=torch.int64)
    assert call(lane, [], none)[1].shape == (0,) and call(lane, [], torch.tensor([4]), global_=True)[2].tolist() == [0]


# ---- agreement ----

LARGE = {"normal": lambda x: x, "all equal": lambda x: torch.full_like(x, -1.5), "narrow": lambda x: 1 + 3e-5 * x, "few": lambda x: (2 * x).round(),
         "1% NaN": lambda x: torch.where(torch.rand_like(x) < 0.01, NAN, x), "all NaN": lambda x: torch.full_like(x, NAN),
         "sorted": lambda x: x.sort().values, "ramp": lambda x: torch.arange(len(x)) / 7}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", LARGE)
def test_large_segments_agree_with_the_reference(lane, kind, dtype):
    n = 12_001
    x = LARGE[kind](torch.randn(n)).to(dtype)
    able = torch.rand(n) < 0.3
    for k, options in ((n // 10, {}), (n // 2, {"largest": False, "packed": True}), (n, {"use_abs": False, "eligible": [ops.pack_mask(able)]}),
                       (n // 7, {"use_abs": False, "largest": False, "eligible": [able]})):
        assert same(call(lane, [x], [k], **options), reference([x], [k], **options)), (k, options)


@pytest.mark.parametrize("options", [{}, {"largest": False}, {"use_abs": False, "packed": True}, {"global_": True},
                                     {"global_": True, "packed": True}], ids=str)
def test_awkward_shapes_and_mixed_types(lane, options):
    scores = [torch.randn(s).to(TYPES[i % 3]) for i, s in enumerate([*awkward_shapes, (9001,)])]
    able = [NONE if i % 3 == 0 else torch.rand(x.shape) < 0.5 for i, x in enumerate(scores)]
    able = [ops.pack_mask(m) if i % 3 == 1 and m.numel() else m for i, m in enumerate(able)]
    for share, eligible in ((0.1, able), (0.5, None), (1, able)):
        sizes = [x.numel() for x in scores]
        k = torch.tensor([int(share * n) for n in ([sum(sizes)] if options.get("global_") else sizes)])
        assert same(call(lane, scores, k, eligible=eligible, **options), reference(scores, k, eligible=eligible, **options))


def test_order_is_logical_whatever_the_strides(lane):
    x = torch.randint(0, 3, (4, 6, 5, 7)).float()
    able = torch.rand(x.shape) < 0.6
    want = reference([x], [200], eligible=[able])
    for layout in (x.to(memory_format=torch.channels_last), x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)):
        for mask in (able, able.to(memory_format=torch.channels_last), ops.pack_mask(able)):
            assert same(call(lane, [layout], [200], eligible=[mask]), want)
    flat = lane.put(torch.randn(9100))
    for shift in (1, 2, 3):                                                         # slices of a flat buffer are not aligned
        masks = lane.op("topk_mask.int_k")([flat[shift:shift + 9000]], [900])[0]
        assert torch.equal(masks[0].cpu(), reference([flat[shift:shift + 9000].cpu()], [900])[0][0])


def test_thresholds_alone_a_hint_and_many_segments(lane):
    scores = [torch.randn(1 + 37 * i % 90) for i in range(70)] + [torch.randn(9000)]
    k = torch.tensor(20)
    want = reference(scores, k)
    assert same(call(lane, scores, k, hint=want[1]), want) and same(call(lane, scores, k), want)
    thresholds, counts = lane.op("select_threshold")(lane.put(scores), lane.put(k), hint=lane.put(want[1]))
    assert torch.equal(thresholds.cpu(), want[1]) and torch.equal(counts.cpu(), want[2])


# ---- misuse ----

@pytest.mark.parametrize("change, error, words", [
    ({"scores": [torch.ones(4, dtype=torch.int64)]}, TypeError, r"scores\[0\]: expected float32, bfloat16 or float16 on a CUDA device, got Long"),
    ({"scores": [torch.ones(4, dtype=torch.float64)]}, TypeError, r"scores\[0\]: expected float32, bfloat16 or float16 on a CUDA device, got Double"),
    *MISUSE,
])
def test_misuse(lane, change, error, words):
    with pytest.raises(error, match=words):
        call(lane, **{"scores": [torch.ones(4)], "k": [1]} | change)

"""prune_regrow_ from the tensors on, on a GPU and emulated: the weakest active weights go, the strongest inactive ones come."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern.testing import random_masks

NAN = math.nan


def call(lane, masks, weights, grow, k_drop, k_grow, **kwargs):
    """Masks, weights, momentum buffers and the two counts afterwards."""
    op = lane.op("prune_regrow_" if isinstance(k_drop, torch.Tensor) else "prune_regrow_.int_k")
    lists, options = [lane.put(x) for x in (masks, weights, grow)], lane.put(kwargs)
    counts = op(*lists, lane.put(k_drop), lane.put(k_grow), **options)
    return [[x.cpu() for x in items] for items in (lists[0], lists[1], options.get("momentum_buffers") or [], counts)]


def reference(masks, weights, grow, k_drop, k_grow, **kwargs):
    name = "prune_regrow_" if isinstance(k_drop, torch.Tensor) else "prune_regrow_.int_k"
    masks, weights = [m.clone() for m in masks], [w.clone() for w in weights]
    momentum = [m.clone() for m in kwargs.get("momentum_buffers", [])]
    kwargs = kwargs | ({"momentum_buffers": momentum} if momentum else {})
    counts = ops.implementations(name)["reference"](masks, weights, grow, k_drop, k_grow, **kwargs)
    return [masks, weights, momentum, list(counts)]


def same(got, want):
    return all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) and a.stride() == b.stride()
               for x, y in zip(got, want, strict=True) for a, b in zip(x, y, strict=True))


def bools(*on):
    return torch.tensor(on, dtype=torch.bool)


# ---- worked examples ----

@pytest.mark.parametrize("packed", [False, True])
def test_one_goes_one_comes(lane, packed):
    mask = bools(1, 1, 1, 0, 0, 0)
    (after,), (weight,), (momentum,), counts = call(
        lane, [ops.pack_mask(mask) if packed else mask], [torch.tensor([3.0, -1, 2, 9, 9, 9])], [torch.tensor([9.0, 9, 9, 1, -5, 2])], [1], [1],
        on_grow="zero", momentum_buffers=[torch.ones(6)])
    assert (ops.unpack_mask(after, (6,)) if packed else after).tolist() == [True, False, True, False, True, False]
    assert weight.tolist() == [3, -1, 2, 9, 0, 9] and momentum.tolist() == [1, 0, 1, 1, 0, 1] and [c.tolist() for c in counts] == [[1], [1]]


def test_ties_keep_the_lower_index_and_nan_goes_first(lane):
    (mask,), _, _, counts = call(lane, [bools(1, 1, 1, 1)], [torch.tensor([2.0, NAN, 2.0, 2.0])], [torch.ones(4)], [2], [5])
    assert mask.tolist() == [True, False, True, False] and [c.tolist() for c in counts] == [[2], [0]]


def test_regrown_weights_count_as_neither(lane):
    (mask,), (weight,), (momentum,), counts = call(
        lane, [bools(1, 1, 0)], [torch.tensor([1.0, 2.0, 7.0])], [torch.tensor([9.0, 1.0, 5.0])], torch.tensor([2]), torch.tensor([2]),
        regrow_dropped=True, on_drop="zero", on_grow="zero", momentum_buffers=[torch.ones(3)])
    assert mask.tolist() == [True, False, True] and weight.tolist() == [1, 0, 0] and momentum.tolist() == [1, 0, 0]
    assert [c.tolist() for c in counts] == [[1], [1]]


def test_signed_drop_scores_across_the_list(lane):
    masks, _, _, counts = call(lane, [bools(1, 1), bools(1, 0, 0)], [torch.ones(2), torch.ones(3)], [torch.zeros(2), torch.tensor([9.0, -3, 1])],
                               [2], [1], drop_scores=[torch.tensor([-5.0, 4.0]), torch.tensor([-1.0, -9.0, -9.0])], global_=True)
    assert [m.tolist() for m in masks] == [[False, True], [False, True, False]] and [c.tolist() for c in counts] == [[2], [1]]


def test_more_than_there_is_and_less_than_nothing(lane):
    weights = [torch.ones(3), torch.ones(3), torch.ones(0), torch.tensor(1.0)]
    masks, _, _, counts = call(lane, [bools(1, 0, 0), bools(1, 0, 0), bools(), torch.tensor(True)], weights, weights, [9, -1, 1, 1], [9, -1, 1, 1])
    assert [m.tolist() for m in masks] == [[False, True, True], [True, False, False], [], False]
    assert [c.tolist() for c in counts] == [[1, 0, 0, 1], [2, 0, 0, 0]]
    nothing = torch.zeros(0, dtype=torch.int64)
    assert [c.tolist() for c in call(lane, [], [], [], nothing, nothing)[3]] == [[], []]


# ---- agreement ----

EVERYTHING = {"scores": True, "global_": True, "regrow_dropped": True, "on_drop": "zero", "on_grow": "zero"}


@pytest.mark.parametrize("options", [{}, {"global_": True}, {"regrow_dropped": True, "on_grow": "zero"}, {"on_drop": "zero"}, EVERYTHING], ids=str)
@pytest.mark.parametrize("form", ["bool", "bits", "channels_last"])
def test_agrees_with_the_reference(lane, options, form):
    options, shapes = dict(options), [(4, 3, 5, 7), (33,), (9001,), (0,), (57, 41)]
    weights = [torch.randn(s).to(t) for s, t in zip(shapes, (torch.float32, torch.bfloat16, torch.float32, torch.float16, torch.bfloat16))]
    masks, grow, momentum = random_masks(weights, 0.2), [torch.randn(s).bfloat16() for s in shapes], [torch.randn(s) for s in shapes]
    if options.pop("scores", False):
        options["drop_scores"] = [torch.randint(-9, 9, s).float() for s in shapes]
    if form == "bits":
        masks = [ops.pack_mask(m) for m in masks]
    if form == "channels_last":
        weights[0], masks[0], momentum[0] = (x.to(memory_format=torch.channels_last) for x in (weights[0], masks[0], momentum[0]))
    k = torch.tensor([3000] if options.get("global_") else [20, 3, 900, 4, 700])
    got = [call(lane, masks, weights, grow, k, k, momentum_buffers=momentum, **options) for _ in range(2)]
    assert same(got[0], reference(masks, weights, grow, k, k, momentum_buffers=momentum, **options)) and same(*got)


def test_every_tie_and_no_tie(lane):
    n = 9000
    for values, k_drop, k_grow in ((torch.full((n,), 2.0), 1000, 1000), (torch.randint(0, 3, (n,)).float(), n, 0), (torch.randn(n), 0, n),
                                   (torch.full((n,), 2.0), 9, 4999)):
        for regrow in (False, True):
            arguments = [torch.rand(n) < 0.5], [values], [values.flip(0)], [k_drop], [k_grow]
            assert same(call(lane, *arguments, regrow_dropped=regrow), reference(*arguments, regrow_dropped=regrow))


# ---- misuse ----

@pytest.mark.parametrize("change, error, words", [
    ({"masks": []}, ValueError, r"masks: expected a list of 1 tensors like the first list, got 0"),
    ({"masks": [torch.empty(0, dtype=torch.bool)]}, ValueError, r"masks\[0\]: expected a mask to write, got an empty tensor"),
    ({"masks": [torch.ones(3, dtype=torch.bool)]}, ValueError, r"masks\[0\]: expected .*shape \[4\], got \[3\]"),
    ({"masks": [torch.ones(4)]}, TypeError, r"masks\[0\]: expected a bool mask"),
    ({"weights": [torch.ones(4).double()]}, TypeError, r"weights\[0\]: expected float32, bfloat16 or float16 on a CUDA device, got Double"),
    ({"grow": [torch.ones(3)]}, ValueError, r"grow_scores\[0\]: expected shape \[4\], got \[3\]"),
    ({"grow": [torch.ones(4, dtype=torch.int32)]}, TypeError, r"grow_scores\[0\]: expected float32"),
    ({"k_drop": [1, 1]}, ValueError, r"k_drop: expected 1 numbers, one per list entry, got 2"),
    ({"k_drop": torch.tensor(1), "k_grow": torch.tensor([1.0])}, TypeError, r"k_grow: expected int64"),
    ({"on_drop": "clear"}, ValueError, r'on_drop: expected "keep" or "zero", got'),
    ({"momentum_buffers": []}, ValueError, r"momentum_buffers: expected a list of 1 tensors like the first list, got 0"),
    ({"drop_scores": [torch.ones(5)]}, ValueError, r"drop_scores\[0\]: expected shape \[4\], got \[5\]"),
])
def test_misuse(lane, change, error, words):
    arguments = {"masks": [torch.ones(4, dtype=torch.bool)], "weights": [torch.ones(4)], "grow": [torch.ones(4)], "k_drop": [1], "k_grow": [1]}
    with pytest.raises(error, match=words):
        call(lane, **arguments | change)


def test_a_weight_that_is_not_dense_raises(lane):
    op, (mask, weight, grow) = lane.op("prune_regrow_.int_k"), lane.put([torch.ones(4, dtype=torch.bool), torch.ones(8), torch.ones(4)])
    with pytest.raises(ValueError, match=r"weights\[0\]: expected a dense tensor"):
        op([mask], [weight[::2]], [grow], [1], [1])

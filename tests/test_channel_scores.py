"""channel_scores and bn_taylor: sums of magnitudes under one or two masks, and the signed cost of batch-norm channels."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern._native import native
from sparsekern.ops import bn_taylor, channel_scores
from sparsekern.testing import assert_close, double, each_implementation, random_masks, threads

EACH = pytest.mark.parametrize("name", each_implementation("channel_scores"))
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NONE = torch.empty(0, dtype=torch.bool)
# Rows shorter and longer than 16, 64 and 4096 elements; no rows, no elements, one of each.
SHAPES = [(1,), (9,), (0,), (0, 3), (4, 0), (5, 1), (3, 63), (7, 64), (33, 65), (6, 3, 3, 3), (2, 4095), (2, 4097), (64, 27), (1, 33000)]


def call(name, *args, **kwargs):
    return ops.implementations("channel_scores")[name](*args, **kwargs)


def in_form(form, masks):
    return {"bool": lambda m: m, "bits": ops.pack_mask, "none": lambda m: NONE}[form](masks)


def assert_agrees(got, want, reduction=4096):
    assert len(got) == len(want)
    for one, other in zip(got, want):
        assert one.dtype == (torch.float64 if one.dtype == torch.float64 else torch.float32)
        assert_close(one, other, reduction=reduction)


# ---- worked examples ----

@EACH
def test_by_hand(name):
    weight = torch.tensor([[1.0, -2.0, 4.0], [-8.0, 16.0, 32.0]])
    a, b = torch.tensor([[True, True, False], [False, False, True]]), torch.tensor([[False, True, True], [False, False, False]])
    assert [s.tolist() for s in call(name, [weight], [a])] == [[3.0, 32.0]]
    assert [s.tolist() for s in call(name, [weight], [a], [b], beta=0.75)] == [[0.75 * 3 + 0.25 * 6, 24.0]]
    assert [s.tolist() for s in call(name, [weight], [NONE], beta=0.5)] == [[3.5, 28.0]]
    assert [s.tolist() for s in call(name, [weight[:, 0]], [a[:, 0]])] == [[1.0, 0.0]]


@EACH
def test_hidden_values_never_show_and_kept_ones_propagate(name):
    weight = torch.tensor([[math.nan, 1.0], [math.inf, 2.0], [math.nan, 3.0], [math.inf, 4.0]])
    a = torch.tensor([[False, True], [False, True], [True, False], [False, True]])
    b = torch.tensor([[False, False], [False, True], [False, False], [True, False]])
    (got,) = call(name, [weight], [a], [b], beta=0.5)
    assert got[:2].tolist() == [0.5, 2.0] and got[2].isnan() and got[3] == math.inf
    assert call(name, [weight], [a])[0].nan_to_num(-1).tolist() == [1.0, 2.0, -1.0, 4.0]


def test_bn_taylor_by_hand():
    gamma, beta = [torch.tensor([2.0, -1.0])], [torch.tensor([0.5, 3.0])]
    grad_gamma, grad_beta = [torch.tensor([3.0, 1.0])], [torch.tensor([-4.0, 2.0])]
    assert [t.tolist() for t in bn_taylor(gamma, grad_gamma, beta, grad_beta)] == [[4.0, 5.0]]
    with pytest.raises(ValueError, match=r"bn_taylor: grad_beta\[0\]: expected \[channels\] like gamma\[0\]"):
        bn_taylor(gamma, grad_gamma, beta, [torch.zeros(3)])
    with pytest.raises(ValueError, match="bn_taylor: beta: expected a list of 1 tensors"):
        bn_taylor(gamma, grad_gamma, [], grad_beta)


# ---- agreement ----

@pytest.mark.parametrize("form, two", [("bool", None), ("bits", None), ("none", None), ("bool", "bool"), ("bits", "bits"),
                                       ("bool", "bits"), ("bits", "none")])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@EACH
def test_agrees(name, dtype, form, two):
    weights = [torch.randn(s).to(dtype) for s in SHAPES]
    a, b = random_masks(weights, 0.3), random_masks(weights, 0.2)
    for weight, one, other in zip(weights, a, b):
        weight[~(one | other)] = weight[~(one | other)] if "none" in (form, two) else math.nan
    lists = [[in_form(form, m) for m in a]] + ([[in_form(two, m) for m in b]] if two else [])
    if two is None and form != "none":
        for weight, one in zip(weights, a):
            weight[~one] = math.inf
    got = call(name, weights, *lists, beta=0.75)
    assert all(g.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) for g in got)
    assert_agrees(got, call("reference", double(weights), *lists, beta=0.75))


@EACH
def test_any_layout(name):
    weight, mask = torch.randn(6, 5, 3, 4), torch.rand(6, 5, 3, 4) < 0.5
    want = call("reference", [weight.double()], [mask], [~mask], beta=0.25)
    last = torch.channels_last
    for w in (weight, weight.to(memory_format=last), torch.empty_strided((6, 5, 3, 4), (1, 6, 30, 90)).copy_(weight),
              torch.stack([weight, weight], -1)[..., 0]):
        for m in (mask, mask.to(memory_format=last)):
            assert_agrees(call(name, [w], [m], [~m], beta=0.25), want)
    flat = torch.cat([torch.zeros(3), weight.flatten()])
    assert_agrees(call(name, [flat[3:].view(6, 60)], [mask.view(6, 60)], [~mask.view(6, 60)], beta=0.25), want)


def test_same_bits_for_every_instruction_set_and_thread_count(isa):
    draw = torch.Generator().manual_seed(3)
    weights = [torch.randn(s, generator=draw) for s in [*SHAPES, (200, 2000), (3, 100001)]]
    a, b = random_masks(weights, 0.3, draw), [ops.pack_mask(m) for m in random_masks(weights, 0.6, draw)]
    want = call("cpu", weights, a, b, beta=0.3)
    native.set_isa("scalar")
    for runs in (call("cpu", weights, a, b, beta=0.3), *(on_threads(count, weights, a, b, isa) for count in (1, 2, 3))):
        assert all(torch.equal(one, other) for one, other in zip(runs, want))


def on_threads(count, weights, a, b, isa):
    native.set_isa(isa)
    with threads(count):
        return call("cpu", weights, a, b, beta=0.3)


# ---- the front door ----

def test_none_means_all():
    weights = [torch.randn(3, 4), torch.randn(5)]
    mask = torch.rand(3, 4) < 0.5
    assert_agrees(channel_scores(weights, [mask, None], [None, None], beta=0.5),
                  call("reference", double(weights), [mask, NONE], [NONE, NONE], beta=0.5))
    assert channel_scores([], []) == []


def test_opcheck():
    weights = [torch.randn(3, 4), torch.randn(5, 2).bfloat16()]
    masks = random_masks(weights, 0.5)
    torch.library.opcheck(torch.ops.sparsekern.channel_scores.default, (weights, masks))
    torch.library.opcheck(torch.ops.sparsekern.channel_scores.default, (weights, masks, masks), {"beta": 0.5})


@pytest.mark.parametrize("weight, mask, second, error, words", [
    (torch.zeros(3, 4), torch.ones(4, dtype=torch.bool), None, ValueError, r"masks_a\[0\]: expected a bool mask of shape \[3, 4\], got \[4\]"),
    (torch.zeros(3, 4), NONE, torch.zeros(3, dtype=torch.int32), ValueError, r"masks_b\[0\]: expected 1 contiguous int32 words"),
    (torch.zeros(4, 3).t(), torch.zeros(1, dtype=torch.int32), None, ValueError, "packed mask goes with a row-major tensor"),
    (torch.zeros(()), NONE, None, ValueError, r"weights\[0\]: expected \[channels, ...\], got a scalar"),
    (torch.zeros(3, 4), torch.zeros(3, 4), None, TypeError, r"masks_a\[0\]: expected a bool mask, packed int32 words or an empty tensor"),
    (torch.zeros(3, dtype=torch.int32), NONE, None, TypeError, "weights: expected float32, bfloat16, float16 or float64"),
], ids=str)
@EACH
def test_misuse(name, weight, mask, second, error, words):
    with pytest.raises(error, match=words):
        call(name, [weight], [mask], None if second is None else [second])


@EACH
def test_misuse_of_lists(name):
    with pytest.raises(ValueError, match="channel_scores: masks_a: expected a list of 1 tensors"):
        call(name, [torch.zeros(3)], [])
    with pytest.raises(ValueError, match="channel_scores: masks_b: expected a list of 1 tensors"):
        call(name, [torch.zeros(3)], [NONE], [NONE, NONE])

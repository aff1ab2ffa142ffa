"""prune_regrow_: the weakest active weights go, the strongest inactive ones come, and the number of nonzeros stays."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import native
from sparsekern.testing import each_implementation, random_masks, threads

NAN = math.nan
EACH = pytest.mark.parametrize("name", each_implementation("prune_regrow_"))


def call(name, masks, weights, grow, k_drop, k_grow, **kwargs):
    op = "prune_regrow_" if isinstance(k_drop, torch.Tensor) else "prune_regrow_.int_k"
    return ops.implementations(op)[name](masks, weights, grow, k_drop, k_grow, **kwargs)


def bools(*on):
    return torch.tensor(on, dtype=torch.bool)


# ---- worked examples ----

@EACH
@pytest.mark.parametrize("packed", [False, True])
def test_one_goes_one_comes(name, packed):
    # |1| is the least active weight; |-5| the largest gradient among the hidden ones. Both lose their momentum.
    mask, weight, momentum = bools(1, 1, 1, 0, 0, 0), torch.tensor([3.0, -1, 2, 9, 9, 9]), torch.ones(6)
    mask = ops.pack_mask(mask) if packed else mask
    dropped, grown = call(name, [mask], [weight], [torch.tensor([9.0, 9, 9, 1, -5, 2])], [1], [1], on_grow="zero",
                          momentum_buffers=[momentum])
    assert (ops.unpack_mask(mask, (6,)) if packed else mask).tolist() == [True, False, True, False, True, False]
    assert weight.tolist() == [3, -1, 2, 9, 0, 9] and momentum.tolist() == [1, 0, 1, 1, 0, 1]
    assert dropped.tolist() == [1] and grown.tolist() == [1]


@EACH
def test_ties_keep_the_lower_index_and_nan_goes_first(name):
    mask, weight = bools(1, 1, 1, 1), torch.tensor([2.0, NAN, 2.0, 2.0])
    assert [x.tolist() for x in call(name, [mask], [weight], [torch.ones(4)], [2], [5])] == [[2], [0]]
    assert mask.tolist() == [True, False, True, False]


@EACH
def test_regrown_weights_count_as_neither(name):
    # Element 0 is dropped and comes back; element 1 is dropped for good; element 2 is new.
    mask, weight, momentum = bools(1, 1, 0), torch.tensor([1.0, 2.0, 7.0]), torch.ones(3)
    counts = call(name, [mask], [weight], [torch.tensor([9.0, 1.0, 5.0])], torch.tensor([2]), torch.tensor([2]), regrow_dropped=True,
                  on_drop="zero", on_grow="zero", momentum_buffers=[momentum])
    assert mask.tolist() == [True, False, True] and weight.tolist() == [1, 0, 0] and momentum.tolist() == [1, 0, 0]
    assert [x.tolist() for x in counts] == [[1], [1]]


@EACH
def test_signed_drop_scores_across_the_list(name):
    masks, weights = [bools(1, 1), bools(1, 0, 0)], [torch.ones(2), torch.ones(3)]
    counts = call(name, masks, weights, [torch.zeros(2), torch.tensor([9.0, -3.0, 1.0])], [2], [1], drop_scores=[torch.tensor([-5.0, 4.0]),
                  torch.tensor([-1.0, -9.0, -9.0])], global_=True)
    assert [m.tolist() for m in masks] == [[False, True], [False, True, False]] and [x.tolist() for x in counts] == [[2], [1]]


@EACH
def test_more_than_there_is_and_less_than_nothing(name):
    masks = [bools(1, 0, 0), bools(1, 0, 0), bools(), torch.tensor(True)]
    weights = [torch.ones(3), torch.ones(3), torch.ones(0), torch.tensor(1.0)]
    counts = call(name, masks, weights, [torch.ones_like(w) for w in weights], [9, -1, 1, 1], [9, -1, 1, 1])
    assert [m.tolist() for m in masks] == [[False, True, True], [True, False, False], [], False]
    assert [x.tolist() for x in counts] == [[1, 0, 0, 1], [2, 0, 0, 0]]
    assert [x.tolist() for x in call(name, [], [], [], [], [])] == [[], []]


# ---- agreement ----

EVERYTHING = {"scores": True, "global_": True, "regrow_dropped": True, "on_drop": "zero", "on_grow": "zero"}


@pytest.mark.parametrize("options", [{}, {"global_": True}, {"regrow_dropped": True, "on_grow": "zero"}, {"on_drop": "zero"}, EVERYTHING],
                         ids=str)
@pytest.mark.parametrize("form", ["bool", "bits", "channels_last"])
def test_agrees_with_the_reference(isa, options, form):
    options = dict(options)
    shapes = [(4, 3, 5, 7), (33,), (70_001,), (0,), (257, 131)]
    weights = [torch.randn(s).to(t) for s, t in zip(shapes, (torch.float32, torch.bfloat16, torch.float32, torch.float16, torch.float64))]
    masks, grow, momentum = random_masks(weights, 0.2), [torch.randn(s).bfloat16() for s in shapes], [torch.randn(s) for s in shapes]
    if options.pop("scores", False):
        options["drop_scores"] = [torch.randint(-9, 9, s).float() for s in shapes]
    if form == "bits":
        masks = [ops.pack_mask(m) for m in masks]
    if form == "channels_last":
        weights[0], masks[0], momentum[0] = (x.to(memory_format=torch.channels_last) for x in (weights[0], masks[0], momentum[0]))
    k = torch.tensor([9000] if options.get("global_") else [20, 3, 5000, 4, 2000])
    results = []
    for name in ("cpu", "reference"):
        state = [[x.clone() for x in items] for items in (masks, weights, momentum)]
        counts = call(name, state[0], state[1], grow, k, k, momentum_buffers=state[2], **options)
        results.append([*state[0], *state[1], *state[2], *counts])
    assert all(torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(*results))


def test_same_bits_for_every_isa_and_thread_count():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    weight, grow = torch.randint(-50, 50, (100_003,)).float(), torch.randint(-50, 50, (100_003,)).float()
    mask, seen = torch.rand(100_003) < 0.3, []
    for isa in ("scalar", "avx2", "avx512"):
        try:
            native.set_isa(isa)
        except ValueError:
            continue
        for count in (1, 2):
            mine, value = mask.clone(), weight.clone()
            with threads(count):
                counts = ops.prune_regrow_([mine], [value], [grow], 9001, 9001, on_grow="zero")
            seen.append([mine, value, *counts])
    native.set_isa("auto")
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other))


# ---- properties ----

@given(st.integers(0, 400), st.floats(0, 1), st.integers(-1, 450), st.booleans(), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_matches_a_plain_sort_and_conserves_nonzeros(n, density, k, packed, regrow, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, generator=generator) < density
    weight, grow = (torch.randint(-20, 20, (n,), generator=generator).float() for _ in range(2))
    mine, value, momentum = (ops.pack_mask(mask) if packed else mask.clone()), weight.clone(), torch.ones(n)
    dropped, grown = ops.prune_regrow_([mine], [value], [grow], k, k, regrow_dropped=regrow, on_drop="zero", momentum_buffers=[momentum])
    after = ops.unpack_mask(mine, mask.shape) if packed else mine
    active = [i for i in range(n) if mask[i]]
    kept = set(sorted(active, key=lambda i: (-abs(weight[i].item()), i))[:len(active) - max(0, min(k, len(active)))])
    candidates = [i for i in range(n) if i not in (kept if regrow else set(active))]
    new = kept | set(sorted(candidates, key=lambda i: (-abs(grow[i].item()), i))[:max(k, 0)])
    assert after.tolist() == [i in new for i in range(n)]
    assert dropped.item() == (mask & ~after).sum() and grown.item() == (after & ~mask).sum()
    if 0 <= k <= min(len(active), len(candidates)):
        assert after.sum() == mask.sum()
    assert torch.equal(value, torch.where(mask & ~after, 0, weight)) and torch.equal(momentum == 0, mask ^ after)


# ---- citizenship ----

def test_opcheck():
    weights = [torch.randn(5, 3), torch.randn(40)]
    lists = random_masks(weights, 0.5), weights, [torch.randn_like(w) for w in weights]
    options = {"momentum_buffers": [torch.randn_like(w) for w in weights], "on_drop": "zero"}
    torch.library.opcheck(torch.ops.sparsekern.prune_regrow_.int_k, (*lists, [2, 3], [2, 3]), options)
    torch.library.opcheck(torch.ops.sparsekern.prune_regrow_.default, (*lists, torch.tensor(2), torch.tensor([1, 4])),
                          {"regrow_dropped": True})


def test_compiles_whole():
    def step(mask, weight, grad):
        counts = ops.prune_regrow_([mask], [weight], [grad], 3, 3, on_grow="zero")
        return weight * 2, *counts

    def fresh():
        torch.manual_seed(3)
        return torch.rand(33) < 0.5, torch.randn(33), torch.randn(33)

    ours, theirs = fresh(), fresh()
    assert all(torch.equal(a, b) for a, b in zip(torch.compile(step, fullgraph=True)(*ours), step(*theirs)))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


# ---- misuse ----

@pytest.mark.parametrize("change, error, words", [
    ({"masks": torch.ones(4)}, TypeError, r"prune_regrow_: masks: expected a list of tensors, got one tensor; write \[masks\]"),
    ({"masks": []}, ValueError, r"masks: expected a list of 1 tensors like the first list, got 0"),
    ({"masks": [torch.empty(0, dtype=torch.bool)]}, ValueError, r"masks\[0\]: expected a mask to write, got an empty tensor"),
    ({"masks": [torch.ones(3, dtype=torch.bool)]}, ValueError, r"masks\[0\]: expected .*shape \[4\], got \[3\]"),
    ({"masks": [torch.ones(4)]}, TypeError, r"masks\[0\]: expected a bool mask"),
    ({"grow_scores": [torch.ones(3)]}, ValueError, r"grow_scores\[0\]: expected shape \[4\], got \[3\]"),
    ({"grow_scores": [torch.ones(4, dtype=torch.int32)]}, TypeError, r"grow_scores\[0\]: expected float32"),
    ({"k_drop": [1, 1]}, ValueError, r"k_drop: expected 1 numbers, one per list entry, got 2"),
    ({"k_grow": torch.tensor([1.0])}, TypeError, r"k_grow: expected int64"),
    ({"on_drop": "clear"}, ValueError, r'on_drop: expected "keep" or "zero", got'),
    ({"momentum_buffers": []}, ValueError, r"momentum_buffers: expected a list of 1 tensors like the first list, got 0"),
    ({"drop_scores": [torch.ones(5)]}, ValueError, r"drop_scores\[0\]: expected shape \[4\], got \[5\]"),
])
def test_misuse(change, error, words):
    arguments = {"masks": [torch.ones(4, dtype=torch.bool)], "weights": [torch.ones(4)], "grow_scores": [torch.ones(4)],
                 "k_drop": 1, "k_grow": 1}
    with pytest.raises(error, match=words):
        ops.prune_regrow_(**arguments | change)


def test_a_weight_that_is_not_dense_raises():
    with pytest.raises(ValueError, match=r"weights\[0\]: expected a dense tensor"):
        ops.prune_regrow_([torch.ones(4, dtype=torch.bool)], [torch.ones(8)[::2]], [torch.ones(4)], 1, 1)

"""topk_mask and select_threshold: exactly k, ties to the lowest index, NaN last, the same on every device and thread count."""
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import native
from sparsekern.testing import awkward_shapes, each_implementation, threads

NAN, INF = math.nan, math.inf
EACH = pytest.mark.parametrize("name", each_implementation("topk_mask"))
TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NONE = torch.empty(0, dtype=torch.bool)


def call(name, scores, k, **kwargs):
    return ops.implementations("topk_mask" if isinstance(k, torch.Tensor) else "topk_mask.int_k")[name](scores, k, **kwargs)


def oracle(values, eligible, k, largest, use_abs):
    """Flat positions in the order of selection, by a sort of Python tuples in double precision: slow and plain."""
    ranked = []
    for i, (x, able) in enumerate(zip(values, eligible)):
        x = abs(x) if use_abs else x
        if able:
            ranked.append((True, 0.0, i) if math.isnan(x) else (False, -x if largest else x, i))
    ranked.sort()
    taken = [i for _, _, i in ranked[:max(k, 0)]]
    last = (abs(values[taken[-1]]) if use_abs else values[taken[-1]]) if taken else NAN
    return taken, last


def distribution(kind, n, dtype=torch.float32):
    x = torch.randn(n, dtype=torch.float64)
    x = {"normal": x, "all equal": torch.full_like(x, -1.5), "two values": torch.where(x > 0.5, 2.0, 1.0).double(),
         "sorted": x.sort().values, "reversed": x.sort(descending=True).values, "narrow": 1 + 3e-5 * torch.rand(n, dtype=torch.float64),
         "1% NaN": torch.where(torch.rand(n) < 0.01, NAN, x), "all NaN": torch.full_like(x, NAN),
         "zeros of both signs": torch.where(x > 0, 0.0, -0.0).double(),
         "mostly zero": torch.where(x > 1, x, 0.0), "infinities": torch.where(x.abs() > 1, x * INF, x), "tiny": x * 1e-42,
         "few integers": (2 * x).round()}[kind]
    return x.to(dtype)


KINDS = ["normal", "all equal", "two values", "sorted", "reversed", "narrow", "1% NaN", "all NaN", "zeros of both signs", "mostly zero",
         "infinities", "tiny", "few integers"]


def same(a, b):
    thresholds = torch.equal(a[1].nan_to_num(7e7), b[1].nan_to_num(7e7))
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0])) and thresholds and torch.equal(a[2], b[2])


# ---- worked examples ----

@EACH
def test_magnitudes_per_tensor(name):
    masks, thresholds, counts = call(name, [torch.tensor([1.0, -5.0, 3.0, -2.0]), torch.tensor([[0.5], [0.25]])], [2, 1])
    assert [m.tolist() for m in masks] == [[False, True, True, False], [[True], [False]]]
    assert thresholds.tolist() == [3.0, 0.5] and counts.tolist() == [2, 1]


@EACH
def test_global_ties_go_to_the_earlier_tensor(name):
    # 3 is certain; of the four 2s the first two in list order follow.
    masks, thresholds, counts = call(name, [torch.tensor([1.0, 2.0]), torch.tensor([-2.0, 2.0, 3.0, 2.0])], [3], global_=True)
    assert [m.tolist() for m in masks] == [[False, True], [True, False, True, False]]
    assert thresholds.tolist() == [2.0] and counts.tolist() == [3]


@EACH
@pytest.mark.parametrize("largest", [True, False])
def test_nan_comes_last_either_way_and_zeros_are_equal(name, largest):
    x = torch.tensor([NAN, -0.0, 0.0, NAN])
    masks, thresholds, _ = call(name, [x, x, x], torch.tensor([1, 2, 3]), largest=largest, use_abs=False)
    assert [m.nonzero().flatten().tolist() for m in masks] == [[1], [1, 2], [0, 1, 2]]
    assert thresholds[:2].tolist() == [0.0, 0.0] and thresholds[2].isnan() and math.copysign(1, thresholds[0]) == 1


@EACH
def test_signed_smallest_with_infinities_packed(name):
    x = torch.tensor([INF, -1.0, -INF, 5.0, -2.0] + [0.0] * 30)
    masks, thresholds, _ = call(name, [x, x], [2, 35], largest=False, use_abs=False, packed=True)
    assert masks[0].tolist() == [0b10100, 0] and masks[1].tolist() == [-1, 0b111] and thresholds.tolist() == [-2.0, INF]


@EACH
def test_only_eligible_elements_count(name):
    x = torch.tensor([9.0, 8.0, 7.0, 6.0])
    able = torch.tensor([False, True, False, True])
    for mask in (able, ops.pack_mask(able)):
        masks, thresholds, counts = call(name, [x, x], [9, 1], eligible=[mask, NONE])
        assert masks[0].tolist() == able.tolist() and masks[1].tolist() == [True, False, False, False]
        assert thresholds.tolist() == [6.0, 9.0] and counts.tolist() == [2, 1]


@EACH
def test_nothing_to_take(name):
    masks, thresholds, counts = call(name, [torch.ones(3), torch.ones(0), torch.tensor(2.0), torch.tensor(2.0)], [-4, 5, 1, 0])
    assert [m.tolist() for m in masks] == [[False] * 3, [], True, False]
    assert thresholds.isnan().tolist() == [True, True, False, True] and counts.tolist() == [0, 0, 1, 0]
    assert call(name, [], [])[1].shape == (0,) and call(name, [], [4], global_=True)[2].tolist() == [0]


# ---- agreement ----

@pytest.fixture
def each_isa():
    """Names of the instruction sets of this CPU; sets the best one again afterwards."""
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    names = ["scalar", "avx2", "avx512"]
    yield names[:names.index(native.set_isa("auto")) + 1]
    native.set_isa("auto")


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_reference(each_isa, kind, dtype):
    for n in (1000, 40_001):
        x = distribution(kind, n, dtype)
        able = torch.rand(n) < 0.3
        for k, options in ((n // 10, {}), (n // 2, {"largest": False}), (n // 100, {"use_abs": False, "packed": True}),
                           (n // 7, {"use_abs": False, "largest": False, "eligible": [able]}),
                           (n // 5, {"eligible": [ops.pack_mask(able)]}),
                           (n - 1, {}), (n, {})):
            want = call("reference", [x], [k], **options)
            for isa in each_isa:
                native.set_isa(isa)
                assert same(call("cpu", [x], [k], **options), want), (n, k, options, isa)


@pytest.mark.parametrize("options", [{}, {"largest": False}, {"use_abs": False}, {"global_": True}, {"packed": True},
                                     {"global_": True, "packed": True}], ids=str)
def test_awkward_shapes_and_mixed_types(isa, options):
    scores = [torch.randn(s).to(TYPES[i % 4]) for i, s in enumerate(awkward_shapes)]
    able = [NONE if i % 3 == 0 else torch.rand(x.shape) < 0.5 for i, x in enumerate(scores)]
    able = [ops.pack_mask(m) if i % 3 == 1 and m.numel() else m for i, m in enumerate(able)]
    for share in (0, 0.1, 0.5, 1):
        sizes = [x.numel() for x in scores]
        k = torch.tensor([int(share * n) for n in ([sum(sizes)] if options.get("global_") else sizes)])
        for eligible in (None, able):
            got, want = (call(name, scores, k, eligible=eligible, **options) for name in ("cpu", "reference"))
            assert same(got, want) and got[1].dtype == want[1].dtype == torch.float64


def test_order_is_logical_whatever_the_strides(isa):
    x = torch.randint(0, 3, (4, 6, 5, 7)).float()
    able = torch.rand(x.shape) < 0.6
    want = ops.topk_mask([x], 200, eligible=[able])
    for layout in (x.to(memory_format=torch.channels_last), x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)):
        for mask in (able, able.to(memory_format=torch.channels_last), ops.pack_mask(able)):
            assert same(ops.topk_mask([layout], 200, eligible=[mask]), want)
    assert same(ops.topk_mask([x[:, ::2]], 99), ops.topk_mask([x[:, ::2].contiguous()], 99))
    assert same(ops.topk_mask([x[0, 0, 0, 0].expand(50)], 7), ops.topk_mask([x[0, 0, 0, 0].repeat(50)], 7))


@pytest.mark.parametrize("kind", ["normal", "all equal", "two values", "1% NaN"])
def test_same_bits_for_every_isa_and_thread_count(each_isa, kind):
    scores, seen = [distribution(kind, n) for n in (200_001, 40_000, 777)], []
    for isa in each_isa:
        native.set_isa(isa)
        for count in (1, 2):
            with threads(count):
                seen += [ops.topk_mask(scores, 30_000, global_=True)]
    assert all(same(seen[0], other) for other in seen[1:])


def test_against_torch_topk():
    x = torch.randn(50_000)
    mask, threshold, _ = ops.topk_mask([x], 5000)
    values, positions = torch.topk(x.abs(), 5000)
    assert torch.equal(mask[0], torch.zeros(50_000, dtype=torch.bool).scatter(0, positions, True)) and threshold[0] == values[-1]


def test_thresholds_without_masks_and_a_hint():
    scores = [distribution(kind, 40_000) for kind in KINDS]
    for options in ({}, {"largest": False, "use_abs": False}, {"global_": True}):
        _, thresholds, counts = ops.topk_mask(scores, 4000, **options)
        for hint in (None, thresholds):
            got = ops.select_threshold(scores, 4000, hint=hint, **options)
            assert torch.equal(got[0].nan_to_num(7e7), thresholds.nan_to_num(7e7)) and torch.equal(got[1], counts)


def sampled(n, attempt):
    """The positions that csrc/cpu/select_types.h draws: what a misleading input must occupy."""
    m = int(math.cbrt(n) ** 2 * 0.5) + 32
    edges = (np.arange(m + 1) * (n / m)).astype(np.int64)
    width = (np.minimum(edges[1:], n) - edges[:-1]).clip(1).astype(np.uint64)
    with np.errstate(over="ignore"):
        hashed = (np.arange(m, dtype=np.uint64) + np.uint64((attempt + 1) * 0x9E3779B97F4A7C15 % 2**64)) * np.uint64(0xD6E8FEB86659FD93)
        hashed = (hashed ^ (hashed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return edges[:-1] + (((hashed >> np.uint64(32)) * width) >> np.uint64(32)).astype(np.int64)


@pytest.mark.parametrize("attempts", [1, 2, 3, 9])
@pytest.mark.parametrize("n", [20_000, 100_000])
def test_a_misleading_sample_costs_time_not_exactness(each_isa, n, attempts):
    # Everything that is sampled is small: the bracket lies below the threshold, again and again.
    x = 10 + torch.rand(n)
    for attempt in range(attempts):
        x[torch.from_numpy(sampled(n, attempt))] = torch.rand(len(sampled(n, attempt)))
    for k in (n // 10, n // 3):
        want = call("reference", [x], [k])
        for isa in each_isa:
            native.set_isa(isa)
            assert same(call("cpu", [x], [k]), want)


# ---- properties ----

values = st.lists(st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, NAN, INF, -INF, 1e-45]), st.floats(width=32)), max_size=80)


@given(st.lists(values, min_size=1, max_size=3), st.lists(st.integers(-2, 260), min_size=3, max_size=3), st.booleans(), st.booleans(),
       st.booleans(), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_matches_a_plain_sort(lists, ks, largest, use_abs, global_, packed, random):
    scores = [torch.tensor(x, dtype=torch.float32) for x in lists]
    able = [[random.random() < 0.7 for _ in x] for x in lists]
    k = ks[:1] if global_ else ks[:len(lists)]
    masks, thresholds, counts = ops.topk_mask(scores, k, largest=largest, use_abs=use_abs, global_=global_, packed=packed,
                                              eligible=[torch.tensor(a, dtype=torch.bool) for a in able])
    if packed:
        masks = [ops.unpack_mask(m, x.shape) for m, x in zip(masks, scores)]
    groups = [range(len(lists))] if global_ else [[i] for i in range(len(lists))]
    for s, group in enumerate(groups):
        flat = [v for i in group for v in scores[i].tolist()]
        taken, last = oracle(flat, [a for i in group for a in able[i]], k[s], largest, use_abs)
        assert [b for i in group for b in masks[i].tolist()] == [i in set(taken) for i in range(len(flat))]
        assert counts[s] == len(taken) and (thresholds[s].item() == last or math.isnan(last) and thresholds[s].isnan())


@given(st.integers(0, 3000), st.floats(0, 1), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_permuting_distinct_scores_permutes_the_mask(n, share, largest, seed):
    generator = torch.Generator().manual_seed(seed)
    x, order = torch.randperm(n, generator=generator) - n / 2.0 + 0.25, torch.randperm(n, generator=generator)
    (mask,), _, (count,) = ops.topk_mask([x], int(share * n), largest=largest)
    assert torch.equal(ops.topk_mask([x[order]], int(share * n), largest=largest)[0][0], mask[order])
    assert mask.sum() == count == int(share * n)


@pytest.mark.slow
def test_more_than_2_31_elements():
    memory = Path("/proc/meminfo")
    free = [int(x.split()[1]) for x in memory.read_text().splitlines() if x.startswith("MemAvailable")] if memory.exists() else [0]
    if not native.available or free[0] < 12 * 2**20:
        pytest.skip("needs compiled kernels and 12 GiB of free memory")
    x = torch.zeros(2**31 + 77, dtype=torch.bfloat16)
    for at, value in ((5, -3.0), (2**31 - 1, 2.0), (2**31 + 70, 4.0)):
        x[at] = value
    for k, last in ((2, 3.0), (5, 0.0)):
        (bits,), thresholds, counts = ops.topk_mask([x], k, packed=True)
        words = bits.nonzero().flatten().tolist()
        assert {w: bits[w].item() & 0xFFFFFFFF for w in words} == \
            ({0: 1 << 5, 2**26 + 2: 1 << 6} if k == 2 else {0: 0b100011, 2**26 - 1: 1 << 31, 2**26 + 2: 1 << 6})
        assert thresholds.item() == last and counts.item() == k


# ---- citizenship ----

def test_opcheck():
    scores = [torch.randn(5, 3), torch.randn(40)]
    for k, op in ((torch.tensor([2, 3]), "default"), ([2, 3], "int_k")):
        options = {"eligible": [torch.rand(5, 3) < 0.5, NONE], "packed": True}
        torch.library.opcheck(getattr(torch.ops.sparsekern.topk_mask, op), (scores, k), options)
        torch.library.opcheck(getattr(torch.ops.sparsekern.select_threshold, op), (scores, k), {"largest": False})
    torch.library.opcheck(torch.ops.sparsekern.topk_mask.default, (scores, torch.tensor(4)), {"global_": True})


def test_compiles_whole():
    def step(x, k):
        masks, thresholds, counts = ops.topk_mask([x * 2], k)
        return x.masked_fill(~masks[0], 0), thresholds, counts

    x, k = torch.randn(33), torch.tensor([7])
    assert all(torch.equal(a, b) for a, b in zip(torch.compile(step, fullgraph=True)(x, k), step(x, k)))


# ---- misuse ----

MISUSE = [                                              # of what is alike on every device
    ({"k": [1, 2]}, ValueError, r"k: expected 1 numbers, one per list entry, got 2"),
    ({"k": [1, 2], "global_": True}, ValueError, r"k: expected 1 number for the whole list \(global_=True\), got 2"),
    ({"k": torch.tensor([1, 2])}, ValueError, r"k: expected 1 numbers, one per list entry, got 2"),
    ({"k": torch.tensor([[1]])}, ValueError, r"k: expected a vector or a 0-d tensor, got shape"),
    ({"k": torch.tensor([1.0])}, TypeError, r"k: expected int64"),
    ({"eligible": []}, ValueError, r"eligible: expected a list of 1 tensors like the first list, got 0"),
    ({"eligible": [torch.ones(3, dtype=torch.bool)]}, ValueError, r"eligible\[0\]: expected a bool mask of shape \[4\], got \[3\]"),
    ({"eligible": [torch.ones(2, dtype=torch.int32)]}, ValueError, r"eligible\[0\]: expected 1 contiguous int32 words"),
    ({"eligible": [torch.ones(4)]}, TypeError, r"eligible\[0\]: expected a bool mask, packed int32 words or an empty tensor"),
]


@pytest.mark.parametrize("change, error, words", [
    ({"scores": torch.ones(4)}, TypeError, r"topk_mask: scores: expected a list of tensors, got one tensor; write \[scores\]"),
    ({"scores": [torch.ones(4, dtype=torch.int64)]}, TypeError, r"scores\[0\]: expected float32, bfloat16, float16 or float64"),
    *MISUSE,
])
@EACH
def test_misuse(name, change, error, words):
    arguments = {"scores": [torch.ones(4)], "k": 1} | change
    if name == "reference" and not isinstance(arguments["scores"], torch.Tensor):
        def run(scores, k, **options):
            return call(name, scores, [k] if isinstance(k, int) else k, **options)
    else:
        run = ops.topk_mask
    with pytest.raises(error, match=words):
        run(**arguments)

"""pack_mask, unpack_mask and mask_stats: bits in the documented places, counts that are exact."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import native
from sparsekern.testing import awkward_shapes, each_implementation, threads

SHAPES = awkward_shapes + [(63,), (64,), (65,), (96,), (8193,)]


def call(op, name, *args):
    return ops.implementations(op)[name](*args)


def random_mask(shape, density=0.4):
    return torch.rand(shape) < density


# ---- worked examples ----

@pytest.mark.parametrize("name", each_implementation("pack_mask"))
def test_worked_example_pack(name):
    # Elements 0, 1, 31 of the first word and 33 (bit 1 of the second): 2^0 + 2^1 - 2^31, and 2.
    mask = torch.zeros(5, 7, dtype=torch.bool)
    mask.view(-1)[[0, 1, 31, 33]] = True
    bits = call("pack_mask", name, mask)
    assert bits.dtype == torch.int32 and bits.tolist() == [3 - 2**31, 2]


@pytest.mark.parametrize("name", each_implementation("unpack_mask"))
def test_worked_example_unpack(name):
    mask = call("unpack_mask", name, torch.tensor([3 - 2**31, 2], dtype=torch.int32), [5, 7])
    assert mask.dtype == torch.bool and mask.shape == (5, 7) and mask.view(-1).nonzero().flatten().tolist() == [0, 1, 31, 33]


@pytest.mark.parametrize("name", each_implementation("mask_stats"))
def test_worked_example_stats(name):
    # {0, 1, 2} and {2, 3}: one in common, three in one but not the other.
    a, b = torch.tensor([True, True, True, False, False]), torch.tensor([False, False, True, True, False])
    assert call("mask_stats", name, [a], [b]).tolist() == [[3, 2, 1, 3]]
    assert call("mask_stats", name, [a, b]).tolist() == [[3, 0, 0, 0], [2, 0, 0, 0]]
    assert call("mask_stats", name, [torch.tensor([7], dtype=torch.int32)], [torch.tensor([12], dtype=torch.int32)]).tolist() == [[3, 2, 1, 3]]


# ---- agreement ----

def assert_agrees(name):
    for shape in SHAPES:
        mask = random_mask(shape)
        bits = call("pack_mask", "reference", mask)
        assert torch.equal(call("pack_mask", name, mask), bits)
        assert torch.equal(call("unpack_mask", name, bits, list(shape)), mask)


def assert_stats_agree(name):
    a, b = [random_mask(shape) for shape in SHAPES], [random_mask(shape, 0.7) for shape in SHAPES]
    want = torch.tensor([[int(x.sum()), int(y.sum()), int((x & y).sum()), int((x ^ y).sum())] for x, y in zip(a, b)])
    packed = [[ops.pack_mask(mask) for mask in masks] for masks in (a, b)]
    for one, two in ((a, b), packed):
        assert torch.equal(call("mask_stats", name, one, two), want)
        assert torch.equal(call("mask_stats", name, one)[:, 0], want[:, 0]) and not call("mask_stats", name, one)[:, 1:].any()


def test_cpu_agrees_with_reference(isa):
    assert_agrees("cpu")
    assert_stats_agree("cpu")


@pytest.mark.parametrize("name", [n for n in each_implementation("pack_mask") if n != "cpu"])
def test_agrees_with_reference(name):
    assert_agrees(name)
    assert_stats_agree(name)


@pytest.mark.parametrize("name", each_implementation("pack_mask"))
def test_strided_masks_pack_their_logical_order(name):
    mask = random_mask((6, 5, 7, 3))
    for view in (mask.permute(3, 1, 0, 2), mask[::2, 1:, :, ::2], mask.to(memory_format=torch.channels_last), mask[:1].expand(4, 5, 7, 3)):
        assert torch.equal(call("pack_mask", name, view), call("pack_mask", "reference", view.contiguous()))
        assert torch.equal(call("mask_stats", name, [view], [view.contiguous()])[0, 2], view.sum())


def test_mixed_list_of_bool_and_packed():
    masks = [random_mask((33,)), ops.pack_mask(random_mask((70,))), torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int32)]
    assert torch.equal(ops.mask_stats(masks, masks), call("mask_stats", "reference", masks, masks))


def test_nonzero_bytes_count_as_true():
    # A bool tensor viewed from uint8 may hold any nonzero byte.
    mask = torch.tensor([0, 2, 255, 1] * 20, dtype=torch.uint8).view(torch.bool)
    assert torch.equal(ops.unpack_mask(ops.pack_mask(mask), [80]), torch.tensor([False, True, True, True] * 20))
    assert ops.mask_stats([mask])[0, 0] == 60


def test_many_pieces_and_threads():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    a, b = random_mask((300_007,)), random_mask((300_007,))
    bits = ops.pack_mask(a)
    with threads(2):
        assert torch.equal(ops.pack_mask(a), bits) and torch.equal(ops.unpack_mask(bits, a.shape), a)
        assert ops.mask_stats([bits, a], [ops.pack_mask(b), b]).unique(dim=0).shape[0] == 1


# ---- properties ----

@given(st.lists(st.booleans(), max_size=300), st.sampled_from(each_implementation("pack_mask")))
@settings(max_examples=80, deadline=None)
def test_unpack_pack_is_the_identity(values, name):
    mask = torch.tensor(values, dtype=torch.bool)
    bits = call("pack_mask", name, mask)
    assert bits.shape == ((len(values) + 31) // 32,)
    assert torch.equal(call("unpack_mask", name, bits, [len(values)]), mask)
    if values and len(values) % 32:
        assert (int(bits[-1]) & 0xFFFFFFFF) >> (len(values) % 32) == 0
    if values:
        assert call("mask_stats", name, [bits], [bits]).tolist() == [[sum(values)] * 3 + [0]]


@given(st.integers(1, 500), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_counts_add_up(n, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(n, generator=generator) < 0.5, torch.rand(n, generator=generator) < 0.2
    one, two, both, differ = ops.mask_stats([a], [b])[0].tolist()
    assert differ == one + two - 2 * both and int((a | b).sum()) == one + two - both
    assert ops.mask_stats([a], [~a])[0].tolist() == [one, n - one, 0, n]


# ---- citizenship ----

def test_opcheck():
    mask = random_mask((5, 9))
    bits = ops.pack_mask(mask)
    torch.library.opcheck(torch.ops.sparsekern.pack_mask, (mask,))
    torch.library.opcheck(torch.ops.sparsekern.unpack_mask, (bits, [5, 9]))
    torch.library.opcheck(torch.ops.sparsekern.mask_stats, ([mask, bits],))
    torch.library.opcheck(torch.ops.sparsekern.mask_stats, ([mask, bits], [~mask, bits]))


def test_compiles_whole():
    def overlap(a, b):
        return ops.mask_stats([ops.unpack_mask(ops.pack_mask(a), a.shape)], [b])[0] * 2

    a, b = random_mask((37,)), random_mask((37,))
    assert torch.equal(torch.compile(overlap, fullgraph=True)(a, b), overlap(a, b))


def test_empty_list():
    assert ops.mask_stats([]).shape == (0, 4) and ops.mask_stats([], []).dtype == torch.int64


# ---- misuse ----

WORDS = torch.zeros(2, dtype=torch.int32)


@pytest.mark.parametrize("name", each_implementation("pack_mask"))
@pytest.mark.parametrize("op, args, error, words", [
    ("pack_mask", (torch.ones(3),), TypeError, "pack_mask: mask: expected bool, got"),
    ("unpack_mask", (torch.zeros(2), [40]), TypeError, "unpack_mask: bits: expected int32 words, got"),
    ("unpack_mask", (WORDS, [65]), ValueError, r"unpack_mask: bits: expected \[3\] words for shape \[65\] \(65 elements\), got \[2\]"),
    ("unpack_mask", (WORDS, [32]), ValueError, r"expected \[1\] words"),
    ("mask_stats", ([WORDS], []), ValueError, "mask_stats: b: expected a list of 1 tensors like the first list, got 0"),
    ("mask_stats", ([torch.ones(3)],), TypeError, r"mask_stats: a\[0\]: expected a bool mask or packed int32 words, got"),
    ("mask_stats", ([WORDS], [WORDS.bool()]), TypeError, r"mask_stats: b\[0\]: expected .* like a\[0\], got .* pack or unpack"),
    ("mask_stats", ([WORDS], [WORDS[:1]]), ValueError, r"mask_stats: b\[0\]: expected shape \[2\], got \[1\]"),
])
def test_misuse(name, op, args, error, words):
    with pytest.raises(error, match=words):
        call(op, name, *args)


@pytest.mark.parametrize("name", [n for n in each_implementation("unpack_mask") if n in ("reference", "cpu")])
def test_set_padding_bits_are_an_error(name):
    with pytest.raises(ValueError, match="unpack_mask: bits: expected zeros past element 33, got word 4 at the end"):
        call("unpack_mask", name, torch.tensor([0, 4], dtype=torch.int32), [33])

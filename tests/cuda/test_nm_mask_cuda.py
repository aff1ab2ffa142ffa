"""nm_mask, nm_apply_ and nm_mask_transposable through their CUDA bindings: exactly the reference, bit for bit."""
import itertools
import math

import pytest
import torch

from sparsekern.ops._register import implementations

TYPES = [torch.float32, torch.bfloat16, torch.float16]
FLAT = [(2, 4), (1, 4), (0, 4), (4, 4), (1, 2), (1, 1), (0, 1), (2, 8), (7, 8)]
TILE = [(3, 5), (7, 12), (1, 16), (8, 32), (5, 33), (63, 64), (64, 64), (0, 24)]


def reference(name, *arguments, **options):
    return implementations(name)["reference"](*arguments, **options)


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def special(shape, dtype):
    """Few different values: ties everywhere, zeros of both signs, NaN, inf and numbers that flushing would lose."""
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, math.nan, math.inf, -math.inf, 0.5, 6e-8, -6e-8, 1e-41])
    return values[torch.randint(len(values), shape)].to(dtype)


def assert_agrees(lane, x, n, m, dim=-1):
    """Every form of the result."""
    there = lane.put(x)
    for use_abs in (True, False):
        want = reference("nm_mask", x, n, m, dim=dim, use_abs=use_abs)
        got = lane.op("nm_mask")(there, n, m, dim=dim, use_abs=use_abs)
        assert got.dtype == torch.bool and torch.equal(got.cpu(), want), (n, m, list(x.shape), dim, use_abs)
        packed = lane.op("nm_mask")(there, n, m, dim=dim, use_abs=use_abs, packed=True)
        assert torch.equal(packed.cpu(), reference("pack_mask", want)), (n, m, list(x.shape), dim, use_abs)
    kept = reference("nm_mask", x, n, m, dim=dim)
    lane.op("nm_apply_")(there, n, m, dim=dim)
    assert torch.equal(bits(there).cpu(), bits(torch.where(kept, x, torch.zeros_like(x)))), (n, m, list(x.shape), dim)


def test_by_hand(lane):
    x = torch.tensor([[1.0, -4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0], [0.0, -0.0, math.nan, 0.0, math.nan, math.nan, math.nan, 7.0]])
    mask = lane.op("nm_mask")
    assert mask(lane.put(x), 2, 4).int().tolist() == [[0, 1, 1, 0, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0, 0, 1]]
    assert mask(lane.put(x), 2, 4, use_abs=False).int().tolist() == [[0, 0, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0, 0, 1]]
    assert mask(lane.put(x), 1, 2, dim=0).int().tolist() == [[1, 1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0, 1]]
    assert mask(lane.put(x), 2, 4, packed=True).tolist() == [0b1001_0011_0011_0110]
    short = lane.put(torch.arange(1.0, 7))                              # groups [1 2 3 4] [5 6]
    assert mask(short, 3, 4).int().tolist() == [0, 1, 1, 1, 1, 1] and mask(short, 1, 4).int().tolist() == [0, 0, 0, 1, 0, 1]
    lane.op("nm_apply_")(short, 1, 4)
    assert short.tolist() == [0, 0, 0, 4, 0, 6]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_groups_in_registers(lane, dtype):
    for n, m in FLAT:
        for shape in ((1024 * 9 + 8,), (5, 8), (3, 16, 8), (40,)):
            assert_agrees(lane, special(shape, dtype), n, m)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_four_lanes_to_a_thread(lane, dtype):
    for n, m in [*FLAT, (2, 3), (3, 5), (5, 7)]:
        for shape, dim in (((21, 8), 0), ((2, 9, 4), 1), ((3, 16, 2, 6), 1), ((2, 1, 4), 1)):
            assert_agrees(lane, special(shape, dtype), n, m, dim)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_groups_in_a_tile(lane, dtype):
    for n, m in [(2, 4), (2, 8), *TILE]:
        for shape, dim in (((3, 131), 1), ((2, 35, 3), 1), ((m, 70), 0), ((5, 6 * m), 1), ((3, m), 1)):
            assert_agrees(lane, special(shape, dtype), n, m, dim)


@pytest.mark.parametrize("shape, dim", [((), -1), ((1,), 0), ((3,), 0), ((0, 4), 1), ((4, 0), 1), ((2, 0, 5), 0), ((300, 1), 0), ((300, 1), 1)])
def test_small_and_empty(lane, shape, dim):
    for n, m in ((2, 4), (3, 5), (1, 16)):
        assert_agrees(lane, special(shape, torch.float32), n, m, dim)


def test_many_tiles_to_a_block(lane):
    assert_agrees(lane, torch.randn(133, 509), 3, 7)
    assert_agrees(lane, torch.randn(20, 30, 31), 1, 3, 1)
    assert_agrees(lane, torch.randn(150_000), 2, 4)


def test_strides(lane):
    wide = lane.put(torch.randn(4, 10, 3, 8))
    for x in (wide.to(memory_format=torch.channels_last), wide.permute(3, 1, 0, 2), wide[::2, :, 1:], wide[:, :1].expand(4, 8, 3, 8)):
        for dim in range(4):
            got = lane.op("nm_mask")(x, 2, 4, dim=dim)
            assert got.stride() == torch.empty_like(x).stride()
            want = reference("nm_mask", x.cpu().contiguous(), 2, 4, dim=dim)
            assert torch.equal(got.cpu(), want)
            assert torch.equal(lane.op("nm_mask")(x, 2, 4, dim=dim, packed=True).cpu(), reference("pack_mask", want))
    for x in (wide.to(memory_format=torch.channels_last), wide.permute(3, 1, 0, 2), wide[1:3]):
        x = x.clone() if x.storage_offset() == 0 else x
        want = torch.where(reference("nm_mask", x.cpu(), 1, 8, dim=1), x.cpu(), 0.0)
        lane.op("nm_apply_")(x, 1, 8, dim=1)
        assert torch.equal(x.cpu(), want)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_misaligned_views_and_what_lies_around(lane, dtype):
    flat = torch.randn(1300).to(dtype)
    for at, (n, m), (shape, dim) in itertools.product((1, 2, 3, 7), ((2, 4), (3, 7), (1, 16)), (((30, 40), 1), ((30, 40), 0), ((31, 39), 1))):
        there, size = lane.put(flat), math.prod(shape)
        x = flat[at:at + size].view(shape)
        kept = reference("nm_mask", x, n, m, dim=dim)
        view = there[at:at + size].view(shape)
        assert torch.equal(lane.op("nm_mask")(view, n, m, dim=dim).cpu(), kept)
        assert torch.equal(lane.op("nm_mask")(view, n, m, dim=dim, packed=True).cpu(), reference("pack_mask", kept))
        lane.op("nm_apply_")(view, n, m, dim=dim)
        want = flat.clone()
        want[at:at + size].view(shape)[~kept] = 0
        assert torch.equal(there.cpu(), want)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_kept_nan_keeps_its_payload(lane, dtype):
    pattern = torch.tensor([-3, 0x7F81, 0x7C01, 5, -0x8000] * 16, dtype=torch.int16)
    x = (pattern.to(torch.int32) << 16 | 1).view(torch.float32) if dtype == torch.float32 else pattern.view(dtype)
    for n, m in ((4, 4), (8, 8), (40, 40)):
        there = lane.put(x)
        lane.op("nm_apply_")(there, n, m)
        assert torch.equal(bits(there).cpu(), bits(x))
    there = lane.put(x)
    lane.op("nm_apply_")(there, 3, 5)
    assert torch.equal(bits(there).cpu(), bits(torch.where(reference("nm_mask", x, 3, 5), x, torch.zeros_like(x))))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_transposable(lane, dtype):
    x = torch.tensor([[9.0, 8, 0, 0], [7, 0, -6, 0], [5, 0, 0, 1], [0, 0, 1, 1]], dtype=dtype)
    op = lane.op("nm_mask_transposable")
    assert op(lane.put(x)).int().tolist() == [[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]]
    assert op(lane.put(torch.ones(4, 4, dtype=dtype))).int().tolist() == [[1, 1, 0, 0]] * 2 + [[0, 0, 1, 1]] * 2
    for x in (torch.randn(32, 148).to(dtype), special((64, 100), dtype), torch.full((4, 8), 3e38).to(dtype), torch.zeros(0, 8, dtype=dtype)):
        got = op(lane.put(x))
        assert torch.equal(got.cpu(), reference("nm_mask_transposable", x)) and got.is_contiguous()
    x = lane.put(torch.randn(20, 41).to(dtype))
    for view in (x[:, 1:], x[:, :40].t(), x[:, 1:].flatten()[3:131].view(8, 16)):
        assert torch.equal(op(view).cpu(), reference("nm_mask_transposable", view.cpu()))


def test_every_transposable_pattern_is_found(lane):
    from sparsekern.ops.nm_mask import transposable_patterns
    patterns = transposable_patterns()
    x = patterns.transpose(0, 1).reshape(4, 360) * (1.0 + torch.rand(4, 360))
    assert torch.equal(lane.op("nm_mask_transposable")(lane.put(x)).cpu(), x != 0)


def test_repeats_have_equal_bits(lane):
    x = lane.put(torch.randn(60, 66))
    for n, m, dim in ((2, 4, 0), (3, 11, 1), (2, 6, 0)):
        one = lane.op("nm_mask")(x, n, m, dim=dim)
        assert all(torch.equal(lane.op("nm_mask")(x, n, m, dim=dim), one) for _ in range(2))


def test_bad_input(lane):
    ones = lane.put(torch.ones(8))
    for op in ("nm_mask", "nm_apply_"):
        for arguments, error, words in (((ones, 5, 4), ValueError, "n: expected 0 to m = 4 elements kept of each group, got 5; n is the number kept"),
                                        ((ones, 2, 65), ValueError, "m: expected a group of 1 to 64 elements, got 65"),
                                        ((ones.int(), 2, 4), TypeError, "x: expected float32, bfloat16, float16 or float64, got Int"),
                                        ((ones.double(), 2, 4), TypeError, "x: expected float32, bfloat16 or float16 on a CUDA device, got Double")):
            with pytest.raises(error, match=f"{op}: {words}"):
                lane.op(op)(*arguments)
        with pytest.raises(ValueError, match=f"{op}: dim: expected a dimension from -1 to 0, got 1"):
            lane.op(op)(ones, 2, 4, dim=1)
    with pytest.raises(ValueError, match=r"nm_apply_: x: expected a dense tensor .*, got sizes \[4, 4\] with strides \[8, 2\]"):
        lane.op("nm_apply_")(lane.put(torch.ones(4, 8))[:, ::2], 2, 4)
    for x, error, words in ((torch.ones(4, 6), ValueError, r"x: expected a matrix with sides divisible by 4, got shape \[4, 6\]"),
                            (torch.ones(4, 4).double(), TypeError, "on a CUDA device, got Double")):
        with pytest.raises(error, match=f"nm_mask_transposable: .*{words}"):
            lane.op("nm_mask_transposable")(lane.put(x))
    with pytest.raises(ValueError, match="n, m: expected 2 of 4"):
        lane.op("nm_mask_transposable")(lane.put(torch.ones(4, 4)), 1, 4)

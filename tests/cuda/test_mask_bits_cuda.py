"""pack_mask, unpack_mask, mask_stats and is_clean through their CUDA bindings: exactly the reference."""
import pytest
import torch

from sparsekern import ops
from sparsekern.ops._register import implementations
from sparsekern.testing import awkward_shapes, random_masks

SHAPES = awkward_shapes[:-1]
NONE = torch.empty(0, dtype=torch.bool)


def reference(name, *arguments):
    return implementations(name)["reference"](*arguments)


def test_packs_and_unpacks(lane):
    for mask in random_masks([torch.zeros(s) for s in SHAPES], 0.4):
        bits = lane.op("pack_mask")(lane.put(mask))
        assert bits.dtype == torch.int32 and torch.equal(bits.cpu(), reference("pack_mask", mask))
        assert torch.equal(lane.op("unpack_mask")(bits, list(mask.shape)).cpu(), mask)


def test_by_hand(lane):
    mask = torch.zeros(33, dtype=torch.bool)
    mask[[0, 5, 31, 32]] = True
    assert lane.op("pack_mask")(lane.put(mask)).tolist() == [-(2**31) + 33, 1]
    assert lane.op("mask_stats")(lane.put([mask[:4]]), lane.put([torch.tensor([True, True, False, False])])).tolist() == [[1, 2, 1, 1]]


def test_packs_logical_order_of_any_view(lane):
    mask = lane.put(torch.rand(40, 37) < 0.5)
    for view in (mask.t(), mask[:, 1:], mask[3:], mask.flatten()[1:], mask.flatten()[5:-3], mask[::2, ::3]):
        assert torch.equal(lane.op("pack_mask")(view).cpu(), reference("pack_mask", view.cpu()))


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("form", ["bool", "bits", "mixed"])
def test_stats(lane, form, two):
    lists = [random_masks([torch.zeros(s) for s in SHAPES], density) for density in (0.3, 0.6)[:1 + two]]
    packs = [form == "bits" or (form == "mixed" and i % 2 == 0) for i in range(len(SHAPES))]
    lists = [[ops.pack_mask(m) if pack else m for m, pack in zip(masks, packs)] for masks in lists]
    assert torch.equal(lane.op("mask_stats")(*lane.put(lists)).cpu(), reference("mask_stats", *lists))


def test_stats_of_views_and_of_a_long_list(lane):
    a, b = lane.put(torch.rand(90, 50) < 0.5), lane.put(torch.rand(90, 50) < 0.5)
    for x, y in ((a.t(), b.t()), (a[1:], b[:-1]), (a.flatten()[3:], b.flatten()[:-3])):
        assert lane.op("mask_stats")([x], [y]).tolist() == [[int(c.sum()) for c in (x, y, x & y, x ^ y)]]
    assert torch.equal(lane.op("mask_stats")([a[:1]] * 100).cpu(), reference("mask_stats", [a[:1].cpu()] * 100))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_is_clean(lane, dtype):
    masks = random_masks([torch.zeros(s) for s in SHAPES], 0.5)
    given = [[m, ops.pack_mask(m), NONE][i % 3] for i, m in enumerate(masks)]
    zero = torch.tensor(-0.0, dtype=dtype)                              # minus zero is zero
    params, momenta = ([torch.where(m | (given[i] is NONE), torch.ones((), dtype=dtype), zero) for i, m in enumerate(masks)] for _ in range(2))
    assert lane.op("is_clean")(lane.put(params), lane.put(momenta), lane.put(given)).item()
    assert lane.op("is_clean")(lane.put(params), [], lane.put(given)).item()
    for dirt in (float("nan"), 6e-8):
        for tensors in (params, momenta):
            for i in (8, 9, 10, 11):
                dirty = [t.clone() for t in tensors]
                dirty[i].view(-1)[int((~masks[i]).flatten().nonzero()[-1])] = dirt
                lists = [dirty if tensors is other else other for other in (params, momenta)]
                assert lane.op("is_clean")(*lane.put(lists), lane.put(given)).item() == (given[i] is NONE)


def test_bad_input(lane):
    mask = lane.put(torch.ones(40, dtype=torch.bool))
    bits = lane.op("pack_mask")(mask)
    with pytest.raises(TypeError, match="pack_mask: mask: expected bool, got Float"):
        lane.op("pack_mask")(mask.float())
    with pytest.raises(ValueError, match=r"unpack_mask: bits: expected \[3\] words for shape \[65\]"):
        lane.op("unpack_mask")(bits, [65])
    with pytest.raises(ValueError, match="expected sizes >= 0"):
        lane.op("unpack_mask")(bits, [-1])
    with pytest.raises(TypeError, match=r"mask_stats: b\[0\]: expected Bool like a\[0\], got Int"):
        lane.op("mask_stats")([mask], [bits])
    with pytest.raises(ValueError, match=r"mask_stats: b\[0\]: expected shape \[40\], got \[39\]"):
        lane.op("mask_stats")([mask], [mask[1:]])
    with pytest.raises(ValueError, match="mask_stats: b: expected a list of 1 tensors"):
        lane.op("mask_stats")([mask], [])
    with pytest.raises(ValueError, match=r"is_clean: masks\[0\]"):
        lane.op("is_clean")([mask.float()], [], [mask[1:]])

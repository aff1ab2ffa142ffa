"""MaskSet: exact counts on the host, dense layers as None, packed for checkpoints."""
import pytest
import torch

from sparsekern.sparsity.masks import MaskSet
from sparsekern.sparsity.timeline import ALL


@pytest.fixture
def masks():
    masks = MaskSet({"a": torch.zeros(3, 4), "b": torch.zeros(2, 2, 3, 3)})
    masks.add("thin")
    return masks


def test_starts_dense(masks):
    assert masks.counts("thin") == [12, 36] and masks.sparsity("thin") == 0 and masks.active("thin") == [None, None]
    assert masks.active(ALL) == [None, None] and masks.counts(ALL) == [12, 36]


def test_set_counts_and_keeps_the_tensor(masks):
    held, version = masks["thin"][0], masks.version
    new = torch.arange(12).view(3, 4) < 5
    masks.set("thin", {"a": new})
    assert masks.counts("thin") == [5, 36] and masks.nnz("thin") == 41 and masks["thin"][0] is held and torch.equal(held, new)
    assert masks.active("thin")[0] is held and masks.active("thin")[1] is None and masks.version > version


def test_masks_take_the_layout_of_the_weight():
    masks = MaskSet({"a": torch.zeros(4, 4, 3, 3).to(memory_format=torch.channels_last)})
    masks.add("x")
    assert masks["x"][0].stride() == torch.zeros(4, 4, 3, 3).to(memory_format=torch.channels_last).stride()


def test_packed_and_back(masks):
    masks.set("thin", {"a": torch.rand(3, 4) < 0.5, "b": torch.rand(2, 2, 3, 3) < 0.2})
    packed = masks.packed()
    assert sorted(packed) == ["mask/thin/a", "mask/thin/b"] and packed["mask/thin/b"].dtype == torch.int32
    unpacked, counts = masks.unpacked(packed)
    assert counts["thin"] == masks.counts("thin") and all(torch.equal(x, y) for x, y in zip(unpacked["thin"], masks["thin"]))


def test_misuse(masks):
    with pytest.raises(ValueError, match="unknown sub-net 'fat'; there are thin"):
        masks["fat"]
    with pytest.raises(ValueError, match=r"a: expected a bool mask of shape \[3, 4\], got torch.bool \[4, 3\]"):
        masks.set("thin", {"a": torch.ones(4, 3, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"expected a bool mask of shape \[3, 4\], got torch.float32"):
        masks.set("thin", {"a": torch.ones(3, 4)})
    with pytest.raises(ValueError, match="'c' is not a masked layer; they are a, b"):
        masks.set("thin", {"c": torch.ones(3, 4, dtype=torch.bool)})
    assert masks.counts("thin") == [12, 36]

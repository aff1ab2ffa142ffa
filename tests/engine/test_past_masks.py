"""PastMasks: overlap with masks of earlier events, and the way to a checkpoint and back."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsekern.sparsity.past_masks import PastMasks


def masks(*rows):
    return [torch.tensor(row, dtype=torch.bool) for row in rows]


def test_numbers_by_hand():
    past = PastMasks(["a", "b"])
    now = masks([1, 1, 0, 0], [1, 0])
    assert past.iou("prune", now) is None and past.left("prune", now) is None
    past.keep("prune", masks([0, 1, 1, 1], [1, 1]))
    assert past.iou("prune", now) == 2 / 6 and past.left("prune", now) == 2 / 5      # both: 2; either: 3 + 5 - 2
    past.keep("prune", now)
    assert past.iou("prune", now) == past.left("prune", now) == 1.0
    past.keep("grown", masks([0, 0, 0, 0], [0, 0]))
    assert past.left("grown", now) is None and past.iou("grow", now) is None


@given(st.integers(1, 70), st.integers(0, 2**32))
def test_any_masks_and_a_checkpoint(size, seed):
    draws = torch.Generator().manual_seed(seed)
    one, two = ([torch.rand(rows, size, generator=draws) < 0.5 for rows in (1, 3)] for _ in range(2))
    past = PastMasks(["x", "y.weight"])
    past.keep("grow", one)
    past.keep("other", two)
    again = PastMasks(["x", "y.weight"])
    again.keep("stale", one)
    again.load({**past.tensors(), "score/x": torch.zeros(1)}, one)
    both, either = (sum(int(op(a, b).sum()) for a, b in zip(one, two)) for op in (torch.logical_and, torch.logical_or))
    size_of_one = sum(int(a.sum()) for a in one)
    for found in (past, again):
        assert found.iou("grow", two) == (pytest.approx(both / either) if size_of_one else None)
        assert found.left("grow", two) == (both / size_of_one if size_of_one else None)
    assert again.left("stale", one) is None and sorted(past.tensors()) == [f"past/{n}/{k}" for n in ("grow", "other") for k in ("x", "y.weight")]


def test_loading_takes_a_copy():
    past = PastMasks(["a"])
    past.keep("grow", masks([1, 0, 1]))
    saved = past.tensors()
    other = PastMasks(["a"])
    other.load(saved, masks([0, 0, 0]))
    saved["past/grow/a"].zero_()
    assert other.iou("grow", masks([1, 0, 1])) == 1.0

"""csr_plan through its CUDA binding: exactly the reference's order, transposed pattern and positions."""
import pytest
import torch

from sparsekern import ops
from sparsekern.testing import random_csr


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (300, 1), (37, 130), (64, 64), (0, 7), (7, 0), (600, 700), (5, 70_000)], ids=str)
def test_agrees_with_the_reference(lane, shape):
    rows, cols = shape
    for sparsity, index64 in ((0.0, False), (0.8, True), (0.99, False), (1.0, True)):
        if rows * cols * (1 - sparsity) > 50_000:
            continue
        crow, col, _ = random_csr(rows, cols, sparsity, index64=index64)
        got = lane.op("csr_plan")(*lane.put([crow, col]), rows, cols)
        for one, other in zip(got, ops.implementations("csr_plan")["reference"](crow, col, rows, cols), strict=True):
            assert one.dtype == other.dtype and torch.equal(one.cpu(), other)


def test_worked_example(lane):
    # [[., 1, 2], [., ., .], [3, ., 4], [., 5, .]]
    crow, col = torch.tensor([0, 2, 2, 4, 5], dtype=torch.int32), torch.tensor([1, 2, 0, 2, 1], dtype=torch.int32)
    got = lane.op("csr_plan")(*lane.put([crow, col]), 4, 3)
    assert [t.tolist() for t in got] == [[0, 2, 3, 1], [0, 1, 3, 5], [2, 0, 3, 0, 2], [2, 0, 4, 1, 3]]


def test_strided_columns(lane):
    crow, col, _ = random_csr(30, 40, 0.7)
    wide = lane.put(torch.stack([col, col], 1))
    for one, other in zip(lane.op("csr_plan")(lane.put(crow), wide[:, 1], 30, 40), ops.csr_plan(crow, col, 30, 40), strict=True):
        assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("crow, col, error, words", [
    (torch.tensor([0, 1]), torch.tensor([0]), TypeError, "col: expected int32, got"),
    (torch.tensor([0.0, 1.0]), torch.tensor([0]).int(), TypeError, "crow: expected int32 or int64, got"),
    (torch.tensor([0, 1, 1]), torch.tensor([0]).int(), ValueError, "crow: expected 2 row pointers for 1 rows, got 3"),
    (torch.tensor([0, 1]), torch.tensor([[0]]).int(), ValueError, r"col: expected one dimension, got shape \[1, 1\]"),
])
def test_misuse(lane, crow, col, error, words):
    with pytest.raises(error, match="csr_plan: " + words):
        lane.op("csr_plan")(lane.put(crow), lane.put(col), 1, 4)

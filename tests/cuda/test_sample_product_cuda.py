"""sample_product and gse_candidates through their CUDA bindings: the reference's draws and candidates, bit for bit."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern.testing import random_csr

NAN, INF = math.nan, math.inf


def assert_agrees(lane, op, *arguments, seed=0, **options):
    got = lane.op(op)(*lane.put(list(arguments)), seed=lane.put(torch.tensor(seed)), **options)
    want = ops.implementations(op)["reference"](*arguments, seed=torch.tensor(seed), **options)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype and torch.equal(one.cpu(), other)
    return got


def test_first_draw_by_hand(lane):
    # Philox of zeros gives 6627e8d5 e169c58d bc57ac4c 9b00dbd8: the row's uniform is 0xe169c58d... = 0.8805, the column's 0x9b00dbd8... = 0.6055.
    for rows, cols, want in ((torch.ones(4), torch.ones(10), [3, 6]), (torch.tensor([0.9, 0.1]), torch.tensor([0.6, 0.4]), [0, 1]),
                             (torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 0.0, 7.0, 0.0]), [2, 2]),
                             (torch.tensor([88.0, 0.0, 12.0]), torch.tensor([61.0, -39.0, 39.0]), [2, 0])):
        assert [t.item() for t in lane.op("sample_product")(*lane.put([rows, cols]), 1, seed=lane.put(torch.tensor(0)))] == want


@pytest.mark.parametrize("rows, cols", [(50, 40), (1, 1), (1, 5000), (4097, 3), (33, 129)])
def test_draws_agree(lane, rows, cols):
    for weights in ((torch.randn(rows), torch.randn(cols)), (torch.rand(rows) ** 30, torch.rand(cols) ** 9), (torch.zeros(rows), torch.ones(cols))):
        for samples, seed in ((1, 0), (1001, 2**63 - 1)):
            assert_agrees(lane, "sample_product", *weights, samples, seed=seed)


def test_weights_of_every_kind(lane):
    special = torch.tensor([0.0, -0.0, -1.0, NAN, 1e-45, 1.0, 3.4028235e38, 1.1754944e-38, -3.4028235e38])
    for weights in (special, torch.full((5,), NAN), -torch.ones(5), torch.tensor([1e-45])):
        assert_agrees(lane, "sample_product", weights, torch.ones(3), 300, seed=-7)
    # Thousands of weights that count one unit each beside a large one: they share the entries of the guide.
    tiny = torch.full((3000,), 1e-40)
    tiny[1500] = 1.0
    assert_agrees(lane, "sample_product", tiny, torch.rand(9), 500)
    # Infinity counts as the largest float.
    seed = lane.put(torch.tensor(3))
    got = lane.op("sample_product")(*lane.put([torch.tensor([1.0, INF]), torch.ones(2)]), 50, seed=seed)
    want = ops.sample_product(torch.tensor([1.0, 3.4028235e38]), torch.ones(2), 50, seed=3)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want))


def test_strided_weights_and_seed_of_any_shape(lane):
    weights, step = torch.rand(80, 2), torch.rand(40)
    want = ops.sample_product(weights[:, 0].contiguous(), step, 99, seed=7)
    there = lane.put(weights)
    for seed in (torch.tensor([7]), torch.tensor([[7, 8]])[:, :1]):
        got = lane.op("sample_product")(there[:, 0], lane.put(step), 99, seed=lane.put(seed))
        assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want))


@pytest.mark.parametrize("sparsity", [1.0, 0.9, 0.51, 0.5, 0.3, 0.0])
@pytest.mark.parametrize("rows, cols", [(30, 40), (1, 1), (1, 700), (70, 300), (900, 3)])
def test_candidates_agree(lane, rows, cols, sparsity):
    crow, col, _ = random_csr(rows, cols, sparsity, index64=rows % 2 == 1)
    weights = torch.randn(rows), torch.rand(cols)
    for samples, rounds in ((0, 1), (1, 1), (300, 3)):
        assert_agrees(lane, "gse_candidates", *weights, crow, col, samples, rounds=rounds)


def test_rounds_find_what_is_left(lane):
    crow, col, _ = random_csr(6, 5, 0.9)
    _, _, count = assert_agrees(lane, "gse_candidates", torch.ones(6), torch.ones(5), crow, col, 100, seed=5, rounds=9)
    assert count == 27
    _, _, count = assert_agrees(lane, "gse_candidates", torch.rand(60), torch.rand(60), *random_csr(60, 60, 0.95)[:2], 200, seed=1, rounds=6)
    assert count == 200


def test_nothing_to_draw_from(lane):
    for rows, cols in ((0, 0), (0, 5), (5, 0)):
        assert_agrees(lane, "gse_candidates", torch.ones(rows), torch.ones(cols), torch.zeros(rows + 1, dtype=torch.int32),
                      torch.empty(0, dtype=torch.int32), 10)
    assert_agrees(lane, "gse_candidates", torch.ones(3), torch.ones(2), torch.tensor([0, 2, 4, 6]), torch.tensor([0, 1] * 3, dtype=torch.int32), 5)
    assert lane.op("sample_product")(*lane.put([torch.ones(0), torch.ones(0)]), 0, seed=lane.put(torch.tensor(0)))[0].shape == (0,)


@pytest.mark.parametrize("change, error, words", [
    ({"row_weights": torch.ones(3, dtype=torch.float64)}, TypeError, r"row_weights: expected float32, got .*; convert it with \.float\(\)"),
    ({"col_weights": torch.ones(2, 2)}, ValueError, r"col_weights: expected one dimension and at most 2\^24 weights, got shape \[2, 2\]"),
    ({"num_samples": -1}, ValueError, r"num_samples: expected a number >= 0, got -1"),
    ({"num_samples": 2**31}, ValueError, r"num_samples: expected fewer than 2\^31, got 2147483648"),
    ({"seed": torch.tensor(1.0)}, TypeError, r"seed: expected int64, got"),
    ({"seed": torch.tensor([1, 2])}, ValueError, r"seed: expected one number, got shape \[2\]"),
])
def test_misuse(lane, change, error, words):
    arguments = lane.put({"row_weights": torch.ones(3), "col_weights": torch.ones(4), "num_samples": 5, "seed": torch.tensor(0)} | change)
    with pytest.raises(error, match=r"sample_product: " + words):
        lane.op("sample_product")(**arguments)
    pattern = lane.put({"crow": torch.zeros(4, dtype=torch.int32), "col": torch.empty(0, dtype=torch.int32)})
    with pytest.raises(error, match=r"gse_candidates: " + words):
        lane.op("gse_candidates")(**arguments, **pattern)
    with pytest.raises(ValueError, match="gse_candidates: rounds: expected a number >= 1, got 0"):
        lane.op("gse_candidates")(**lane.put({"row_weights": torch.ones(3), "col_weights": torch.ones(4), "num_samples": 5,
                                              "seed": torch.tensor(0)}), **pattern, rounds=0)
    with pytest.raises(ValueError, match="sample_product: col_weights: expected at least one weight to draw from, got none"):
        lane.op("sample_product")(*lane.put([torch.ones(4), torch.ones(0)]), 1, seed=lane.put(torch.tensor(0)))

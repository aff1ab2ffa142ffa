"""sample_product and gse_candidates: exact tables, the same draws everywhere, the distribution, and candidates that are new."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import native
from sparsekern.ops import gse_candidates, sample_product
from sparsekern.ops.sample_product import cumulative_table
from sparsekern.testing import each_implementation, random_csr, threads

NAN, INF = math.nan, math.inf
EACH = pytest.mark.parametrize("name", each_implementation("sample_product"))
EACH_CANDIDATES = pytest.mark.parametrize("name", each_implementation("gse_candidates"))


def call(name, *args, op="sample_product", seed=0, **kwargs):
    return ops.implementations(op)[name](*args, seed=torch.tensor(seed), **kwargs)


def same(a, b):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b))


def keys(rows, cols, n_cols, count=None):
    return (rows.long() * n_cols + cols)[:count]


def empty_pattern(rows):
    return torch.zeros(rows + 1, dtype=torch.int32), torch.empty(0, dtype=torch.int32)


def chi_square_p(counts, expected):
    """Probability of a chi-square as large as this, all cells counted that can be drawn."""
    live = expected > 0
    assert not counts[~live].any()
    statistic = ((counts - expected)[live].square() / expected[live]).sum()
    return torch.special.gammaincc((live.sum() - 1).double() / 2, statistic / 2).item()


# ---- worked examples ----

def test_table_by_hand():
    # 1 / 3 of 2^38 = 91625968981.33; the least weight still counts 1, negative and NaN ones nothing.
    table = cumulative_table("op", "w", torch.tensor([1.0, 0.0, 3.0, 1e-30, -5.0, NAN, 1.5]))
    assert table.diff(prepend=table.new_zeros(1)).tolist() == [91625968981, 0, 2**38, 1, 0, 0, 2**37]
    assert cumulative_table("op", "w", torch.tensor([0.0, NAN, -1.0])).tolist() == [1, 2, 3]
    # fp32 max over its smallest normal number: no overflow, no underflow to never.
    assert cumulative_table("op", "w", torch.tensor([3.4028235e38, 1.1754944e-38])).tolist() == [2**38, 2**38 + 1]


@EACH
def test_first_draw_by_hand(name):
    # Philox of zeros gives 6627e8d5 e169c58d bc57ac4c 9b00dbd8: the row's uniform is 0xe169c58d... = 0.8805, the column's 0x9b00dbd8... = 0.6055.
    for rows, cols, want in ((torch.ones(4), torch.ones(10), (3, 6)), (torch.tensor([0.9, 0.1]), torch.tensor([0.6, 0.4]), (0, 1)),
                             (torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 0.0, 7.0, 0.0]), (2, 2)),
                             (torch.tensor([88.0, 0.0, 12.0]), torch.tensor([61.0, -39.0, 39.0]), (2, 0))):
        drawn = call(name, rows, cols, 1)
        assert (drawn[0].tolist(), drawn[1].tolist()) == ([want[0]], [want[1]]) and drawn[0].dtype == torch.int32


@EACH_CANDIDATES
def test_candidates_by_hand(name):
    # Only row 1 and columns 0 and 2 can be drawn; (1, 0) is active already.
    crow, col = torch.tensor([0, 1, 2, 2, 2], dtype=torch.int32), torch.tensor([2, 0], dtype=torch.int32)
    rows, cols, count = call(name, torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 1.0]), crow, col, 20, op="gse_candidates")
    assert rows.tolist() == [1] + [-1] * 19 and cols.tolist() == [2] + [-1] * 19
    assert count.tolist() == 1 and count.dtype == torch.int64 and rows.dtype == cols.dtype == torch.int32


@EACH_CANDIDATES
def test_a_matrix_half_full_gives_its_complement(name):
    crow, col = torch.tensor([0, 2, 2, 3]), torch.tensor([0, 1, 1], dtype=torch.int32)
    for weights in (torch.ones(2), torch.zeros(2)):                               # whatever the weights
        rows, cols, count = call(name, torch.ones(3), weights, crow, col, 99, op="gse_candidates")
        assert rows.tolist() == [1, 1, 2] and cols.tolist() == [0, 1, 0] and count == 3
    rows, cols, count = call(name, torch.ones(3), torch.ones(3), crow, col, 4, op="gse_candidates")        # a third full: sampled
    assert rows.numel() == 4 and count <= 4


# ---- agreement ----

SHAPES = [(50, 40), (1, 1), (1, 9000), (7, 4096), (300, 5000), (4097, 3), (33, 4160)]


@pytest.mark.parametrize("rows, cols", SHAPES)
def test_cpu_agrees(isa, rows, cols):
    for weights in ((torch.randn(rows), torch.randn(cols)), (torch.rand(rows) ** 30, torch.rand(cols) ** 9), (torch.zeros(rows), torch.ones(cols))):
        for samples, seed in ((1, 0), (7, -3), (1001, 2**63 - 1)):
            assert same(call("cpu", *weights, samples, seed=seed), call("reference", *weights, samples, seed=seed))


@pytest.mark.parametrize("sparsity", [1.0, 0.99, 0.9, 0.51, 0.5, 0.3, 0.0])
@pytest.mark.parametrize("rows, cols", SHAPES)
def test_candidates_agree(isa, rows, cols, sparsity):
    crow, col, _ = random_csr(rows, cols, sparsity, index64=rows % 2 == 1)
    weights = torch.randn(rows), torch.rand(cols)
    for samples, rounds in ((0, 1), (1, 1), (500, 1), (3000, 4)):
        want = call("reference", *weights, crow, col, samples, op="gse_candidates", rounds=rounds)
        assert same(call("cpu", *weights, crow, col, samples, op="gse_candidates", rounds=rounds), want)


def test_same_bits_for_every_thread_count():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    crow, col, _ = random_csr(700, 900, 0.9)
    weights = torch.rand(700), torch.rand(900)
    one = gse_candidates(*weights, crow, col, 200_003, seed=5, rounds=2), sample_product(*weights, 200_003, seed=5)
    for count in (1, 2, 3):
        with threads(count):
            assert same(one[0], gse_candidates(*weights, crow, col, 200_003, seed=5, rounds=2))
            assert same(one[1], sample_product(*weights, 200_003, seed=5))


def test_strided_weights_and_seed_of_any_shape():
    weights, step = torch.rand(80, 2), torch.rand(40)
    want = sample_product(weights[:, 0].contiguous(), step, 99, seed=7)
    assert same(sample_product(weights[:, 0], step, 99, seed=torch.tensor([7])), want)
    assert same(sample_product(weights[:, 0], step, 99, seed=torch.tensor([[7, 8]])[:, :1]), want)


# ---- properties ----

@pytest.mark.parametrize("name", each_implementation("gse_candidates"))
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_candidates_are_the_first_samples_without_the_active_and_the_repeated(name, rounds):
    rows, cols, wanted = 30, 50, 600
    crow, col, _ = random_csr(rows, cols, 0.7)
    weights = torch.rand(rows), torch.rand(cols)
    active = set(keys(torch.repeat_interleave(torch.arange(rows), crow.diff()), col, cols).tolist())
    stream = keys(*call("reference", *weights, wanted * rounds, seed=9), cols).tolist()
    found, at = set(), 0
    for _ in range(rounds):                                                      # every round fills up what is missing
        take = wanted - len(found)
        found |= set(stream[at:at + take]) - active
        at += take
    r, c, count = call(name, *weights, crow, col, wanted, op="gse_candidates", seed=9, rounds=rounds)
    assert keys(r, c, cols, count).tolist() == sorted(found) and count < wanted
    assert (r[count:] == -1).all() and (c[count:] == -1).all()


def test_all_that_was_asked_for_comes_when_there_is_room():
    crow, col, _ = random_csr(400, 400, 0.95)
    for rounds in (8, 100):
        _, _, count = gse_candidates(torch.rand(400), torch.rand(400), crow, col, 5000, seed=1, rounds=rounds)
        assert count == 5000
    # All 90 inactive positions of a matrix of 100, and then nothing more to draw.
    crow, col, _ = random_csr(10, 10, 0.9)
    _, _, count = gse_candidates(torch.ones(10), torch.ones(10), crow, col, 1000, seed=1, rounds=1000)
    assert count == 90


@EACH
def test_a_shorter_run_is_the_start_of_a_longer_one(name):
    weights = torch.rand(30), torch.rand(77)
    long = call(name, *weights, 1000, seed=4)
    for samples in (0, 1, 8, 15, 999):
        assert same(call(name, *weights, samples, seed=4), [t[:samples] for t in long])
    assert not same(long, call(name, *weights, 1000, seed=5))


@given(st.lists(st.one_of(st.sampled_from([0.0, -0.0, -1.0, NAN, 1e-45, 1.0]), st.floats(0, 2.0**127, width=32)), min_size=1, max_size=40),
       st.integers(-2**63, 2**63 - 1), st.integers(-20, 20))
@settings(max_examples=100, deadline=None)
def test_weight_zero_is_never_drawn_and_scale_does_not_matter(weights, seed, power):
    w, other = torch.tensor(weights), torch.ones(3)
    rows, cols = sample_product(w, other, 200, seed=seed)
    assert same((rows, cols), call("reference", w, other, 200, seed=seed))
    able = w > 0
    assert able[rows].all() or not able.any()
    scaled = w * 2.0**power
    if torch.equal(scaled / 2.0**power, w.nan_to_num(NAN)) and scaled.isfinite().all():
        assert same((rows, cols), sample_product(scaled, other, 200, seed=seed))


def test_hopeless_weights_are_uniform():
    for weights in (torch.zeros(5), torch.full((5,), NAN), -torch.ones(5)):
        assert same(sample_product(weights, torch.ones(3), 300, seed=2), sample_product(torch.ones(5), torch.ones(3), 300, seed=2))


# ---- the distribution ----

def assert_distribution(samples, seeds):
    rows, cols = 40, 25
    f, g = torch.rand(rows) ** 3, torch.rand(cols)
    f[7], g[3] = 0, NAN
    share = torch.outer(f.double(), g.nan_to_num(0).double()).flatten()
    expected = share / share.sum() * samples
    for seed in seeds:
        r, c = sample_product(f, g, samples, seed=seed)
        p = chi_square_p(torch.bincount(keys(r, c, cols), minlength=rows * cols).double(), expected)
        assert p > 0.001, (seed, p)


def test_draws_follow_the_product_of_the_weights():
    assert_distribution(1_000_000, range(3))


@pytest.mark.slow
def test_ten_million_draws_follow_the_product_of_the_weights():
    assert_distribution(10_000_000, range(100, 120))


def test_a_wrong_distribution_is_seen():
    r, c = sample_product(torch.ones(10), torch.ones(10), 1_000_000, seed=0)
    off = torch.ones(100, dtype=torch.float64)
    off[:10] *= 1.05
    assert chi_square_p(torch.bincount(keys(r, c, 10), minlength=100).double(), off / off.sum() * 1_000_000) < 1e-6


def test_a_batch_of_one_is_sampled_in_proportion_to_the_gradient():
    # The gradient of one sample is the outer product of delta and h, so the product of activities is its magnitude, exactly.
    h, delta = torch.randn(1, 23), torch.randn(1, 17)
    f, q = ops.activity(h), ops.activity(delta)
    gradient = torch.outer(delta[0].double(), h[0].double()).abs()
    torch.testing.assert_close(torch.outer(q.double(), f.double()), gradient, rtol=0, atol=0)
    tables = [cumulative_table("op", "w", w).diff(prepend=torch.zeros(1, dtype=torch.int64)).double() for w in (q, f)]
    share = torch.outer(*tables) / torch.outer(*tables).sum()
    torch.testing.assert_close(share, gradient / gradient.sum(), rtol=1e-8, atol=0)            # weights rounded to 2^-38 of the largest
    r, c = sample_product(q, f, 1_000_000, seed=11)
    assert chi_square_p(torch.bincount(keys(r, c, 23), minlength=17 * 23).double(), share.flatten() * 1_000_000) > 0.001


# ---- hostile ----

@EACH_CANDIDATES
def test_nothing_to_draw_from(name):
    for rows, cols in ((0, 0), (0, 5), (5, 0)):
        r, c, count = call(name, torch.ones(rows), torch.ones(cols), *empty_pattern(rows), 10, op="gse_candidates")
        assert r.shape == c.shape == (0,) and count == 0
    r, c, count = call(name, torch.ones(3), torch.ones(2), torch.tensor([0, 2, 4, 6]), torch.tensor([0, 1] * 3, dtype=torch.int32), 5,
                       op="gse_candidates")                                       # full
    assert r.shape == (0,) and count == 0
    r, c, count = call(name, torch.ones(3), torch.ones(2), *empty_pattern(3), 0, op="gse_candidates")
    assert r.shape == (0,) and count == 0
    assert call(name, torch.ones(0), torch.ones(0), 0)[0].shape == (0,)
    r, c, count = call(name, torch.ones(3), torch.ones(2), *empty_pattern(3), 4000, op="gse_candidates")
    assert keys(r, c, 2, count).tolist() == list(range(6))


@EACH
def test_extreme_weights(name):
    # The tiny weights of 2^20 items count one each beside 2^38: some 4 of a million draws.
    weights = torch.full((2**20,), 1e-40)
    weights[2**19] = 1.0
    rows, cols = call(name, weights, torch.tensor([3.4028235e38, 3.4028235e38]), 100_000, seed=8)
    assert (rows != 2**19).sum() < 20 and set(cols.tolist()) == {0, 1}


# ---- citizenship ----

def test_opcheck():
    crow, col, _ = random_csr(6, 9, 0.8)
    weights, seed = (torch.rand(6), torch.rand(9)), torch.tensor(3)
    torch.library.opcheck(torch.ops.sparsekern.sample_product.default, (*weights, 20), {"seed": seed})
    torch.library.opcheck(torch.ops.sparsekern.gse_candidates.default, (*weights, crow, col, 20), {"seed": seed, "rounds": 2})
    torch.library.opcheck(torch.ops.sparsekern.gse_candidates.default, (*weights, *random_csr(6, 9, 0.3)[:2], 20), {"seed": seed})


def test_compiles_whole():
    crow, col, _ = random_csr(30, 40, 0.9)

    def step(x, y, seed):
        rows, cols, count = gse_candidates(y.abs().sum(0), x.abs().sum(0), crow, col, 50, seed=seed, rounds=2)
        return rows, cols, count, *sample_product(y.abs().sum(0), x.abs().sum(0), 5, seed=seed)

    arguments = torch.randn(8, 40), torch.randn(8, 30), torch.tensor(6)
    assert same(torch.compile(step, fullgraph=True)(*arguments), step(*arguments))


# ---- misuse ----

@pytest.mark.parametrize("change, error, words", [
    ({"row_weights": torch.ones(3, dtype=torch.float64)}, TypeError, r"row_weights: expected float32, got .*; convert it with \.float\(\)"),
    ({"col_weights": torch.ones(4, dtype=torch.int64)}, TypeError, r"col_weights: expected float32"),
    ({"col_weights": torch.ones(2, 2)}, ValueError, r"col_weights: expected one dimension and at most 2\^24 weights, got shape \[2, 2\]"),
    ({"row_weights": torch.ones(1).expand(2**24 + 1)}, ValueError, r"row_weights: expected one dimension and at most 2\^24 weights"),
    ({"col_weights": torch.tensor([0.0, 1.0, INF, 1.0])}, ValueError, r"col_weights: expected finite weights, got inf at 2"),
    ({"row_weights": torch.tensor([0.0, -INF, 1.0])}, ValueError, r"row_weights: expected finite weights, got -inf at 1"),
    ({"num_samples": -1}, ValueError, r"num_samples: expected a number >= 0, got -1"),
    ({"num_samples": 2**31}, ValueError, r"num_samples: expected fewer than 2\^31, got 2147483648"),
    ({"seed": torch.tensor(1.0)}, TypeError, r"seed: expected int64, got"),
    ({"seed": torch.tensor([1, 2])}, ValueError, r"seed: expected one number, got shape \[2\]"),
])
@EACH
def test_misuse(name, change, error, words):
    arguments = {"row_weights": torch.ones(3), "col_weights": torch.ones(4), "num_samples": 5, "seed": torch.tensor(0)} | change
    with pytest.raises(error, match=r"sample_product: " + words):
        ops.implementations("sample_product")[name](**arguments)
    pattern = {"crow": torch.zeros(arguments["row_weights"].numel() + 1, dtype=torch.int32), "col": torch.empty(0, dtype=torch.int32)}
    with pytest.raises(error, match=r"gse_candidates: " + words):
        ops.implementations("gse_candidates")[name](**arguments, **pattern)


@EACH
def test_nothing_to_sample_from(name):
    with pytest.raises(ValueError, match="sample_product: row_weights: expected at least one weight to draw from, got none"):
        call(name, torch.ones(0), torch.ones(4), 1)
    with pytest.raises(ValueError, match="sample_product: col_weights: expected at least one weight to draw from, got none"):
        call(name, torch.ones(4), torch.ones(0), 1)


@pytest.mark.parametrize("crow, col, error, words", [
    ([0, 1, 2], [0, 1], ValueError, "crow: expected 4 row pointers for 3 rows, got 3"),
    ([1, 1, 1, 2], [0, 1], ValueError, "crow: expected to start at 0, got 1"),
    ([0, 2, 1, 2], [0, 1], ValueError, "crow: expected row pointers that never fall, got 2 then 1 at row 1"),
    ([0, 1, 1, 1], [0, 1], ValueError, r"crow: expected the last row pointer to be the number of columns stored \(2\), got 1"),
    ([0, 1, 1, 2], [0, 4], ValueError, r"col: expected columns in \[0, 4\), got 4 in row 2, position 1"),
    ([0, 0, 2, 6], [3, 1, 0, 1, 2, 3], ValueError, "col: expected columns that rise within each row, got others in row 1"),
    ([0, 0, 2, 6], [1, 3, 0, 1, 1, 2], ValueError, "col: expected columns that rise within each row, got others in row 2"),
])
@EACH_CANDIDATES
def test_malformed_patterns(name, crow, col, error, words):
    with pytest.raises(error, match="gse_candidates: " + words):
        call(name, torch.ones(3), torch.ones(4), torch.tensor(crow), torch.tensor(col, dtype=torch.int32), 5, op="gse_candidates")


@EACH_CANDIDATES
def test_rounds_below_one(name):
    with pytest.raises(ValueError, match="gse_candidates: rounds: expected a number >= 1, got 0"):
        call(name, torch.ones(3), torch.ones(4), *empty_pattern(3), 5, op="gse_candidates", rounds=0)

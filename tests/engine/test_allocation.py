"""How a budget is shared among layers: sums are exact, ERK solves its epsilon, a ranking empties no layer."""
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsekern.sparsity.allocation import erdos_renyi, global_masks, largest_remainder, uniform
from sparsekern.sparsity.patterns import Unstructured, kept


def test_rounding_is_half_up():
    assert kept(10, 0.95) == 1 and kept(10, 0.96) == 0 and kept(1000, 0.9) == 100 and kept(7, 0.0) == 7


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 90, float("nan")])
def test_a_sparsity_is_a_fraction(sparsity):
    with pytest.raises(ValueError, match=r"expected a fraction of zeros in \[0, 1\)"):
        Unstructured(sparsity)


def test_largest_remainder_by_hand():
    assert largest_remainder([1.6, 1.3, 1.1], 4, [9, 9, 9]) == [2, 1, 1]
    assert largest_remainder([0.5, 0.5], 1, [1, 1]) == [1, 0]
    assert largest_remainder([1.9, 0.1], 2, [1, 5]) == [1, 1]
    with pytest.raises(ValueError, match="expected 0 to 2"):
        largest_remainder([1.0, 1.0], 3, [1, 1])


def test_erk_by_hand():
    # raw factors 4/4 = 1, 20/100 = 0.2; 54 of 104: epsilon 2.25 would fill the first layer, so it is dense and the rest gets 50
    assert erdos_renyi([torch.Size([2, 2]), torch.Size([10, 10])], 54) == [4, 50]
    assert erdos_renyi([torch.Size([2, 2]), torch.Size([10, 10])], 104) == [4, 100]


def test_erk_density_follows_the_factor_where_nothing_is_full():
    shapes = [torch.Size([64, 32, 3, 3]), torch.Size([128, 64, 3, 3]), torch.Size([256, 128])]
    sizes = [math.prod(s) for s in shapes]
    counts = erdos_renyi(shapes, sum(sizes) // 20)
    ratios = [count / size / (sum(shape) / size) for count, size, shape in zip(counts, sizes, shapes)]
    assert max(ratios) / min(ratios) < 1.001


shapes = st.lists(st.one_of(st.tuples(st.integers(1, 40), st.integers(1, 40)),
                            st.tuples(st.integers(1, 16), st.integers(1, 16), st.just(3), st.just(3))), min_size=1, max_size=8)


@given(shapes, st.floats(0, 1))
def test_every_allocation_sums_to_the_budget(shapes, density):
    shapes = [torch.Size(shape) for shape in shapes]
    sizes = [math.prod(shape) for shape in shapes]
    total = round(density * sum(sizes))
    for counts in (uniform(shapes, total), erdos_renyi(shapes, total), erdos_renyi(shapes, total, kernel=False)):
        assert sum(counts) == total and all(0 <= count <= size for count, size in zip(counts, sizes))


def test_global_masks_are_one_ranking():
    masks, counts, _ = global_masks([torch.tensor([3.0, -5.0, 1.0]), torch.tensor([[-4.0, 0.5]])], 3)
    assert masks[0].tolist() == [True, True, False] and masks[1].tolist() == [[True, False]] and counts == [2, 1]


def test_a_layer_that_the_ranking_would_empty_keeps_its_best():
    weak, strong = torch.tensor([0.01, 0.03, 0.02]), torch.arange(1.0, 11.0)
    masks, counts, flags = global_masks([strong, weak], 4, min_per_layer=2, flags=torch.tensor([7]))
    assert counts == [2, 2] and masks[1].tolist() == [False, True, True] and masks[0].tolist() == [False] * 8 + [True] * 2 and flags == [7]
    _, counts, _ = global_masks([strong, weak], 3, min_per_layer=2, eligible=[strong > 9, weak > 0], largest_possible=[1, 3])
    assert counts == [1, 2]                                         # a layer with one candidate cannot keep two
    with pytest.raises(ValueError, match="cannot keep 2 in each of 2 layers"):
        global_masks([strong, weak], 3, min_per_layer=2)

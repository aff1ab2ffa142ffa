"""N:M patterns and groups: n is the number kept, groups run along the input channels, what has no groups is named."""
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsekern import ops
from sparsekern.sparsity import NM
from sparsekern.sparsity.layers import find_layers
from sparsekern.sparsity.nm_groups import expand, group_scores, groupable, obstacle

# The pattern.

@pytest.mark.parametrize("text, keep, group, sparsity", [
    ("2:4", 2, 4, 0.5), ("1:16", 1, 16, 0.9375), (" 4:4 ", 4, 4, 0.0), ("zeros 3:4", 1, 4, 0.75), ("zeros 15:16", 1, 16, 0.9375),
    ("zeros 7:8", 1, 8, 0.875), ("zeros 2:4", 2, 4, 0.5), ("64:64", 64, 64, 0.0)])
def test_n_is_the_number_kept_unless_zeros_are_spelled_out(text, keep, group, sparsity):
    pattern = NM.parse(text)
    assert pattern == NM(keep, group) and pattern.sparsity == sparsity
    assert str(pattern) == f"{keep}:{group}" and NM.parse(str(pattern)) == pattern
    assert pattern.nnz(5 * group) == 5 * keep


@pytest.mark.parametrize("text, message", [
    ("4:2", "expected 1 to 2 weights kept of each group, got 4:2; n is the number kept"), ("0:4", "expected 1 to 4"),
    ("2:65", "groups of 1 to 64"), ("0:0", "groups of 1 to 64"), ("zeros 4:4", "fewer zeros than the 4 weights"), ("2/4", "got '2/4'"),
    ("zero 2:4", "or the zeros of m, such as 'zeros 3:4', got 'zero 2:4'"), ("-2:4", "n kept of m"), ("", "n kept of m"),
    ("2:4:8", "n kept of m"), ("٢:4", "n kept of m")])
def test_other_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        NM.parse(text)


def test_a_list_of_patterns():
    assert NM.parse_all("2:4, zeros 3:4,1:8") == NM.parse_all(["2:4", "1:4", "1:8"]) == [NM(2, 4), NM(1, 4), NM(1, 8)]
    for wrong in (124, [124, "1:4"]):
        with pytest.raises(TypeError, match="got 124; YAML reads an unquoted 2:4 as a number"):
            NM.parse_all(wrong)


def test_a_part_of_a_group_has_no_number():
    with pytest.raises(ValueError, match="2:4: expected whole groups of 4, got 10 weights"):
        NM(2, 4).nnz(10)


# Which layers.

def mixed():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1, groups=2), nn.Conv2d(16, 8, 3),
                         nn.Conv2d(8, 8, 1), nn.Linear(10, 4))


def test_what_has_no_groups_is_left_dense_and_named():
    layers = find_layers(mixed(), skip_first=False)
    with pytest.warns(UserWarning, match=r"left dense: 0.weight by 2:4 \(its 3 inputs do not divide into groups of 4\), 1.weight"):
        found, left = groupable(layers, [NM(2, 4), NM(1, 16)])
    assert [layer.name for layer in found] == ["3.weight", "4.weight"]
    assert list(left["2:4"]) == ["0.weight", "1.weight", "2.weight", "5.weight"]
    assert list(left["1:16"]) == ["0.weight", "1.weight", "2.weight", "4.weight", "5.weight"]
    assert left["1:16"]["4.weight"] == "its 8 inputs do not divide into groups of 16"
    assert left["2:4"]["1.weight"].startswith("a depthwise convolution (8 groups")
    assert left["2:4"]["2.weight"].startswith("a grouped convolution (2 groups")


def test_a_pattern_that_fits_nothing_is_refused():
    with pytest.raises(ValueError, match="1:32 fits no layer: 0.weight: its 3 inputs do not divide into groups of 32; 1.weight: a depthwise"):
        groupable(find_layers(mixed(), skip_first=False), [NM(1, 32)])


def test_no_word_where_everything_fits(recwarn):
    layers = find_layers(nn.Sequential(nn.Linear(8, 3), nn.Conv2d(4, 2, 3)), skip_first=False)
    assert groupable(layers, [NM(2, 4)]) == (layers, {"2:4": {}}) and not recwarn and obstacle(layers[0], NM(3, 8)) is None


# Scores and masks.

def test_scores_of_groups_by_hand():
    x = torch.tensor([[1.0, -2.0, 0.5, 0.0], [-0.0, 3.0, -4.0, 1.0]])
    assert group_scores(x, 2).tolist() == [[3.0, 0.5], [3.0, 5.0]]
    # along the channels, for every tap on its own
    w = torch.arange(16.0).view(1, 4, 2, 2)
    assert group_scores(w, 2).tolist() == [[[[0 + 4.0, 1 + 5.0], [2 + 6.0, 3 + 7.0]], [[8 + 12.0, 9 + 13.0], [10 + 14.0, 11 + 15.0]]]]
    assert expand(torch.tensor([[True, False]]), 2).tolist() == [[True, True, False, False]]


@given(st.integers(0, 3), st.integers(0, 3), st.sampled_from([1, 2, 4, 16]), st.sampled_from([(), (3, 3), (1, 2)]),
       st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.booleans(), st.integers(0, 99))
def test_groups_are_those_of_nm_mask(rows, groups, m, taps, dtype, channels_last, seed):
    x = torch.randn(rows, groups * m, *taps, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if channels_last and taps:
        x = x.to(memory_format=torch.channels_last)
    scores = group_scores(x, m)
    lines = x.movedim(1, -1).unflatten(-1, (groups, m)) if groups else x.movedim(1, -1).reshape(*x.movedim(1, -1).shape[:-1], 0, m)
    wanted = lines.double().abs().sum(-1).movedim(-1, 1)
    torch.testing.assert_close(scores.double(), wanted, rtol=1e-5, atol=1e-6)
    assert scores.is_contiguous() and scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert expand(scores, m).shape == x.shape
    kept = ops.nm_mask(x, 1, m, dim=1)
    assert torch.equal(group_scores(kept.float(), m), torch.ones_like(scores, dtype=torch.float32))

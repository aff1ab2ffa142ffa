"""Taps: what hooks see of a layer, against unfolding and autograd."""
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsekern.nn import SparseConv2d, SparseLinear
from sparsekern.ops._philox import random_signs
from sparsekern.sparsity.taps import Tap, activities, candidates, gradient_at

pytestmark = pytest.mark.filterwarnings("ignore:Using padding=.same.")

LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (3, 5)),
    "one row": (lambda: nn.Linear(5, 4), (5,)),
    "tokens": (lambda: nn.Linear(5, 4), (2, 3, 5)),
    "conv": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 6, 5)),
    "one image": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
    "geometry": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 2, 7, 6)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, stride=2), (2, 4, 7, 7)),
    "same": (lambda: nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 2, 5, 6)),
    "valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid"), (2, 2, 5, 6)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"), (2, 2, 5, 6)),
    "1x1": (lambda: nn.Conv2d(3, 4, 1), (2, 3, 4, 4)),
}


def passed(name):
    """A float64 layer, its input, and what a tap sees of one pass."""
    make, shape = LAYERS[name]
    module, seen = make().double(), []
    tap = Tap([module], lambda *what: seen.append(what))
    tap.open = True
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = module(x)
    (y * torch.randn_like(y)).sum().backward()
    (same, h, delta), = seen
    assert same is module and torch.equal(h, x) and delta.shape == y.shape and not h.requires_grad
    return module, h, delta


def columns(module, h, delta):
    """[groups, cols, B] and [groups, rows / groups, B] by unfolding: every layer as a matrix product."""
    if isinstance(module, nn.Linear):
        return h.reshape(-1, h.shape[-1]).T[None], delta.reshape(-1, delta.shape[-1]).T[None]
    h, delta = (t if t.dim() == 4 else t[None] for t in (h, delta))
    mode = {"zeros": "constant"}.get(module.padding_mode, module.padding_mode)
    h = F.pad(h, module._reversed_padding_repeated_twice, mode=mode)
    patches = F.unfold(h, module.kernel_size, module.dilation, 0, module.stride)            # [N, C k k, positions]
    groups = module.groups
    patches = patches.transpose(0, 1).reshape(groups, patches.shape[1] // groups, -1)
    return patches, delta.flatten(2).transpose(0, 1).reshape(groups, delta.shape[1] // groups, -1)


@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_at_every_position_is_that_of_autograd(name):
    module, h, delta = passed(name)
    rows = module.weight.shape[0]
    cols = module.weight[0].numel()
    every = torch.arange(rows * cols, dtype=torch.int32)
    found = gradient_at(module, h, delta, every // cols, every % cols)
    torch.testing.assert_close(found.view_as(module.weight), module.weight.grad)
    chosen = every[torch.rand(len(every)) < 0.4]
    torch.testing.assert_close(gradient_at(module, h, delta, chosen // cols, chosen % cols), module.weight.grad.flatten()[chosen.long()])
    assert gradient_at(module, h, delta, chosen[:0], chosen[:0]).shape == (0,)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("signed", [False, True])
def test_activities_are_sums_over_unfolded_positions(name, signed):
    module, h, delta = passed(name)
    inside, outside = columns(module, h, delta)
    signs = random_signs(torch.tensor(7), 0, inside.shape[2]).double()
    wanted = [(t * signs if signed else t.abs()).sum(2) for t in (outside, inside)]
    rows, cols = activities(module, h, delta, signed=signed, seed=7)
    torch.testing.assert_close(rows.double(), wanted[0].flatten())
    torch.testing.assert_close(cols.double(), wanted[1])
    if not signed:                                          # the triangle inequality
        bound = rows.view(len(cols), -1, 1) * cols[:, None]
        assert (module.weight.grad.flatten(1).view_as(bound).abs() <= bound * (1 + 1e-9)).all()


def test_of_one_sample_the_product_is_the_gradient():
    module = nn.Linear(6, 5).double()
    h, delta = torch.randn(1, 6, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    rows, cols = activities(module, h, delta)
    torch.testing.assert_close(rows[:, None] * cols, (delta.T @ h).abs())


def test_the_signed_product_estimates_the_gradient():
    module = nn.Linear(3, 2)
    h, delta = torch.randn(8, 3), torch.randn(8, 2)
    total = torch.zeros(2, 3)
    for seed in range(4000):
        rows, cols = activities(module, h, delta, signed=True, seed=seed)
        total += rows[:, None] * cols
    torch.testing.assert_close(total / 4000, delta.T @ h, rtol=0, atol=0.4)


def test_sparse_layers_are_seen_like_dense_ones():
    for dense, sparse in ((nn.Linear(6, 4), SparseLinear), (nn.Conv2d(4, 6, 3, groups=2, padding=1), SparseConv2d)):
        module, seen = sparse.from_dense(dense, torch.rand(dense.weight.shape) < 0.5), []
        tap = Tap([module], lambda *what, seen=seen: seen.append(what))
        tap.open = True
        x = torch.randn((5, 6) if sparse is SparseLinear else (2, 4, 5, 5))
        module(x).square().sum().backward()
        (_, h, delta), = seen
        places = torch.repeat_interleave(torch.arange(module.rows), module.crow.diff()).int()
        torch.testing.assert_close(gradient_at(module, h, delta, places, module.col), module.values.grad)
        assert [len(t) for t in activities(module, h, delta)] == [module.rows, getattr(module, "groups", 1)]


def test_a_tap_sees_what_it_is_open_for():
    module, seen = nn.Linear(4, 3), []
    tap = Tap([module], lambda *what: seen.append(what))
    module(torch.randn(2, 4)).sum().backward()
    tap.open = True
    with torch.no_grad():
        module(torch.randn(2, 4))
    assert seen == []
    F.relu(module(torch.randn(2, 4)), inplace=True).sum().backward()    # delta is that of the layer, not of what followed in place
    assert len(seen) == 1 and seen[0][2].shape == (2, 3)
    (module(input=torch.ones(1, 4)) + module(torch.zeros(1, 4))).sum().backward()
    assert sorted(h.sum().item() for _, h, _ in seen[1:]) == [0, 4]
    tap.remove()
    module(torch.randn(2, 4)).sum().backward()
    assert len(seen) == 3


# Candidates.


def test_candidates_are_inactive_distinct_and_sorted_in_every_group():
    crow, col = torch.tensor([0, 2, 2, 3, 4], dtype=torch.int32), torch.tensor([0, 3, 1, 4], dtype=torch.int32)
    for factor in (0.5, 1.0, 30.0):
        rows, cols = candidates(torch.ones(4), torch.ones(2, 5), crow, col, factor, seed=3)
        keys = rows.long() * 5 + cols
        assert (keys[1:] > keys[:-1]).all() and not {0, 3, 11, 19} & set(keys.tolist())
        assert len(keys) <= 2 * max(1, round(factor * 2))
    assert set(keys.tolist()) == set(range(20)) - {0, 3, 11, 19}


def test_units_at_rest_are_not_drawn_and_useless_factors_count_as_uniform():
    crow, col = torch.tensor([0, 1, 1, 1]), torch.tensor([0], dtype=torch.int32)
    at_work = torch.tensor([0.0, 1.0, 0.0])
    rows, cols = candidates(at_work, torch.tensor([[0.0, -2.0, 0.0, 1.0]]), crow, col, 50.0, seed=1)
    assert [rows.tolist(), cols.tolist()] == [[1, 1], [1, 3]]
    for useless in (torch.zeros(3), torch.tensor([1.0, torch.inf, 1.0]), torch.tensor([1.0, torch.nan, 1.0])):
        rows, _ = candidates(useless, torch.ones(1, 4), crow, col, 100.0, seed=1)
        assert rows.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_of_a_half_full_layer_every_inactive_connection_is_a_candidate():
    crow, col = torch.tensor([0, 2, 4, 6]), torch.tensor([0, 1, 1, 2, 0, 3], dtype=torch.int32)
    rows, cols = candidates(torch.tensor([0.0, 0.0, 1.0]), torch.ones(1, 4), crow, col, 0.1, seed=1)
    assert (rows.long() * 4 + cols).tolist() == [2, 3, 4, 7, 9, 10]

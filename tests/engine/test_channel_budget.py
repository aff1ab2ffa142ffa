"""Channels under a latency: bundles and costs worked by hand, every choice against brute force, budgets always met."""
import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparsekern.sparsity.channel_budget import ChannelBudget
from sparsekern.sparsity.channel_groups import ChannelGroup
from sparsekern.sparsity.latency import Entry, LatencyTable

GROUPS = [ChannelGroup("a", 8, ("a",), (), (("b", 1),)), ChannelGroup("b", 6, ("b", "dw"), (), (("fc", 4),)),
          ChannelGroup("fc", 10, ("fc",), (), (), "model output")]


def product(inputs, outputs, per=1.0) -> Entry:
    """per microseconds for each pair of channels."""
    return Entry(tuple(inputs), tuple(outputs), tuple(tuple(per * i * o / 1000 for o in outputs) for i in inputs))


def table() -> LatencyTable:
    """a: 3 -> 8, b: 8 -> 6 with a depthwise convolution behind it, fc: 24 -> 10. Full: 24 + 48 + 60 + 24 + 100 (rest) us."""
    entries = {"a": product([3], [2, 4, 6, 8]), "b": product([2, 4, 6, 8], [2, 4, 6]), "dw": Entry(None, (2, 4, 6), ((0.02, 0.04, 0.06),)),
               "fc": product([8, 16, 24], [10], 0.1)}
    return LatencyTable({}, {"a": ("a", (3, 8)), "b": ("b", (8, 6)), "dw": ("dw", (6, 6)), "fc": ("fc", (24, 10))}, entries, 0.1)


@pytest.fixture
def budget() -> ChannelBudget:
    return ChannelBudget(GROUPS, table(), bundle=2)


def importance(a, b) -> dict[str, torch.Tensor]:
    return {"a": torch.tensor(a, dtype=torch.float32), "b": torch.tensor(b, dtype=torch.float32)}


def whole() -> dict[str, torch.Tensor]:
    return {"a": torch.ones(8, dtype=torch.bool), "b": torch.ones(6, dtype=torch.bool)}


def nothing_more_fits(budget: ChannelBudget, counts: dict[str, int], ms: float) -> bool:
    """Whether a further bundle of any group would be too slow."""
    more = {name: min(group.channels, counts[name] + budget.bundle) for name, group in budget.groups.items()}
    return all(more[name] == counts[name] or budget.total_ms(counts | {name: more[name]}) > ms for name in more)


def on(mask: torch.Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def kept(masks) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks.items()}


# ---- widths and milliseconds ----

def test_widths_follow_the_groups(budget):
    assert budget.widths({"a": 4, "b": 2}) == {"a": (3, 4), "b": (4, 2), "dw": (2, 2), "fc": (8, 10)}
    assert budget.widths({}) == {"a": (3, 8), "b": (8, 6), "dw": (6, 6), "fc": (24, 10)}


def test_totals_and_limits(budget):
    assert budget.total_ms({"a": 4, "b": 2}) == pytest.approx(0.1 + 0.012 + 0.008 + 0.02 + 0.008)
    smallest, full = budget.limits()
    assert full == pytest.approx(0.256) and smallest == pytest.approx(0.1 + 0.006 + 0.004 + 0.02 + 0.008)
    assert ChannelBudget(GROUPS, table(), bundle=2, min_keep=9).limits()[0] == pytest.approx(full)


def test_bundles_are_runs_of_the_ranking_with_ties_to_the_lower_channel(budget):
    parts = budget._bundles("a", whole()["a"], importance([1, 5, 3, 3, 5, 0, 3, 9], [0] * 6)["a"])
    assert [part.tolist() for part in parts] == [[7, 1], [4, 2], [3, 6], [0, 5]]


def test_a_bundle_costs_what_its_producers_gain_and_a_depthwise_layer_counts_with_them(budget):
    parts = [torch.arange(2)] * 3
    assert budget._steps("b", budget.widths({"a": 4, "b": 6}), 0, parts) == pytest.approx([0.008 + 0.02] * 3)
    assert budget._steps("a", budget.widths({}), 4, parts[:2]) == pytest.approx([0.006] * 2)


# ---- pruning ----

def test_pruning_by_hand(budget):
    """With b's inputs at 8: bundles of a cost 6 us, those of b 16 + 20 us. At 190 us of 256, 66 must go, of which fc (20) is not counted:
    two bundles of b. Their consumer shrinks, too, so a bundle of a that was cut would have room again."""
    masks = budget.choose_keep(whole(), importance([8, 7, 6, 5, 4, 3, 2, 1], [1, 9, 1, 9, 1, 1]), 0.19)
    assert on(masks["b"]) == [1, 3] and on(masks["a"]) == list(range(8))
    assert budget.total_ms(kept(masks)) <= 0.19


def test_pruning_keeps_to_the_channels_there_are(budget):
    keep = whole()
    keep["a"][[0, 1, 2, 3]] = False
    masks = budget.choose_keep(keep, importance([99] * 4 + [1, 2, 3, 4], [1] * 6), 0.2)
    assert not on(masks["a"] & ~keep["a"]) and budget.total_ms(kept(masks)) <= 0.2


def test_the_whole_net_fits_its_own_latency(budget):
    masks = budget.choose_keep(whole(), importance([1] * 8, [1] * 6), budget.limits()[1])
    assert kept(masks) == {"a": 8, "b": 6}


def test_the_smallest_budget_gives_the_smallest_net(budget):
    masks = budget.choose_keep(whole(), importance(range(8), range(6)), budget.limits()[0])
    assert on(masks["a"]) == [6, 7] and on(masks["b"]) == [4, 5]


def test_min_keep(budget):
    budget = ChannelBudget(GROUPS, table(), bundle=2, min_keep=2)
    masks = budget.choose_keep(whole(), importance([1] * 8, [0] * 6), budget.limits()[0] + 1e-6)
    assert on(masks["a"]) == [0, 1, 2, 3] and on(masks["b"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("ms, words", [(0.1379, r"budget 0\.138 ms is below the smallest net 0\.138 ms .*full net takes 0\.256 ms"),
                                       (0.2561, r"budget 0\.256 ms is above the full net 0\.256 ms.*smallest net takes 0\.138 ms"),
                                       (float("nan"), "below the smallest net")])
def test_budgets_out_of_reach_name_both_limits(budget, ms, words):
    for choose in (lambda: budget.choose_keep(whole(), importance([1] * 8, [1] * 6), ms), lambda: budget.uniform_keep(ms)):
        with pytest.raises(ValueError, match=words):
            choose()


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), bundle=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_pruning_meets_every_budget_and_is_no_worse_than_any_other_choice_at_these_costs(seed, share, bundle):
    """Against brute force over all prefixes at the costs the choice is made with: the first knapsack is exact, what is added only helps."""
    budget = ChannelBudget(GROUPS, table(), bundle=bundle)
    draw = torch.Generator().manual_seed(seed)
    scores = {"a": torch.rand(8, generator=draw), "b": torch.rand(6, generator=draw)}
    smallest, full = budget.limits()
    ms = min(full, smallest + share * (full - smallest))
    masks = budget.choose_keep(whole(), scores, ms)
    assert budget.total_ms(kept(masks)) <= ms + 1e-9 and nothing_more_fits(budget, kept(masks), ms)
    parts = {name: budget._bundles(name, whole()[name], scores[name]) for name in scores}
    costs = {name: budget._steps(name, budget.widths({}), 0, parts[name]) for name in parts}
    values = budget._values(parts, scores)
    capacity = ms - (full - sum(map(sum, costs.values())))
    best = 0.0
    for counts in itertools.product(*(range(1, len(parts[name]) + 1) for name in parts)):
        if sum(sum(costs[name][:n]) for name, n in zip(parts, counts)) <= capacity * (1 - 1e-4):
            best = max(best, sum(sum(values[name][:n]) for name, n in zip(parts, counts)))
    assert sum(float(scores[name][mask].sum()) for name, mask in masks.items()) >= best * (1 - 1e-4)
    for name, mask in masks.items():                                                                # always the best of a group
        assert not on(~mask) or scores[name][mask].min() >= scores[name][~mask].max()


def test_the_same_choice_every_time(budget):
    flat = importance([1] * 8, [1] * 6)
    one, two = (budget.choose_keep(whole(), flat, 0.2) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(on(mask) == list(range(len(on(mask)))) for mask in one.values())                     # ties: the lower channels


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_unit_of_importance_does_not_matter(budget, scale):
    scores = importance([8, 7, 6, 5, 4, 3, 2, 1], [3, 9, 1, 9, 1, 2])
    masks = budget.choose_keep(whole(), {name: value * scale for name, value in scores.items()}, 0.2)
    wanted = budget.choose_keep(whole(), scores, 0.2)
    assert all(torch.equal(masks[name], wanted[name]) for name in masks)


def test_importances_that_rank_nothing_are_refused(budget):
    bad = importance([1] * 8, [1] * 6)
    bad["b"][3] = float("nan")
    with pytest.raises(ValueError, match="NaN in the importance of b; the masks are unchanged"):
        budget.choose_keep(whole(), bad, 0.2)
    with pytest.raises(ValueError, match=r"a: expected an importance of shape \[8\], got \[4\]"):
        budget.choose_keep(whole(), importance([1] * 4, [1] * 6), 0.2)


# ---- growing ----

def test_growing_by_hand(budget):
    """a at 4 and b at 2 take 148 us. Two more of a: 6 in a, 4 in b (its input), 158; two more of b would be 8 + 20 + 8."""
    keep = {"a": torch.arange(8) < 4, "b": torch.arange(6) < 2}
    masks = budget.choose_grow(keep, importance([0, 0, 0, 0, 1, 1, 2, 2], [9] * 6), 0.160)
    assert on(masks["a"]) == [0, 1, 2, 3, 6, 7] and on(masks["b"]) == [0, 1]
    masks = budget.choose_grow(keep, importance([0] * 8, [0, 0, 1, 2, 3, 9]), 0.184)
    assert on(masks["b"]) == [0, 1, 4, 5]


def test_growing_gives_back_what_does_not_fit_after_all():
    """The costs alone would take two bundles of a (6 us each in 12): the consumer makes them 10 each, so one goes back, the poorer."""
    budget = ChannelBudget(GROUPS, table(), bundle=2)
    keep = {"a": torch.arange(8) < 4, "b": torch.arange(6) < 2}
    masks = budget.choose_grow(keep, importance([0, 0, 0, 0, 3, 3, 1, 1], [0] * 6), 0.148 + 0.0121)
    assert on(masks["a"]) == [0, 1, 2, 3, 4, 5] and budget.total_ms(kept(masks)) == pytest.approx(0.158)


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), bundle=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_growing_loses_nothing_and_meets_every_budget(seed, share, bundle):
    budget = ChannelBudget(GROUPS, table(), bundle=bundle)
    draw = torch.Generator().manual_seed(seed)
    keep = {"a": torch.rand(8, generator=draw) < 0.5, "b": torch.rand(6, generator=draw) < 0.5}
    scores = {"a": torch.rand(8, generator=draw), "b": torch.rand(6, generator=draw)}
    now, full = budget.total_ms(kept(keep)), budget.limits()[1]
    masks = budget.choose_grow(keep, scores, now + share * (full - now))
    assert budget.total_ms(kept(masks)) <= now + share * (full - now) + 1e-9
    assert nothing_more_fits(budget, kept(masks), now + share * (full - now))
    assert not any(on(keep[name] & ~mask) for name, mask in masks.items())
    if share == 1:
        assert budget.total_ms(kept(masks)) <= full


def test_growing_where_there_is_no_room_is_refused(budget):
    with pytest.raises(ValueError, match=r"nothing can grow, 0\.256 ms are above the budget of 0\.200 ms"):
        budget.choose_grow(whole(), importance([1] * 8, [1] * 6), 0.2)


def test_a_wider_layer_may_be_faster(budget):
    """Where more channels cost less, they are taken for nothing."""
    t = table()
    t.entries["a"] = Entry((3,), (2, 4, 6, 8), ((0.03, 0.05, 0.01, 0.02),))
    budget = ChannelBudget(GROUPS, t, bundle=2)
    keep = {"a": torch.arange(8) < 4, "b": torch.arange(6) < 2}
    masks = budget.choose_grow(keep, importance([1] * 8, [1] * 6), budget.total_ms(kept(keep)))
    assert kept(masks)["a"] > 4 and budget.total_ms(kept(masks)) <= budget.total_ms(kept(keep))


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), bundle=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_budgets_are_met_where_narrower_inputs_are_slower(seed, share, bundle):
    """As on machines that like some widths better than others: the costs, counted at the inputs there are now, promise too much."""
    t, draw = table(), torch.Generator().manual_seed(seed)
    t.entries = {name: Entry(e.inputs, e.outputs, tuple(tuple(ms * float(0.1 + 2 * torch.rand((), generator=draw)) for ms in row) for row in e.ms))
                 for name, e in t.entries.items()}
    budget = ChannelBudget(GROUPS, t, bundle=bundle)
    smallest, full = budget.limits()
    assume(smallest < full)
    ms = min(full, smallest + share * (full - smallest))
    scores = {"a": torch.rand(8, generator=draw), "b": torch.rand(6, generator=draw)}
    masks = budget.choose_keep(whole(), scores, ms)
    assert budget.total_ms(kept(masks)) <= ms
    assert all(count >= min(bundle, budget.groups[name].channels) for name, count in kept(masks).items())


# ---- the start from scratch ----

def test_the_uniform_start_fills_the_budget_evenly(budget):
    masks = budget.uniform_keep(0.2, seed=3)
    count = kept(masks)
    assert budget.total_ms(count) <= 0.2
    shares = [share for share in (x / 1000 for x in range(1, 1001)) if budget.total_ms(
        {name: max(2, 2 * int(share * group.channels / 2 + 1e-9)) for name, group in budget.groups.items()}) <= 0.2]
    assert count == {name: max(2, 2 * int(max(shares) * group.channels / 2 + 1e-9)) for name, group in budget.groups.items()}
    assert on(masks["a"]) != on(budget.uniform_keep(0.2, seed=4)["a"]) or on(masks["b"]) != on(budget.uniform_keep(0.2, seed=4)["b"])
    assert all(torch.equal(masks[name], budget.uniform_keep(0.2, seed=3)[name]) for name in masks)


def test_the_uniform_start_at_both_ends(budget):
    smallest, full = budget.limits()
    assert kept(budget.uniform_keep(full)) == {"a": 8, "b": 6} and kept(budget.uniform_keep(smallest)) == {"a": 2, "b": 2}


# ---- what cannot be ----

def test_a_table_without_a_layer_is_refused():
    t = table()
    del t.layers["dw"]
    with pytest.raises(ValueError, match="no layer 'dw'"):
        ChannelBudget(GROUPS, t)


@pytest.mark.parametrize("change", [{"bundle": 0}, {"min_keep": 0}])
def test_settings_that_cannot_work(change):
    with pytest.raises(ValueError, match="bundle and min_keep of at least 1"):
        ChannelBudget(GROUPS, table(), **change)

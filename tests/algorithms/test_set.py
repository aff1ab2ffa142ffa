"""SET against its procedure: times, what is dropped, what is grown, exact sparsity, resume."""
import math

import pytest
import torch
from dynamic_runs import accuracy, assert_same_state, backward, make, one_thread, resumed, train  # noqa: F401

from sparsekern.sparsity.patterns import kept
from sparsekern.sparsity.scores import Sources, score

# The timeline.


@pytest.mark.parametrize("name, end", [("set", 0.75), ("rigl", 0.75)])
def test_default_times_are_shares_of_the_run(name, end):
    for total in (30, 700, 80_000):
        c = make(name, total_steps=total)[2].config
        assert c.delta_t == max(1, min(total // 100, 100 if name == "rigl" else total)) and c.end == int(end * total)


@pytest.mark.parametrize("delta_t, end, expected", [(5, 20, [4, 9, 14, 19]), (5, 19, [4, 9, 14, 19]), (5, 18, [4, 9, 14]), (1, 2, [0, 1, 2]),
                                                     (40, 20, []), (5, 10 ** 6, [4, 9, 14, 19, 24])])
def test_events_fall_on_every_delta_t_th_step_until_the_end(delta_t, end, expected):
    net, _, sparsifier = make("set", total_steps=25, delta_t=delta_t, end=end)
    train(net, sparsifier, range(25))
    assert [record["step"] for record in sparsifier.history] == expected
    assert [record["event"] for record in sparsifier.history] == list(range(1, len(expected) + 1))
    for record in sparsifier.history:
        assert record["fraction"] == (0.15 * (1 + math.cos(math.pi * record["step"] / end)) if record["step"] < end else 0)


def test_a_constant_share_is_the_original_schedule():
    net, _, sparsifier = make("set", total_steps=25, delta_t=5, end=20, prune_schedule="constant", prune_fraction=0.2)
    train(net, sparsifier, range(25))
    assert [record["fraction"] for record in sparsifier.history] == [0.2] * 4


# An event.


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_an_event_drops_the_smallest_and_grows_random_zeros_without_momentum(optimizer):
    net, opt, sparsifier = make("set", optimizer, delta_t=5, prune_schedule="constant", event_skips_update=True)
    train(net, sparsifier, range(4))
    weights, old = [w.detach().clone() for w in sparsifier.weights], [m.clone() for m in sparsifier.masks[sparsifier.net]]
    random = score("random", Sources(sparsifier.weights, seed=0, step=4))
    train(net, sparsifier, [4])
    for w, now, r, before, after in zip(weights, sparsifier.weights, random, old, sparsifier.masks[sparsifier.net]):
        count = int(0.3 * int(before.sum()))
        staying = before.flatten().clone()
        staying[w.abs().masked_fill(~before, math.inf).flatten().argsort(stable=True)[:count]] = False
        staying[r.masked_fill(before, -1).flatten().argsort(descending=True, stable=True)[:count]] = True
        assert torch.equal(after.flatten(), staying) and count > 0
        moved = before ^ after
        assert (now[moved] == 0).all() and torch.equal(now[~moved], w[~moved])
        shaped = [v for v in opt.state[now].values() if v.shape == now.shape]
        assert len(shaped) == (1 if optimizer == "sgd" else 2)
        assert all((v[moved] == 0).all() and (v[before & after] != 0).any() for v in shaped)


def test_the_update_of_an_event_step_follows_the_new_mask():
    net, _, sparsifier = make("set", delta_t=5, prune_schedule="constant")
    train(net, sparsifier, range(4))
    old = [m.clone() for m in sparsifier.masks[sparsifier.net]]
    weights = [w.detach().clone() for w in sparsifier.weights]
    train(net, sparsifier, [4])
    for w, now, before, after in zip(weights, sparsifier.weights, old, sparsifier.masks[sparsifier.net]):
        assert (now[~after] == 0).all() and (now[after & before] != w[after & before]).any()


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.9])
def test_sparsity_is_exact_after_every_event(sparsity):
    net, _, sparsifier = make("set", sparsity=sparsity, delta_t=2, prune_fraction=0.9)
    counts = sparsifier.masks.counts(sparsifier.net)
    for step in range(30):
        train(net, sparsifier, [step])
        assert [int(mask.sum()) for mask in sparsifier.masks[sparsifier.net]] == counts == sparsifier.masks.counts(sparsifier.net)
    assert sum(counts) == kept(sparsifier.masks.numel, sparsity) and sparsifier.history[-1]["flips"].sum() > 0


# The run.


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_it_learns(name):
    net, _, sparsifier = make(name, total_steps=150, delta_t=10)
    train(net, sparsifier, range(150))
    assert accuracy(net) > 0.9 and sparsifier.metrics()["events"][0]["flips"] > 0


@pytest.mark.parametrize("name", ["set", "rigl"])
@pytest.mark.parametrize("optimizer, stop, first", [("sgd", 7, True), ("sgd", 10, False), ("adam", 9, False)])
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(name, optimizer, stop, first):
    unbroken, again = resumed(name, optimizer, stop, 40, sparsifier_first=first, delta_t=5)
    assert unbroken[0] == again[0]
    assert_same_state(unbroken[1], again[1])


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_an_event_that_the_scaler_skipped_takes_place_in_the_next_step(name):
    net, opt, sparsifier = make(name, delta_t=5, end=9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 10)
    for step in range(14):
        backward(net, step, scaler, math.inf if step in (4, 9) else 1.0)
        sparsifier.step(scaler=scaler)
        scaler.update()
        opt.zero_grad()
    assert [record["step"] for record in sparsifier.history] == [5, 10]


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_not_finite_gradients_do_not_choose_connections(name):
    net, _, sparsifier = make(name, delta_t=5)
    train(net, sparsifier, range(4))
    before = [mask.clone() for mask in sparsifier.masks[sparsifier.net]]
    backward(net, 4)
    net[11].weight.grad[0, 0] = math.inf
    sparsifier.on_event([w.grad for w in sparsifier.weights])
    assert all(torch.equal(a, b) for a, b in zip(before, sparsifier.masks[sparsifier.net])) and sparsifier.event_due(5)
    with torch.no_grad():
        net[11].weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="NaN in the weights of 11.weight"):
        sparsifier.step()


# Misuse.


@pytest.mark.parametrize("fields, message", [({"delta_t": 0}, "delta_t"), ({"end": -1}, "end"), ({"prune_fraction": 1.5}, "prune_fraction"),
                                             ({"prune_schedule": "linear"}, "prune_schedule: expected 'cosine' or 'constant'")])
def test_configurations_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make("set", **fields)

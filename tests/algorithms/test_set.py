"""SET against its procedure: times, what is dropped, what is grown, exact sparsity, resume."""
import math

import pytest
import torch
from dynamic_runs import accuracy, assert_same_state, backward, make, one_thread, resumed, train  # noqa: F401

from sparsekern.sparsity.patterns import kept

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
    train(net, sparsifier, [4])
    for w, now, before, after in zip(weights, sparsifier.weights, old, sparsifier.masks[sparsifier.net]):
        count = int(0.3 * int(before.sum()))
        dropped = w.abs().masked_fill(~before, math.inf).flatten().argsort(stable=True)[:count]
        assert count > 0 and (before & ~after).flatten().nonzero().flatten().tolist() == sorted(dropped.tolist())
        moved = before ^ after
        assert int((after & ~before).sum()) == count and (now[moved] == 0).all() and torch.equal(now[~moved], w[~moved])
        shaped = [v for v in opt.state[now].values() if v.shape == now.shape]
        assert len(shaped) == (1 if optimizer == "sgd" else 2)
        assert all((v[moved] == 0).all() and (v[before & after] != 0).any() for v in shaped)


@pytest.mark.parametrize("sparsity", [0.4, 0.9])
def test_every_inactive_connection_is_equally_likely(sparsity):
    _, _, sparsifier = make("set", "plain", net=torch.nn.Sequential(torch.nn.Linear(10, 12)), sparsity=sparsity)
    active, found = sparsifier.masks[sparsifier.net][0], torch.zeros(12, 10)
    for step in range(600):
        sparsifier.steps = step
        move = sparsifier._move(0, 0.5)
        assert int(move.take.sum()) == int(move.drop.sum()) == int(0.5 * active.sum())
        found[move.rows[move.take].long(), move.cols[move.take].long()] += 1
    assert (found[active] == 0).all()
    found = found[~active]
    expected = found.mean()
    assert ((found - expected) ** 2 / expected).sum() < len(found) + 3.5 * (2 * len(found)) ** 0.5        # p < 0.001; distinct draws vary less


@pytest.mark.parametrize("name", ["static", "set"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_sparse_layers_hold_the_same_net_as_masks(name, optimizer):
    results = []
    for storage in ("masked", "csr"):
        fields = {"delta_t": 3} if name == "set" else {}
        net, _, sparsifier = make(name, optimizer, storage=storage, dtype=torch.float64, sparsity=0.9, **fields)
        losses = train(net, sparsifier, range(30))
        sparsifier.remove(sparsifier.net)
        results.append((losses, net.state_dict(), [record["grown"] for record in sparsifier.history]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-9) and results[0][2] == results[1][2]
    for key, value in results[0][1].items():
        torch.testing.assert_close(value, results[1][1][key], rtol=1e-7, atol=1e-9, msg=key)


def test_the_quicker_product_is_measured_at_the_first_batch_and_kept():
    unbroken, again = resumed("set", "sgd", 7, 12, delta_t=5, storage="csr", backend="auto", sparsity=0.3)
    assert unbroken[0] == again[0]
    assert_same_state(unbroken[1], again[1])
    net, _, sparsifier = make("static", storage="csr", backend="auto", sparsity=0.3)
    assert sparsifier.metrics()["products"] == []
    train(net, sparsifier, range(2))
    products = sparsifier.metrics()["products"]
    assert [entry["layer"] for entry in products] == list(sparsifier.masks.layers)
    for entry, module in zip(products, (net[0], net[3], net[6], net[11])):
        assert entry["backend"] == module.backend == ("csr" if entry["sparse_ms"] < entry["dense_ms"] else "dense") and "input" in entry["reason"]
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert make("static", storage="csr", backend="dense")[0][3].backend == "dense"


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
    assert sum(counts) == kept(sparsifier.masks.numel, sparsity) and sum(sparsifier.history[-1]["flips"]) > 0


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
                                             ({"prune_schedule": "linear"}, "prune_schedule: expected 'cosine' or 'constant'"),
                                             ({"backend": "gpu"}, "backend: expected one of csr, dense, auto")])
def test_configurations_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make("set", **fields)

"""HALP: targets by hand, masks that only shrink, budgets met at every pruning, resume to the bit, the slimmed net equal to the masked one."""
import copy

import pytest
import torch
from channel_runs import Small, hand_table, make, train
from dynamic_runs import assert_same_state, one_thread, state  # noqa: F401

from sparsekern.algorithms import build
from sparsekern.sparsity.latency import LatencyTable, layer_widths
from sparsekern.testing import toy_batch


def halp(tmp_path, **fields):
    return make(tmp_path / "t.json", "halp", **({"prunings": 5, "every": 4} | fields))


def test_the_targets_fall_exponentially(tmp_path):
    net, _, sparsifier = halp(tmp_path, latency=0.5)
    full = hand_table(net).full_ms
    assert sparsifier.target == pytest.approx(0.5 * full)
    assert [sparsifier.aim(k) / full for k in range(5)] == pytest.approx([0.5 ** ((k + 1) / 5) for k in range(5)])
    assert sparsifier.aim(4) == sparsifier.target                   # to the bit


def test_every_pruning_meets_its_target_and_nothing_comes_back(tmp_path):
    net, _, sparsifier = halp(tmp_path)
    keep = sparsifier.keep
    assert all(bool(mask.all()) for mask in keep.values())
    for step in range(30):
        train(net, sparsifier, [step])
        now = sparsifier.keep
        assert not any(bool((now[name] & ~keep[name]).any()) for name in keep)
        assert (sparsifier.masks.kept(sparsifier.net) != {name: int(mask.sum()) for name, mask in keep.items()}) <= (step in (3, 7, 11, 15, 19))
        keep = now
    records = sparsifier.history
    assert [record["step"] for record in records] == [3, 7, 11, 15, 19] and [record["event"] for record in records] == [1, 2, 3, 4, 5]
    for number, record in enumerate(records):
        assert record["latency_ms"] <= record["target_ms"] + 1e-9 and record["target_ms"] == sparsifier.aim(number)
    assert sparsifier.latency_ms <= sparsifier.target < hand_table(net).full_ms
    assert sum(sum(record["flips"]) for record in records) == sum(sparsifier.masks.numels) - sum(sparsifier.masks.counts(sparsifier.net))


def test_what_is_removed_is_zero_with_its_momentum(tmp_path):
    net, optimizer, sparsifier = halp(tmp_path)
    train(net, sparsifier, range(30))
    for layer, mask in zip(sparsifier.layers, sparsifier.masks[sparsifier.net]):
        hidden = layer.param[~mask]
        assert int((hidden != 0).sum()) == 0
        assert int((optimizer.state[layer.param]["momentum_buffer"][~mask] != 0).sum()) == 0
    assert any(int((~mask).sum()) for mask in sparsifier.masks[sparsifier.net])


def test_the_least_important_channels_go(tmp_path):
    """Importance is |g_gamma gamma + g_beta beta|: a channel whose scale and shift are (nearly) 0 has none."""
    net = Small()
    useless = [1, 4, 6, 11]
    with torch.no_grad():
        net.bn1.weight[useless] = net.bn1.bias[useless] = 1e-12
    net, _, sparsifier = halp(tmp_path, net=net, prunings=1, every=2, latency=0.9)
    train(net, sparsifier, range(2))
    gone = set((~sparsifier.keep["conv1"]).nonzero().flatten().tolist())
    assert gone and (gone <= set(useless) or gone >= set(useless))


def test_the_slimmed_net_computes_what_the_masked_one_does(tmp_path):
    net, _, sparsifier = halp(tmp_path)
    train(net, sparsifier, range(24))
    net.eval()
    images, _ = toy_batch(99, 8)
    with torch.no_grad(), sparsifier.subnet(sparsifier.net):
        wanted = net(images)
    predicted = sparsifier.latency_ms
    slimmed = sparsifier.slim().eval()
    with torch.no_grad():
        torch.testing.assert_close(slimmed(images), wanted, rtol=1e-5, atol=1e-5)
    widths = layer_widths(slimmed)
    widths["depthwise"] = (widths["depthwise"][1],) * 2
    assert LatencyTable.load(tmp_path / "t.json").total_ms(widths) == pytest.approx(predicted)
    assert sum(p.numel() for p in slimmed.parameters()) < sum(p.numel() for p in Small().parameters())


@pytest.mark.parametrize("at", [2, 4, 9])
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, at):
    net, optimizer, sparsifier = halp(tmp_path)
    train(net, sparsifier, range(at))
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    train(net, sparsifier, range(at, 24))
    net2, optimizer2, sparsifier2 = halp(tmp_path)
    net2.load_state_dict(saved[0])
    optimizer2.load_state_dict(saved[1])
    sparsifier2.load_state_dict(saved[2])
    train(net2, sparsifier2, range(at, 24))
    assert_same_state(state(net, optimizer, sparsifier), state(net2, optimizer2, sparsifier2))


def test_another_table_on_resume_is_refused(tmp_path):
    net, _, sparsifier = halp(tmp_path, latency="2.5ms")
    train(net, sparsifier, range(9))
    saved = sparsifier.state_dict()
    table = hand_table(net)
    table.rest_ms += 1
    table.save(tmp_path / "t.json")
    other = build("halp", net := Small(), torch.optim.SGD(net.parameters(), lr=0.1), total_steps=60, table=str(tmp_path / "t.json"),
                  bundle=2, latency="2.5ms", prunings=5, every=4)
    with pytest.raises(ValueError, match="was started with a table of"):
        other.load_state_dict(saved)
    assert other.steps == 0 and not other.history and all(mask.all() for mask in other.masks[other.net])        # nothing has changed


def test_the_whole_latency_prunes_nothing(tmp_path):
    net, _, sparsifier = halp(tmp_path, latency=1.0)
    train(net, sparsifier, range(6))
    assert not sparsifier.history and sparsifier.masks.sparsity(sparsifier.net) == 0


@pytest.mark.parametrize("steps, wanted", [(60, (6, 5)), (400, (30, 6)), (9, (1, 4)), (10**6, (30, 40))])
def test_defaults_leave_at_least_half_of_the_run_for_tuning(tmp_path, steps, wanted):
    sparsifier = halp(tmp_path, total_steps=steps, prunings=None, every=None)[2]
    assert (sparsifier.config.prunings, sparsifier.config.every) == wanted


@pytest.mark.parametrize("fields, words", [
    ({"latency": 0.01}, "below the smallest net .* the full net takes"), ({"latency": "999ms"}, "above the full net .* the smallest net takes"),
    ({"latency": 55}, "expected a fraction"), ({"prunings": 0}, "expected at least 1 each"), ({"prunings": 20}, "within the 60 steps"),
    ({"only": "conv"}, "coupled groups"), ({"skip_first": True}, "use keep_first"), ({"bundle": 0}, "bundle and min_keep")])
def test_settings_that_cannot_work(tmp_path, fields, words):
    with pytest.raises(ValueError, match=words):
        halp(tmp_path, **fields)


def test_a_table_of_another_net_is_refused(tmp_path):
    hand_table(Small(classes=7), tmp_path / "t.json")
    net = Small()
    with pytest.raises(ValueError, match="made for another model: model was"):
        build("halp", net, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=60, table=str(tmp_path / "t.json"))
    with pytest.raises(ValueError, match="expected the path of a latency table"):
        build("halp", net, torch.optim.SGD(net.parameters(), lr=0.1), total_steps=60)
    assert not any("forward" in vars(module) for module in net.modules())

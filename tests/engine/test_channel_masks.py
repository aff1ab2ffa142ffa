"""Channels as masks: exact zeros behind them, frozen bits, importance by hand, and what is counted."""
import copy
import math
import sys

import pytest
import torch
from channel_runs import SHAPE, Small, backward, hand_table, make, train
from torch import nn

from sparsekern.sparsity.channel_groups import find_channel_groups
from sparsekern.sparsity.channel_masks import ChannelMasks, Channels, TaylorSum, plan_channels
from sparsekern.sparsity.slim import slim
from sparsekern.sparsity.timeline import ALL, rest
from sparsekern.testing import toy_batch


def channels_of(model):
    return ChannelMasks(model, find_channel_groups(model, torch.zeros(1, *SHAPE)))


def options(path, **changes):
    return {"table": str(path), "latency": 0.5, "bundle": 2, "min_keep": 1, "keep_first": False, "other_machine": False} | changes


# Masks.


def test_layers_are_everything_that_has_the_channels():
    channels = channels_of(Small())
    names = {layer.name for layer in channels.layers()}
    assert names == {f"{name}.weight" for name in ("stem", "bn0", "conv1", "bn1", "conv2", "bn2", "skip", "depthwise", "bn3", "hidden")} | {
        f"{name}.bias" for name in ("bn0", "bn1", "bn2", "skip", "depthwise", "bn3", "hidden")}
    assert {layer.name for layer in channels.layers() if layer.counted} == {
        f"{name}.weight" for name in ("stem", "conv1", "conv2", "skip", "depthwise", "hidden")}
    assert [group.name for group in channels.groups] == ["stem", "conv1", "conv2", "hidden"]


def test_expand_and_back():
    channels = channels_of(Small())
    keep = channels.whole()
    keep["conv1"][[0, 5]] = False
    keep["hidden"][3:] = False
    masks, counts = channels.expand(keep)
    for layer, mask, count in zip(channels.layers(), masks, counts):
        group = next(g for g in channels.groups if layer.name.rpartition(".")[0] in (*g.producers, *g.norms))
        assert mask.shape == layer.param.shape and count == int(mask.sum())
        assert torch.equal(mask.flatten(1).all(1) if mask.dim() > 1 else mask, keep[group.name])
        assert mask.dim() == 1 or torch.equal(mask.flatten(1).any(1), keep[group.name])
    back = channels.keep(masks)
    assert list(back) == list(keep) and all(torch.equal(back[name], keep[name]) for name in keep)


@pytest.mark.parametrize("change, words", [
    ({"conv1": torch.zeros(16, dtype=torch.bool)}, "channels: keep: conv1: expected at least one"),
    ({"out": torch.ones(4, dtype=torch.bool)}, "'out' is no channel group"), ({"stem": torch.ones(8)}, "expected a bool tensor")])
def test_bad_masks(change, words):
    channels = channels_of(Small())
    with pytest.raises(ValueError, match=words):
        channels.expand(channels.whole() | change)


def test_a_model_in_which_nothing_may_be_pruned():
    with pytest.raises(ValueError, match="no group may be pruned: 0: model output"):
        channels_of(nn.Sequential(nn.Conv2d(3, 4, 1)))


def test_what_is_counted(tmp_path):
    net, _, sparsifier = make(tmp_path / "t.json")
    masks = sparsifier.masks
    numel = {"stem": 3 * 9, "conv1": 8 * 9, "conv2": 16 * 9, "skip": 8, "depthwise": 9, "hidden": 48}
    kept = masks.kept(sparsifier.net)
    rows = {"stem": 8, "conv1": 16, "conv2": 12, "skip": 12, "depthwise": 12, "hidden": 16}
    group = {name: name for name in rows} | {"skip": "conv2", "depthwise": "conv2"}
    assert masks.numel == sum(numel[name] * rows[name] for name in rows)
    assert masks.nnz(sparsifier.net) == sum(numel[name] * kept[group[name]] for name in rows)
    assert kept == {name: int(keep.sum()) for name, keep in sparsifier.form.keep.items()}
    row = sparsifier.summary()[0]
    assert row["pattern"] == "channel" and row["target_sparsity"] is None and row["prunable"] == masks.numel
    assert row["sparsity_of_all_parameters"] == pytest.approx((masks.numel - row["nnz"]) / sum(p.numel() for p in net.parameters()))
    assert sorted(row["layers"]) == sorted(f"{name}.weight" for name in rows)

    share = {name: kept[name] / rows[name] for name in kept}
    expected = {"stem": share["stem"], "conv1": share["conv1"] * share["stem"], "conv2": share["conv2"] * share["conv1"],
                "skip": share["conv2"] * share["stem"], "depthwise": share["conv2"], "hidden": share["hidden"] * share["conv2"],
                "out": share["hidden"]}
    assert masks.densities(sparsifier.net) == pytest.approx({f"{name}.weight": value for name, value in expected.items()})
    assert masks.densities(ALL) == {f"{name}.weight": 1.0 for name in rows}
    assert masks.densities(rest(sparsifier.net))["conv1.weight"] == pytest.approx(1 - share["conv1"])
    small = slim(copy.deepcopy(Small()), sparsifier.form.channels.all, sparsifier.form.keep)
    left, full = (sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))) for model in (small, Small()))
    assert row["effective_sparsity"] == masks.effective_sparsity(sparsifier.net) == pytest.approx(1 - left / full)


# The forward pass.


def test_hidden_channels_are_exact_zeros_in_both_modes(tmp_path):
    net, _, sparsifier = make(tmp_path / "t.json")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.normal_()
                module.running_mean.normal_()
    seen = {}
    hooks = [getattr(net, name).register_forward_hook(lambda m, i, out, name=name: seen.__setitem__(name, out))
             for name in ("bn0", "bn1", "bn2", "skip", "bn3", "hidden")]
    keep = sparsifier.form.keep
    group = {"bn0": "stem", "bn1": "conv1", "bn2": "conv2", "skip": "conv2", "bn3": "conv2", "hidden": "hidden"}
    for mode in (True, False):
        net.train(mode)(toy_batch(0, 8)[0])
        for name, out in seen.items():
            assert (out[:, ~keep[group[name]]] == 0).all() and (out[:, keep[group[name]]] != 0).any(), name
    for hook in hooks:
        hook.remove()


def test_the_slimmed_net_computes_the_same_in_both_modes(tmp_path):
    net, _, sparsifier = make(tmp_path / "t.json")
    train(net, sparsifier, range(11))
    images = toy_batch(50, 16)[0]
    small = slim(_plain(net), sparsifier.form.channels.all, sparsifier.form.keep)
    for mode in (True, False):
        torch.testing.assert_close(small.train(mode)(images), net.train(mode)(images), rtol=1e-5, atol=1e-5)


def _plain(net):
    """The model's values without its masks."""
    copied = Small()
    copied.load_state_dict(net.state_dict())
    return copied


def test_running_statistics_of_hidden_channels_keep_their_bits(tmp_path):
    net, _, sparsifier = make(tmp_path / "t.json", freeze=False)
    keep = sparsifier.form.keep["conv1"]
    before = net.bn1.running_mean.clone(), net.bn1.running_var.clone()
    train(net, sparsifier, range(3))                                # phase H
    for old, new in zip(before, (net.bn1.running_mean, net.bn1.running_var)):
        assert torch.equal(old[~keep], new[~keep]) and not (old[keep] == new[keep]).any()
    assert net.bn1.num_batches_tracked == 3


def test_a_norm_without_running_statistics_and_one_without_gradient(tmp_path):
    net = Small()
    net.bn1 = nn.BatchNorm2d(16, track_running_stats=False)
    net.bn3.requires_grad_(False)
    net, _, sparsifier = make(tmp_path / "t.json", net=net)
    before = copy.deepcopy(net.bn3.state_dict())
    train(net, sparsifier, range(17))
    assert net.bn1.running_mean is None
    assert torch.equal(net.bn3.weight, before["weight"]) and not torch.equal(net.bn3.running_mean, before["running_mean"])


def test_removal_leaves_a_plain_model(tmp_path):
    net, _, sparsifier = make(tmp_path / "t.json")
    train(net, sparsifier, range(4))
    images = toy_batch(50, 16)[0]
    net.eval()
    with sparsifier.subnet(sparsifier.net):
        expected = net(images)
    keep = sparsifier.form.keep
    assert sparsifier.remove(sparsifier.net) is net
    assert torch.equal(net(images), expected)
    assert not any("forward" in vars(module) or "weight" in vars(module) for module in net.modules())
    assert (net.bn1.weight[~keep["conv1"]] == 0).all() and (net.skip.bias[~keep["conv2"]] == 0).all()


# Importance.


def test_taylor_by_hand():
    net = Small()
    groups = {group.name: group for group in channels_of(net).groups}
    for name, (gamma, beta, grad_gamma, grad_beta) in {"bn2": (2.0, 3.0, 0.5, -1.0), "bn3": (1.0, 1.0, 4.0, -0.5)}.items():
        norm = getattr(net, name)
        norm.weight.data.fill_(gamma)
        norm.bias.data.fill_(beta)
        norm.weight.grad, norm.bias.grad = torch.full((12,), grad_gamma), torch.full((12,), grad_beta)
    net.bn2.weight.grad[1] = -4.0
    taylor = TaylorSum(net, [groups["conv2"]])
    taylor.add()
    # bn2: 0.5 * 2 - 3 = -2 (channel 1: -8 - 3 = -11), bn3: 4 - 0.5 = 3.5, signed, then absolute.
    assert taylor.mean()["conv2"].tolist() == [1.5, 7.5, *[1.5] * 10]
    net.bn2.weight.grad[:] = 0.5
    net.bn2.weight.grad[3] = 2.5                                    # 5 - 3 + 3.5 = 5.5
    taylor.add()
    assert taylor.mean()["conv2"].tolist() == [1.5, 4.5, 1.5, 3.5, *[1.5] * 8]


def test_without_norms_the_weights_tell():
    net = Small()
    taylor = TaylorSum(net, [group for group in channels_of(net).groups if group.name == "hidden"])
    net.hidden.weight.grad = torch.randn(net.hidden.weight.shape, generator=torch.Generator().manual_seed(0))
    taylor.add()
    torch.testing.assert_close(taylor.mean()["hidden"], (net.hidden.weight * net.hidden.weight.grad).sum(1).abs().detach())


def test_norms_that_do_not_train_leave_it_to_the_weights():
    net = Small()
    for param in net.bn1.parameters():
        param.requires_grad_(False)
    taylor = TaylorSum(net, channels_of(net).groups)
    backward(net, 0)
    taylor.add()
    wanted = (net.conv1.weight * net.conv1.weight.grad).flatten(1).sum(1).abs().detach()
    torch.testing.assert_close(taylor.mean()["conv1"], wanted)
    assert (wanted > 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_steps_with_values_that_are_not_finite_are_left_out(bad):
    net = Small()
    taylor = TaylorSum(net, channels_of(net).groups)
    backward(net, 0)
    taylor.add()
    expected = taylor.mean()
    net.bn1.weight.grad[2] = bad
    taylor.add()
    net.zero_grad()
    taylor.add()                                                    # nor is a step without gradients one
    assert all(torch.equal(value, expected[name]) and value.isfinite().all() for name, value in taylor.mean().items())
    taylor.clear()
    assert all((value == 0).all() for value in taylor.mean().values())


# The plan.


@pytest.mark.parametrize("latency, expected", [(0.5, 0.5), ("0.5", 0.5), (1, 1.0), ("2ms", 2.0), (" 1.5 ms", 1.5)])
def test_latencies(tmp_path, latency, expected):
    net = Small()
    full = hand_table(net, tmp_path / "t.json").full_ms
    _, budget, target = plan_channels(net, **options(tmp_path / "t.json", latency=latency))
    assert target == pytest.approx(expected if "ms" in str(latency) else expected * full) and budget.bundle == 2


@pytest.mark.parametrize("changes, words", [
    ({"latency": 0.01}, r"budget 0.046 ms is below the smallest net 0.672 ms .* the full net takes 4.632 ms"),
    ({"latency": "9ms"}, r"budget 9.000 ms is above the full net 4.632 ms.* the smallest net takes 0.672 ms"),
    ({"latency": 55}, r"latency: expected a fraction of the whole net's 4.632 ms in \(0, 1\], or milliseconds such as '12.5ms', got 55"),
    ({"latency": 0}, "latency: expected a fraction"), ({"latency": "fast"}, "latency: expected a fraction"),
    ({"latency": math.nan}, "latency: expected a fraction"), ({"latency": "..ms"}, "latency: expected a fraction"),
    ({"table": None}, "table: expected the path of a latency table"), ({"bundle": 0}, "bundle"), ({"min_keep": 0}, "min_keep"),
    ({"table": "/nowhere/t.json"}, "cannot read /nowhere/t.json"),
])
def test_plans_that_are_refused(tmp_path, changes, words):
    net = Small()
    hand_table(net, tmp_path / "t.json")
    with pytest.raises(ValueError, match=words):
        plan_channels(net, **options(tmp_path / "t.json", **changes))


def test_the_table_says_who_follows_the_channels(tmp_path, monkeypatch):
    net = Small()
    table = hand_table(net, tmp_path / "t.json")
    table.measured["backend"] = "torch-pruning"
    table.save(tmp_path / "t.json")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ValueError, match="pip install torch-pruning"):
        plan_channels(net, **options(tmp_path / "t.json"))


def test_a_model_that_has_a_sparsifier(tmp_path):
    net, _, sparsifier = make(tmp_path / "t.json")
    with pytest.raises(ValueError, match=r"has a sparsifier already; call its remove\(\) first"):
        plan_channels(net, **options(tmp_path / "t.json"))
    sparsifier.remove()
    assert plan_channels(net, **options(tmp_path / "t.json"))[0].groups


def test_tables_of_other_models_and_machines(tmp_path):
    net = Small()
    table = hand_table(net, tmp_path / "t.json")
    with pytest.raises(ValueError, match="made for another model: model was"):
        plan_channels(Small(classes=5), **options(tmp_path / "t.json"))
    table.fingerprint["device"] = "a slide rule"
    table.save(tmp_path / "t.json")
    with pytest.raises(ValueError, match="another machine or setup: device was 'a slide rule'"):
        plan_channels(net, **options(tmp_path / "t.json"))
    assert plan_channels(net, **options(tmp_path / "t.json", other_machine=True))[2] == pytest.approx(table.full_ms / 2)
    for key, value in (("batch", None), ("batch", "many"), ("shape", [3, -8, 8]), ("shape", None)):
        right, table.fingerprint[key] = table.fingerprint[key], value
        table.save(tmp_path / "t.json")
        with pytest.raises(ValueError, match="does not say for which images"):
            plan_channels(net, **options(tmp_path / "t.json", other_machine=True))
        table.fingerprint[key] = right


def test_the_pattern():
    assert str(Channels(2.5)) == "channel" and Channels(2.5).sparsity is None

"""Statistics measured anew for one sub-net: the plain average under its mask, and not one other bit changes."""
import copy

import ast_gc_runs
import channel_runs
import pytest
import torch
from torch import nn

from sparsekern.nn.switchable_norm import find_norms
from sparsekern.sparsity.slim import recalibrate
from sparsekern.testing import toy_batch

BATCHES = [toy_batch(step, 16)[0] for step in range(60, 64)]


def averages(net):
    """{norm: (mean, unbiased variance)} of its inputs, averaged over the batches, the norms normalising by the batch."""
    found, twin = {}, copy.deepcopy(net).eval()
    for name, norm in find_norms(twin):
        norm.train()
        found[name] = [], []

        def hook(norm, inputs, name=name):
            x = inputs[0].transpose(0, 1).flatten(1)
            found[name][0].append(x.mean(1))
            found[name][1].append(x.var(1))
        norm.register_forward_pre_hook(hook)
    with torch.no_grad():
        for batch in BATCHES:
            twin(batch)
    return {name: tuple(torch.stack(values).mean(0) for values in pair) for name, pair in found.items()}


def plain(sparsifier, name, net):
    """The named sub-net as a module of its own."""
    with sparsifier.subnet(name):
        shown = copy.deepcopy(net.state_dict())
        for layer, mask in zip(sparsifier.layers, sparsifier.masks[name]):
            shown[layer.name] *= mask
    return shown


def everything(net, optimizer, sparsifier):
    """All that must not change, by name."""
    saved = sparsifier.state_dict()["tensors"] | {f"model/{key}": value for key, value in net.state_dict().items()}
    saved |= {f"momentum/{i}": state["momentum_buffer"] for i, state in enumerate(optimizer.state.values()) if "momentum_buffer" in state}
    saved["rng"] = torch.get_rng_state()
    return {key: value.detach().clone().reshape(-1).view(torch.uint8) for key, value in saved.items()}      # bytes: NaN is like NaN


def assert_only(before, after, changed):
    assert before.keys() == after.keys()
    assert {key for key in before if not torch.equal(before[key], after[key])} == set(changed)


def test_each_subnet_by_its_own_bank():
    net, optimizer, sparsifier = ast_gc_runs.make(total_steps=60)
    ast_gc_runs.train(net, sparsifier, range(20))
    for name, norm in find_norms(net):
        norm.momentum = 0.3 if name != "4" else None
    modes = {name: module.training for name, module in net.named_modules()}
    for number, name in enumerate(sparsifier.subnets):
        model = ast_gc_runs.small_convnet()
        model.load_state_dict(plain(sparsifier, name, net))
        want, before = averages(model), everything(net, optimizer, sparsifier)
        with sparsifier.subnet(name):
            assert recalibrate(net, BATCHES) == len(BATCHES)
            for key, norm in find_norms(net):
                torch.testing.assert_close((norm.running_mean, norm.running_var), want[key], rtol=1e-4, atol=1e-5)
                assert norm.num_batches_tracked == len(BATCHES) and norm.momentum == (None if key == "4" else 0.3)
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        own = {f"norm/{name}/{key}.{part}" for key in ("4", "7") for part in statistics}
        first = {f"model/1.{part}" for part in statistics} if number == 0 else set()    # shared, behind the dense layer: the same for all
        shown = {f"model/{key}.{part}" for key in ("4", "7") for part in statistics} if name == sparsifier.active else set()
        assert_only(before, everything(net, optimizer, sparsifier), own | first | shown)
    assert modes == {name: module.training for name, module in net.named_modules()}


def test_what_was_measured_before_does_not_matter():
    net, optimizer, sparsifier = ast_gc_runs.make()
    name, found = sparsifier.subnets[1], []
    for garbage in (0.0, 7.0, float("nan"), float("inf")):
        with sparsifier.subnet(name):
            for _, norm in find_norms(net):
                norm.running_mean.fill_(garbage)
                norm.running_var.fill_(garbage)
            recalibrate(net, iter(BATCHES))
            found.append({key: value.clone() for key, value in net.state_dict().items()})
    assert all(torch.equal(value, other[key]) for other in found[1:] for key, value in found[0].items())


def test_hidden_channels_keep_their_statistics(tmp_path):
    net, optimizer, sparsifier = channel_runs.make(tmp_path / "t.json", freeze=False)
    channel_runs.train(net, sparsifier, range(3))
    keep = sparsifier.form.keep["conv1"]
    assert 0 < keep.sum() < len(keep)
    for _, norm in find_norms(net):
        norm.running_mean.add_(3)
    hidden = {part: getattr(net.bn1, part)[~keep].clone() for part in ("running_mean", "running_var")}
    twin = channel_runs.Small()
    twin.load_state_dict(net.state_dict())
    for layer, mask in zip(sparsifier.layers, sparsifier.masks[sparsifier.net]):
        twin.get_parameter(layer.name).data.mul_(mask)
    want, before = averages(twin), everything(net, optimizer, sparsifier)
    with sparsifier.subnet(sparsifier.net):
        assert recalibrate(net, BATCHES) == len(BATCHES)
        for part, average in zip(("running_mean", "running_var"), want["bn1"]):
            now = getattr(net.bn1, part)
            assert torch.equal(now[~keep], hidden[part])
            torch.testing.assert_close(now[keep], average[keep], rtol=1e-4, atol=1e-5)
    after = everything(net, optimizer, sparsifier)
    assert all(".running_" in key or "num_batches" in key for key in before if not torch.equal(before[key], after[key]))


def test_statistics_that_are_held_are_measured_and_held_again():
    net = ast_gc_runs.small_convnet()
    norm = net[1]
    norm.track_running_stats = False                        # as in the frozen steps of an algorithm
    want = averages(net)
    assert recalibrate(net, BATCHES) == len(BATCHES) and norm.track_running_stats is False
    torch.testing.assert_close(norm.running_mean, want["1"][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [0, 2])
def test_a_batch_that_raises_changes_nothing(bad):
    net = nn.Sequential(ast_gc_runs.small_convnet(), nn.BatchNorm1d(4))
    recalibrate(net, BATCHES[:1])
    before = copy.deepcopy(net.state_dict())
    batches = list(BATCHES)
    batches[bad] = torch.zeros(1, 3, 8, 8)                  # one image: the last norm has one value per channel
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        recalibrate(net, batches)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training and net[1].momentum == 0.1 and net[0][1].track_running_stats

"""Memory order of a deployed net: taken where it measures quicker, kept in files, refused where the model's code does not bear it."""
import copy

import pytest
import torch
from torch import nn

from sparsekern.deploy import load_deployed, save_deployed
from sparsekern.deploy.compact import compact
from sparsekern.deploy.layer_forms import memory_order, set_memory_order
from sparsekern.support.models import build_model
from sparsekern.support.tensor_file import load_tensors, save_tensors
from tests.deploy.test_compact import assert_same, built, channel_masks, images, masked, nm_masks, random_masks


def timing(**quick):
    """A timer by which a net takes as many milliseconds as is said for its name, else 10."""
    return lambda nets, rounds: {name: quick.get(name.replace(" ", "_"), 10.0) for name in nets}


MASKS = {"dense": lambda model: {}, "unstructured": random_masks, "2:4": lambda model: nm_masks(model, 2, 4),
         "channel": lambda model: channel_masks(model)[0]}


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", ["small_cnn", "resnet20-b", "wrn-22-2", "mobilenet-v1"])
@pytest.mark.parametrize("pattern", list(MASKS))
def test_it_computes_the_same_in_channels_last(name, pattern, fold):
    model = built(name)
    masks = MASKS[pattern](model)
    net, report = compact(model, masks, pattern, images(), fold=fold, memory_format="channels_last",
                          timer=timing(deployed=1.0, csr=5.0, packed=5.0, dense=20.0))
    assert memory_order(net) in ("channels_last", None) and memory_order(model) == "contiguous"
    assert report.difference <= 1e-5 and report.memory_format == "channels_last" or memory_order(net) is None
    for x in (images(), images().contiguous(memory_format=torch.channels_last), images(1, seed=3)):
        assert_same(net, masked(model, masks), x)


def test_the_order_that_measures_quicker_is_taken():
    model = built("resnet20-b")
    masks = MASKS["channel"](model)
    net, report = compact(model, masks, "channel", images(), timer=timing(deployed=4.0, deployed_channels_last=3.0, dense_channels_last=6.0))
    assert memory_order(net) == report.memory_format == "channels_last"
    assert (report.latency_ms, report.dense_latency_ms, report.dense_best_ms) == (3.0, 10.0, 6.0)
    assert (report.speedup_best, report.to_dict()["speedup_best"]) == (2.0, 2.0)
    assert "at its best 6.000 ms (2.00x); channels_last" in str(report)
    net, report = compact(model, masks, "channel", images(), timer=timing(deployed=3.0, deployed_channels_last=3.0))
    assert memory_order(net) == report.memory_format == "contiguous" and report.dense_best_ms == 10.0


def test_a_model_in_channels_last_may_become_contiguous():
    model = built("small_cnn").to(memory_format=torch.channels_last)
    for quick, order in (("dense_contiguous", "contiguous"), ("dense", "channels_last")):
        net, report = compact(model, {}, "dense", images(), timer=timing(**{quick: 1.0}))
        assert memory_order(net) == report.memory_format == order and report.latency_ms == report.dense_best_ms == 1.0
    assert memory_order(model) == "channels_last"


@pytest.mark.parametrize("pattern", ["channel", "unstructured"])
def test_slower_than_dense_in_the_other_order_is_slower_than_dense(pattern):
    """Quicker than the dense net as it came, but not than the dense net given the same treatment: that one is taken."""
    model = built("small_cnn")
    net, report = compact(model, MASKS[pattern](model), pattern, images(),
                          timer=timing(deployed=8.0, deployed_channels_last=8.0, csr=5.0, slim=5.0, dense_channels_last=6.0))
    assert {row.form for row in report} == {"dense"} and "took 1.33x the time of dense" in report.notes[0]
    assert (report.latency_ms, report.dense_latency_ms, report.dense_best_ms) == (6.0, 10.0, 6.0)
    assert memory_order(net) == "channels_last"
    assert_same(net, masked(model, MASKS[pattern](model)), images())


def test_memory_decides_before_time_where_it_is_preferred():
    model = built("small_cnn")

    def timer(nets, rounds):                                # csr is within twice the time in the model's own order only
        contiguous = "csr" in nets and nets["dense"][1].is_contiguous()
        return {name: {"csr": 1.5 if contiguous else 3.0, "deployed": 5.0}.get(name, 1.0) for name in nets}
    masks = {name: mask for name, mask in random_masks(model, 0.1).items() if mask.dim() == 4}
    _, report = compact(model, masks, "unstructured", images(), prefer="memory", timer=timer)
    assert report.memory_format == "contiguous" and "csr" in {row.form for row in report} and report.bytes < report.dense_bytes


class Viewing(nn.Module):
    """Code that takes for granted how its features lie."""

    def __init__(self):
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(3, 4, 3, stride=8), nn.Linear(16, 2)

    def forward(self, x):
        return self.classifier(self.conv(x).view(len(x), -1))


def test_a_model_that_does_not_bear_an_order_keeps_its_own():
    net, report = compact(Viewing(), {}, "dense", images(), timer=timing())
    assert memory_order(net) == "contiguous" and "channels_last is not taken: " in report.notes[0]
    with pytest.raises(ValueError, match="compact: memory_format: the model cannot run in channels_last: "):
        compact(Viewing(), {}, "dense", images(), memory_format="channels_last")
    with pytest.raises(ValueError, match="compact: memory_format: expected one of auto, keep, contiguous, channels_last, got 'NHWC'"):
        compact(Viewing(), {}, "dense", images(), memory_format="NHWC")


def test_orders_of_weights():
    assert memory_order(build_model("mlp:8")) is None
    assert memory_order(nn.Conv2d(1, 4, 1)) is None         # lies the same either way
    pointwise = set_memory_order(nn.Conv2d(3, 4, 1), "channels_last")
    assert memory_order(pointwise) == "channels_last" and pointwise.weight.stride() == (3, 1, 3, 3)
    assert memory_order(nn.Sequential(pointwise, nn.Conv2d(3, 4, 1))) == "mixed"
    assert memory_order(set_memory_order(pointwise, "contiguous")) == "contiguous"
    mixed = nn.Sequential(nn.Conv2d(3, 4, 3), set_memory_order(nn.Conv2d(4, 2, 3), "channels_last"), nn.Flatten())
    net, report = compact(mixed, {}, "dense", images(), memory_format="keep", timer=timing())
    assert report.memory_format == memory_order(net) == "mixed" and net[0].weight.is_contiguous()


@pytest.mark.parametrize("fold", [False, True])
def test_a_file_keeps_the_order(tmp_path, fold):
    """1x1 weights, too, whose order only their strides tell."""
    model = built("mobilenet-v1")
    net, report = compact(model, MASKS["channel"](model), "channel", images(), fold=fold, memory_format="channels_last", timer=timing(deployed=1.0))
    path = save_deployed(net, report, tmp_path / "net", model={"name": "mobilenet-v1", "classes": 10, "shape": [3, 16, 16]})
    loaded = load_deployed(path)
    own = net.state_dict()
    assert {name: tensor.stride() for name, tensor in loaded.state_dict().items() if tensor.dim() == 4} == {
        name: tensor.stride() for name, tensor in own.items() if tensor.dim() == 4}
    assert memory_order(loaded) == "channels_last" == loaded.deployment["memory_format"]
    with torch.no_grad():
        assert torch.equal(loaded(images()), net(images()))


@pytest.mark.parametrize("value", ["somehow", 3, ["channels_last"], None])
def test_an_unknown_order_in_a_file_changes_nothing(tmp_path, value):
    net = built("small_cnn")
    path = save_deployed(net, None, tmp_path / "net", model={"name": "small_cnn", "classes": 10, "shape": [3, 16, 16]})
    tensors, meta = load_tensors(path, "sparsekern-deployed-1", "a net")
    meta.pop("strides", None)
    save_tensors(path, "sparsekern-deployed-1", tensors, copy.deepcopy(meta) | {"memory_format": value})
    assert memory_order(load_deployed(path)) == "contiguous"

"""Models and FLOPs: the sizes of the papers, and sentences for what does not fit."""
import pytest
import torch
from torch import nn

from sparsekern.support.flops import TrainingFlops, layer_flops, sparse_flops
from sparsekern.training import build_model, model_names


def _weights(model):
    """Sizes of the conv and linear weights in order."""
    return [m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("name, classes, first, total", [
    ("wrn32-ast", 10, False, 1_854_720), ("wrn32-ast", 100, False, 1_866_240),         # first convolution dense
    ("resnet56", 10, True, 848_944), ("resnet18", 10, False, 11_157_504 + 5_120), ("wrn-22-2", 10, True, 1_076_912),
])
def test_prunable_weights_of_the_papers(name, classes, first, total):
    sizes = _weights(build_model(name, classes=classes, shape=(3, 8, 8)))
    assert sum(sizes if first else sizes[1:]) == total


@pytest.mark.parametrize("name, layers", [("resnet20", 20), ("resnet32", 32), ("resnet56", 56)])
def test_depth_is_in_the_name(name, layers):
    assert len(_weights(build_model(name, shape=(3, 8, 8)))) == layers


@pytest.mark.parametrize("name", ["mlp", "mlp:20,10,5", "small_cnn"])
def test_models_for_digits(name):
    model = build_model(name, classes=10, shape=(1, 8, 8))
    assert model(torch.randn(3, 1, 8, 8)).shape == (3, 10) and model.training


def test_kaiming_fan_out():
    conv = build_model("resnet18").stages[3][1].conv1
    assert conv.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def test_torchvision_and_timm_by_name():
    assert build_model("torchvision:resnet18", classes=7)(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert build_model("timm:vit_tiny_patch16_224", classes=5, shape=(3, 32, 32))(torch.randn(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize("name, words", [
    ("resnet21", "expected one of mlp, .*resnet20.*did you mean.*resnet20"), ("mlp:0", "positive hidden widths"),
    ("mlp:a", "positive hidden widths"), ("torchvision:resnet19", "torchvision has no classifier 'resnet19'; did you mean.*resnet1"),
    ("timm:resnet19", "timm has no model 'resnet19'"),
])
def test_unknown_names(name, words):
    with pytest.raises(ValueError, match=words):
        build_model(name)


def test_a_model_that_does_not_take_the_images():
    with pytest.raises(ValueError, match=r"torchvision:resnet18 does not take images of shape \[1, 8, 8\]: .*channels"):
        build_model("torchvision:resnet18", shape=(1, 8, 8))


def test_every_listed_model_builds():
    for name in model_names():
        if "W1" not in name:
            assert build_model(name, classes=4, shape=(3, 8, 8))(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def test_flops_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Flatten(), nn.Linear(128, 5))
    # 4x4 outputs: 8 * 16 outputs of 27 and of 18 multiply-adds; 5 outputs of 128.
    assert layer_flops(model, (3, 8, 8)) == {"0.weight": 2 * 128 * 27, "1.weight": 2 * 128 * 18, "3.weight": 2 * 5 * 128}
    assert not any(m._forward_hooks for m in model.modules())


def test_a_shared_layer_counts_each_time():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert layer_flops(model, (4,)) == {"0.weight": 2 * 2 * 16}


def test_flops_leave_the_model_as_it_was():
    model = build_model("resnet20")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer_flops(model, (3, 32, 32))
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_sparse_and_training_flops():
    dense = {"a": 100, "b": 300}
    assert sparse_flops(dense, {"a": 0.5}) == 350
    flops = TrainingFlops()
    flops.add(80, samples=10)
    flops.add(400, samples=10)
    assert flops.total == 3 * 10 * (80 + 400) and flops.per_sample == 3 * (80 + 400) / 2
    again = TrainingFlops()
    again.load_state_dict(flops.state_dict())
    assert again.total == flops.total and again.per_sample == flops.per_sample

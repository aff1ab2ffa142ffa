"""Deployed nets as a user has them, whole, beside the dense net that they come from: eager PyTorch, the same images, the same run."""
import copy
import timeit
from functools import partial

import pytest
import torch

from sparsekern.deploy.compact import compact
from sparsekern.deploy.fold import fold_norms
from sparsekern.nn import SparseConv2d
from sparsekern.ops import nm_mask, topk_mask
from sparsekern.sparsity.channel_groups import find_channel_groups
from sparsekern.support.models import build_model
from sparsekern.testing import assert_close

BATCH = 128


def random_masks(model, sparsity):
    """Uniform random places in every weight but the first convolution's and a convolutional net's classifier."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}
    if any(weight.dim() == 4 for weight in weights.values()):
        weights = dict(list(weights.items())[1:-1])
    draws = torch.Generator().manual_seed(0)
    scores = [torch.rand(weight.shape, generator=draws) for weight in weights.values()]
    return dict(zip(weights, topk_mask(scores, [round(weight.numel() * (1 - sparsity)) for weight in weights.values()])[0]))


def channel_masks(model, share):
    masks = {}
    for group in find_channel_groups(model, torch.zeros(1, 3, 32, 32)):
        if not group.fixed:
            keep = torch.arange(group.channels) < round(share * group.channels)
            for name in (*group.producers, *group.norms):
                for key, tensor in model.get_submodule(name).named_parameters(recurse=False):
                    masks[f"{name}.{key}"] = keep.view(-1, *[1] * (tensor.dim() - 1)).expand(tensor.shape).clone()
    return masks


@torch.no_grad()
def compete(race, shape, model, masks, pattern, targets=lambda report: (), notes=lambda report: []):
    """The deployed net, folded and not, beside the dense one with zeros: as it came, and at its best: in the quicker memory order, folded or not."""
    x = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    deployed, report = compact(model, masks, pattern, x)
    folded, report_folded = compact(model, masks, pattern, x, fold=True)
    dense, _ = compact(model, masks, "dense", x, rounds=1, memory_format="keep")
    nets = {"sparsekern": deployed, "sparsekern, folded": folded, "torch dense": dense, "torch dense, folded": copy.deepcopy(dense)}
    fold_norms(nets["torch dense, folded"], x[:1])
    if any(isinstance(module, torch.nn.Conv2d) for module in model.modules()):
        nets |= {f"{name}, channels_last": copy.deepcopy(nets[name]).to(memory_format=torch.channels_last)
                 for name in ("torch dense", "torch dense, folded")}
    if not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()):
        nets = {name: net for name, net in nets.items() if "folded" not in name}
    some = x[:8]
    want = copy.deepcopy(dense).double()(some.double())

    def right(net):
        return lambda: assert_close(net(some), want, reduction=4096)

    def told(medians):
        best = min((name for name in medians if name.startswith("torch")), key=medians.get)
        lines = [f"{name}: {medians['torch dense'] / medians[name]:.2f}x torch dense, {medians[best] / medians[name]:.2f}x {best}"
                 for name in medians if name.startswith("sparsekern")]
        return [*lines, f"memory order: {report.memory_format}, folded {report_folded.memory_format}",
                f"{report.bytes / 1e6:.2f} of {report.dense_bytes / 1e6:.2f} MB, FLOPs {report.flops / report.dense_flops:.3f} of dense",
                *notes(report), *report.notes]

    def run(net):
        def forward():
            with torch.no_grad():
                net(x)
        return forward

    race("deploy", f"{shape}, batch {BATCH}", {name: run(net) for name, net in nets.items()}, budget_s=8.0, notes=told,
         check={name: right(net) for name, net in nets.items()}, targets=list(targets(report)))


def forms(report):
    found = [layer.form for layer in report]
    return ["layers: " + ", ".join(f"{found.count(form)} {form}" for form in sorted(set(found)))]


@pytest.mark.parametrize("sparsity, bound", [(0.9, 1 / 5), (0.95, 1 / 8)])
def bench_mlp(race, sparsity, bound):
    model = build_model("mlp:4096,4096")
    compete(race, f"MLP 3072-4096-4096-10, unstructured {sparsity:.0%}", model, random_masks(model, sparsity), "unstructured",
            lambda report: [("sparsekern", "<=", bound, "torch dense")], forms)


@pytest.mark.parametrize("sparsity", [0.9, 0.95])
def bench_resnet20(race, sparsity):
    model = build_model("resnet20")
    compete(race, f"ResNet-20, unstructured {sparsity:.0%}", model, random_masks(model, sparsity), "unstructured",
            lambda report: [("sparsekern", "<=", 1.0, "torch dense")], forms)


@pytest.mark.parametrize("pattern", ["2:4", "1:8"])
def bench_resnet20_nm(race, pattern):
    n, m = map(int, pattern.split(":"))
    model = build_model("resnet20")
    masks = {name: nm_mask(weight.detach(), n, m, dim=1) for name, weight in model.named_parameters() if weight.dim() > 1 and not weight.shape[1] % m}
    compete(race, f"ResNet-20, {pattern}", model, masks, pattern, lambda report: [("sparsekern", "<=", 1.0, "torch dense")], forms)


@pytest.mark.parametrize("k", [3, 6, 9])
@pytest.mark.parametrize("name", ["resnet20-b", "vgg11"])
def bench_channels(race, name, k):
    model = build_model(name)
    compete(race, f"{name}, channels kept 0.9^{k}", model, channel_masks(model, 0.9**k), "channel",
            lambda report: [(name, "<=", report.flops / report.dense_flops / 0.8, "torch dense") for name in ("sparsekern", "sparsekern, folded")],
            lambda report: [f"speed-up by FLOPs would be {report.dense_flops / report.flops:.2f}x"])


@pytest.mark.parametrize("width, size", [(16, 32), (32, 16), (64, 8)])
def bench_what_a_sparse_convolution_costs(race, width, size):
    """The layers of ResNet-20: what a nonzero costs, and what is paid whatever the sparsity is."""
    x = torch.randn(BATCH, width, size, size)
    layers = {f"sparsekern {sparsity:.0%}": SparseConv2d.from_shape(width, width, 3, sparsity=sparsity, padding=1, bias=False).requires_grad_(False)
              for sparsity in (0.8, 0.9, 0.95, 0.99)}
    dense = layers["sparsekern 80%"].to_dense().requires_grad_(False)

    def told(medians):                                          # of the quickest runs: the difference of two medians is mostly noise
        (many, slow), (few, quick) = [(layers[name].nnz, min(timeit.repeat(partial(layers[name], x), number=1, repeat=50)))
                                      for name in ("sparsekern 80%", "sparsekern 95%")]
        each = (slow - quick) / (many - few)
        fixed = quick - each * few
        rate = 2 * BATCH * size * size / each / 1e9
        return [f"{fixed * 1e3:.2f} ms whatever the sparsity is ({2 * 4 * x.numel() / fixed / 1e9:.1f} GB/s of input and output), "
                f"then {rate:.0f} GFLOP/s over the nonzeros"]

    race("deploy", f"SparseConv2d {width} -> {width}, 3x3 on {size}x{size}, batch {BATCH}, forward",
         {name: partial(layer, x) for name, layer in [*layers.items(), ("torch dense", dense)]},
         notes=told, targets=[("sparsekern 90%", "<=", 1.0, "torch dense")])

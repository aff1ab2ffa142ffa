"""The sparse layers as a user has them, forward and backward through autograd, beside dense ones and the layers of other packages."""
import pytest
import torch
from steps import trained
from torch import nn
from torch.nn import functional as F

from sparsekern.nn import SparseConv2d, SparseLinear
from sparsekern.testing import assert_close


class Masked(nn.Module):
    """What users do: a dense layer whose weight is multiplied by a mask."""

    def __init__(self, dense: nn.Linear | nn.Conv2d):
        super().__init__()
        self.dense, self.mask = dense, (dense.weight.detach() != 0).float()

    def forward(self, x):
        weight = self.dense.weight * self.mask
        if isinstance(self.dense, nn.Linear):
            return F.linear(x, weight, self.dense.bias)
        return self.dense._conv_forward(x, weight, self.dense.bias)


def contenders_and_checks(layer, x):
    """Ours with both products and torch's dense ones; every one is held to the dense layer in float64."""
    y = layer(x)
    incoming = torch.randn_like(y)
    by_dense = type(layer).from_dense(dense := layer.to_dense(), dense.weight != 0, backend="dense")
    layers = {"sparsekern": layer, "sparsekern, dense product": by_dense, "torch dense": dense, "torch dense times mask": Masked(layer.to_dense())}
    want = layer.to_dense().double()(x.double())

    def right(candidate):
        return lambda: assert_close(candidate(x), want, reduction=layer.cols)
    return layers, incoming, right


def compete(race, op, shape, layers, x, incoming, right, targets):
    race(op, shape, {name: trained(candidate, x, incoming) for name, candidate in layers.items()},
         check={name: right(candidate) for name, candidate in layers.items() if name != "sparselab"}, targets=targets, budget_s=15.0,
         notes=lambda medians: [f"{name} takes {medians[name] / medians['torch dense']:.3f} of torch dense" for name in medians])


LINEAR = [(4096, 4096, 256, 0.9), (4096, 4096, 256, 0.98), (1024, 1024, 128, 0.9), (3072, 768, 512, 0.95)]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")             # sparselab makes one
@pytest.mark.parametrize("inputs, outputs, batch, sparsity", LINEAR)
def bench_linear(race, inputs, outputs, batch, sparsity):
    layer, x = SparseLinear.from_shape(inputs, outputs, sparsity=sparsity), torch.randn(batch, inputs, requires_grad=True)
    layers, incoming, right = contenders_and_checks(layer, x)
    targets = [("sparsekern", "<=", 0.2, "torch dense")] if (inputs, sparsity) == (4096, 0.9) else []
    try:
        from sparseprop.modules import SparseLinear as Propagated
        layers["sparseprop"] = Propagated.from_dense(layer.to_dense())
        targets.append(("sparsekern", ">=", 2.0, "sparseprop"))
    except ImportError:
        print("sparseprop is not installed: pip install sparseprop")
    try:
        import sparselab
        layers["sparselab"] = sparselab.SparseLinear(inputs, outputs, sparsity=sparsity)       # draws its own pattern: not checked, only timed
        targets.append(("sparsekern", ">=", 2.0, "sparselab"))
    except ImportError:
        print("sparselab is not installed: pip install sparselab")
    compete(race, "SparseLinear", f"{inputs} -> {outputs}, batch {batch}, sparsity {sparsity}, forward and backward", layers, x, incoming,
            right, targets)


CONVOLUTIONS = [(64, 32, 0.9), (128, 16, 0.95), (256, 8, 0.95)]


@pytest.mark.parametrize("width, size, sparsity", CONVOLUTIONS)
def bench_conv2d(race, width, size, sparsity, batch=128):
    layer = SparseConv2d.from_shape(width, width, 3, sparsity=sparsity, padding=1)
    x = torch.randn(batch, width, size, size, requires_grad=True)
    layers, incoming, right = contenders_and_checks(layer, x)
    targets = [("sparsekern", "<=", 1.0, "torch dense")]
    try:
        from sparseprop.modules import SparseConv2d as Propagated
        for name, over_on in (("sparseprop", False), ("sparseprop over images", True)):
            dense = layer.to_dense()
            layers[name] = Propagated(dense.weight.detach(), dense.bias, padding=1, stride=1, vectorizing_over_on=over_on)
            targets.append(("sparsekern", ">=", 2.0, name))
    except ImportError:
        print("sparseprop is not installed: pip install sparseprop")
    compete(race, "SparseConv2d", f"{width} -> {width}, 3x3 on {size}x{size}, batch {batch}, sparsity {sparsity}, forward and backward", layers,
            x, incoming, right, targets)

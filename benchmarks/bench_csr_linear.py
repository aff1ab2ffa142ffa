"""A sparse linear layer, forward and backward: against the dense layer, the masked dense layer, SparseProp and SparseLab."""
import contextlib

import pytest
import torch
from torch.nn import functional as F

from sparsekern.ops import csr_linear, csr_plan
from sparsekern.testing import assert_close, random_csr

sparseprop = sparselab = None
with contextlib.suppress(ImportError):
    from sparseprop.modules import SparseLinear as sparseprop
with contextlib.suppress(ImportError):
    import sparselab

# in, out, batch, sparsity; the last two are the layers of SparseLab's own README.
SHAPES = [(4096, 4096, 256, 0.9), (768, 3072, 512, 0.9), (3072, 768, 512, 0.95), (784, 512, 128, 0.9), (640, 2560, 512, 0.9)]


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")                # SparseLab builds its weight through torch's CSR tensors
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[0]}-{s[1]} batch {s[2]} at {s[3]:.0%}")
def bench_forward_backward(race, shape):
    cols, rows, batch, sparsity = shape
    crow, col, val = random_csr(rows, cols, sparsity)
    _, *transposed = csr_plan(crow, col, rows, cols)
    val, x, bias = val.requires_grad_(), torch.randn(batch, cols, requires_grad=True), torch.zeros(rows, requires_grad=True)
    incoming = torch.randn(batch, rows)
    of_row = torch.repeat_interleave(torch.arange(rows), crow.diff().long())
    weight = torch.zeros(rows, cols)
    weight[of_row, col.long()] = val.detach()
    mask = weight != 0
    weight.requires_grad_()

    def gradients(function, *leaves):
        return lambda: torch.autograd.grad(function(), leaves, incoming)

    half = x.detach().bfloat16().requires_grad_()
    weights = crow, col, val, *transposed, bias, rows
    ours = gradients(lambda: csr_linear(x, *weights), x, val, bias)
    contenders = {
        "sparsekern": ours,
        "sparsekern bf16": lambda: torch.autograd.grad(csr_linear(half, *weights), (half, val, bias), incoming.bfloat16()),
        "dense": gradients(lambda: F.linear(x, weight, bias), x, weight, bias),
        "masked dense": gradients(lambda: F.linear(x, weight * mask, bias), x, weight, bias),
    }
    targets = [("sparsekern", "<=", 0.2, "dense"), ("sparsekern", ">=", 5.0, "masked dense")] if shape == SHAPES[0] else []
    if sparseprop is not None:
        peer = sparseprop(weight.detach().clone(), torch.nn.Parameter(torch.zeros(rows)))
        contenders["SparseProp"] = gradients(lambda: peer(x), x, *peer.parameters())
        targets.append(("sparsekern", ">=", 2.0, "SparseProp"))
    if sparselab is not None:
        other = sparselab.SparseLinear(cols, rows, sparsity=sparsity)
        contenders["SparseLab"] = gradients(lambda: other(x), x, *other.parameters())
        targets.append(("sparsekern", ">=", 2.0, "SparseLab"))

    def verify():
        dx, dval, dbias = ours()
        want_x, want_weight, want_bias = contenders["dense"]()
        assert_close(dx, want_x, reduction=rows)
        assert_close(dval, want_weight[of_row, col.long()], reduction=batch)
        assert_close(dbias, want_bias, reduction=batch)

    race("csr_linear", f"{cols} -> {rows}, batch {batch}, {sparsity:.0%}, forward + backward, fp32", contenders, check={"sparsekern": verify},
         targets=targets, rounds=10,
         notes=lambda _: [f"{name} is not installed" for name, found in (("sparseprop", sparseprop), ("sparselab", sparselab)) if found is None])

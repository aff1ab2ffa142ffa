"""The sparse convolution beside oneDNN's dense one and SparseProp: forward and backward of one layer, gradients for input and weight."""
import importlib

import pytest
import torch
import torch.nn.functional as F

from sparsekern import ops
from sparsekern.testing import assert_close, random_csr

SHAPES = [(64, 64, 32, 3), (128, 128, 16, 3), (256, 256, 8, 3)]
SPARSITIES = [0.8, 0.85, 0.9, 0.95, 0.98]
BATCH = 128
pytestmark = pytest.mark.usefixtures("keep_freed_memory")


def sparseprop():
    """SparseProp's module for sparse layers, or None where it is not installed (pip install sparseprop; it compiles its own kernels)."""
    try:
        return importlib.import_module("sparseprop.modules")
    except Exception:                                   # it also fails where its compiled part was built for another torch
        return None


class Layer:
    """One convolution with a sparse weight, its data, and the dense twin."""

    def __init__(self, channels, outputs, size, kernel, sparsity, batch=BATCH):
        self.kernel, self.padding = kernel, kernel // 2
        self.crow, self.col, self.val = random_csr(outputs, channels * kernel * kernel, sparsity)
        self.val.requires_grad_()
        self.x = torch.randn(batch, channels, size, size, requires_grad=True)
        self.grad = torch.randn(batch, outputs, size, size)
        rows = torch.repeat_interleave(torch.arange(outputs), self.crow.diff())
        self.weight = torch.zeros(outputs, channels * kernel * kernel).index_put_((rows, self.col.long()), self.val.detach())
        self.weight = self.weight.view(outputs, channels, kernel, kernel).requires_grad_()

    def sparse(self):
        y = ops.sparse_conv2d(self.x, self.crow, self.col, self.val, None, self.kernel, padding=self.padding)
        return torch.autograd.grad(y, (self.x, self.val), self.grad)

    def dense(self):
        y = F.conv2d(self.x, self.weight, padding=self.padding)
        return torch.autograd.grad(y, (self.x, self.weight), self.grad)

    def peer(self, module, over_batch):
        conv = torch.nn.Conv2d(self.x.shape[1], self.grad.shape[1], self.kernel, padding=self.padding, bias=False)
        conv.weight = torch.nn.Parameter(self.weight.detach().clone())
        layer = module.SparseConv2d.from_dense(conv, vectorizing_over_on=over_batch)

        def run():
            self.x.grad = None
            layer(self.x).backward(self.grad)
            return self.x.grad
        return run

    def verify(self):
        (dx, dval), (want_dx, dense_dw) = self.sparse(), self.dense()
        assert_close(dx, want_dx, reduction=dense_dw[0].numel())
        rows = torch.repeat_interleave(torch.arange(len(self.crow) - 1), self.crow.diff())
        assert_close(dval, dense_dw.flatten(1)[rows, self.col.long()], reduction=self.grad[:, 0].numel())


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_training(race, shape, sparsity):
    layer, module = Layer(*shape, sparsity), sparseprop()
    contenders = {"sparsekern": layer.sparse, "dense F.conv2d (oneDNN)": layer.dense}
    targets = [("sparsekern", ">=", 1.0, "dense F.conv2d (oneDNN)")] if sparsity >= 0.85 else []
    if module is not None:
        for name, over_batch in (("SparseProp, over the batch", True), ("SparseProp, over the image", False)):
            run = layer.peer(module, over_batch)
            try:
                assert_close(run(), layer.dense()[0], reduction=shape[1] * 9)
            except AssertionError:
                continue                                # a wrong gradient is not a contender
            contenders[name] = run
            targets.append(("sparsekern", ">=", 2.0, name))     # against the better of the two means against both

    def notes(medians):
        rate = 6 * len(layer.val) * layer.grad[:, 0].numel() / medians["sparsekern"] / 1e9
        return [f"{rate:.0f} GFLOP/s in forward and backward"] + ([] if module else ["SparseProp: skipped, it does not import here"])

    channels, outputs, size, kernel = shape
    race("sparse_conv2d", f"{channels} -> {outputs}, {size}x{size}, {kernel}x{kernel}, batch {BATCH}, {sparsity:.0%} sparse, forward and backward",
         contenders, check={"sparsekern": layer.verify}, targets=targets, notes=notes, budget_s=12.0)


@pytest.mark.parametrize("sparsity", [0.9, 0.95])
@pytest.mark.parametrize("batch", [1, 16])
def bench_small_batches(race, batch, sparsity):
    """Few images: the vectors run over columns there."""
    layer = Layer(128, 128, 16, 3, sparsity, batch)
    race("sparse_conv2d", f"128 -> 128, 16x16, 3x3, batch {batch}, {sparsity:.0%} sparse, forward and backward",
         {"sparsekern": layer.sparse, "dense F.conv2d (oneDNN)": layer.dense}, check={"sparsekern": layer.verify})


@pytest.mark.parametrize("sparsity", [0.8, 0.95])
@pytest.mark.parametrize("shape", [(64, 256, 56, 16), (256, 1024, 14, 64), (512, 2048, 7, 64)], ids=str)
def bench_pointwise(race, shape, sparsity):
    """1x1 kernels are CSR products, too: the direct way against csr_spmm, image by image and over one panel of all images."""
    channels, outputs, size, batch = shape
    layer = Layer(channels, outputs, size, 1, sparsity, batch)
    x, crow, col, val = layer.x.detach(), layer.crow, layer.col, layer.val.detach()
    row_order = ops.csr_plan(crow, col, outputs, channels)[0]

    def direct():
        return ops.sparse_conv2d(x, crow, col, val, None, 1)

    def by_image():
        y = torch.empty(batch, outputs, size * size)
        for i in range(batch):
            y[i] = ops.csr_spmm(crow, col, val, x[i].flatten(1), outputs, channels, row_order=row_order)
        return y.view(batch, outputs, size, size)

    def by_panel():
        panel = x.transpose(0, 1).reshape(channels, -1)
        y = ops.csr_spmm(crow, col, val, panel, outputs, channels, row_order=row_order)
        return y.view(outputs, batch, size, size).transpose(0, 1).contiguous()

    def right(run):
        return lambda: assert_close(run(), F.conv2d(x, layer.weight.detach()), reduction=channels)

    race("sparse_conv2d", f"{channels} -> {outputs}, {size}x{size}, 1x1, batch {batch}, {sparsity:.0%} sparse, forward",
         {"sparsekern": direct, "csr_spmm, image by image": by_image, "csr_spmm, one panel": by_panel,
          "dense F.conv2d (oneDNN)": lambda: F.conv2d(x, layer.weight)},
         check={"sparsekern": right(direct), "csr_spmm, image by image": right(by_image), "csr_spmm, one panel": right(by_panel)})

"""nm_spmm on a GPU at the sizes that it is meant for, in every algorithm, forward and backward."""
import pytest
import torch

from sparsekern import ops
from sparsekern._native import native
from sparsekern.testing import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not native.cuda, reason="built without CUDA")]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def make(rows, cols, n, m, v, dtype):
    kept = ops.implementations("nm_mask")["reference"](torch.rand(rows // v, cols, device="cuda"), n, m).repeat_interleave(v, 0)
    x = torch.where(kept, torch.randn(rows, cols, device="cuda"), 0.0).to(dtype)
    return x, *ops.implementations("nm_pack")["reference"](x, n, m, v=v)


@pytest.mark.parametrize("rows, cols, n, m, v, width, dtype", [
    (4096, 4096, 1, 8, 1, 512, F32), (4096, 4096, 1, 16, 1, 512, F32), (4096, 4096, 1, 2, 1, 512, F32), (4096, 4096, 1, 8, 4, 500, F32),
    (4096, 4096, 2, 16, 64, 512, F16), (4096, 4096, 2, 16, 64, 509, BF16), (4096, 4096, 2, 16, 16, 40, BF16), (4096, 11008, 1, 32, 1, 1024, F16),
    (4096, 4096, 1, 8, 1, 1, F32), (1000, 6300, 3, 63, 1, 130, F32)])
def test_agrees_with_the_dense_product(rows, cols, n, m, v, width, dtype):
    x, values, index = make(rows, cols, n, m, v, dtype)
    wide = torch.randn(width, cols, device="cuda").to(dtype)
    want = (x.double() @ wide.double().t()).cpu()
    for b in (wide.t().contiguous(), wide.t()):
        got = ops.nm_spmm(values, index, b, n, m, cols, v=v)
        assert_close(got.cpu(), want, reduction=cols // m * n)
        assert torch.equal(got, ops.nm_spmm(values, index, b, n, m, cols, v=v))


def test_gradients_follow_an_edit_of_index():
    x, values, index = make(1024, 2048, 1, 8, 1, F32)
    b, incoming = torch.randn(2048, 256, device="cuda", requires_grad=True), torch.randn(1024, 256, device="cuda")
    for _ in range(3):
        d_b, = torch.autograd.grad(ops.nm_spmm(values, index, b, 1, 8, 2048), b, incoming)
        assert_close(d_b.cpu(), (x.double().t() @ incoming.double()).cpu(), reduction=128)
        index.copy_(torch.randint(8, index.shape, device="cuda"))
        columns = torch.arange(0, 2048, 8, device="cuda") + index.long()
        x = torch.zeros_like(x).scatter_(1, columns, values)

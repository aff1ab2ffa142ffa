"""N:M masks and packing on a GPU: the CPU's bits at full size, and past 32 bits."""
import pytest
import torch

from sparsekern import ops
from sparsekern._native import native

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not native.cuda, reason="built without CUDA")]
RATIOS = [(2, 4), (1, 4), (2, 8), (4, 8), (1, 16), (8, 32), (3, 5), (9, 64)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape, dim", [((1024, 4096), 1), ((1024, 4096), 0), ((1021, 4095), 1), ((1021, 4095), 0), ((256, 512, 3, 3), 1)], ids=str)
def test_masks_have_the_cpus_bits(shape, dim, dtype):
    x = torch.randn(shape).to(dtype)
    for n, m in RATIOS:
        want = ops.nm_mask(x, n, m, dim=dim)
        assert torch.equal(ops.nm_mask(x.cuda(), n, m, dim=dim).cpu(), want), (n, m)
        assert torch.equal(ops.nm_mask(x.cuda(), n, m, dim=dim, packed=True).cpu(), ops.pack_mask(want)), (n, m)
        applied = x.cuda()
        ops.nm_apply_(applied, n, m, dim=dim)
        assert torch.equal(applied.cpu(), torch.where(want, x, torch.zeros_like(x))), (n, m)


def test_transposable_masks_have_the_cpus_bits():
    x = torch.randn(2048, 4092)
    assert torch.equal(ops.nm_mask_transposable(x.cuda()).cpu(), ops.nm_mask_transposable(x))


@pytest.mark.parametrize("v", [1, 16])
def test_packs_what_the_cpu_packs(v):
    for n, m in RATIOS:
        kept = ops.nm_mask(torch.rand(1024 // v, 60 * m), n, m).repeat_interleave(v, 0)
        x = torch.where(kept, torch.randn(1024, 60 * m), 0.0)
        for one, other in zip(ops.nm_pack(x.cuda(), n, m, v=v), ops.nm_pack(x, n, m, v=v)):
            assert torch.equal(one.cpu(), other), (n, m)


@pytest.mark.parametrize("m", [4, 16, 48])                              # every way along the last dimension
def test_more_elements_than_32_bits_count(m):
    n = (2**32 // (32 * m) + 3) * 32 * m
    x = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    places = torch.tensor([1, 2**31 - 1, 2**31 + 65, 2**32 + 1, n - 1], device="cuda")
    x[places] = 1
    want = torch.zeros(n, dtype=torch.bool, device="cuda")
    want[::m] = True                                                    # of equal ones the first
    want[places // m * m] = False
    want[places] = True
    assert torch.equal(ops.nm_mask(x, 1, m), want)
    assert torch.equal(ops.nm_mask(x, 1, m, packed=True), ops.pack_mask(want))

"""2:4 packing: it should cost what moving the bytes costs, with the transpose from the same read."""
import pytest
import torch
from torch.sparse import _semi_structured_conversions as torchs

from sparsekern import ops

SIZE = 4096


def same(got, want):
    return all(torch.equal(a.view(torch.int16), b.view(torch.int16)) for a, b in zip(got, want))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def bench_compress(race, dtype):
    x = torch.randn(SIZE, SIZE).to(dtype)
    x = torch.where(x == 0, torch.ones_like(x), x)                     # torch's packing looks for non-zeros
    mask = ops.nm_mask(x, 2, 4)
    bits, dense, target = ops.pack_mask(mask), torch.where(mask, x, 0), torch.empty_like(x)
    oracle = torchs.sparse_semi_structured_from_dense_cutlass(dense)

    def verify():
        for got in (ops.sp24_compress(x), ops.sp24_compress(x, mask=mask), ops.sp24_compress(x, mask=bits)):
            assert same(got[:2], oracle), "not what torch's CUTLASS path takes"

    race("sp24_compress", f"[{SIZE}, {SIZE}], {dtype}", {
        "sparsekern": lambda: ops.sp24_compress(x),
        "sparsekern, linear": lambda: ops.sp24_compress(x, layout="linear"),
        "sparsekern, bool mask": lambda: ops.sp24_compress(x, mask=mask),
        "sparsekern, packed mask": lambda: ops.sp24_compress(x, mask=bits),
        "torch conversion, of a masked x": lambda: torchs.sparse_semi_structured_from_dense_cutlass(dense),
        "clone": x.clone,
        "copy (no new memory)": lambda: target.copy_(x),
    }, nbytes={"sparsekern": 3.125 * x.numel(), "sparsekern, linear": 3.125 * x.numel(), "sparsekern, bool mask": 4.125 * x.numel(),
               "sparsekern, packed mask": 3.25 * x.numel(), "clone": 4 * x.numel(), "copy (no new memory)": 4 * x.numel()},
         check={"sparsekern": verify}, rounds=12,
         # 0.8 of the copy's bytes per second: a copy moves 4 bytes per element, packing 3.125. Like a clone, packing makes its output.
         targets=[("sparsekern", "<=", 3.125 / 4 / 0.8, "copy (no new memory)"), ("sparsekern", "<=", 3.125 / 4 / 0.8, "clone"),
                  ("sparsekern", ">=", 10.0, "torch conversion, of a masked x")])


def bench_both_ways(race):
    x = torch.randn(SIZE, SIZE).bfloat16()
    mask = ops.nm_mask_transposable(x)
    bits, dense, target = ops.pack_mask(mask), torch.where(mask, x, 0), torch.empty_like(x)

    def verify():
        want = ops.sp24_compress(x, mask=mask, both=True)
        assert same(ops.sp24_compress(x, both=True), want)
        assert same([ops.sp24_decompress(want.vt, want.et, (SIZE, SIZE))], [dense.t().contiguous()]), "not the transpose"

    def twice():
        return ops.sp24_compress(x, mask=mask), ops.sp24_compress(x.t(), mask=mask.t())

    race("sp24_compress, both ways", f"[{SIZE}, {SIZE}], bfloat16", {
        "sparsekern, bool mask": lambda: ops.sp24_compress(x, mask=mask, both=True),
        "sparsekern, packed mask": lambda: ops.sp24_compress(x, mask=bits, both=True),
        "sparsekern, mask searched": lambda: ops.sp24_compress(x, both=True),
        "sparsekern, each way by itself": twice,
        "torch conversion of x and of x.t()": lambda: (torchs.sparse_semi_structured_from_dense_cutlass(dense),
                                                       torchs.sparse_semi_structured_from_dense_cutlass(dense.t().contiguous())),
        "copy (no new memory)": lambda: target.copy_(x),
    }, nbytes={"sparsekern, bool mask": 5.25 * x.numel(), "sparsekern, packed mask": 4.375 * x.numel(), "copy (no new memory)": 4 * x.numel()},
         check={"sparsekern, bool mask": verify}, rounds=8,
         targets=[("sparsekern, packed mask", "<=", 4.375 / 4 / 0.8, "copy (no new memory)")])


def bench_decompress(race):
    x = torch.randn(SIZE, SIZE).bfloat16()
    v, e = ops.sp24_compress(x)[:2]
    target, dense = torch.empty_like(x), torch.where(ops.nm_mask(x, 2, 4), x, 0)

    def verify():
        assert same([ops.sp24_decompress(v, e, (SIZE, SIZE))], [dense])

    race("sp24_decompress", f"[{SIZE}, {SIZE}], bfloat16", {
        "sparsekern": lambda: ops.sp24_decompress(v, e, (SIZE, SIZE)),
        "torch conversion": lambda: torchs.sparse_semi_structured_to_dense_cutlass(v, e),
        "copy (no new memory)": lambda: target.copy_(x), "clone": x.clone,
    }, nbytes={"sparsekern": 3.125 * x.numel(), "copy (no new memory)": 4 * x.numel(), "clone": 4 * x.numel()}, check={"sparsekern": verify},
         targets=[("sparsekern", "<=", 3.125 / 4 / 0.8, "clone")], rounds=8)

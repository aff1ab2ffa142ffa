"""Mask bits: packing at the speed of the bytes, counting at the speed of reading."""
import numpy
import pytest
import torch

from sparsekern import ops
from sparsekern.testing import resnet50_shapes


def numpy_pack(mask):
    """NumPy's packbits, padded to whole words: what one would write without the op."""
    array = torch.nn.functional.pad(mask.view(torch.uint8), (0, -mask.numel() % 32)).numpy()
    return torch.from_numpy(numpy.packbits(array, bitorder="little").view(numpy.int32))


ELEMENTS = 25_557_032


def bench_pack(race):
    mask = torch.rand(ELEMENTS) < 0.1

    def verify():
        assert torch.equal(ops.pack_mask(mask), numpy_pack(mask))

    race("pack_mask", f"{ELEMENTS / 1e6:.1f}M", {
        "sparsekern pack_mask": lambda: ops.pack_mask(mask),
        "numpy packbits": lambda: numpy_pack(mask),
    }, nbytes=ELEMENTS * 9 / 8, check={"sparsekern pack_mask": verify}, targets=[("sparsekern pack_mask", ">=", 1.5, "numpy packbits")])


def bench_unpack(race):
    mask = torch.rand(ELEMENTS) < 0.1
    bits, unpack_reference = ops.pack_mask(mask), ops.implementations("unpack_mask")["reference"]

    def verify():
        assert torch.equal(ops.unpack_mask(bits, mask.shape), mask)

    race("unpack_mask", f"{ELEMENTS / 1e6:.1f}M", {
        "sparsekern unpack_mask": lambda: ops.unpack_mask(bits, mask.shape),
        "reference": lambda: unpack_reference(bits, mask.shape),
    }, nbytes=ELEMENTS * 9 / 8, check={"sparsekern unpack_mask": verify}, rounds=8)


LISTS = {"ResNet-50, 161 masks": resnet50_shapes(), "one mask of 1G elements": [(2**30,)]}


@pytest.mark.parametrize("shape", LISTS)
def bench_mask_stats(race, shape):
    # Words at random: the count does not depend on the density, and a bool mask of 1G elements would not fit.
    def words():
        return [torch.randint(-2**31, 2**31 - 1, ((torch.Size(s).numel() + 31) // 64 * 2,), dtype=torch.int32) for s in LISTS[shape]]
    one, two = words(), words()
    wide = [w.view(torch.int64) for w in one]
    moved = sum(w.numel() * 4 for w in one)

    def verify():
        small = [w[:1000] for w in one], [w[:1000] for w in two]
        assert torch.equal(ops.mask_stats(*small), ops.implementations("mask_stats")["reference"](*small))

    race("mask_stats", f"{shape}, packed", {
        "sparsekern |a|": lambda: ops.mask_stats(one),
        "sparsekern |a|, |b|, and, xor": lambda: ops.mask_stats(one, two),
        "torch sum of the same bytes (read speed)": lambda: [w.sum() for w in wide],
    }, nbytes={"sparsekern |a|": moved, "sparsekern |a|, |b|, and, xor": 2 * moved, "torch sum of the same bytes (read speed)": moved},
        check={"sparsekern |a|, |b|, and, xor": verify},
        targets=[("sparsekern |a|", "<=", 1.43, "torch sum of the same bytes (read speed)"),
                 ("sparsekern |a|, |b|, and, xor", "<=", 2.86, "torch sum of the same bytes (read speed)")])


def bench_mask_stats_bool(race):
    a, b = [torch.rand(s) < 0.1 for s in resnet50_shapes()], [torch.rand(s) < 0.1 for s in resnet50_shapes()]
    moved = 2 * sum(m.numel() for m in a)

    def verify():
        assert ops.mask_stats(a, b).tolist() == [[int(x.sum()), int(y.sum()), int((x & y).sum()), int((x ^ y).sum())] for x, y in zip(a, b)]

    race("mask_stats", "ResNet-50, 161 masks, bool", {
        "sparsekern": lambda: ops.mask_stats(a, b),
        "torch & and ^ and sums": lambda: [(x.sum(), y.sum(), (x & y).sum(), (x ^ y).sum()) for x, y in zip(a, b)],
    }, nbytes={"sparsekern": moved}, check={"sparsekern": verify}, targets=[("sparsekern", ">=", 4, "torch & and ^ and sums")])

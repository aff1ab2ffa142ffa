"""Masks on a GPU: the masked weight, packing, and how masks overlap, beside what one writes with torch."""
import torch
from gpu_race import Case, Contender, Lab, Target, bits_of, equal

from sparsekern.testing import resnet50_shapes

DENSITY = 0.1


def _shapes(lab: Lab, shape: str) -> list[tuple[int, ...]]:
    if lab.small:
        return [(1000,), (33, 5), (2, 3, 5, 7)]
    return [(2_000_000,)] * 50 if shape == "100M" else resnet50_shapes()


def masked_weight(shape: str):
    def build(lab: Lab) -> dict:
        weights = [lab.randn(*s) for s in _shapes(lab, shape)]
        masks = [lab.mask(*w.shape, density=DENSITY) for w in weights]
        bits, floats = [bits_of(m) for m in masks], [m.float() for m in masks]
        want, elements = [torch.where(m, w, 0) for w, m in zip(weights, masks)], sum(w.numel() for w in weights)

        def make(form, dtype=None):
            def check(result):
                for got, expected in zip(result, want):
                    equal(got, expected if dtype is None else expected.to(dtype))
            return lambda f: {"run": lambda: f(weights, form, dtype=dtype), "check": check}

        def peer(run, moved):
            return Contender(run, check=lambda result: [equal(got, w) for got, w in zip(result, want)], hbm=moved * elements)

        op = "masked_weight.list"
        return (lab.ours("sparsekern bool", op, make(masks), hbm=9 * elements)
                | lab.ours("sparsekern bits", op, make(bits), hbm=8.125 * elements)
                | lab.ours("sparsekern bits to bf16", op, make(bits, torch.bfloat16), hbm=6.125 * elements)
                | {"torch w * bool mask": peer(lambda: [w * m for w, m in zip(weights, masks)], 9),
                   "torch w * float mask (torch.nn.utils.prune)": peer(lambda: [w * m for w, m in zip(weights, floats)], 12),
                   "torch foreach_mul, float masks": peer(lambda: torch._foreach_mul(weights, floats), 12),
                   "torch where(mask, w, 0)": peer(lambda: [torch.where(m, w, 0) for w, m in zip(weights, masks)], 9),
                   "torch clone": Contender(lambda: [w.clone() for w in weights], hbm=8 * elements)})
    return build


def packing(lab: Lab) -> dict:
    mask = lab.mask(lab.size(100_000_000, 3200), density=DENSITY)
    bits, elements, place = bits_of(mask), mask.numel(), torch.arange(32, dtype=torch.int32, device=lab.device)
    shape = list(mask.shape)

    def same(want):
        return lambda got: equal(got, want)

    return (lab.ours("sparsekern pack_mask", "pack_mask", lambda f: {"run": lambda: f(mask), "check": same(bits)}, hbm=1.125 * elements)
            | lab.ours("sparsekern unpack_mask", "unpack_mask", lambda f: {"run": lambda: f(bits, shape), "check": same(mask)}, hbm=1.125 * elements)
            | {"torch shift and sum": Contender(lambda: (mask.view(-1, 32).int() << place).sum(1, dtype=torch.int32), check=same(bits),
                                                hbm=1.125 * elements),
               "torch clone of the bool mask": Contender(mask.clone, hbm=2 * elements)})


def stats(lab: Lab) -> dict:
    one, two = ([lab.mask(*s, density=d) for s in _shapes(lab, "100M")] for d in (0.1, 0.2))
    elements = sum(m.numel() for m in one)
    want = torch.stack([torch.stack([a.sum(), b.sum(), (a & b).sum(), (a ^ b).sum()]) for a, b in zip(one, two)])

    def make(a, b):
        return lambda f: {"run": lambda: f(a, b), "check": lambda got: equal(got, want)}

    packed = [bits_of(m) for m in one], [bits_of(m) for m in two]
    return (lab.ours("sparsekern bits", "mask_stats", make(*packed), hbm=0.25 * elements)
            | lab.ours("sparsekern bool", "mask_stats", make(one, two), hbm=2 * elements)
            | {"torch sums of a, b, a & b, a ^ b": Contender(
                lambda: torch.stack([torch.stack([a.sum(), b.sum(), (a & b).sum(), (a ^ b).sum()]) for a, b in zip(one, two)]),
                check=lambda got: equal(got, want), hbm=2 * elements)})


CASES = [
    Case("masked_weight", "100M as 50 x 2M, 90% sparse", masked_weight("100M"), rank=0,
         targets=(Target("sparsekern bool", "share", 0.85), Target("sparsekern bits", "share", 0.85))),
    Case("masked_weight", "ResNet-50, 161 tensors, 90% sparse", masked_weight("ResNet-50"),
         targets=(Target("sparsekern bool", ">=", 1.0, "torch w * bool mask"),)),
    Case("pack_mask, unpack_mask", "100M", packing),
    Case("mask_stats", "two lists of 50 x 2M", stats),
]

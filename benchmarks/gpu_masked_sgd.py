"""Masked SGD on a GPU beside its peers, by CUDA events; one JSON line per contender. Run by scripts/gpu.py bench.

Contenders of a shape take turns in the same loop, the L2 cache is flushed before each, and each starts from state whose
result was checked. share_of_copy: bytes that must move, over what a plain copy moves in the same run.
"""
import json
import statistics
import sys

import torch

from sparsekern import ops
from sparsekern.testing import resnet50_shapes

SCALARS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
SHAPES = {"100M": [(2_000_000,)] * 50, "ResNet-50": resnet50_shapes(), "1000 x 1K": [(1024,)] * 1000}
ROUNDS = 30


def race(contenders: dict) -> dict[str, float]:
    """Median microseconds of each, interleaved."""
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    times = {name: [] for name in contenders}
    for index in range(ROUNDS + 5):
        for name, work in contenders.items():
            flush.zero_()
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            stop.record()
            stop.synchronize()
            if index >= 5:
                times[name].append(start.elapsed_time(stop) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def peer(params, grads, masks=None, **kind):
    own = [torch.nn.Parameter(p.clone()) for p in params]
    for p, g in zip(own, grads):
        p.grad = g
    optimizer = torch.optim.SGD(own, **SCALARS, **kind)

    def step():
        optimizer.step()
        if masks:
            with torch.no_grad():
                torch._foreach_mul_(own, masks)
    return step


def ours(params, grads, masks, **options):
    mine, buffers = [p.clone() for p in params], [torch.zeros_like(p) for p in params]
    return lambda: ops.masked_sgd_(mine, grads, buffers, masks, **SCALARS, **options)


def check(params, grads, masks, form):
    mine = [p.clone() for p in params]
    ops.masked_sgd_(mine, grads, [torch.zeros_like(p) for p in params], form, **SCALARS)
    for p, start, g, m in zip(mine, params, grads, masks):
        torch.testing.assert_close(p, torch.where(m, start - 0.1 * (g + 1e-4 * start), start), rtol=1.3e-6, atol=1e-6)


def bench(shape: str, sparsity: float, grad_type: torch.dtype, copy_rate: float) -> None:
    masks = [torch.rand(s, device="cuda") >= sparsity for s in SHAPES[shape]]
    params = [torch.randn(s, device="cuda") * m for s, m in zip(SHAPES[shape], masks)]     # clean: assume_clean may be asked for
    grads = [torch.randn(s, device="cuda").to(grad_type) for s in SHAPES[shape]]
    bits, elements = [ops.pack_mask(m) for m in masks], sum(p.numel() for p in params)
    check(params, [g.float() for g in grads], masks, bits)
    size = 16 + grads[0].element_size()
    contenders = {"sparsekern bool": (ours(params, grads, masks, outside="zero"), size + 1),
                  "sparsekern bits": (ours(params, grads, bits, outside="zero"), size + 0.125),
                  "sparsekern bits, clean": (ours(params, grads, bits, outside="zero", assume_clean=True), None),
                  "sparsekern no mask": (ours(params, grads, [None] * len(params)), size)}
    if grad_type == torch.float32:
        floats = [m.float() for m in masks]
        contenders |= {"torch fused SGD": (peer(params, grads, fused=True), size),
                       "torch fused SGD + float masks": (peer(params, grads, floats, fused=True), None),
                       "torch foreach SGD + float masks": (peer(params, grads, floats, foreach=True), None)}
    medians = race({name: work for name, (work, _) in contenders.items()})
    for name, (_, moved) in contenders.items():
        rate = elements * moved / medians[name] * 1e-3 if moved else None
        print(json.dumps({"op": "masked_sgd_", "shape": shape, "grads": str(grad_type)[6:], "sparsity": sparsity, "name": name,
                          "us": round(medians[name], 1), "gb_per_s": rate and round(rate),
                          "share_of_copy": rate and round(rate / copy_rate, 3)}))


def copy_bandwidth() -> float:
    """GB/s of a large copy, read and written bytes counted."""
    source = torch.zeros(256 * 2**20, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / race({"copy": lambda: target.copy_(source)})["copy"] * 1e-3


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("gpu_masked_sgd: no CUDA device")
    torch.manual_seed(0)
    copy_rate = copy_bandwidth()
    print(json.dumps({"op": "copy", "gb_per_s": round(copy_rate), "device": torch.cuda.get_device_name()}))
    for sparsity in (0.0, 0.8, 0.9, 0.95, 0.98):
        bench("100M", sparsity, torch.float32, copy_rate)
    bench("100M", 0.9, torch.bfloat16, copy_rate)
    bench("ResNet-50", 0.9, torch.float32, copy_rate)
    bench("1000 x 1K", 0.9, torch.float32, copy_rate)


if __name__ == "__main__":
    main()

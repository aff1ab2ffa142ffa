"""Greedy interpolation of ten stages of ResNet-18: its memory, weighed in a process of its own, and the time of a candidate.

The rise of the resident peak over the process before anything was made, against three copies of the weights (the targets, D and a stage). The
stages lie on disk; glibc is told to give large blocks back when they are freed.
"""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from sparsekern.sparsity.interpolation import POOL, interpolate, mix
from sparsekern.sparsity.stage_store import StageStore
from sparsekern.support.models import build_model

STAGES = 10
TARGET = 3.0


def weights(fill=torch.randn_like) -> dict[str, torch.Tensor]:
    """Of ResNet-18 for CIFAR, 11.2 million."""
    return {name: fill(value.detach()) for name, value in build_model("resnet18").named_parameters()}


def bench_peak(note, tmp_path):
    answer = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True,
                            env=os.environ | {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"})
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    ratio = found["rise"] / found["weights"]
    note("interpolation", f"ResNet-18, {STAGES} stages on disk", [
        f"peak rises by {found['rise'] / 2**20:.1f} MiB, {ratio:.2f} copies of the weights ({found['weights'] / 2**20:.1f} MiB; the largest tensor, "
        f"being read, is {found['largest'] / found['weights']:.2f} of them); {found['seconds']:.1f} s without scoring, checksums included",
        f"{'met' if ratio <= TARGET else 'MISSED'}: at most {TARGET:.0f} copies of the weights: {ratio:.2f}"])


def bench_candidate(race, tmp_path):
    """The targets as a candidate for every alpha of the pool; the other stage is read from disk, as it is, or held in a third copy."""
    targets, merged, other = (weights() for _ in range(3))
    store = StageStore(tmp_path)
    store.put("2", other)
    stage, total = store.open("2"), 4 * sum(value.numel() for value in targets.values())

    def ours(other):
        for alpha in POOL:
            mix(targets, merged, other, alpha)

    def plain():
        for alpha in POOL:
            for name, target in targets.items():
                target.copy_(alpha * merged[name] + (1 - alpha) * other[name])

    def foreach():
        values, ends = list(targets.values()), list(other.values())
        for alpha in POOL:
            torch._foreach_copy_(values, list(merged.values()))
            torch._foreach_lerp_(values, ends, 1 - alpha)

    def verify(other):
        for alpha in POOL:
            mix(targets, merged, other, alpha)
            for name, target in targets.items():
                torch.testing.assert_close(target, alpha * merged[name] + (1 - alpha) * other[name], rtol=1e-5, atol=1e-6)

    race("interpolation", f"ResNet-18, {len(POOL)} candidates", {
        "sparsekern, stage read from disk": lambda: ours(stage), "sparsekern, stage held": lambda: ours(other), "plain loop, stage held": plain,
        "copy and _foreach_lerp_, stage held": foreach}, nbytes=len(POOL) * 3 * total,
        check={"sparsekern, stage read from disk": lambda: verify(stage), "sparsekern, stage held": lambda: verify(other)},
        targets=[("sparsekern, stage read from disk", "<=", 1.0, "plain loop, stage held"),
                 ("sparsekern, stage held", "<=", 1.0, "copy and _foreach_lerp_, stage held")])


def weigh(directory: str) -> dict[str, float]:
    """Bytes: rise of the peak over the process before, one copy of the weights and the largest of them; and seconds."""
    from bench_memory import _resident

    store = StageStore(directory)
    shapes = {name: value.shape for name, value in weights().items()}
    for k in range(1, STAGES + 1):
        torch.manual_seed(k)
        store.put(str(k), weights())
    small = {"w": torch.zeros(3)}
    interpolate(small, lambda k: {"w": torch.ones(3)}, 2, lambda k: 0.0)           # what is needed is imported
    store.digest("1")
    Path("/proc/self/clear_refs").write_text("5")                                  # the peak starts anew
    before, start = _resident("VmRSS"), time.perf_counter()
    targets = {name: torch.zeros(shape) for name, shape in shapes.items()}
    interpolate(targets, lambda k: store.open(str(k)), STAGES, lambda k: -float(targets["fc.bias"].square().sum()))
    sizes = [4 * value.numel() for value in targets.values()]
    return {"rise": _resident("VmHWM") - before, "weights": sum(sizes), "largest": max(sizes), "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    print(json.dumps(weigh(sys.argv[1])))

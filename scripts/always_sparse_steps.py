"""Time and memory of training steps: every method of the always-sparse comparison in a process of its own, on random images.

    python scripts/always_sparse_steps.py > results/always_sparse_steps.json

Memory is the peak of the process while it trains, less what it held before the model was made (Linux). A step is forward, backward and
update; the event is the step in which connections move. Medians over the steps; rounds of all configurations are interleaved.
"""
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from sparsekern.algorithms import build
from sparsekern.support.models import build_model
from sparsekern.training.report import commit, device_info, uncommitted, versions

STEPS, ROUNDS, BATCH = 12, 1, 128
METHODS = [("gse", {"distribution": name}) for name in ("uniform", "grabo", "graest")] + [
    ("set", {"storage": "csr"}), ("static", {"storage": "csr"}), ("rigl", {}), ("dense", {})]
MODELS = {"mlp:4096,4096": (0.9, 0.95, 0.98), "mlp:1024,1024": (0.95,), "resnet20": (0.9, 0.95, 0.98)}


def measure(model_name: str, sparsity: float, algorithm: str, options: dict) -> dict:
    """Median step, event step and rise in peak memory of one configuration, in this process."""
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    F.linear(torch.randn(64, 64), torch.randn(64, 64))                      # thread pools and libraries are not the method's
    before = resident("VmRSS")
    model = build_model(model_name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    moving = {} if algorithm in ("dense", "static") else {"delta_t": STEPS // 2, "end": 2 * STEPS}
    given = {} if algorithm == "dense" else {"sparsity": sparsity}
    sparsifier = build(algorithm, model, optimizer, total_steps=3 * STEPS, **given, **moving, **options)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)                                        # what only the making of the model needed
    Path("/proc/self/clear_refs").write_text("5")                           # the peak counts from here
    times, events = [], []
    for step in range(STEPS + 2):
        due = sparsifier.event_due(step)
        start = time.perf_counter()
        F.cross_entropy(model(x), y).backward()
        sparsifier.step()
        optimizer.zero_grad()
        (events if due else times).append(time.perf_counter() - start)
    return {"step_ms": 1e3 * statistics.median(times[2:]), "event_ms": 1e3 * statistics.median(events) if events else None,
            "peak_mib": (resident("VmHWM") - before) / 1024}


def resident(key: str) -> int:
    """KiB: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def main() -> None:
    cases = [(model, sparsity, algorithm, options) for model, several in MODELS.items() for sparsity in several for algorithm, options in METHODS
             if algorithm != "dense" or sparsity == several[0]]
    found: dict[int, list[dict]] = {}
    for turn in range(ROUNDS):
        for index, case in enumerate(cases):
            print(f"round {turn + 1} of {ROUNDS}: {case[0]} {case[1]} {case[2]}", file=sys.stderr, flush=True)
            done = subprocess.run([sys.executable, __file__, json.dumps(case)], check=True, capture_output=True, text=True)
            found.setdefault(index, []).append(json.loads(done.stdout))
    rows = [{"model": model, "sparsity": None if algorithm == "dense" else sparsity, "method": options.get("distribution", algorithm)}
            | {key: statistics.median(run[key] for run in found[index]) if found[index][0][key] is not None else None
               for key in ("step_ms", "event_ms", "peak_mib")}
            for index, (model, sparsity, algorithm, options) in enumerate(cases)]
    print(json.dumps({"command": "python scripts/always_sparse_steps.py", "commit": commit(), "uncommitted_changes": uncommitted(),
                      "device": device_info(torch.device("cpu")), "versions": versions(),
                      "batch": BATCH, "steps": STEPS, "rounds": ROUNDS, "rows": rows}, indent=1))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*json.loads(sys.argv[1]))))
    else:
        main()

"""A layer that could not exist densely: 200,000 x 200,000 at 99.99 % sparsity. Its dense weight alone would be 160 GB.

    python examples/huge_layer.py                     # about 1 GiB of memory
    python examples/huge_layer.py --size 20000 --sparsity 0.999

Trains it by GSE for a few steps, two of which move connections, and prints the time of every step and the peak memory of the process.
"""
import argparse
import resource
import time

import torch
from torch import nn

import sparsekern


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=200_000)
    parser.add_argument("--sparsity", type=float, default=0.9999)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--distribution", default="grabo")
    options = parser.parse_args(arguments)
    size, before = options.size, peak_mib()

    started = time.perf_counter()
    layer = sparsekern.nn.SparseLinear.from_shape(size, size, sparsity=options.sparsity)
    made = time.perf_counter() - started
    model = nn.Sequential(layer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gse = sparsekern.GSE(model, optimizer, total_steps=options.steps, delta_t=max(1, options.steps // 2), end=options.steps,
                         distribution=options.distribution)
    print(f"{size:,} x {size:,}, {layer.nnz:,} weights ({layer.sparsity:.4%} sparse); dense: {4 * size * size / 2**30:,.1f} GiB; "
          f"made in {made:.1f} s")

    seconds, losses = [], []
    for step in range(options.steps):
        x = torch.randn(options.batch, size, generator=torch.Generator().manual_seed(step))
        started = time.perf_counter()
        loss = (model(x) - x.roll(1, dims=1)).square().mean()
        loss.backward()
        events = len(gse.history)
        gse.step()
        seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
        grown = f", {sum(gse.history[-1]['grown']):,} connections moved" if len(gse.history) > events else ""
        print(f"step {step + 1}: loss {losses[-1]:.4f}, {seconds[-1]:.2f} s{grown}")
    print(f"peak memory {peak_mib():,.0f} MiB ({peak_mib() - before:,.0f} MiB above the process before the layer)")
    return {"nnz": layer.nnz, "events": len(gse.history), "moved": [sum(record["grown"]) for record in gse.history], "losses": losses,
            "seconds": seconds, "rise_mib": peak_mib() - before}


if __name__ == "__main__":
    main()

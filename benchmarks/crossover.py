"""Draws where sparse products overtake dense ones, and how the time of an event grows, from what `pytest --benchmark` wrote:

    python benchmarks/crossover.py results/cpu-csr.json results/cpu-sparse-layers.json results/cpu-sparse.png
"""
import json
import re
import sys
from pathlib import Path

OPS = ("csr_spmm", "csr_sddmm", "sparse_conv2d")


def medians(table: dict) -> dict[str, float]:
    return {row["name"]: row["median_ms"] for row in table["rows"] if "median_ms" in row}


def speedups(record: dict) -> dict[str, list[tuple[float, float]]]:
    """{curve: [(sparsity in %, dense time / ours)]} of every table that has both."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for table in record["tables"]:
        times, percent = medians(table), re.search(r"(\d+)%", table["shape"])
        ours = times.get("sparsekern bf16") if "bf16" in table["shape"] else None
        ours = ours or times.get("sparsekern")
        dense = next((time for name, time in times.items() if name.startswith("dense")), None)
        if percent and ours and dense and table["op"] in OPS and "batch 1," not in table["shape"]:
            curve = f"{table['op']} {table['shape'].replace(f', {percent[0]} sparse', '').replace(f', {percent[0]}', '')}"
            curves.setdefault(curve, []).append((float(percent[1]), dense / ours))
    return {name: sorted(points) for name, points in curves.items() if len(points) > 2}


def events(record: dict) -> dict[str, list[tuple[int, float]]]:
    """{curve: [(width, milliseconds)]} of the events of GSE and RigL."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for table in record["tables"]:
        if table["op"] == "GSE event":
            for name, time in medians(table).items():
                method, width = name.removeprefix("sparsekern ").split()
                label = method if method == "RigL" else f"{method}, {table['shape'].rsplit(', ', 1)[1]}"
                curves.setdefault(label, []).append((int(width), time))
    return {name: sorted(points) for name, points in curves.items()}


def main() -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = [json.loads(Path(name).read_text()) for name in sys.argv[1:-1]]
    record = records[0] | {"tables": [table for each in records for table in each["tables"]]}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 5.5))
    for name, points in speedups(record).items():
        left.plot(*zip(*points), marker="o", label=name)
    left.axhline(1, color="black", linewidth=0.8)
    left.set(xlabel="sparsity, %", ylabel="dense time / sparse time (above 1: sparse is faster)", yscale="log", title="Crossover with dense")
    left.legend(fontsize=7)
    for name, points in events(record).items():
        right.plot(*zip(*points), marker="o", label=name)
    right.set(xscale="log", yscale="log", xlabel="width of the layer", ylabel="time of an event, ms",
              title="Events at a fixed number of connections per unit")
    right.legend(fontsize=8)
    figure.suptitle(f"{record['device']}, {record['threads']} threads, {record['isa']}, torch {record['torch']}, commit {record['commit'][:10]}",
                    fontsize=9)
    figure.tight_layout()
    figure.savefig(sys.argv[-1], dpi=110)


if __name__ == "__main__":
    main()

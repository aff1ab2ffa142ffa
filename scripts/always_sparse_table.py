"""Prints results/always_sparse.md from the reports that scripts/always_sparse_evidence.sh left:

    python scripts/always_sparse_table.py results/always_sparse results/always_sparse_steps.json > results/always_sparse.md
"""
import json
import re
import statistics
import sys
from pathlib import Path

METHODS = {"gse-uniform": "GSE, uniform", "gse-grabo": "GSE, GraBo", "gse-graest": "GSE, GraEst", "set": "SET", "rigl": "RigL (masked)",
           "static": "Static", "dense": "dense"}
MODELS = {"small": "A smaller MLP", "wide": "A wide MLP", "resnet20": "ResNet-20"}


def spread(values: list[float], digits: int = 2) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def collect(folder: Path) -> dict[str, dict[tuple[float, str], list[dict]]]:
    """{model: {(sparsity, method): reports}}."""
    found: dict[str, dict[tuple[float, str], list[dict]]] = {}
    for path in sorted(folder.glob("*.json")):
        model, method, sparsity = re.fullmatch(r"(\w+?)-([a-z-]+?)(?:-(0\.\d+))?-seed\d+", path.stem).groups()
        found.setdefault(model, {}).setdefault((float(sparsity or 0), method), []).append(json.loads(path.read_text()))
    return found


def show(title: str, runs: dict[tuple[float, str], list[dict]]) -> None:
    first = next(iter(runs.values()))[0]
    print(f"## {title}\n\n{first['model']}, {first['prunable']:,} prunable weights, {first['train_images']:,} training images, {first['epochs']} "
          f"epochs of {first['steps_per_epoch']} steps, {first['test_images']:,} test images.\n")
    print("| sparsity | method | seeds | test accuracy % | weights and their state MiB | grown outlive % |\n|---|---|---|---|---|---|")
    for (sparsity, method), reports in sorted(runs.items(), key=lambda item: (item[0][0], list(METHODS).index(item[0][1]))):
        accuracy = spread([100 * report["mean_accuracy"] for report in reports])
        memory = [report["memory"] for report in reports]
        own = spread([sum(size for name, size in entry.items() if name != "peak") / 2**20 for entry in memory], 1)
        survival = [event["survival"] for report in reports for event in report["metrics"]["events"] if event.get("survival") is not None]
        outlive = f"{100 * statistics.mean(survival):.0f}" if survival else "-"
        print(f"| {sparsity:.0%} | {METHODS[method]} | {len(reports)} | {accuracy} | {own} | {outlive} |")
    print()


def show_steps(record: dict) -> None:
    """What scripts/always_sparse_steps.py measured."""
    print("## Time and memory of a training step\n")
    print(f"`{record['command']}`, batch {record['batch']}, {record['device']['threads']} threads, commit {record['commit'][:10]}, machine quiet. "
          "Memory is what the process holds at its peak in training beyond what it held before, activations and workspaces included.\n")
    print("| model | sparsity | method | ms per step | ms with an event | peak MiB |")
    print("|---|---|---|---|---|---|")
    for row in record["rows"]:
        event = "-" if row["event_ms"] is None else f"{row['event_ms']:.1f}"
        sparsity = "-" if row["sparsity"] is None else f"{row['sparsity']:.0%}"
        print(f"| {row['model']} | {sparsity} | {row['method']} | {row['step_ms']:.1f} | {event} | {row['peak_mib']:.0f} |")


def main() -> None:
    found = collect(Path(sys.argv[1]))
    reports = [report for runs in found.values() for group in runs.values() for report in group]
    commits = sorted({(report["commit"] or "unknown")[:10] for report in reports})
    first = reports[0]
    print("# Always-sparse training on CIFAR-10, on two CPU cores\n")
    print("Made by `scripts/always_sparse_evidence.sh DATA_DIR`; each run's settings and figures are in `results/always_sparse/*.json`. "
          f"Device: {first['device']['name']}, {first['device']['threads']} thread(s), {first['device']['isa']}; torch "
          f"{first['versions']['torch']}; commit {', '.join(commits)}.\n")
    print("The runs are short: they compare methods under equal steps and do not reproduce published accuracies. GSE, SET and Static hold "
          "nonzeros only; RigL and dense hold dense weights. `wall_seconds` and the peak in these files are no measurement, as other work shared "
          "the machine: the last table is.\n")
    for model, title in MODELS.items():
        if model in found:
            show(title, found[model])
    if len(sys.argv) > 2:
        show_steps(json.loads(Path(sys.argv[2]).read_text()))


if __name__ == "__main__":
    main()

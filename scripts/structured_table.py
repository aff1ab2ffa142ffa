"""Prints results/structured.md from the reports that scripts/structured_evidence.sh left:

    python scripts/structured_table.py results/structured > results/structured.md
"""
import json
import re
import statistics
import sys
from pathlib import Path

SPARSE = {"iee": "IEE", "rigl": "RigL", "static": "Static", "dense": "dense"}
ABLATIONS = {"iee": "IEE", "iee-no-freeze": "everything trains in phase Q", "iee-no-improve": "no phase J", "iee-zero-init": "what grows starts at 0",
             "iee-random-growth": "random growth", "iee-j1-q1": "J = Q = 1 (H = 40)"}

MLP = {"mlp-iee": "IEE", "mlp-iee-zero-init": "IEE, what grows starts at 0", "mlp-rigl": "RigL", "mlp-static": "Static"}


def spread(values: list[float], digits: int = 2) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def collect(folder: Path) -> dict[str, list[dict]]:
    """Reports by name without the seed."""
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*-seed*.json")):
        found.setdefault(re.sub(r"-seed\d+$", "", path.stem), []).append(json.loads(path.read_text()))
    return found


def over_events(reports: list[dict], key: str, kind: str | None = None) -> str:
    """Mean over events and seeds, and the way from the first event that has it to the last."""
    runs = [[event[key] for event in report["metrics"]["events"] if event.get(key) is not None and kind in (None, event.get("kind"))]
            for report in reports]
    runs = [values for values in runs if values]
    if not runs:
        return "-"
    first, last = (statistics.mean(values[place] for values in runs) for place in (0, -1))
    return f"{statistics.mean(value for values in runs for value in values):.2f} ({first:.2f} to {last:.2f})"


def cost(reports: list[dict]) -> str:
    return f"{statistics.mean(report['training_flops'] / report['dense_training_flops'] for report in reports):.2f}"


def sparse_rows(found: dict[str, list[dict]], names: dict[str, str]) -> None:
    print("| run | seeds | test accuracy % | grown outlive the next pruning | IoU after pruning | IoU after growing | training FLOPs / dense |")
    print("|---|---|---|---|---|---|---|")
    for name, label in names.items():
        if name in found:
            reports = found[name]
            accuracy = spread([100 * report["mean_accuracy"] for report in reports])
            print(f"| {label} | {len(reports)} | {accuracy} | {over_events(reports, 'survival')} | {over_events(reports, 'iou', 'prune')} | "
                  f"{over_events(reports, 'iou', 'grow')} | {cost(reports)} |")
    print()


def pattern_rows(found: dict[str, list[dict]]) -> None:
    print("| run | sub-net | sparsity of the layers with groups | kept of all prunable weights | test accuracy % | training FLOPs / dense |")
    print("|---|---|---|---|---|---|")
    for name, label in (("ast-gc-nm", "AST-GC, one run"), ("iee-nm", "IEE")):
        for report in found.get(name, []):
            for net in report["subnets"]:
                print(f"| {label} | {net['name']} | {net['target_sparsity']:.4%} | {1 - net['sparsity']:.4%} | {100 * net['accuracy']:.2f} | "
                      f"{cost([report])} |")
    print()


def channel_rows(found: dict[str, list[dict]]) -> None:
    dense = found.get("dense-b", [])
    print("| run | latency asked | predicted ms | measured ms | whole net measured ms | images/s | parameters | file | test accuracy % |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, reports in found.items():
        for report in reports if name.startswith(("iee-channel", "halp")) else ():
            slim = report["slim"]
            label = "IEE, from scratch" if name.startswith("iee") else "HALP, from scratch"
            print(f"| {label} | {name.rsplit('-', 1)[1]} | {slim['predicted_ms']:.2f} | {slim['measured_ms']:.2f} | {slim['measured_full_ms']:.2f} | "
                  f"{slim['fps']:.0f} | {slim['parameters']:,} | {slim['file_bytes'] / 1e6:.2f} MB | {100 * report['mean_accuracy']:.2f} |")
    if dense:
        print(f"| dense | 1 | - | - | - | - | {dense[0]['parameters']:,} | - | {spread([100 * report['mean_accuracy'] for report in dense])} |")
    print()


def main() -> None:
    found = collect(Path(sys.argv[1]))
    reports = [report for group in found.values() for report in group]
    first = found["iee"][0]
    commits = sorted({(report["commit"] or "unknown")[:10] for report in reports})
    print("# IEE, N:M groups and channels on CIFAR-10, on two CPU cores\n")
    print("Made by `scripts/structured_evidence.sh DATA_DIR`; each run's settings and figures are in `results/structured/*.json`. Device: "
          f"{first['device']['name']}, {first['device']['threads']} thread(s), {first['device']['isa']}; torch {first['versions']['torch']}; commit "
          f"{', '.join(commits)}.\n")
    print(f"{first['model']}, {first['train_images']:,} training images, {first['epochs']} epochs of {first['steps_per_epoch']} steps, "
          f"{first['test_images']:,} test images, JPEG-compressed ones. The runs are short: they compare methods under equal steps and do not "
          "reproduce published accuracies. `wall_seconds` is no measurement, as other work shared the machine.\n")
    print("## 90 % zeros\n")
    sparse_rows(found, SPARSE)
    print("## What IEE is without one of its parts\n")
    sparse_rows(found, ABLATIONS)
    if "mlp-iee" in found:
        longer = found["mlp-iee"][0]
        print(f"## More steps: {longer['model']}, 95 % zeros, {longer['train_images']:,} images, {longer['steps']:,} steps\n")
        sparse_rows(found, MLP)
    print("## n of m\n")
    pattern_rows(found)
    print("## Channels under a latency\n")
    channel_rows(found)
    print('"Grown outlive" is the share of the weights grown at one event that are still there after the next pruning; in brackets the way from '
          "the first event to the last. IoU: of the masks of consecutive cycles. IEE's FLOPs are those its products need, phase Q dense.")


if __name__ == "__main__":
    main()

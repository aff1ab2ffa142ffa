"""Prints the table of results/cifar10.md from the reports that scripts/cifar_evidence.sh left:

    python scripts/evidence_table.py results/cifar10 > results/cifar10.md
"""
import json
import re
import statistics
import sys
from pathlib import Path

ALGORITHMS = {"ast-gc": "AST-GC", "ast-no-gc": "AST, no correction", "dense": "dense", "alone": "alone"}


def percent(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def runs(folder: Path) -> dict[str, list[dict]]:
    """Reports by name without the seed."""
    found: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        found.setdefault(re.sub(r"-seed\d+$", "", path.stem), []).append(json.loads(path.read_text()))
    return found


def accuracies(reports: list[dict]) -> dict[str, list[float]]:
    by_subnet: dict[str, list[float]] = {}
    for report in reports:
        for subnet in report["subnets"]:
            by_subnet.setdefault(subnet["name"], []).append(subnet["accuracy"])
    return by_subnet


def show(title: str, found: dict[str, list[dict]]) -> None:
    if not found:
        return
    first = next(iter(found.values()))[0]
    print(f"## {title}\n\n{first['model']}, {first['train_images']:,} training images, {first['epochs']} epochs of {first['steps_per_epoch']} steps, "
          f"{first['test_images']:,} test images.\n")
    print("| run | seeds | sub-net: test accuracy % | conflicts inside groups % | corrected % | training FLOPs |\n|---|---|---|---|---|---|")
    for name, reports in found.items():
        label = next(text for key, text in sorted(ALGORITHMS.items(), key=lambda item: -len(item[0])) if name.removeprefix("short-").startswith(key))
        nets = ", ".join(f"{subnet}: {percent(values)}" for subnet, values in accuracies(reports).items())
        signs = [r["metrics"]["sign_ratio"]["inner"] for r in reports if r["metrics"].get("sign_ratio")]
        several = bool(signs) and len(reports[0]["subnets"]) > 1
        negative = percent([s["negative"] for s in signs]) if several else "-"
        fired = percent([r["metrics"]["projection"]["fire_rate"] for r in reports]) if several and label == "AST-GC" else "-"
        share = statistics.mean(r["training_flops"] / r["dense_training_flops"] for r in reports)
        print(f"| {label} | {len(reports)} | {nets} | {negative} | {fired} | {share:.2f} of dense |")
    print()


def main() -> None:
    found = runs(Path(sys.argv[1]))
    report = next(iter(found.values()))[0]
    commits = sorted({r["commit"][:10] for reports in found.values() for r in reports})
    print("# CIFAR-10 on two CPU cores\n")
    print("Made by `scripts/cifar_evidence.sh DATA_DIR`; each run's settings and figures are in `results/cifar10/*.json`. "
          f"Device: {report['device']['name']}, {report['device']['threads']} thread(s), {report['device']['isa']}; torch "
          f"{report['versions']['torch']}; commit {', '.join(commits)}.\n")
    print("The images are the real CIFAR-10 images after JPEG compression (quality 75, 4:2:0), so accuracies lie below those of the original data. "
          "The runs are short: they compare methods under equal steps and do not reproduce published accuracies.\n")
    show("Equal steps", {name: reports for name, reports in found.items() if not name.startswith("short-")})
    show("A shorter budget", {name: reports for name, reports in found.items() if name.startswith("short-")})
    print("\"alone\" trains that one sub-net with the same schedule for all the steps; in the several-sub-net runs each sub-net gets a third of "
          "them. \"Conflicts\" is the share of steps inside a group whose gradient has a negative inner product with the step before; "
          "\"corrected\" the share of (step, layer) pairs that were projected.")


if __name__ == "__main__":
    main()

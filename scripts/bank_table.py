"""Prints the tables of banks and of the runs that they come from, and draws their Pareto plot:

    python scripts/bank_table.py results/cocktail --plot results/cocktail.png > results/cocktail.md

Arguments are files or folders of them: reports of banks (NAME.bank.report.json), and reports of runs (NAME.json). A bank's accuracies before the
merge come from the run of the same NAME.
"""
import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from sparsekern.deploy.bank_figures import by_pattern, mb, pattern_kind, read_report, slower_text

SUFFIX = ".bank.report.json"
KINDS = ("dense", "unstructured", "n:m", "channel")


def collect(places: Iterable[Path]) -> tuple[dict[str, dict], dict[str, dict]]:
    """(reports of banks, reports of runs) by name."""
    banks, runs = {}, {}
    for place in places:
        for path in sorted(place.glob("*.json")) if place.is_dir() else [place]:
            if path.name.endswith(SUFFIX):
                banks[path.name.removesuffix(SUFFIX)] = read_report(path)
            else:
                run = json.loads(path.read_text())
                if "subnets" in run and "algorithm" in run:
                    runs[path.stem] = run
    return banks, runs


def share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def bank_rows(bank: dict, run: dict | None) -> list[str]:
    """Markdown: one line a sub-net, dense first."""
    dense, trained = bank["dense"], {net["name"]: net for net in (run or {}).get("subnets", ())}
    lines = ["| sub-net | pattern | zeros % | accuracy with its own stage's weights % | before interpolation % | after % | file | FLOPs | "
             "latency ms | times dense (10-90 %) | faster | memory | layers |", "|---" * 13 + "|",
             f"| the net whole | dense | - | - | - | - | {mb(dense['file_bytes'])} | {dense['flops'] / 1e6:.2f} M | {dense['latency_ms']:.2f} | 1 | "
             f"- | {mb(dense['memory_bytes'])} | - |"]
    for row in by_pattern(bank["subnets"]):
        net = trained.get(row["name"], {})
        forms = ", ".join(f"{count} {form}" for form, count in row["forms"].items())
        lines.append(f"| {row['name']} | {row['pattern']} | {share(row['sparsity'])} | {share(net.get('accuracy_of_stage'))} | "
                     f"{share(net.get('accuracy_before'))} | {share(row['accuracy'])} | {mb(row['file_bytes'])} | {row['flops'] / 1e6:.2f} M | "
                     f"{row['latency_ms']:.2f} | {row['speedup']:.2f} ({row['speedup_low']:.2f}-{row['speedup_high']:.2f}) | {row['faster']} | "
                     f"{mb(row['memory_bytes'])} | {forms or '-'} |")
    return lines


def bank_sentence(bank: dict) -> str:
    separate = sum(row["file_bytes"] for row in bank["subnets"])
    whole = len(bank["subnets"]) * bank["dense"]["file_bytes"]
    return (f"{len(bank['subnets'])} sub-nets in one file of {mb(bank['bank']['bytes'])}; as files of their own {mb(separate)} in their best form, "
            f"{mb(whole)} dense. " + " ".join(slower_text(bank)))


def provenance(bank: dict) -> str:
    machine, setup = bank["machine"], bank["setup"]
    changes = " with changes" if bank["uncommitted_changes"] else ""
    return (f"Measured by `{bank['command']}`, batch {setup['batch']}. Device: {machine['name']}, {machine['threads']} thread(s), {machine['isa']}; "
            f"torch {machine['torch']}, sparsekern {bank['versions'].get('sparsekern')}; commit {(bank['commit'] or 'unknown')[:10]}{changes}.")


def spread(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def means(run: dict, key: str) -> dict[str, float]:
    """{kind of pattern: mean accuracy of its sub-nets}."""
    found: dict[str, list[float]] = {}
    for net in run["subnets"]:
        if net.get(key) is not None:
            kind = "dense" if net["sparsity"] == 0 else pattern_kind(net["pattern"])
            found.setdefault(kind, []).append(net[key])
    return {kind: statistics.mean(values) for kind, values in found.items()}


def run_rows(runs: dict[str, dict]) -> list[str]:
    """Markdown: one line a run without its seed, mean accuracy of the sub-nets of each pattern before and after interpolation."""
    groups: dict[str, list[dict]] = {}
    for name, run in runs.items():
        groups.setdefault(re.sub(r"-seed\d+$", "", name), []).append(run)
    lines = ["| run | epochs | seeds | " + " | ".join(f"{kind} %" for kind in KINDS) + " | the four before merging % | training FLOPs / dense |",
             "|---" * (len(KINDS) + 5) + "|"]
    for name, group in groups.items():
        after, before = ([means(run, key) for run in group] for key in ("accuracy", "accuracy_before"))
        now, then = ([spread(values) if (values := [found[kind] for found in given if kind in found]) else "-" for kind in KINDS]
                     for given in (after, before))
        cells = [*now, ", ".join(then) if any(before) else "-"]
        flops = statistics.mean(run["training_flops"] / run["dense_training_flops"] for run in group)
        lines.append(f"| {name} | {group[0]['epochs']} | {len(group)} | {' | '.join(cells)} | {flops:.2f} |")
    return lines


def draw(banks: dict[str, dict], path: Path) -> None:
    """Accuracy over latency of every bank, side by side; the kind of file follows from the name (.png, .svg)."""
    from sparsekern.deploy.bank_page import draw_front
    from sparsekern.support.draw import canvas
    with canvas(5.6 * len(banks), 3.8, columns=len(banks)) as (figure, axes):
        for axis, (name, bank) in zip(axes[0], banks.items()):
            draw_front(axis, bank["subnets"], "latency_ms", 1.0, f"ms a batch of {bank['setup']['batch']}", bank["dense"]["latency_ms"])
            axis.set_title(name)
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tables of banks and their runs.")
    parser.add_argument("places", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args(arguments)
    banks, runs = collect(given.places)
    if not banks and not runs:
        print("bank_table: no reports of banks or runs there", file=sys.stderr)
        return 2
    first = next(iter(runs.values()), None)
    print("# Banks of sub-nets on CIFAR-10\n")
    if first:
        epochs = " or ".join(map(str, sorted({run["epochs"] for run in runs.values()})))
        commits = sorted({(run["commit"] or "unknown")[:10] for run in runs.values()})
        print("Made by `scripts/cocktail_evidence.sh DATA_DIR`; settings and figures of each run are beside the reports of the banks. "
              f"{first['model']}, {first['train_images']:,} training images, {epochs} epochs of {first['steps_per_epoch']} steps, "
              f"{first['test_images']:,} test images. Runs on {first['device']['name']}, {first['device']['threads']} thread(s); torch "
              f"{first['versions']['torch']}; commit {', '.join(commits)}.\n")
    for name, bank in banks.items():
        print("\n".join([f"## {name}\n", provenance(bank) + "\n", bank_sentence(bank) + "\n", *bank_rows(bank, runs.get(name)), ""]))
    if runs:
        print("\n".join(["## Runs: mean test accuracy by pattern\n", *run_rows(runs), ""]))
    if given.plot and banks:
        draw(banks, given.plot)
        print(f"![Accuracy over latency]({given.plot.name})\n")
    print("Latency: median over rounds in which every sub-net runs beside the whole net; times dense: median of the rounds' own ratios. Memory: "
          "weights and buffers plus the most that one inference allocates. 1 MB is 10^6 bytes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

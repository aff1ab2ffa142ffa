"""Prints a Markdown report from the JSON of `pytest --benchmark --benchmark-report FILE`:

    python benchmarks/report.py runs/cpu-ops.json > runs/cpu-ops.md
"""
import json
import sys
from pathlib import Path


def cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def main() -> None:
    record = json.loads(Path(sys.argv[1]).read_text())
    print(f"# Ops beside their peers: {record['gpu'] or record['device']}\n")
    print(f"`{record['command']}` at commit {record['commit'][:10]}; {record['threads']} threads, {record['isa']}, torch {record['torch']}, numpy "
          f"{record['numpy']}, Python {record['python']}; copy bandwidth {record['copy_gb_per_s']:.1f} GB/s (read and written bytes). Contenders ran "
          "interleaved; their results were checked first.\n")
    verdicts = [f"{table['op']}, {table['shape']}: {line}" for table in record["tables"] for line in table["verdicts"] + table["notes"]
                if line.startswith(("met: ", "MISSED: "))]
    missed = [line for line in verdicts if ": MISSED" in line]
    print(f"{len(verdicts) - len(missed)} of {len(verdicts)} targets met. Missed:\n")
    print("\n".join(f"- {line.replace('MISSED: ', '')}" for line in missed) or "- none")
    for table in record["tables"]:
        print(f"\n## {table['op']}: {table['shape']}\n\n| | median ms | 10 to 90 % | GB/s | of copy |\n|---|---|---|---|---|")
        for row in table["rows"]:
            if "void" in row:
                print(f"| {row['name']} | {row['void']} | | | |")
                continue
            print(f"| {row['name']} | {row['median_ms']:.3f} | {row['p10_ms']:.2f} to {row['p90_ms']:.2f} | {cell(row['gb_per_s'], '.1f')} | "
                  f"{cell(row['share_of_copy'], '.0%')} |")
        print("".join(f"\n- {line}" for line in table["verdicts"] + table["notes"]))


if __name__ == "__main__":
    main()

"""A report of what `pytest --benchmark --benchmark-report FILE` and `scripts/gpu.py bench` wrote, from one file or several:

    python benchmarks/report.py runs/cpu-ops.json results/gpu-bench.json > runs/ops.md
    python benchmarks/report.py runs/cpu-ops.json --html runs/ops.html > runs/ops.md        # the same with plots
    python benchmarks/report.py new.json --against old.json                                 # which rows got slower or faster
"""
import argparse
import html
import io
import json
import re
import sys
from pathlib import Path

from crossover import medians, speedups

# A report is a list of blocks: ("heading", level, text), ("text", text), ("list", [texts]), ("table", [header], [rows]), ("figure", title, svg).
Block = tuple


# ---- what is said ----

def cell(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else format(value * factor, form)


def ours(name: str) -> bool:
    return name.startswith("sparsekern")


def origin(record: dict) -> str:
    """Where the figures come from, in one sentence."""
    if not record.get("command"):
        return "Nothing run: cases and targets only." if not record.get("gpu") else "`gpu_race.py`."
    versions = {name: record[name] for name in ("torch", "triton", "numpy") if record.get(name)} | record.get("versions", {})
    parts = [f"`{record['command']}`" + (f" at commit {record['commit'][:10]}" if record.get("commit") else "")
             + (" with uncommitted changes" if record.get("dirty") else "")]
    parts += [f"{record['threads']} threads, {record['isa']}"] if record.get("threads") else []
    parts += [", ".join(f"{name} {value}" for name, value in versions.items() if value)] if versions else []
    parts += [f"Python {record['python']}"] if record.get("python") else []
    parts += [f"driver {record['driver']}"] if record.get("driver") else []
    parts += [f"copy bandwidth {record['copy_gb_per_s']:.1f} GB/s (read and written bytes)"] if record.get("copy_gb_per_s") else []
    parts += [f"clocks before {record['clocks']}, after {record.get('clocks_after')}"] if record.get("clocks") else []
    return "; ".join(parts) + ". Contenders ran interleaved; their results were checked first."


def machine(record: dict) -> str:
    return record.get("gpu") or record.get("device") or "no GPU yet"


def yardsticks(record: dict) -> list[Block]:
    known = record.get("yardsticks") or {}
    names = {"copy_gb_per_s": "copy", "l2_read_gb_per_s": "reads from L2", "shared_gb_per_s": "reads from shared memory (nominal)",
             "bf16_tflops": "bf16 matrix product"}
    words = [f"{names.get(key, key)} {value:,.0f} {'TFLOP/s' if key == 'bf16_tflops' else 'GB/s'}" for key, value in known.items()]
    return [("text", "Measured first: " + ", ".join(words) + ".")] if words else []


def targets(tables: list[dict]) -> list[Block]:
    lines = [(f"{table['op']}, {table['shape']}", line) for table in tables for line in table["verdicts"] + table["notes"]]
    met = [where for where, line in lines if line.startswith("met: ")]
    missed = [f"{where}: {line.removeprefix('MISSED: ')}" for where, line in lines if line.startswith("MISSED: ")]
    absent = [f"{where}: {line.partition(': ')[2]}" for where, line in lines if line.startswith("not run on a GPU yet: ")]
    blocks = [("text", f"{len(met)} of {len(met) + len(missed)} targets met. Missed:"), ("list", missed or ["none"])]
    return blocks + ([("text", f"{len(absent)} targets not run on a GPU yet:"), ("list", absent)] if absent else [])


def table_blocks(table: dict) -> list[Block]:
    rows, on_gpu = table["rows"], any("timed" in row for row in table["rows"])
    header = ["", "median ms", "10 to 90 %", "GB/s", "of copy"]
    if on_gpu:
        header = ["", "kernel", "median ms", "10 to 90 %", "warm ms", "eager ms", "GB/s", "of its roofline", "timed by"]
    body = []
    for row in rows:
        if "void" in row:
            body.append([row["name"], row["void"]] + [""] * (len(header) - 2))
            continue
        spread = f"{row['p10_ms']:.2f} to {row['p90_ms']:.2f}"
        if not on_gpu:
            body.append([row["name"], f"{row['median_ms']:.3f}", spread, cell(row["gb_per_s"], ".1f"), cell(row["share_of_copy"], ".0%")])
            continue
        share = f"{row['share']:.0%} ({row['bound']})" if row["share"] else ""
        body.append([row["name"], row["implementation"], f"{row['median_ms']:.4f}", f"{row['p10_ms']:.4f} to {row['p90_ms']:.4f}",
                     f"{row['warm_ms']:.4f}", f"{row['eager_ms']:.4f}", cell(row["gb_per_s"], ".0f"), share, row["timed"]])
    lines = table["verdicts"] + table["notes"]
    return ([("heading", 2, f"{table['op']}: {table['shape']}")] + ([("table", header, body)] if body else [])
            + ([("list", lines)] if lines else []))


def standalone(record: dict) -> list[Block]:
    """What the programs of tests/native measured without Python; each says what it likes of a case."""
    blocks: list[Block] = []
    for row in record.get("rows", []):
        measured = row.get("measured") or []
        keys = list(dict.fromkeys(key for line in measured for key in line))
        if measured:
            blocks += [("heading", 2, f"standalone: {row['name']}"), ("table", keys, [[str(line.get(key, "")) for key in keys] for line in measured])]
    return blocks


def report(records: list[dict]) -> list[Block]:
    blocks: list[Block] = [("heading", 1, "Ops beside their peers: " + ", ".join(dict.fromkeys(map(machine, records))))]
    for record in records:
        blocks += [("text", origin(record)), *yardsticks(record)]
    tables = [table for record in records for table in record["tables"]]
    blocks += targets(tables)
    for table in tables:
        blocks += table_blocks(table)
    return blocks + [block for record in records for block in standalone(record)]


# ---- two runs ----

def rows_of(records: list[dict]) -> dict[tuple[str, str, str], dict]:
    return {(table["op"], table["shape"], row["name"]): row for record in records for table in record["tables"] for row in table["rows"]}


def compare(new: list[dict], old: list[dict]) -> list[Block]:
    """Ratios of medians row by row; slower or faster only where the ranges from 10 to 90 % do not touch."""
    after, before = rows_of(new), rows_of(old)
    slower, faster, same, broken = [], [], 0, []
    for key, row in after.items():
        if key not in before or "void" in before[key]:
            continue
        if "void" in row:
            broken.append(f"{', '.join(key)}: {row['void']}")
            continue
        then = before[key]
        ratio = row["median_ms"] / then["median_ms"]
        line = [*key, f"{then['median_ms']:.4f}", f"{row['median_ms']:.4f}", f"{ratio:.2f}x"]
        if row["p10_ms"] > then["p90_ms"]:
            slower.append((ratio, line))
        elif row["p90_ms"] < then["p10_ms"]:
            faster.append((1 / ratio, line))
        else:
            same += 1
    header = ["op", "shape", "", "before ms", "now ms", "now / before"]
    blocks: list[Block] = [("heading", 1, f"{' and '.join(map(machine, new))}: this run against an earlier one"),
                           ("text", "This run: " + " ".join(map(origin, new))), ("text", "The earlier one: " + " ".join(map(origin, old)))]
    for title, found in (("Slower", slower), ("Faster", faster)):
        blocks.append(("heading", 2, f"{title} beyond the spread: {len(found)}"))
        blocks += [("table", header, [line for _, line in sorted(found, reverse=True)])] if found else []
    blocks += [("heading", 2, "Wrong or failing now, not before"), ("list", broken)] if broken else []
    known = {"only now": after.keys() - before.keys(), "only before": before.keys() - after.keys()}
    words = "; ".join([f"{same} rows within the spread of either run", *(f"{len(keys)} {words}" for words, keys in known.items())])
    return [*blocks, ("text", f"{words}.")]


# ---- plots ----

def ratios(records: list[dict]) -> dict[str, list[tuple[float, float]]]:
    """{curve: [(sparsity in %, time of the peer / ours)]}; the peer is the one of the first target, else the fastest."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for table in record["tables"]:
            times, percent = medians(table), re.search(r"(\d+)% sparse", table["shape"])
            mine = next((name for name in times if ours(name)), None)
            named = next((t["right"] for t in table["targets"] if t["sense"] == ">=" and t["right"] in times and not ours(t["right"])), None)
            peer = named or min((name for name in times if not ours(name)), key=times.get, default=None)
            if percent and mine and peer:
                curve = f"{table['op']} {table['shape'].replace(percent[0], '').replace(', ,', ',').strip(', ')}"
                curves.setdefault(curve, []).append((float(percent[1]), times[peer] / times[mine]))
    return {name: sorted(points) for name, points in curves.items() if len(points) > 2}


def shares(records: list[dict]) -> list[tuple[str, float]]:
    """The best share of its roofline that ours reaches in each table."""
    found = []
    for record in records:
        for table in record["tables"]:
            mine = [row for row in table["rows"] if ours(row["name"]) and "void" not in row]
            best = max((row.get("share") or row["share_of_copy"] or 0 for row in mine), default=0)
            if best:
                found.append((f"{table['op']} {table['shape']}", best))
    return found


def figures(records: list[dict]) -> list[Block]:
    try:
        import matplotlib
    except ImportError:
        return [("text", "No plots: matplotlib is not installed.")]
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "sparsekern", "font.size": 9})
    from matplotlib import pyplot

    blocks: list[Block] = []

    def add(title: str, figure) -> None:
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight")
        pyplot.close(figure)
        blocks.append(("figure", title, text.getvalue()[text.getvalue().index("<svg"):]))

    dense = {name: points for record in records for name, points in speedups(record).items()}
    for title, curves, words in (("Speed-up by sparsity", ratios(records), "time of the peer / ours"),
                                 ("Crossover with dense products", dense, "dense time / sparse time")):
        if curves:
            figure, axes = pyplot.subplots(figsize=(10, max(4.5, 0.18 * len(curves))))
            for name, points in curves.items():
                axes.plot(*zip(*points), marker="o", markersize=3, label=name)
            axes.axhline(1, color="black", linewidth=0.8)
            axes.set(xlabel="sparsity, %", ylabel=f"{words} (above 1: sparsekern is faster)", yscale="log")
            axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
            add(title, figure)
    bars = shares(records)
    if bars:
        figure, axes = pyplot.subplots(figsize=(10, 1 + 0.16 * len(bars)))
        axes.barh([name for name, _ in bars], [100 * share for _, share in bars])
        axes.invert_yaxis()
        axes.axvline(100, color="black", linewidth=0.8)
        axes.set_xlabel("% of the roofline (on a CPU: of copy bandwidth)")
        axes.tick_params(axis="y", labelsize=6)
        add("Share of the roofline, the best of ours in each table", figure)
    return blocks


# ---- how it is written ----

def markdown(blocks: list[Block]) -> str:
    parts = []
    for kind, *content in blocks:
        if kind == "heading":
            parts.append(f"{'#' * content[0]} {content[1]}")
        elif kind == "text":
            parts.append(content[0])
        elif kind == "list":
            parts.append("\n".join(f"- {line}" for line in content[0]))
        elif kind == "table":
            rows = [[text.replace("|", "\\|") for text in row] for row in content[1]]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in [content[0], ["---"] * len(content[0]), *rows]))
    return "\n\n".join(parts) + "\n"


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse;font-size:13px}
td,th{padding:.15rem .6rem;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}
h2{margin-top:2rem;font-size:1.1rem}
svg{max-width:100%;height:auto}.missed{color:#b00020}.met{color:#1b6e2d}"""


def page(blocks: list[Block]) -> str:
    def marked(text: str) -> str:
        kind = "missed" if text.startswith("MISSED") else "met" if text.startswith("met: ") else ""
        return f'<span class="{kind}">{html.escape(text)}</span>' if kind else html.escape(text)

    def cells(tag: str, row: list[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in row) + "</tr>"

    parts = []
    for kind, *content in blocks:
        if kind == "heading":
            parts.append(f"<h{content[0]}>{html.escape(content[1])}</h{content[0]}>")
        elif kind == "text":
            parts.append(f"<p>{html.escape(content[0])}</p>")
        elif kind == "list":
            parts.append("<ul>" + "".join(f"<li>{marked(line)}</li>" for line in content[0]) + "</ul>")
        elif kind == "table":
            parts.append("<table>" + cells("th", content[0]) + "".join(cells("td", row) for row in content[1]) + "</table>")
        else:
            parts.append(f"<h2>{html.escape(content[0])}</h2>\n<figure>{content[1]}</figure>")
    title = next((content[1] for kind, *content in blocks if kind == "heading"), "report")
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return "\n".join([head, *parts, "</html>"]) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--against", nargs="+", type=Path, metavar="OLD", help="compare with these files instead of reporting")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page, too: one file, plots in it")
    given = parser.parse_args(arguments)
    records, earlier = ([{"tables": []} | json.loads(path.read_text()) for path in paths] for paths in (given.files, given.against or []))
    if given.against:
        blocks = compare(records, earlier)
    else:
        blocks = report(records)
    sys.stdout.write(markdown(blocks))
    if given.html:
        first = next((i for i, block in enumerate(blocks) if block[0] == "heading" and block[1] == 2), len(blocks))
        drawn = [] if given.against else figures(records)
        given.html.parent.mkdir(parents=True, exist_ok=True)
        given.html.write_text(page(blocks[:first] + drawn + blocks[first:]))


if __name__ == "__main__":
    main()

"""The page of a bank's report: what every sub-net gives and costs on this machine."""
import json

from sparsekern.deploy.bank_figures import by_pattern, forms_text, mb, pareto, pattern_kind, slower_text
from sparsekern.support.draw import COLORS, canvas, percent_axis
from sparsekern.support.page import cards, figure, page, percent, table, text

KINDS = {"dense": COLORS[5], "unstructured": COLORS[0], "n:m": COLORS[2], "channel": COLORS[1]}
OTHER = COLORS[3]


def render(report: dict) -> str:
    """The page as text, from a report as `report_bank` returns it. Without matplotlib it has the numbers and says why there are no plots."""
    model = (report["bank"].get("model") or {}).get("name")
    title = f"{report['bank']['file']}: {len(report['subnets'])} sub-nets" + (f" of {model}" if model else "")
    return page(title, _lead(report), _cards(report), _table(report), _figures(report), _layers(report), _details(report))


def _lead(report: dict) -> str:
    machine, setup = report["machine"], report["setup"]
    parts = [f"batch {setup['batch']}", "x".join(map(str, setup["shape"])), machine["name"],
             *([f"{machine['threads']} thread(s), {machine['isa']}"] if machine["type"] == "cpu" else []), f"torch {machine['torch']}",
             *(["batch norm folded"] if setup["fold"] else [])]
    if report["commit"]:
        parts.append(f"commit {report['commit'][:10]}" + (" with changes" if report.get("uncommitted_changes") else ""))
    return " &middot; ".join(text(part) for part in [*parts, report["finished"]])


def _cards(report: dict) -> str:
    rows, dense = report["subnets"], report["dense"]
    fastest = min(rows, key=lambda row: row["latency_ms"])
    separate = sum(row["file_bytes"] for row in rows)
    entries = [(mb(report["bank"]["bytes"]), "the bank"), (mb(separate), f"{len(rows)} files of one sub-net each, in their best form"),
               (f"{dense['latency_ms']:.3g} ms", "the net whole"), (f"{fastest['latency_ms']:.3g} ms", f"the fastest sub-net, {fastest['name']}"),
               (f"{sum(row['faster'] == 'yes' for row in rows)} of {len(rows)}", "faster than the net whole")]
    known = [row for row in rows if row["accuracy"] is not None]
    if known:
        best = max(known, key=lambda row: row["accuracy"])
        entries.append((percent(best["accuracy"]), f"the best accuracy, {best['name']}"))
    return cards([(text(value), label) for value, label in entries])


def _table(report: dict) -> str:
    head = ("sub-net", "pattern", "zeros", "nonzeros", "accuracy", "latency ms", "10-90 %", "&times; dense", "10-90 %", "faster than dense",
            "weights", "peak", "memory", "file", "form of the file", "parameters", "FLOPs", "layers")
    dense = report["dense"]
    rows = [("the net whole", "dense", "-", "-", "-", f"{dense['latency_ms']:.3g}",
             f"{dense['latency_low_ms']:.3g}&ndash;{dense['latency_high_ms']:.3g}", "1", "-", "-", *_sizes(dense), "-")]
    for row in by_pattern(report["subnets"]):
        rows.append((text(row["name"]), text(row["pattern"]), percent(row["sparsity"]), f"{row['nnz']:,}", f"<b>{percent(row['accuracy'])}</b>",
                     f"{row['latency_ms']:.3g}", f"{row['latency_low_ms']:.3g}&ndash;{row['latency_high_ms']:.3g}", f"<b>{row['speedup']:.2f}</b>",
                     f"{row['speedup_low']:.2f}&ndash;{row['speedup_high']:.2f}", row["faster"], *_sizes(row), text(forms_text(row))))
    notes = "".join(f'<p class="note">{text(line)}</p>' for line in [
        *slower_text(report),
        "Latency: median of the rounds. Times dense: median of each round's own ratio to the net whole, which runs right beside; faster is yes "
        "or no where nine rounds of ten agree. Memory: weights and buffers, and the most that one inference allocates beside them and the input, "
        "at torch's allocator. File: the least that this sub-net alone could take in the form that is named, whatever form runs; parameters and "
        "FLOPs (of one sample) are those of the nonzeros, or of the narrower net. 1 MB is 10^6 bytes."])
    return f'<section class="wide">{table(head, rows)}{notes}</section>'


def _sizes(row: dict) -> tuple[str, ...]:
    return (mb(row["weight_bytes"]), mb(row["peak_bytes"]), mb(row["memory_bytes"]), mb(row["file_bytes"]), text(row["file_form"]),
            f"{row['parameters']:,.0f}", f"{row['flops']:.4g}")


def _figures(report: dict) -> str:
    if not any(row["accuracy"] is not None for row in report["subnets"]):
        return '<section><p class="note">The bank knows no accuracies, so there is nothing to draw.</p></section>'
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return '<section><p class="note">The plots need matplotlib: pip install matplotlib, then sparsekern report BANK --resume.</p></section>'
    ms = f"ms a batch of {report['setup']['batch']}"
    return ('<div class="grid">'
            + figure("Accuracy and latency", "The line is the front: no other sub-net is as accurate and faster.",
                     front_plot(report["subnets"], "latency_ms", 1.0, ms, report["dense"]["latency_ms"]))
            + figure("Accuracy and size", "A file of the sub-net alone in its best form.",
                     front_plot(report["subnets"], "file_bytes", 1e-6, "MB on disk", report["dense"]["file_bytes"])) + "</div>")


def front_plot(rows: list[dict], cost: str, scale: float, label: str, dense: float):
    """A figure of `draw_front`."""
    with canvas(5.6, 3.8) as (drawing, axes):
        draw_front(axes[0, 0], rows, cost, scale, label, dense)
    return drawing


def draw_front(axis, rows: list[dict], cost: str, scale: float, label: str, dense: float) -> None:
    """Accuracy of every sub-net over what it costs, one colour per pattern, with the front and a line at the dense net's cost."""
    axis.axvline(dense * scale, color=KINDS["dense"], linewidth=1, linestyle=":", label="the net whole")
    front = pareto(rows, cost)
    axis.plot([row[cost] * scale for row in front], [row["accuracy"] for row in front], color="#9aa6b2", linewidth=1.2, drawstyle="steps-post",
              zorder=1)
    known = [row for row in by_pattern(rows) if row["accuracy"] is not None]
    for kind in dict.fromkeys(pattern_kind(row["pattern"]) for row in known):
        points = [(row[cost] * scale, row["accuracy"]) for row in known if pattern_kind(row["pattern"]) == kind]
        axis.scatter(*zip(*points), color=KINDS.get(kind, OTHER), s=60 if kind == "dense" else 26, marker="*" if kind == "dense" else "o",
                     label=kind.replace("$", r"\$"), zorder=2)
    axis.set_xlabel(label)
    axis.set_ylabel("test accuracy")
    percent_axis(axis.yaxis)
    axis.legend()


def _layers(report: dict) -> str:
    parts = []
    for row in by_pattern(report["subnets"]):
        if row["layers"]:
            cells = [(text(layer["layer"]), text(layer["form"]), _ms(layer["ms"]), _ms(layer["dense_ms"]), text(layer["reason"] or "-"))
                     for layer in row["layers"]]
            notes = "".join(f'<p class="note">{text(note)}</p>' for note in row["notes"])
            parts.append(f"<details><summary>{text(row['name'])}: {text(forms_text(row))}</summary>"
                         f"{table(('layer', 'form', 'ms', 'dense ms', 'reason'), cells)}{notes}</details>")
    return f'<section class="wide" style="margin-top: 16px"><h2>The form of every layer</h2>{"".join(parts)}</section>' if parts else ""


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _details(report: dict) -> str:
    shown = {key: report[key] for key in ("bank", "machine", "setup", "rounds", "command", "commit", "versions")}
    return (f"<section><details><summary>Bank, machine and versions</summary><pre>{text(json.dumps(shown, indent=1))}</pre>"
            "</details></section>")

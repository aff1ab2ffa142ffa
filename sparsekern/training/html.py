"""report.html: one self-contained page from a report, with its plots inside."""
import base64
import html
import io
import json

from sparsekern.training import plots
from sparsekern.training.progress import left_dense

STYLE = """
:root { --ink: #1c2430; --soft: #5d6b7c; --line: #dfe5ec; --paper: #fff; --ground: #f5f7fa; --accent: #1f6f8b; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 17px; margin: 0 0 4px; }
.lead, figcaption, .note { color: var(--soft); margin: 0; } .lead { margin-bottom: 20px; }
section, figure { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; margin: 0 0 16px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px; margin-bottom: 16px; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; }
.card b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; } .card span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 10px; border-bottom: 1px solid var(--line); } tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
.wide { overflow-x: auto; } .grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 16px; }
.grid figure { margin: 0; } figure.full { grid-column: 1 / -1; } img { width: 100%; height: auto; display: block; margin-top: 8px; }
pre { margin: 8px 0 0; overflow-x: auto; font-size: 13px; } summary { cursor: pointer; font-weight: 600; }
@media (max-width: 520px) { .grid { grid-template-columns: 1fr; } }
"""


def render(report: dict) -> str:
    """The page as text. Without matplotlib it has the numbers and says why the plots are missing."""
    title = f"{report['algorithm']} on {report['data']}, {report['model']}"
    return "\n".join([
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body><main>",
        f"<h1>{_text(title)}</h1>", f'<p class="lead">{_lead(report)}</p>',
        _cards(report), _table(report["subnets"]), _layers(report), _figures(report), _details(report), "</main></body></html>", ""])


def _lead(report: dict) -> str:
    device, commit = report["device"], report["commit"]
    parts = [f"{report['epochs']} epochs of {report['steps_per_epoch']} steps, {report['train_images']:,} training images",
             f"seed {report['seed']}",
             f"{device['name']}" + (f", {device['threads']} threads" if device["type"] == "cpu" else ""),
             f"torch {report['versions']['torch']}", f"sparsekern {report['versions']['sparsekern']}"]
    if commit:
        parts.append(f"commit {commit[:10]}" + (" with changes" if report.get("uncommitted_changes") else ""))
    return " &middot; ".join(_text(part) for part in [*parts, report["finished"]])


def _cards(report: dict) -> str:
    share = report["training_flops"] / report["dense_training_flops"] if report["dense_training_flops"] else 0
    subnets = report["subnets"]
    nets = f"mean test accuracy of {len(subnets)} sub-nets" if len(subnets) > 1 else "test accuracy"
    entries = [(f"{report['mean_accuracy']:.2%}", nets),
               (f"{report['prunable']:,}", "prunable weights"), (f"{report['training_flops']:.3g}", "training FLOPs"),
               (f"{share:.2f}&times;", "of a dense run's FLOPs"), *_formula(report), (_duration(report["wall_seconds"]), "wall time")]
    if report.get("memory", {}).get("peak"):
        entries.append((f"{report['memory']['peak'] / 2**20:,.0f} MiB", "peak memory of the process" if report["device"]["type"] == "cpu"
                        else "peak memory on the device"))
    inner = (report["metrics"].get("sign_ratio") or {}).get("inner") or {}
    if inner.get("measured"):
        entries.append((f"{inner['negative']:.1%}", "of inner-group products conflict"))
    slim = report.get("slim")
    if slim:
        entries += [(f"{slim['predicted_ms']:.2f} ms", f"predicted latency of the slimmed net, {slim['predicted_full_ms']:.2f} ms of the whole one"),
                    *([(f"{slim['measured_ms']:.2f} ms", f"measured, {slim['measured_full_ms']:.2f} ms of the whole net; {slim['fps']:.0f} images/s")]
                      if slim["measured_ms"] else []), (f"{slim['parameters']:,}", f"parameters, {slim['file_bytes'] / 1e6:.2f} MB on disk")]
    return '<div class="cards">' + "".join(f'<div class="card"><b>{value}</b><span>{_text(label)}</span></div>'
                                           for value, label in entries) + "</div>"


def _formula(report: dict) -> list[tuple[str, str]]:
    formula = (report["metrics"].get("training_flops") or {}).get("paper")
    dense = 3 * report["dense_forward_flops"]
    return [(f"{formula['per_sample'] / dense:.2f}&times;", "of them by the formula of the paper")] if formula and dense else []


def _table(subnets: list[dict]) -> str:
    head = ("sub-net", "pattern", "target sparsity", "sparsity", "of all parameters", "nonzeros", "test accuracy", "test loss",
            "forward FLOPs")
    rows = []
    for s in subnets:
        cells = (_text(s["name"]), _text(s["pattern"]), _percent(s["target_sparsity"]), _percent(s["sparsity"], 4),
                 _percent(s.get("sparsity_of_all_parameters")), f"{s['nnz']:,}", f"<b>{_percent(s['accuracy'])}</b>",
                 "-" if s["loss"] is None else f"{s['loss']:.4f}", f"{s['forward_flops']:.4g}")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    header = "".join(f"<th>{cell}</th>" for cell in head)
    notes = "".join(f'<p class="note">{_text(line)}</p>' for line in left_dense(subnets))
    return f'<section class="wide"><table><tr>{header}</tr>{"".join(rows)}</table>{notes}</section>'


def _layers(report: dict) -> str:
    """Of a net in sparse layers: each layer's size and, where both products were measured, which one it uses."""
    subnet, products = report["subnets"][0], report["metrics"].get("products")
    if products is None:
        return ""
    measured = {entry["layer"]: entry for entry in products}
    rows = []
    for name, layer in subnet["layers"].items():
        found = measured.get(name, {})
        times = [f"{found[key]:.2f}" if found.get(key) is not None else "-" for key in ("sparse_ms", "dense_ms")]
        cells = (_text(name), _text(found.get("reason", "sparse product, not measured beside the dense one")), f"{layer['nnz']:,}",
                 _percent(layer["sparsity"]), *times)
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    header = "".join(f"<th>{cell}</th>" for cell in ("layer", "product", "nonzeros", "sparsity", "sparse ms", "dense ms"))
    memory = ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in (report.get("memory") or {}).items())
    return (f'<section class="wide"><details><summary>Sparse layers and memory</summary><table><tr>{header}</tr>{"".join(rows)}</table>'
            f'<p class="note">{_text(memory)}</p></details></section>')


def _figures(report: dict) -> str:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return '<section><p class="note">The plots need matplotlib: pip install matplotlib, then sparsekern report RUN_DIR.</p></section>'
    figures = []
    for title, caption, wide, draw in plots.PLOTS:
        figure = draw(report)
        if figure is not None:
            figures.append(f'<figure{" class=full" if wide else ""}><h2>{_text(title)}</h2><figcaption>{_text(caption)}</figcaption>'
                           f'<img alt="{_text(title)}" src="data:image/svg+xml;base64,{_svg(figure)}"></figure>')
    return f'<div class="grid">{"".join(figures)}</div>'


def _svg(figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return base64.b64encode(out.getvalue()).decode()


def _details(report: dict) -> str:
    shown = {"config": report["config"], "device": report["device"], "versions": report["versions"], "commit": report["commit"]}
    return ('<section style="margin-top: 16px"><details><summary>Settings, device and versions</summary>'
            f"<pre>{_text(json.dumps(shown, indent=1))}</pre></details></section>")


def _percent(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}%}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _text(value: object) -> str:
    return html.escape(str(value))

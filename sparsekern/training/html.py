"""report.html: one self-contained page from a report, with its plots inside."""
import json

from sparsekern.support.page import cards, figure, page, percent, table, text
from sparsekern.training import plots
from sparsekern.training.progress import left_dense


def render(report: dict) -> str:
    """The page as text. Without matplotlib it has the numbers and says why the plots are missing."""
    title = f"{report['algorithm']} on {report['data']}, {report['model']}"
    return page(title, _lead(report), _cards(report), _table(report["subnets"]), _layers(report), _figures(report), _details(report))


def _lead(report: dict) -> str:
    device, commit = report["device"], report["commit"]
    parts = [f"{report['epochs']} epochs of {report['steps_per_epoch']} steps, {report['train_images']:,} training images",
             f"seed {report['seed']}",
             f"{device['name']}" + (f", {device['threads']} threads" if device["type"] == "cpu" else ""),
             f"torch {report['versions']['torch']}", f"sparsekern {report['versions']['sparsekern']}"]
    if commit:
        parts.append(f"commit {commit[:10]}" + (" with changes" if report.get("uncommitted_changes") else ""))
    return " &middot; ".join(text(part) for part in [*parts, report["finished"]])


def _cards(report: dict) -> str:
    share = report["training_flops"] / report["dense_training_flops"] if report["dense_training_flops"] else 0
    subnets = report["subnets"]
    nets = f"mean test accuracy of {len(subnets)} sub-nets" if len(subnets) > 1 else "test accuracy"
    entries = [(f"{report['mean_accuracy']:.2%}", nets),
               *_patterns(report), (f"{report['prunable']:,}", "prunable weights"), (f"{report['training_flops']:.3g}", "training FLOPs"),
               (f"{share:.2f}&times;", "of a dense run's FLOPs"), *_formula(report), (_duration(report["wall_seconds"]), "wall time")]
    if report.get("memory", {}).get("peak"):
        entries.append((f"{report['memory']['peak'] / 2**20:,.0f} MiB", "peak memory of the process" if report["device"]["type"] == "cpu"
                        else "peak memory on the device"))
    inner = (report["metrics"].get("sign_ratio") or {}).get("inner") or {}
    if inner.get("measured"):
        entries.append((f"{inner['negative']:.1%}", "of inner-group products conflict"))
    return cards(entries + _slim(report.get("slim")))


def _slim(slim: dict | None) -> list[tuple[str, str]]:
    """Cards of a slimmed net; reports of earlier versions have no speed-up."""
    if not slim:
        return []
    entries = [(f"{slim['predicted_ms']:.2f} ms", f"predicted latency of the slimmed net, {slim['predicted_full_ms']:.2f} ms of the whole one")]
    if slim["measured_ms"]:
        entries.append((f"{slim['measured_ms']:.2f} ms", f"measured, {slim['measured_full_ms']:.2f} ms of the whole net; {slim['fps']:.0f} images/s"))
    if slim.get("speedup"):
        entries.append((f"{slim['speedup']:.2f}&times;", f"the whole net's speed, {slim['speedup_10']:.2f} to {slim['speedup_90']:.2f} in eight "
                        f"rounds of ten"))
    return [*entries, (f"{slim['parameters']:,}", f"parameters, {slim['file_bytes'] / 1e6:.2f} MB on disk")]


def _patterns(report: dict) -> list[tuple[str, str]]:
    means = report.get("pattern_accuracy") or {}
    return [(f"{mean:.2%}", f"mean of {pattern} sub-nets") for pattern, mean in means.items()] if len(means) > 1 else []


def _formula(report: dict) -> list[tuple[str, str]]:
    formula = (report["metrics"].get("training_flops") or {}).get("paper")
    dense = 3 * report["dense_forward_flops"]
    return [(f"{formula['per_sample'] / dense:.2f}&times;", "of them by the formula of the paper")] if formula and dense else []


def _table(subnets: list[dict]) -> str:
    chosen = any("accuracy_before" in s for s in subnets)
    before = ("of its own stage", "before the choice") if chosen else ()
    head = ("sub-net", "pattern", "target sparsity", "sparsity", "of all parameters", "nonzeros", *before, "test accuracy", "test loss",
            "forward FLOPs")
    rows = [(text(s["name"]), text(s["pattern"]), percent(s["target_sparsity"]), percent(s["sparsity"], 4),
             percent(s.get("sparsity_of_all_parameters")), f"{s['nnz']:,}",
             *((percent(s.get("accuracy_of_stage")), percent(s.get("accuracy_before"))) if chosen else ()), f"<b>{percent(s['accuracy'])}</b>",
             "-" if s["loss"] is None else f"{s['loss']:.4f}", f"{s['forward_flops']:.4g}") for s in subnets]
    if chosen:
        rows += _means(subnets)
    notes = "".join(f'<p class="note">{text(line)}</p>' for line in left_dense(subnets))
    return f'<section class="wide">{table(head, rows)}{notes}</section>'


def _means(subnets: list[dict]) -> list[tuple[str, ...]]:
    """A row per pattern with the mean accuracies of its sub-nets."""
    keys = ("accuracy_of_stage", "accuracy_before", "accuracy")
    means = [plots.pattern_accuracy(subnets, key) for key in keys]
    return [("<i>mean</i>", text(pattern), *["-"] * 4, *(percent(mean.get(pattern)) for mean in means), "-", "-") for pattern in means[-1]]


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
        rows.append((text(name), text(found.get("reason", "sparse product, not measured beside the dense one")), f"{layer['nnz']:,}",
                     percent(layer["sparsity"]), *times))
    head = ("layer", "product", "nonzeros", "sparsity", "sparse ms", "dense ms")
    memory = ", ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in (report.get("memory") or {}).items())
    return (f'<section class="wide"><details><summary>Sparse layers and memory</summary>{table(head, rows)}'
            f'<p class="note">{text(memory)}</p></details></section>')


def _figures(report: dict) -> str:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return '<section><p class="note">The plots need matplotlib: pip install matplotlib, then sparsekern report RUN_DIR.</p></section>'
    figures = []
    for title, caption, wide, draw in plots.PLOTS:
        drawing = draw(report)
        if drawing is not None:
            figures.append(figure(title, caption, drawing, wide))
    return f'<div class="grid">{"".join(figures)}</div>'


def _details(report: dict) -> str:
    shown = {"config": report["config"], "device": report["device"], "versions": report["versions"], "commit": report["commit"]}
    return ('<section style="margin-top: 16px"><details><summary>Settings, device and versions</summary>'
            f"<pre>{text(json.dumps(shown, indent=1))}</pre></details></section>")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

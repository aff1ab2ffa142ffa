"""The plots of a report: each takes the report and returns a matplotlib figure, or None if the run has nothing to show there."""
import re

from sparsekern.support.draw import COLORS, NEGATIVE, POSITIVE, canvas, percent_axis
from sparsekern.training.progress import MANY


def pattern_group(subnet: dict) -> str:
    """What sub-nets of one kind have in common: "dense", "unstructured", "N:M" whatever the numbers, "channel"."""
    if subnet["target_sparsity"] == 0:
        return "dense"
    return "N:M" if re.fullmatch(r"\d+:\d+", subnet["pattern"]) else subnet["pattern"]


def pattern_accuracy(subnets: list[dict], key: str = "accuracy") -> dict[str, float]:
    """{pattern: mean accuracy of its sub-nets}, in the order of the sub-nets; those without one do not count."""
    groups: dict[str, list[float]] = {}
    for subnet in subnets:
        groups.setdefault(pattern_group(subnet), []).extend([subnet[key]] if subnet[key] is not None else [])
    return {pattern: sum(values) / len(values) for pattern, values in groups.items() if values}


def _styles(subnets: list[dict]) -> dict[str, dict]:
    """How the line of every sub-net looks. A few have a colour each; many have that of their pattern, the sparser the paler, and one of each
    pattern stands for it in the legend."""
    names = [s["name"] for s in subnets]
    if len(names) <= MANY:
        return {name: {"color": COLORS[index % len(COLORS)], "label": name} for index, name in enumerate(names)}
    groups: dict[str, list[str]] = {}
    for subnet in sorted(subnets, key=lambda s: s["sparsity"]):
        groups.setdefault(pattern_group(subnet), []).append(subnet["name"])
    styles = {}
    for color, (group, members) in zip(COLORS * len(groups), groups.items()):
        for index, name in enumerate(members):
            text = f"{group} ({len(members)}, the sparser the paler)" if len(members) > 1 else group
            styles[name] = {"color": color, "alpha": 1 - 0.65 * index / max(1, len(members) - 1), "label": None if index else text}
    return {name: styles[name] for name in names}


def _legend(axis, subnets: list[dict], **options) -> None:
    """Inside where there are few names, else beside the axes."""
    beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "fontsize": 8} if len(subnets) > MANY else {}
    axis.legend(**beside, **options)


def _stage_marks(axis, history: list[dict]) -> None:
    """A line where a stage ends."""
    for row, following in zip(history, history[1:]):
        if row.get("stage") != following.get("stage"):
            axis.axvline(row["epoch"] + 0.5, color="#c9d2db", linewidth=0.8)


def _lines(report: dict, pick, label: str, percent: bool):
    """One line per sub-net over the epochs; `pick(row, name)` gives the value or None."""
    names, styles = [s["name"] for s in report["subnets"]], _styles(report["subnets"])
    series = {name: [(row["epoch"], pick(row, name)) for row in report["history"]] for name in names}
    series = {name: [point for point in points if point[1] is not None] for name, points in series.items()}
    if not any(series.values()):
        return None
    with canvas(5.6 if len(names) <= MANY else 7.2, 3.2) as (figure, axes):
        axis = axes[0, 0]
        _stage_marks(axis, report["history"])
        for name, points in series.items():
            epochs, values = zip(*points) if points else ((), ())
            marker = "o" if len(points) < 3 else None
            axis.plot(epochs, values, linewidth=1.6, marker=marker, **styles[name])
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        axis.locator_params(axis="x", integer=True)
        if percent:
            percent_axis(axis.yaxis)
        _legend(axis, report["subnets"], title="sub-net" if len(names) > 1 else None)
    return figure


def accuracy(report: dict):
    return _lines(report, lambda row, name: row["subnets"].get(name, {}).get("accuracy"), "test accuracy", True)


def training_loss(report: dict):
    return _lines(report, lambda row, name: row["train_loss_by_subnet"].get(name), "training loss", False)


def sparsity(report: dict):
    if all(s["sparsity"] == 0 for s in report["subnets"]):
        return None
    return _lines(report, lambda row, name: row["subnets"].get(name, {}).get("sparsity"), "sparsity", True)


def conflicts_per_epoch(history: list[dict]) -> dict[str, list[tuple[int, float, float]]]:
    """{"inner" and "inter": [(epoch, positive share, negative share)]}: the counters of the history grow over the run, so their
    differences belong to one epoch."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for kind in ("inner", "inter"):
        before, rows = (0, 0.0, 0.0), []
        for row in history:
            signs = (row.get("sign_ratio") or {}).get(kind)
            if not signs:
                continue
            count = signs["measured"]
            now = count, signs["positive"] * count, signs["negative"] * count
            if count > before[0]:
                new = count - before[0]
                rows.append((row["epoch"], (now[1] - before[1]) / new, (now[2] - before[2]) / new))
            before = now
        if rows:
            found[kind] = rows
    return found


def conflicts(report: dict):
    found = conflicts_per_epoch(report["history"])
    if not found:
        return None
    titles = {"inner": "inside a group (consecutive sub-nets)", "inter": "between groups"}
    with canvas(11.6, 2.9, len(found), sharey=True) as (figure, axes):
        for axis, (kind, rows) in zip(axes[0], found.items()):
            epochs, positive, negative = zip(*rows)
            axis.bar(epochs, positive, width=0.85, color=POSITIVE, label="positive")
            axis.bar(epochs, [-share for share in negative], width=0.85, color=NEGATIVE, label="negative")
            axis.axhline(0, color="#3a4552", linewidth=0.8)
            axis.set_title(titles[kind], fontsize=10, loc="left")
            axis.set_xlabel("epoch")
            axis.set_ylim(-1.02, 1.02)
            axis.set_yticks([-1, -0.5, 0, 0.5, 1], ["100%", "50%", "0", "50%", "100%"])
            axis.locator_params(axis="x", integer=True)
        axes[0, 0].set_ylabel("share of inner products")
        axes[0, -1].legend(loc="upper right", ncols=2, bbox_to_anchor=(1, 1.17))
    return figure


def _layer_axis(axis, names: list[str]) -> None:
    """Layer names below the axis where there is room, else numbers."""
    axis.set_xlim(-0.7, len(names) - 0.3)
    if len(names) <= 40:
        short = [name.removesuffix(".weight") for name in names]
        axis.set_xticks(range(len(names)), short, rotation=90 if len(names) > 6 else 0, fontsize=8)
    else:
        axis.set_xlabel("layer")
    axis.grid(axis="x", visible=False)


def overlap(report: dict):
    """Per pair of sub-nets: the share of positions in one mask only, and the part of it that the sparsities alone explain."""
    pairs = report["metrics"].get("overlap") or []
    if not pairs:
        return None
    pairs = pairs[:6]
    names = list(pairs[0]["layers"])
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    with canvas(11.6, 3.4 * rows, columns, rows, sharey=True) as (figure, axes):
        for axis in axes.flat[len(pairs):]:
            axis.set_visible(False)
        for axis, pair in zip(axes.flat, pairs):
            least = [pair["layers"][name]["least"] for name in names]
            total = [pair["layers"][name]["non_overlap"] for name in names]
            axis.bar(range(len(names)), total, color=COLORS[1], width=0.8, label="non-overlap (XOR)")
            axis.bar(range(len(names)), least, color="#c9d2db", width=0.8, label="sparsity difference")
            axis.set_title(f"{pair['subnets'][0]} and {pair['subnets'][1]}: {pair['non_overlap']:.2%}, at least {pair['least']:.2%}",
                           fontsize=10, loc="left")
            percent_axis(axis.yaxis)
            _layer_axis(axis, names)
        axes[0, 0].legend(loc="upper right", fontsize=8)
    return figure


def layers(report: dict):
    """Density rather than sparsity carries the information at 90 % and more, so the axis is the density on a log scale."""
    subnets = [s for s in report["subnets"] if s["sparsity"] > 0]
    if not subnets:
        return None
    names = list(subnets[0]["layers"])
    with canvas(11.6, 3.6) as (figure, axes):
        axis = axes[0, 0]
        styles = _styles(subnets)
        for s in subnets:
            kept = [s["layers"][name]["nnz"] / s["layers"][name]["numel"] for name in names]
            style = styles[s["name"]]
            if len(subnets) <= MANY:
                style["label"] = f"{s['name']} ({1 - s['sparsity']:.1%} kept overall)"
            axis.plot(range(len(names)), kept, marker="o", markersize=4, linewidth=1.3, **style)
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        ticks = [share for share in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if low / 1.5 <= share <= high * 1.5]
        axis.set_yticks(ticks, [f"{1 - share:.1%}" if share < 0.1 else f"{1 - share:.0%}" for share in ticks])
        axis.minorticks_off()
        axis.set_ylabel("sparsity of the layer")
        _layer_axis(axis, names)
        _legend(axis, subnets)
    return figure


def projections(report: dict):
    rates = (report["metrics"].get("projection") or {}).get("per_layer")
    if not rates or not report["metrics"]["projection"]["steps"]:
        return None
    with canvas(5.6, 3.2) as (figure, axes):
        axis = axes[0, 0]
        axis.bar(range(len(rates)), list(rates.values()), color=COLORS[0], width=0.8)
        axis.set_ylabel("share of steps")
        percent_axis(axis.yaxis)
        _layer_axis(axis, list(rates))
    return figure


def growth(report: dict):
    """Connections exchanged at every event, and how many of those grown outlive the next event."""
    every = report["metrics"].get("events") or []
    events = [event for event in every if event.get("grown") is not None]
    if not events:
        return None
    survivors = [(event["step"], event["survival"]) for event in every if event.get("survival") is not None]
    with canvas(11.6, 3.0, 2 if survivors else 1) as (figure, axes):
        axis = axes[0, 0]
        steps = [event["step"] for event in events]
        for key, label, color in (("candidates", "candidates", COLORS[5]), ("grown", "grown", COLORS[0])):
            if events[0].get(key) is not None:
                axis.plot(steps, [sum(event[key]) for event in events], color=color, marker="o", markersize=3, linewidth=1.3, label=label)
        axis.set_yscale("symlog")
        axis.set_ylabel("connections")
        axis.legend()
        if survivors:
            axes[0, 1].plot(*zip(*survivors), color=COLORS[2], marker="o", markersize=3, linewidth=1.3)
            axes[0, 1].set_ylabel("outlive the next event")
            axes[0, 1].set_ylim(0, 1.02)
            percent_axis(axes[0, 1].yaxis)
        for axis in axes[0]:
            axis.set_xlabel("step")
    return figure


def convergence(report: dict):
    """How much the masks of consecutive cycles share, after pruning and after growth."""
    events = [event for event in report["metrics"].get("events") or [] if event.get("iou") is not None]
    if not events:
        return None
    with canvas(5.6, 3.2) as (figure, axes):
        axis = axes[0, 0]
        for kind, label, color in (("prune", "after pruning", COLORS[1]), ("grow", "after growth", COLORS[0])):
            points = [(event["step"], event["iou"]) for event in events if event["kind"] == kind]
            if points:
                axis.plot(*zip(*points), color=color, marker="o", markersize=3, linewidth=1.3, label=label)
        axis.set_xlabel("step")
        axis.set_ylabel("intersection over union")
        axis.set_ylim(0, 1.02)
        axis.legend()
    return figure


def stages(report: dict):
    """Accuracy over sparsity, a line a pattern, at the end of the stage of each sub-net and after the merge."""
    subnets = [s for s in report["subnets"] if s.get("accuracy_of_stage") is not None]
    if not subnets:
        return None
    groups: dict[str, list[dict]] = {}
    for subnet in sorted(subnets, key=lambda s: s["sparsity"]):
        groups.setdefault(pattern_group(subnet), []).append(subnet)
    with canvas(11.6, 3.6) as (figure, axes):
        axis = axes[0, 0]
        for color, (group, members) in zip(COLORS * len(groups), groups.items()):
            places = [s["sparsity"] for s in members]
            axis.plot(places, [s["accuracy_of_stage"] for s in members], color=color, marker="o", markersize=4, markerfacecolor="white",
                      linewidth=1.1, linestyle="--", label=f"{group}, own stage")
            axis.plot(places, [s["accuracy"] for s in members], color=color, marker="o", markersize=4, linewidth=1.6, label=f"{group}, in the end")
        axis.set_xlabel("sparsity")
        axis.set_ylabel("test accuracy")
        percent_axis(axis.xaxis)
        percent_axis(axis.yaxis)
        axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8)
    return figure


def alphas(report: dict):
    """Which share of the weights so far was kept when a stage was merged; 1 leaves the stage out."""
    path = report["metrics"].get("alphas")
    if not path:
        return None
    with canvas(5.6, 3.2) as (figure, axes):
        axis = axes[0, 0]
        axis.plot(range(2, len(path) + 2), path, color=COLORS[0], marker="o", markersize=5, linewidth=1.6, label="chosen")
        even = [1 - 1 / k for k in range(2, len(path) + 2)]
        axis.plot(range(2, len(path) + 2), even, color="#9aa6b2", linestyle=":", linewidth=1.3, label="plain average of the stages")
        axis.set_xlabel("stage merged")
        axis.set_ylabel("share of the weights before it")
        axis.set_ylim(-0.02, 1.04)
        axis.locator_params(axis="x", integer=True)
        axis.legend()
    return figure


#: title, caption, full width, function
PLOTS = (
    ("Accuracy", "Test accuracy of every sub-net.", False, accuracy),
    ("Training loss", "Mean loss of the mini-batches that trained each sub-net.", False, training_loss),
    ("Stages", "Test accuracy of every sub-net with the weights that its own stage ended with, and with those that all share in the end.", True,
     stages),
    ("Merge of the stages", "How much of the weights merged so far is kept at each stage.", False, alphas),
    ("Conflicts between sub-nets", "Sign of the inner product of consecutive gradients, whole model, share per epoch.", True, conflicts),
    ("Non-overlap of the masks", "Positions that only one of two sub-nets has, per layer, beside the least their sparsities allow.", True,
     overlap),
    ("Layer-wise sparsity", "At the end of the run; upwards is denser.", True, layers),
    ("Sparsity over time", "Over all prunable weights together.", False, sparsity),
    ("Growth", "At every event: connections sampled as candidates, grown, and the share of the grown that outlives the next event.", True,
     growth),
    ("Convergence of the net", "Intersection over union of the masks of consecutive cycles.", False, convergence),
    ("Corrections", "Share of the eligible steps in which a layer's gradient was projected.", False, projections),
)

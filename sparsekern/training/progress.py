"""What a person sees while a run is going on: a bar on a terminal, plain lines elsewhere."""
import sys
import time
from collections.abc import Callable, Mapping

PLAIN_SECONDS = 30.0                       # between lines inside a long epoch
MANY = 6                                   # more sub-nets than that are shown by their mean, not one by one


def make_progress(kind: str, total: int, per_epoch: int) -> "Silent":
    """`kind`: auto, rich, plain or none. Without rich, or without a terminal, auto means plain lines."""
    if kind == "none":
        return Silent()
    if kind == "rich" or (kind == "auto" and sys.stdout.isatty()):
        try:
            return Bar(total, per_epoch)
        except ImportError:
            pass
    return Lines(total, per_epoch)


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Silent:
    """Shows nothing but warnings; the base of the other two."""

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self) -> None:
        pass

    def begin(self, step: int, stages: str | None = None) -> None:
        """The run starts (or goes on) at `step`; `stages` says how long its stages are, if it has any."""

    def step(self, step: int, live: Callable[[], Mapping]) -> None:
        """One more step is done. `live()` reads back loss, accuracy and sub-net, and is called only when it will be shown."""

    def epoch(self, row: Mapping) -> None:
        """An epoch is done; `row` is its entry in the history."""

    def tick(self, done: int, total: int, text: str) -> None:
        """`done` of `total` parts of what follows the last step are done; `text` says which one was."""

    def say(self, text: str) -> None:
        print(text, flush=True)


class Lines(Silent):
    """One line per epoch, and one every half minute inside long epochs."""

    def __init__(self, total: int, per_epoch: int):
        self.total, self.per_epoch = total, per_epoch
        self.started = self.shown = time.monotonic()
        self.first = self.done = 0

    def begin(self, step: int, stages: str | None = None) -> None:
        self.first = self.done = step
        self.started = self.shown = time.monotonic()
        if stages:
            self.say(stages)

    def _left(self) -> str:
        done = self.done - self.first
        return clock((time.monotonic() - self.started) / done * (self.total - self.done)) if done else "?"

    def step(self, step: int, live: Callable[[], Mapping]) -> None:
        self.done = step
        if time.monotonic() - self.shown > PLAIN_SECONDS:
            self.shown = time.monotonic()
            now = live()
            known = "" if now["accuracy"] is None else f"accuracy {now['accuracy']:.1%} "       # none before the first evaluation
            self.say(f"  step {step}/{self.total} {_stage(now)}loss {now['loss']:.3f} {now['subnet']} {known}left {self._left()}")

    def epoch(self, row: Mapping) -> None:
        self.shown = time.monotonic()
        after = "finalized: " if "finalized" in row else ""
        self.say(f"epoch {row['epoch']}/{self.total // self.per_epoch} {_stage(row)}loss {row['train_loss']:.3f} {after}"
                 f"{describe(row['subnets'])}left {self._left()}")

    def tick(self, done: int, total: int, text: str) -> None:
        if done == total or time.monotonic() - self.shown > PLAIN_SECONDS:
            self.shown = time.monotonic()
            self.say(f"  finalizing {done}/{total}: {text}")


class Bar(Silent):
    """rich's progress bar; epochs with an evaluation leave a line above it."""

    def __init__(self, total: int, per_epoch: int):
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column
        self.total, self.per_epoch = total, per_epoch
        time_left = TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5))
        self.bar = Progress(TextColumn("epoch {task.fields[epoch]}"), BarColumn(bar_width=12), TextColumn("{task.fields[live]}"),
                            TextColumn("left"), time_left, refresh_per_second=4)
        self.task = self.bar.add_task("train", total=total, epoch=f"1/{total // per_epoch}", live="")
        self.read = 0.0

    def begin(self, step: int, stages: str | None = None) -> None:
        self.bar.update(self.task, completed=step)
        self.bar.start()
        if stages:
            self.say(stages)

    def close(self) -> None:
        self.bar.stop()

    def step(self, step: int, live: Callable[[], Mapping]) -> None:
        if time.monotonic() - self.read < 0.5 and step < self.total:       # each reading waits for the device
            return
        self.read = time.monotonic()
        now = live()
        epoch = f"{min(step // self.per_epoch + 1, self.total // self.per_epoch)}/{self.total // self.per_epoch}"
        sparsity = " ".join(f"{value:.1%}" for value in now["sparsities"])
        live = f"{_stage(now, '  ')}loss {now['loss']:.3f}  {now['subnet']} {_percent(now['accuracy'])}  sparsity {sparsity}"
        self.bar.update(self.task, completed=step, epoch=epoch, live=live)

    def epoch(self, row: Mapping) -> None:
        if row["subnets"]:
            after = "finalized: " if "finalized" in row else ""
            self.say(f"epoch {row['epoch']}: {_stage(row, '  ')}loss {row['train_loss']:.3f}  {after}{describe(row['subnets'])}")

    def tick(self, done: int, total: int, text: str) -> None:
        self.bar.update(self.task, total=total, completed=done, live=f"finalizing  {text}")

    def say(self, text: str) -> None:
        self.bar.console.print(text, highlight=False, markup=False)


def describe(subnets: Mapping[str, Mapping]) -> str:
    """`name accuracy (sparsity)` of every evaluated sub-net; of many their mean, and the worst one."""
    if len(subnets) > MANY:
        worst = min(subnets, key=lambda name: subnets[name]["accuracy"])
        mean = sum(entry["accuracy"] for entry in subnets.values()) / len(subnets)
        return f"{len(subnets)} sub-nets {mean:.2%} on average, worst {worst} {subnets[worst]['accuracy']:.2%} "
    return "".join(f"{name} {entry['accuracy']:.2%} ({entry['sparsity']:.1%} sparse) " for name, entry in subnets.items())


def table(subnets: list[Mapping]) -> str:
    """The final table as aligned text; where something was chosen at the end, with the accuracies before it."""
    chosen = [key for key in ("accuracy_of_stage", "accuracy_before") if any(key in s for s in subnets)]
    head = ("sub-net", "pattern", "target", "sparsity", "nonzeros", *("own stage", "before")[:len(chosen)], "accuracy", "loss", "forward FLOPs")
    rows = [(s["name"], s["pattern"], _share(s["target_sparsity"]), _share(s["sparsity"]), f"{s['nnz']:,}",
             *(_percent(s.get(key), 2) for key in chosen), f"{s['accuracy']:.2%}", f"{s['loss']:.4f}" if s["loss"] is not None else "-",
             f"{s['forward_flops']:.4g}") for s in subnets]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
                     for row in [head, tuple("-" * w for w in widths), *rows])


def left_dense(subnets: list[Mapping]) -> list[str]:
    """One line per layer that the pattern of a sub-net does not fit."""
    return [f"{s['name']} leaves {layer} dense: {why}" for s in subnets for layer, why in s.get("left_dense", {}).items()]


def _stage(shown: Mapping, after: str = " ") -> str:
    return f"{shown['stage']}{after}" if shown.get("stage") else ""


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}%}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4%}"

"""What a person sees while something is measured: a bar on a terminal, plain lines elsewhere."""
import sys
import time

PLAIN_SECONDS = 10.0                        # between lines


class Progress:
    """`kind`: auto, rich, plain or none. Without rich, or without a terminal, auto means plain lines."""

    def __init__(self, kind: str, total: int):
        self.total, self.bar, self.silent = total, None, kind == "none"
        self.started = self.shown = time.monotonic()
        self.first = None
        if kind == "rich" or (kind == "auto" and sys.stdout.isatty()):
            try:
                from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
                from rich.progress import Progress as Rich
                self.bar = Rich(BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.fields[live]}"), TextColumn("left"),
                                TimeRemainingColumn(compact=True))
                self.task = self.bar.add_task("measure", total=total, live="")
            except ImportError:
                pass

    def __enter__(self) -> "Progress":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.bar:
            self.bar.stop()

    def show(self, done: int, total: int | None, live: str) -> None:
        """`done` of `total` (as before: None) are measured."""
        self.total = total or self.total
        self.first = done if self.first is None else self.first
        if self.bar:
            self.bar.update(self.task, completed=done, total=self.total, live=live)
        elif not self.silent and time.monotonic() - self.shown > PLAIN_SECONDS:
            self.shown = time.monotonic()
            left = (self.shown - self.started) / max(1, done - self.first) * (self.total - done)
            print(f"measured {done}/{self.total} {live} left {int(left) // 60}:{int(left) % 60:02d}", flush=True)

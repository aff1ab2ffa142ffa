"""A small algorithm in stages that chooses at the end: what the training loop offers to such ones, without the algorithm of a paper.

And what tests of such runs compare.
"""
import os
import signal
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsekern.sparsity.patterns import Unstructured
from sparsekern.sparsity.slim import recalibrate
from sparsekern.sparsity.sparsifier import Sparsifier
from sparsekern.sparsity.timeline import ALL, Phase, Timeline, View

STAGES = 3
POOL = (0.0, 0.5, 1.0)


class Staged(Sparsifier):
    """Three stages of alternating steps, dense and with half of the weights; then the average of the stages that the hold-out likes best."""
    holdout = 0.25

    def make_patterns(self) -> dict[str, Unstructured]:
        return {"dense": Unstructured(0.0), "half": Unstructured(0.5)}

    def make_timeline(self) -> Timeline:
        return Timeline((Phase("dense", 1, View(ALL, ALL)), Phase("half", 1, View("half", "half"))))

    def setup(self) -> None:
        masks = [(torch.arange(w.numel(), device=w.device) % 2 == 0).view(w.shape) for w in self.weights]
        self.masks.write("half", masks, [int(mask.sum()) for mask in masks])
        self.length = self.config.total_steps // STAGES
        self.alphas: list[float] = []
        self.measured: list[str] = []                       # sub-nets whose norms were measured again
        self.seen: list[Tensor] = []                        # first batches of every pass over the training images
        self.stored = 0

    def use_directory(self, path: Path) -> None:
        self.directory = Path(path)
        self.directory.mkdir(exist_ok=True)

    def span(self, step: int) -> tuple[int, int]:
        return step // self.length * self.length, self.length

    def stage(self, step: int) -> str:
        return f"stage {step // self.length + 1}/{STAGES}"

    @property
    def extra_forward(self) -> str | None:
        return ALL if self.active == "half" else None

    def file(self, number: int) -> Path:
        return self.directory / f"{number}.safetensors"

    def on_phase_end(self, moment) -> None:
        if (self.steps + 1) % self.length == 0:
            self.stored = (self.steps + 1) // self.length
            save_file({f"{i}": weight.detach() for i, weight in enumerate(self.weights)}, self.file(self.stored))

    def extra_state(self) -> dict:
        return {"stored": self.stored, "alphas": self.alphas, "measured": self.measured}

    def load_extra_state(self, values: dict) -> None:
        for number in range(1, values["stored"] + 1):
            if not self.file(number).exists():
                raise ValueError(f"stages: {self.file(number)} is missing")
        self.stored, self.alphas, self.measured = values["stored"], list(values["alphas"]), list(values["measured"])

    @torch.no_grad()
    def finalize(self, evaluate, batches, tick=None) -> None:
        try:
            files = [load_file(self.file(number)) for number in range(1, STAGES + 1)]
        except SafetensorError as error:
            raise ValueError(f"stages: {error}") from error
        stages = [[tensors[f"{i}"] for i in range(len(self.weights))] for tensors in files]
        merged = stages[0]

        def show(alpha: float, other: list[Tensor]) -> list[Tensor]:
            mixed = [alpha * a + (1 - alpha) * b for a, b in zip(merged, other)]
            for weight, value in zip(self.weights, mixed):
                weight.copy_(value)
            return mixed
        for k, other in enumerate(stages[1:]):
            if k == len(self.alphas):
                scores = []
                for alpha in POOL:
                    show(alpha, other)
                    scores.append(evaluate("dense") + evaluate("half"))
                self.alphas.append(POOL[scores.index(max(scores))])
            merged = show(self.alphas[k], other)
            tick and tick(k + 1, STAGES - 1, f"stage {k + 2}")
        for name in self.subnets:
            if name not in self.measured:
                with self.subnet(name) as model:
                    recalibrate(model, self.watched(batches()))
                self.measured.append(name)

    def watched(self, batches):
        for index, batch in enumerate(batches):
            if index == 0:
                self.seen.append(batch.clone())
            yield batch


def build(algorithm, model, optimizer, **fields):
    return Staged(model, optimizer, **fields)


build.holdout = Staged.holdout


class Keep:
    """Keeps the run, and what every step left behind."""

    def __init__(self, stop_after=None):
        self.stop_after, self.rates, self.losses = stop_after, {}, {}

    def __call__(self, run):
        self.run = run
        self.rates[run.step - 1] = run.optimizer.param_groups[0]["lr"]
        self.losses[run.step] = run.loss_sums.tolist()
        if run.step == self.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    def state(self):
        tensors = {f"model/{name}": value for name, value in self.run.model.state_dict().items()}
        return tensors | {f"sparsifier/{name}": value for name, value in self.run.sparsifier.state_dict()["tensors"].items()}


class KeepEnd(Keep):
    """As `on_end`: a run that only finalizes takes no step."""

    def __call__(self, run):
        self.run = run
        return {}


def without_time(report):
    kept = {key: report[key] for key in ("subnets", "training_flops", "steps", "mean_accuracy", "stages")}
    return kept | {"history": [{key: value for key, value in row.items() if key != "seconds"} for row in report["history"]]}


def assert_same(keep, whole):
    one, other = keep.state(), whole.state()
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name].reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8))] == []

"""The ready-made loop: data, learning rate, evaluation, checkpoints and the report around `sparsifier.step()`.

Whatever a step computes is a function of the settings, the step number and the state in the checkpoint, so a run that was stopped
anywhere goes on bit for bit.
"""
import contextlib
import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsekern.sparsity import rest
from sparsekern.support.flops import TrainingFlops, layer_flops, sparse_flops
from sparsekern.support.models import build_model
from sparsekern.training import report as reports
from sparsekern.training.checkpoint import (
    CheckpointError,
    check_model,
    load_newest,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    resizable,
    save_checkpoint,
)
from sparsekern.training.config import ConfigError, TrainConfig, differences, write_config
from sparsekern.training.data import Batches, hold_out, load_dataset, seed_of
from sparsekern.training.evaluation import evaluate_all, finalize
from sparsekern.training.learning_rate import describe_spans, find_spans, learning_rate
from sparsekern.training.progress import MANY, make_progress
from sparsekern.training.run_directory import STAGES, prepare_directory


class Interrupted(Exception):
    """The run was asked to stop; its state is saved. `code` is what a command line exits with."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.code = 128 + number


class TrainingError(RuntimeError):
    """The run cannot go on, for a reason in the numbers."""


def train(config: TrainConfig, on_step: Callable[["Run"], None] | None = None, build: Callable | None = None,
          on_end: Callable[["Run"], dict] | None = None) -> dict:
    """Train as `config` says and return the report that is also written to `out`.

    Args:
        on_step: called after every step with the run.
        build: makes the sparsifier; default `sparsekern.algorithms.build`.
        on_end: called with the run when it is over; what it returns stands in the report, too.
    Raises:
        ConfigError, DataError, CheckpointError: what is wrong and what to do.
        Interrupted: SIGINT or SIGTERM came; the checkpoint is written.
        TrainingError: the loss is no longer finite.
    """
    device = torch.device(pick_device(config))
    threads = torch.get_num_threads()
    saved_cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            torch.set_num_threads(config.threads or threads)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = config.deterministic, not config.deterministic
            return Run(config, device, build).run(on_step, on_end)
        finally:
            torch.set_num_threads(threads)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = saved_cudnn


def pick_device(config: TrainConfig) -> str:
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch finds no CUDA device; use --device cpu or look at `sparsekern doctor`")
    if config.precision == "bf16" and config.device == "cpu":
        raise ConfigError("precision: bf16 needs a CUDA device; use --precision fp32 on the CPU")
    return config.device


class Run:
    """One training run: everything it holds, its loop, and its way to disk and back."""

    def __init__(self, config: TrainConfig, device: torch.device, build: Callable | None = None):
        self.config, self.device, self.out = config, device, Path(config.out)
        self.checkpoints = self.out / "checkpoints"
        prepare_directory(config)
        self.holdout = asked_holdout(config, build)
        try:
            data = load_dataset(config.data, config.data_dir, download=config.download, subset=config.subset)
            self.data, self.held_out = hold_out(data.to(device), self.holdout, config.batch_size)
            self.batches = Batches(self.data, config.batch_size, config.seed, config.augment)
            torch.manual_seed(seed_of("model", config.seed))
            self.model = build_model(config.model, classes=data.classes, shape=data.shape)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if config.init_from is not None:
            load_weights(self.model, config.init_from)
        self.per_epoch = self.batches.per_epoch
        self.total = config.epochs * self.per_epoch
        self.dense_flops = layer_flops(self.model, data.shape)
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model.to(device=device, memory_format=self.memory_format)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=config.lr, momentum=config.momentum, nesterov=config.nesterov,
                                         weight_decay=config.weight_decay)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())     # before there are banks of norms
        self.sparsifier = self._build(build)
        if hasattr(self.sparsifier, "finalize") and self.held_out is None:
            raise ConfigError(f"holdout: {config.algorithm} chooses among its nets at the end, on training images set aside for that; "
                              f"expected a share above 0, such as 0.05, got {self.holdout:g}")
        if hasattr(self.sparsifier, "use_directory"):
            self.sparsifier.use_directory(self.out / STAGES)
        self.spans = find_spans(self.sparsifier.span, config, self.per_epoch)
        self.subnets = list(self.sparsifier.subnets)
        self.prunable, self.parameters = self.sparsifier.masks.numel, parameters
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.step_loss = getattr(self.sparsifier, "loss", None) or (lambda model, x, y, criterion: criterion(model(x), y))
        self.flops = TrainingFlops()
        self._known_flops: tuple[int, dict[str, float]] = (-1, {})
        self.step = 0
        self.seconds = 0.0                 # of earlier starts of this run
        self.history: list[dict] = []
        self.stages: list[dict] = []       # what the sub-nets of every finished stage were worth at its end
        self.trained: list[str] = []       # the sub-nets that trained in the stage at hand
        if len(self.spans) > 1:
            self.sparsifier.span_ended = self._end_stage
        self.loss_sums = torch.zeros(len(self.subnets), dtype=torch.float64, device=device)
        self.loss_counts = [0] * len(self.subnets)
        self.signal: int | None = None

    def _build(self, build: Callable | None):
        """The sparsifier; it gets the settings it has fields for, and refuses the rest by name."""
        algorithm, fields = self.config.algorithm, dict(self.config.options)
        if build is None:
            from sparsekern.algorithms import ALGORITHMS, build
            if algorithm not in ALGORITHMS:
                raise ConfigError(f"algorithm: expected one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
            known = {field.name for field in dataclasses.fields(ALGORITHMS[algorithm].Config)}
            foreign = sorted((set(fields) | ({"sparsity"} if self.config.sparsity else set())) - known)
            if foreign:
                raise ConfigError(f"{algorithm} has no setting {', '.join(foreign)}; it has {', '.join(sorted(known - {'total_steps'}))}")
            given = {"seed": self.config.seed, "shape": list(self.data.shape)}
            fields = {name: value for name, value in given.items() if name in known} | fields
        if self.config.sparsity is not None:
            fields["sparsity"] = self.config.sparsity
        try:
            return build(algorithm, self.model, self.optimizer, total_steps=self.total, **fields)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{algorithm}: {error}") from error

    # ---- the loop ----

    def run(self, on_step: Callable[["Run"], None] | None = None, on_end: Callable[["Run"], dict] | None = None) -> dict:
        self.started = time.monotonic()
        with make_progress(self.config.progress, self.total, self.per_epoch) as self.progress:
            if self.config.resume:
                self._restore()
            write_config(self.out / "config.yaml", self.config)
            self.progress.begin(self.step, describe_spans(self.spans, self.per_epoch))
            with self._signals():
                try:
                    while True:
                        if self.step and self.step % self.per_epoch == 0 and len(self.history) < self.step // self.per_epoch:
                            self._end_epoch()
                        if self.step == self.total:
                            break
                        self._train_step()
                        if on_step:
                            on_step(self)
                        self.stop_if_asked()
                        every = self.config.checkpoint_every
                        if every and self.step % every == 0 and self.step % self.per_epoch:
                            self.save()
                    try:
                        finalize(self)
                    except ValueError as error:            # e.g. the file of a stage is damaged
                        raise TrainingError(f"after the last step: {error}") from error
                except Interrupted as stop:
                    path = self.save()
                    raise Interrupted(stop.code - 128, f"stopped after step {self.step} of {self.total}, saved {path}; go on with the same "
                                                       f"command and --resume (without --overwrite)") from None
        report = reports.build(self)
        if on_end is not None:
            report |= reports.finite(on_end(self))
        reports.write(report, self.out)
        return report

    def _train_step(self) -> None:
        epoch, index = divmod(self.step, self.per_epoch)
        rate = self._rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(seed_of("step", self.config.seed, self.step))        # dropout and the like resume exactly, too
        images, labels = self.batches.at(epoch, index)
        subnet = self.sparsifier.active
        with self.autocast():
            loss = self.step_loss(self.model, images.contiguous(memory_format=self.memory_format), labels, self.criterion)
        loss.backward()
        products = [self.forward_flops(name) for name in self.sparsifier.products]      # of the masks that this step used
        teacher = self.sparsifier.extra_forward
        extra = 0.0 if teacher is None else self.forward_flops(teacher)
        position = self.subnets.index(subnet)
        self.trained += [] if subnet in self.trained else [subnet]
        try:
            self.sparsifier.step(max_norm=self.config.max_norm)
        except ValueError as error:                        # e.g. NaN in a layer's weights when its mask is due
            raise TrainingError(f"step {self.step}: {error}") from error
        self.optimizer.zero_grad()
        self.flops.add(*products, extra=extra, samples=len(labels))
        self.loss_sums[position] += loss.detach()
        self.loss_counts[position] += 1
        self.step += 1
        self.progress.step(self.step, lambda: self._live(subnet, loss))

    def _rate(self, step: int) -> float:
        """The learning rate of a step, inside the stretch of the run that it lies in."""
        first, steps = self.sparsifier.span(step)
        return learning_rate(self.config, step - first, steps, self.per_epoch)

    def _live(self, subnet: str, loss: Tensor) -> dict:
        """What the bar shows (the accuracy is that of the last evaluation); reads back from the device."""
        last = next((row["subnets"][subnet]["accuracy"] for row in reversed(self.history) if subnet in row["subnets"]), None)
        sparsities = [self.sparsifier.masks.sparsity(name) for name in (self.subnets if len(self.subnets) <= MANY else [subnet])]
        return {"subnet": subnet, "loss": loss.item(), "accuracy": last, "sparsities": sparsities, "stage": self.sparsifier.stage(self.step - 1)}

    def _end_stage(self) -> None:
        """Called inside the last step of a stage, while its weights are still there; a signal has to wait."""
        step = self.step + 1
        self.stages.append({"stage": self.sparsifier.stage(self.step), "step": step, "subnets": evaluate_all(self, self.trained, may_stop=False)})
        self.trained = []

    def _end_epoch(self) -> None:
        epoch = self.step // self.per_epoch
        sums = self.loss_sums.tolist()
        if not all(map(math.isfinite, sums)):
            raise TrainingError(f"the loss is not finite in epoch {epoch} (up to step {self.step}). "
                                f"Lower --lr (now {self.config.lr:g}), add --warmup_epochs or set --max_norm")
        stage, over = self.sparsifier.stage(self.step - 1), self.step == self.total
        if not over and self.stages and self.stages[-1]["step"] == self.step:
            subnets = self.stages[-1]["subnets"]                # the next one may have begun with other weights
        elif over or epoch % self.config.eval_every == 0:
            subnets = evaluate_all(self, self.subnets if over or stage is None else self.trained)
        else:
            subnets = {}
        row = {
            "epoch": epoch, "step": self.step, "stage": stage, "lr": self._rate(self.step - 1),
            "train_loss": sum(sums) / max(1, sum(self.loss_counts)),
            "train_loss_by_subnet": {name: s / n if n else None for name, s, n in zip(self.subnets, sums, self.loss_counts)},
            "training_flops": self.flops.total,
            "subnets": subnets,
            "sign_ratio": self.sparsifier.metrics().get("sign_ratio"),
            "seconds": self.elapsed(),
        }
        self.history.append(row)
        self.loss_sums.zero_()
        self.loss_counts = [0] * len(self.subnets)
        self.progress.epoch(row)
        self.save()

    # ---- what the sub-nets are ----

    def densities(self, name: str) -> dict[str, float]:
        """Share of nonzeros of every prunable weight under a mask."""
        return self.sparsifier.masks.densities(name)

    def forward_flops(self, name: str) -> float:
        """Of one sample through a sub-net, or a product under another mask; remembered until a mask changes."""
        version = self.sparsifier.masks.version
        if self._known_flops[0] != version:
            self._known_flops = version, {}
        known = self._known_flops[1]
        if name not in known:
            others = 0.0 if name.startswith(rest("")) else 1.0      # the rest of a mask has nothing of the weights without one
            known[name] = sparse_flops(self.dense_flops, self.densities(name), others)
        return known[name]

    # ---- to disk and back ----

    def save(self) -> Path:
        """Write a checkpoint of the state between two steps."""
        momenta, numbers = optimizer_tensors(self.optimizer)
        state = self.sparsifier.state_dict()
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer/{name}": value for name, value in momenta.items()}
        tensors |= {f"sparsifier/{name}": value for name, value in state["tensors"].items()}
        tensors["trainer/loss_sums"] = self.loss_sums
        meta = {"step": self.step, "config": self.identity(), "optimizer": numbers, "sparsifier": state["meta"],
                "history": self.history, "stages": self.stages, "trained": self.trained, "loss_counts": self.loss_counts,
                "flops": self.flops.state_dict(), "seconds": self.elapsed()}
        return save_checkpoint(self.checkpoints, tensors, reports.finite(meta))

    def identity(self) -> dict:
        """What a checkpoint must agree with: the run's settings and the algorithm's, defaults filled in."""
        own = json.loads(json.dumps(dataclasses.asdict(self.sparsifier.config)))
        return self.config.identity() | {"holdout": self.holdout or None} | {name: value for name, value in own.items() if name != "total_steps"}

    def _accept(self, tensors: dict[str, Tensor], meta: dict) -> None:
        changed = differences(meta["config"], self.identity())
        if changed:
            raise CheckpointError("it is of a run with other settings: " + "; ".join(changed))
        check_model(tensors, self.model.state_dict(), "model/", resizable(self.model))

    def _restore(self) -> None:
        found = load_newest(self.checkpoints, self._accept, self.progress.say)
        if found is None:
            self.progress.say(f"no checkpoint in {self.checkpoints} yet; starting from the beginning")
            return
        tensors, meta = found
        part = {kind: {name.removeprefix(kind + "/"): value for name, value in tensors.items() if name.startswith(kind + "/")}
                for kind in ("model", "optimizer", "sparsifier")}
        self.model.load_state_dict(part["model"])
        load_optimizer(self.optimizer, part["optimizer"], meta["optimizer"])
        try:
            self.sparsifier.load_state_dict({"tensors": part["sparsifier"], "meta": meta["sparsifier"]})
        except ValueError as error:
            raise CheckpointError(f"the checkpoint of step {meta['step']} does not fit this run: {error}") from error
        self.loss_sums.copy_(tensors["trainer/loss_sums"])
        self.step, self.history, self.loss_counts = meta["step"], meta["history"], meta["loss_counts"]
        self.stages, self.trained = meta.get("stages", []), meta.get("trained", [])
        self.flops.load_state_dict(meta["flops"])
        self.seconds = meta["seconds"]
        self.progress.say(f"resumed after step {self.step} of {self.total}")

    def elapsed(self) -> float:
        """Seconds of this run, those before it was resumed included."""
        return self.seconds + time.monotonic() - self.started

    # ---- the surroundings ----

    def inputs(self, images: Tensor) -> Tensor:
        """What the model takes for uint8 images: normalised, in the memory order of the run."""
        return self.data.normalise(images).contiguous(memory_format=self.memory_format)

    def autocast(self):
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def stop_if_asked(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.signal is not None:
            raise Interrupted(self.signal, "")

    @contextlib.contextmanager
    def _signals(self):
        """The first SIGINT or SIGTERM ends the run after the step at hand; the second one acts as it always did."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {}

        def note(number, _frame):
            self.signal = number
            signal.signal(number, former[number])
        for number in (signal.SIGINT, signal.SIGTERM):
            former[number] = signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def asked_holdout(config: TrainConfig, build: Callable | None) -> float:
    """The share of the training images to set aside: the setting, or what the algorithm asks for."""
    from sparsekern.algorithms import ALGORITHMS
    return getattr(build or ALGORITHMS.get(config.algorithm), "holdout", 0.0) if config.holdout is None else config.holdout

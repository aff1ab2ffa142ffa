"""The learning rate as a pure function of the step, over the whole run or over each of its stages."""
import math
from collections.abc import Callable

from sparsekern.training.config import ConfigError, TrainConfig


def learning_rate(config: TrainConfig, step: int, total: int, per_epoch: int) -> float:
    """The learning rate of a step: linear warm-up, then the schedule over the rest.

    Cyclic (Sparse Cocktail, Appendix A): a cosine from lr to the minimum, then cosines from the restart to the minimum, again and again.

    Args:
        step, total: counted over what the schedule spans: the run, or the stage at hand.
    """
    warmup = round(config.warmup_epochs * per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done, steps = step - warmup, total - warmup
    if config.schedule == "cosine":
        return _cosine(config.lr, 0.0, done / steps)
    if config.schedule == "cyclic":
        first, cycle = cycle_steps(config, steps, per_epoch)
        if done < first:
            return _cosine(config.lr, config.lowest_lr, done / first)
        return _cosine(config.restart_lr, config.lowest_lr, (done - first) % cycle / cycle)
    if config.schedule == "step":
        return config.lr * config.lr_gamma ** sum(step >= share * total for share in config.milestones)
    return config.lr


def cycle_steps(config: TrainConfig, steps: int, per_epoch: int) -> tuple[int, int]:
    """Steps of the first decay and from one restart to the next, of a cyclic schedule that goes over `steps` after its warm-up."""
    first = steps * 2 / 3 if config.lr_cycle_init is None else config.lr_cycle_init * per_epoch
    cycle = steps / 15 if config.lr_cycle is None else config.lr_cycle * per_epoch
    return max(1, round(first)), max(1, round(cycle))


def find_spans(span: Callable[[int], tuple[int, int]], config: TrainConfig, per_epoch: int) -> list[tuple[int, int]]:
    """(first step, steps) of every stretch that the schedule goes over, one after another through the whole run.

    Args:
        span: of an algorithm: the stretch that a step lies in.
    Raises:
        ConfigError: the run is too short for its stages, or a stage too short for the warm-up or the first cycle.
    """
    total, found = config.epochs * per_epoch, []
    while (step := sum(found[-1]) if found else 0) < total:
        first, steps = span(step)
        if first != step or steps < 1:
            raise ValueError(f"span({step}): expected a stretch that begins there, got {steps} steps from {first} on")
        found.append((first, steps))
    if step > total:
        raise ConfigError(f"epochs: {config.algorithm} needs {step} steps, got {config.epochs} epochs of {per_epoch}; "
                          f"set --epochs {math.ceil(step / per_epoch)}")
    shortest, whole = min(steps for _, steps in found), "" if len(found) == 1 else " of the shortest stage"
    warmup = round(config.warmup_epochs * per_epoch)
    if warmup >= shortest:
        raise ConfigError(f"warmup_epochs: expected fewer than the {shortest / per_epoch:g} epochs{whole}, got {config.warmup_epochs:g}")
    if config.lr_cycle_init is not None and warmup + cycle_steps(config, shortest, per_epoch)[0] > shortest:
        raise ConfigError(f"lr_cycle_init: expected, with the warm-up, at most the {shortest / per_epoch:g} epochs{whole}, "
                          f"got {config.lr_cycle_init:g}")
    return found


def describe_spans(spans: list[tuple[int, int]], per_epoch: int) -> str | None:
    """How many epochs a stage has; None for a run without stages."""
    if len(spans) == 1:
        return None
    epochs = [f"{steps / per_epoch:.3g}" for _, steps in spans]
    return f"{len(spans)} stages of {epochs[0] if len(set(epochs)) == 1 else ', '.join(epochs)} epochs each, {sum(spans[-1])} steps in all"


def _cosine(high: float, low: float, share: float) -> float:
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * share))

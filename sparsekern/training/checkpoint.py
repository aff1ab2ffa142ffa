"""Checkpoints: one safetensors file with its JSON in the header, so that one rename commits everything.

Names carry the step. The newest and the one before stay; a file that is truncated, changed, renamed or of another run is refused
with the reason and the one before serves.
"""
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsekern.nn import SparseWeight
from sparsekern.support.tensor_file import TensorFileError, load_tensors, save_tensors

FORMAT = "sparsekern-checkpoint-1"
KEPT = 2


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message says which and why."""


def checkpoint_files(directory: Path) -> list[Path]:
    """All checkpoints of a run, newest first."""
    return sorted(Path(directory).glob("step-*.safetensors"), reverse=True)


def save_checkpoint(directory: Path, tensors: Mapping[str, Tensor], meta: dict) -> Path:
    """Write the state after `meta["step"]` steps and drop all but the two newest files.

    The file is complete on disk before it gets its name; a crash at any moment leaves the former checkpoints as they were.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    target = save_tensors(directory / f"step-{meta['step']:09d}.safetensors", FORMAT, tensors, meta)
    for old in checkpoint_files(directory)[KEPT:]:
        old.unlink()
    return target


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors (on the host, in their former memory order) and meta of one file.

    Raises:
        CheckpointError: truncated, changed after it was written, or not a checkpoint of this format.
    """
    path = Path(path)
    try:
        tensors, meta = load_tensors(path, FORMAT, "a checkpoint of sparsekern")
    except TensorFileError as error:
        raise CheckpointError(str(error)) from error
    if path.name != f"step-{meta['step']:09d}.safetensors":
        raise CheckpointError(f"{path.name}: it holds step {meta['step']}; it was renamed or swapped with another file")
    return tensors, meta


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Give a model the weights and buffers of a safetensors file: of a state_dict, or those of the model in a checkpoint of a run.

    Raises:
        CheckpointError: no such file, a damaged one, or one of another model; the model is unchanged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"init_from: cannot read {path} as safetensors ({error})") from error
    prefix = "model/" if any(name.startswith("model/") for name in tensors) else ""
    try:
        check_model(tensors, model.state_dict(), prefix)
    except CheckpointError as error:
        raise CheckpointError(f"init_from: {path}: {error}") from error
    model.load_state_dict({name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)})


def load_newest(directory: Path, accept, say=print) -> tuple[dict[str, Tensor], dict] | None:
    """The newest usable checkpoint, None if there is no file at all.

    Args:
        accept: called with (tensors, meta); raises CheckpointError for a checkpoint of another run or model.
        say: told why a newer file was passed over.
    Raises:
        CheckpointError: there are files, and none can be used.
    """
    reasons = []
    for path in checkpoint_files(directory):
        try:
            tensors, meta = load_checkpoint(path)
            accept(tensors, meta)
        except CheckpointError as error:
            reasons.append(str(error) if path.name in str(error) else f"{path.name}: {error}")
            continue
        for reason in reasons:
            say(f"checkpoint passed over: {reason}")
        if reasons:
            say(f"using the one before: {path.name}")
        return tensors, meta
    if reasons:
        raise CheckpointError(f"no usable checkpoint in {directory}: " + "; ".join(reasons))
    return None


def resizable(model: nn.Module) -> set[str]:
    """Names in the state_dict of tensors whose length may change while a model trains: those of sparse layers, one entry per nonzero."""
    return {f"{name}.{part}" if name else part for name, module in model.named_modules() if isinstance(module, SparseWeight)
            for part in ("values", "col")}


def check_model(tensors: Mapping[str, Tensor], model_state: Mapping[str, Tensor], prefix: str, resizable: Collection[str] = ()) -> None:
    """Raise CheckpointError unless the tensors under `prefix` are those of the model, by name, shape (but for `resizable`) and dtype."""
    stored = {name[len(prefix):]: value for name, value in tensors.items() if name.startswith(prefix)}
    missing, foreign = sorted(model_state.keys() - stored.keys()), sorted(stored.keys() - model_state.keys())
    if missing or foreign:
        parts = [f"it lacks {_some(missing)}"] if missing else []
        parts += [f"it has {_some(foreign)}, which this model does not"] if foreign else []
        raise CheckpointError("a checkpoint of another model: " + " and ".join(parts))
    for name, value in model_state.items():
        fits = stored[name].shape == value.shape or (name in resizable and stored[name].dim() == value.dim())
        if not fits or stored[name].dtype != value.dtype:
            raise CheckpointError(f"a checkpoint of another model: {name} is {list(stored[name].shape)} {stored[name].dtype}, "
                                  f"the model has {list(value.shape)} {value.dtype}")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict]:
    """The optimizer's state as "<parameter index>/<key>": tensors, and the numbers beside them. Groups count on, in order."""
    tensors, numbers = {}, {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}/{key}"] = value
    return tensors, numbers


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], numbers: Mapping) -> None:
    """The inverse of `optimizer_tensors`."""
    parameters = _parameters(optimizer)
    optimizer.state.clear()
    for name, value in [*tensors.items(), *numbers.items()]:
        index, _, key = name.partition("/")
        if int(index) >= len(parameters):
            raise CheckpointError(f"a checkpoint of another model: optimizer state {name}, but there are only {len(parameters)} parameters")
        parameter = parameters[int(index)]
        optimizer.state[parameter][key] = value.to(parameter.device) if isinstance(value, Tensor) else value


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

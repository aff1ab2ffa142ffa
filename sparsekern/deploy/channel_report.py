"""What is left of a channel-sparse run in the end: the slimmed net on disk, and its latency, predicted and measured."""
import statistics
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsekern.deploy.latency_table import time_layers
from sparsekern.sparsity.channel_masks import Channels
from sparsekern.sparsity.latency import LatencyTable, layer_widths

FILE = "slim.safetensors"


def channel_report(run, rounds: int = 15) -> dict:
    """For the report of a run whose net has lost channels; removes the run's sparsifier. {} for any other run.

    Args:
        run: at its end: sparsifier, model and `out`, the directory that the slimmed net's state_dict is written to.
        rounds: inferences of the whole and of the slimmed net, in turn, of which the medians are reported.
    Returns:
        {"slim": {"predicted_ms", "predicted_full_ms", "measured_ms", "measured_full_ms", "fps", "batch", "parameters", "file", "file_bytes",
        "difference"}}. Nothing is measured (None) where the table is of another machine. `difference` is the largest one between outputs of
        the slimmed and of the masked net, as a share of the largest output.
    """
    sparsifier = run.sparsifier
    if not all(isinstance(pattern, Channels) for pattern in sparsifier.patterns.values()):
        return {}
    from safetensors.torch import save_file
    form = getattr(sparsifier, "form", sparsifier)
    table, predicted = form.budget.table, form.latency_ms
    images = example(table, run.model)
    run.model.eval()
    with torch.no_grad(), sparsifier.subnet(sparsifier.subnets[0]):
        masked = run.model(images)
    slimmed = sparsifier.slim().eval()
    with torch.no_grad():
        difference = float((slimmed(images) - masked).abs().max() / masked.abs().max().clamp(min=1e-30))
    path = Path(run.out) / FILE
    # copies: a module that has two names has its tensors twice, and safetensors refuses shared memory
    save_file({name: value.clone(memory_format=torch.contiguous_format) for name, value in slimmed.state_dict().items()}, path)
    here = measurable(table, run.model)
    measured, full = beside(slimmed, run.model, images, rounds) if here else (None, None)
    return {"slim": {"predicted_ms": predicted, "predicted_full_ms": table.full_ms, "measured_ms": measured, "measured_full_ms": full,
                     "fps": None if measured is None else 1000 * len(images) / measured, "batch": len(images), "file": FILE,
                     "parameters": sum(parameter.numel() for parameter in slimmed.parameters()), "file_bytes": path.stat().st_size,
                     "difference": difference, "channels": {name: list(widths) for name, widths in layer_widths(slimmed).items()}}}


def describe(slim: dict) -> str:
    """The figures as one line."""
    def times(full, now) -> str:
        return f"{now:.2f} ms ({full / now:.2f}x)"
    measured = "not measured here" if slim["measured_ms"] is None else \
        f"measured {times(slim['measured_full_ms'], slim['measured_ms'])}, {slim['fps']:.0f} images/s"
    return (f"slimmed net: predicted {times(slim['predicted_full_ms'], slim['predicted_ms'])}, {measured}; {slim['parameters']:,} parameters, "
            f"{slim['file_bytes'] / 1e6:.2f} MB in {slim['file']}")


def load_slim(model: nn.Module, path: Path | str) -> nn.Module:
    """Give a whole model the channels and the weights of a slimmed one that was saved; the model is changed and returned.

    Raises:
        ValueError: a file that cannot be read, or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"load_slim: cannot read {path} ({error})") from error
    own = model.state_dict()
    wrong = [name for name, value in own.items() if name not in tensors or not _cut_from(tensors[name], value)]
    wrong = wrong or [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d, _BatchNorm))
                      and len({len(tensors[f"{name}.{key}".lstrip(".")]) for key, value in module.state_dict().items() if value.dim()}) > 1]
    if wrong or set(tensors) - set(own):
        raise ValueError(f"load_slim: {path} is of another model: {', '.join([*wrong, *sorted(set(tensors) - set(own))][:4])}")
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for kind in (module._parameters, module._buffers):
            for key, old in kind.items():
                if old is not None and f"{prefix}{key}" in tensors:
                    new = tensors[f"{prefix}{key}"].to(old.device, old.dtype)
                    kind[key] = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.Conv2d):
            depthwise = module.groups == module.in_channels == module.out_channels
            module.out_channels, inputs = module.weight.shape[:2]
            module.groups = module.out_channels if depthwise else module.groups
            module.in_channels = inputs * module.groups
        elif isinstance(module, _BatchNorm):
            module.num_features = len(module.running_mean if module.weight is None else module.weight)
    return model


def _cut_from(new: Tensor, old: Tensor) -> bool:
    """Whether rows and columns of `old` may have been taken out to make `new`."""
    return new.dim() == old.dim() and new.shape[2:] == old.shape[2:] and all(0 < a <= b for a, b in zip(new.shape[:2], old.shape[:2]))


def example(table: LatencyTable, model: nn.Module) -> Tensor:
    """A batch of images as the table has them, on the model's device and in its memory order."""
    first = next(model.parameters())
    images = torch.rand(table.fingerprint["batch"], *table.fingerprint["shape"], generator=torch.Generator().manual_seed(0)).to(first)
    return images.contiguous(memory_format=torch.channels_last if table.fingerprint["memory_format"] == "channels_last"
                             else torch.contiguous_format)


def measurable(table: LatencyTable, model: nn.Module) -> bool:
    """Whether this is the machine of the table."""
    try:
        table.check(model, device=next(model.parameters()).device)
    except ValueError:
        return False
    return True


def beside(slimmed: nn.Module, whole: nn.Module, images: Tensor, rounds: int) -> tuple[float, float]:
    """Milliseconds of both nets, run in turn; medians."""
    found: tuple[list[float], list[float]] = [], []
    for number in range(rounds + 2):
        for net, times in zip((slimmed, whole), found):
            time_layers(net, images)
            total = sum(time_layers(net, images).values())
            if number >= 2:
                times.append(total)
    return statistics.median(found[0]), statistics.median(found[1])

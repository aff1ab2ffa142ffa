"""What is left of a channel-sparse run in the end: the slimmed net on disk, and its latency, predicted and measured."""
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsekern.deploy.timing import compare
from sparsekern.sparsity.channel_masks import Channels
from sparsekern.sparsity.latency import LatencyTable, layer_widths
from sparsekern.sparsity.slim import is_cut_from, take_widths

FILE = "slim.safetensors"
MEASURED = ("measured_ms", "measured_full_ms", "speedup", "speedup_10", "speedup_90", "fps")


def channel_report(run, rounds: int = 40) -> dict:
    """For the report of a run whose net has lost channels; removes the run's sparsifier. {} for any other run.

    Args:
        run: at its end: sparsifier, model and `out`, the directory that the slimmed net's state_dict is written to.
        rounds: of the measurement, each an inference of the slimmed net between two of the whole one (`timing.compare`).
    Returns:
        {"slim": {"predicted_ms", "predicted_full_ms", "measured_ms", "measured_full_ms", "speedup", "speedup_10", "speedup_90", "fps", "batch",
        "parameters", "file", "file_bytes", "difference", "channels"}}. Nothing is measured (None) where the table is of another machine.
        The two measured times are medians of their own; `speedup` is the median of the rounds' ratios, which a machine at work disturbs less,
        and beside it stand the quantiles that a tenth of the rounds lie below and above. `difference` is the largest one between outputs of
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
    return {"slim": {"predicted_ms": predicted, "predicted_full_ms": table.full_ms,
                     **(measure(slimmed, run.model, images, rounds) if measurable(table, run.model) else dict.fromkeys(MEASURED)),
                     "batch": len(images), "file": FILE,
                     "parameters": sum(parameter.numel() for parameter in slimmed.parameters()), "file_bytes": path.stat().st_size,
                     "difference": difference, "channels": {name: list(widths) for name, widths in layer_widths(slimmed).items()}}}


def measure(slimmed: nn.Module, whole: nn.Module, images: Tensor, rounds: int = 40) -> dict[str, float]:
    """The measured entries of `channel_report`: milliseconds, speed-up with its spread, images per second."""
    timing = compare({"slimmed": slimmed}, whole, images, rounds)["slimmed"]
    return dict(zip(MEASURED, (timing.ms, timing.reference_ms, timing.speedup, timing.speedup_10, timing.speedup_90, 1000 * len(images) / timing.ms)))


def describe(slim: dict) -> str:
    """The figures as one line."""
    measured = "not measured here" if slim["measured_ms"] is None else \
        (f"measured {slim['measured_ms']:.2f} ms ({slim['speedup']:.2f}x, {slim['speedup_10']:.2f} to {slim['speedup_90']:.2f}x in eight rounds "
         f"of ten), {slim['fps']:.0f} images/s")
    return (f"slimmed net: predicted {slim['predicted_ms']:.2f} ms ({slim['predicted_full_ms'] / slim['predicted_ms']:.2f}x), {measured}; "
            f"{slim['parameters']:,} parameters, {slim['file_bytes'] / 1e6:.2f} MB in {slim['file']}")


def load_slim(model: nn.Module, path: Path | str) -> nn.Module:
    """Give a whole model the channels and the weights of a slimmed one that was saved; the model is changed and returned.

    Args:
        model: of Linear, Conv2d and batch norm layers, as wide as before the run. Device and dtypes stay; each tensor is cut to the file's shape.
        path: `slim.safetensors` of a run, or any state_dict of `Sparsifier.slim()` saved by safetensors.
    Raises:
        ValueError: a file that cannot be read, or of another model (up to four entries are named); the model is as it was then.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"load_slim: cannot read {path} ({error})") from error
    own = model.state_dict()
    wrong = [name for name, value in own.items() if name not in tensors or not is_cut_from(tensors[name], value.shape)]
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
        take_widths(module)
    return model


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

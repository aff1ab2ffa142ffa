"""Which channels of a net are zeros whatever comes in, so that they can be cut out exactly."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsekern.sparsity.channel_groups import ChannelGroup


@torch.no_grad()
def living_channels(model: nn.Module, groups: Sequence[ChannelGroup]) -> tuple[dict[str, Tensor], list[str]]:
    """{group: bool [channels]} to keep, for `slim`, of the groups that lose channels; and in words what is zero and stays all the same.

    A channel is zero where the weights and the bias of every layer that makes it are, and every norm over it makes 0 of 0. A depthwise
    layer makes zeros of zeros with any weights. A group that is zero as a whole keeps its first channel.
    """
    keep, notes = {}, []
    for group in groups:
        producers = {name: model.get_submodule(name) for name in group.producers}
        rows = {name: (module.weight == 0).flatten(1).all(1) for name, module in producers.items() if not _is_depthwise(module)}
        if not rows:
            continue
        everywhere = torch.stack(list(rows.values())).all(0)
        for name, zero in rows.items():
            if count := int((zero & ~everywhere).sum()):
                others = ", ".join(other for other in rows if other != name)
                notes.append(f"{name}: {count} rows are zero here but not in {others}, which share the channels: they stay as zero rows")
        dead = everywhere
        for name, module in [*producers.items(), *((name, model.get_submodule(name)) for name in group.norms)]:
            constant = dead & (_of_zero(module) != 0)
            if count := int(constant.sum()):
                what = "scale and shift are" if isinstance(module, _BatchNorm) else "bias is"
                notes.append(f"{name}: {count} hidden channels of {group.name} are a constant behind it, as its {what} not hidden: they stay")
            dead = dead & ~constant
        count = int(dead.sum())
        if count and group.fixed:
            notes.append(f"{group.name}: {count} hidden channels stay, as the group must be whole ({group.fixed})")
        elif count:
            if count == group.channels:
                notes.append(f"{group.name}: every channel is hidden; the first one stays, as a layer of none cannot be")
                dead[0] = False
            if not bool((~dead).all()):
                keep[group.name] = ~dead
    return keep, notes


def _of_zero(module: nn.Module) -> Tensor:
    """[channels]: what a norm, or the bias of a layer, makes of a channel of zeros."""
    if isinstance(module, _BatchNorm):
        value = torch.zeros(module.num_features, device=_any(module).device, dtype=_any(module).dtype) if module.bias is None else module.bias
        if module.running_mean is None:
            return value
        scale = (module.running_var + module.eps).rsqrt()
        return value - module.running_mean * (scale if module.weight is None else scale * module.weight)
    return module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias


def _any(norm: _BatchNorm) -> Tensor:
    return next(tensor for tensor in (norm.weight, norm.running_mean) if tensor is not None)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels > 1

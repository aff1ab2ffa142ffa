"""Remove channels for good: a plain model of smaller layers, and its batch-norm statistics measured anew."""
import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsekern.sparsity.channel_groups import ChannelGroup
from sparsekern.sparsity.layers import shown_mask


@torch.no_grad()
def slim(model: nn.Module, groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model without the channels that `keep` leaves out; it computes what the masked model computes.

    Args:
        model: without a sparsifier (call its `remove()` first).
        groups: as `find_channel_groups` gives them.
        keep: {name of the group: bool [channels]}; groups left out stay whole.
    Returns:
        A plain module with smaller Linear, Conv2d and batch-norm layers, in the mode (train or eval) of the model.
    Raises:
        ValueError: an unknown group, a mask that is not bool [channels], one that keeps no channel, one that cuts a group that must
            stay whole, a model with a sparsifier on it.
    """
    check_keep(groups, keep)
    if any("forward" in vars(module) for module in model.modules()):
        raise ValueError("slim: model: a sparsifier (or another forward) is attached to it; call its remove() first")
    model = copy.deepcopy(model)
    for group in groups:
        if group.name not in keep or bool(keep[group.name].all()):
            continue
        places = keep[group.name].nonzero().flatten()
        for name in group.producers:
            _cut_rows(model.get_submodule(name), places)
        for name in group.norms:
            _cut_norm(model.get_submodule(name), places)
        for name, per in group.consumers:
            _cut_columns(model.get_submodule(name), places, per)
    return model


def check_keep(groups: Sequence[ChannelGroup], keep: Mapping[str, Tensor], what: str = "slim: keep") -> None:
    """ValueError where `keep` does not fit the groups."""
    known = {group.name: group for group in groups}
    for name, mask in keep.items():
        if name not in known:
            raise ValueError(f"{what}: {name!r} is no channel group; they are {', '.join(known)}")
        group = known[name]
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or list(mask.shape) != [group.channels]:
            got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
            raise ValueError(f"{what}: {name}: expected a bool tensor of shape [{group.channels}], got {got}")
        kept = int(mask.sum())
        if kept == 0:
            raise ValueError(f"{what}: {name}: expected at least one channel that is kept, got none")
        if group.fixed and kept < group.channels:
            raise ValueError(f"{what}: {name}: expected all {group.channels} channels, as this group must stay whole ({group.fixed}), got {kept}")


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of every batch norm by their plain average over the batches; nothing else changes.

    Under a sparsifier, for one sub-net: `with sparsifier.subnet(name): recalibrate(model, batches)`. That measures the sub-net's own norms and
    those that all sub-nets share; statistics of channels that the sub-net hides stay as they are.

    Args:
        model: left in the mode it was in; only its batch norms see batch statistics meanwhile.
        batches: inputs on the model's device.
    Returns:
        The number of batches. Without one nothing changes, nor where a batch raises.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    modes = [(module, module.training) for module in model.modules()]
    settings = [(module, module.momentum, module.track_running_stats) for module in norms]
    before = [(buffer, buffer.clone()) for module in norms for buffer in module.buffers(recurse=False)]
    count = 0
    try:
        model.eval()
        for batch in batches:
            if not count:
                for module in norms:
                    module.momentum, module.track_running_stats = None, True        # None: torch's name for the plain average
                    module.reset_running_stats()
                    module.train()
            model(batch)
            count += 1
    except BaseException:
        for buffer, value in before:
            buffer.copy_(value)
        raise
    finally:
        for module, momentum, tracked in settings:
            module.momentum, module.track_running_stats = momentum, tracked
        for module, mode in modes:
            module.training = mode
    masks = {id(buffer): shown_mask(module) for module in norms for buffer in (module.running_mean, module.running_var)}
    for buffer, value in before:
        if masks.get(id(buffer)) is not None:
            buffer.copy_(torch.where(masks[id(buffer)], buffer, value))
    return count


def is_cut_from(new: Tensor, old: torch.Size) -> bool:
    """Whether rows and columns of a tensor of shape `old` may have been taken out to make `new`."""
    return new.dim() == len(old) and new.shape[2:] == old[2:] and all(0 < a <= b for a, b in zip(new.shape[:2], old[:2]))


def take_widths(module: nn.Module) -> None:
    """Make a Linear, Conv2d or batch norm say the widths that its tensors have; a depthwise convolution stays one. Other modules are left alone."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        depthwise = module.groups == module.in_channels == module.out_channels
        module.out_channels, inputs = module.weight.shape[:2]
        module.groups = module.out_channels if depthwise else module.groups
        module.in_channels = inputs * module.groups
    elif isinstance(module, _BatchNorm):
        module.num_features = len(module.running_mean if module.weight is None else module.weight)


def _cut(module: nn.Module, key: str, tensor: Tensor) -> None:
    old = getattr(module, key)
    tensor = tensor.contiguous(memory_format=torch.channels_last if _is_channels_last(old) else torch.contiguous_format)
    setattr(module, key, nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _cut_rows(module: nn.Conv2d | nn.Linear, places: Tensor) -> None:
    places = places.to(module.weight.device)
    _cut(module, "weight", module.weight[places])
    if module.bias is not None:
        _cut(module, "bias", module.bias[places])
    if isinstance(module, nn.Linear):
        module.out_features = len(places)
        return
    module.out_channels = len(places)
    if module.groups > 1:                                           # depthwise: its input channels are the same ones
        module.in_channels = module.groups = len(places)


def _cut_norm(module: _BatchNorm, places: Tensor) -> None:
    for key in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(module, key)
        if tensor is not None:
            _cut(module, key, tensor[places.to(tensor.device)])
    module.num_features = len(places)


def _cut_columns(module: nn.Conv2d | nn.Linear, places: Tensor, per: int) -> None:
    places = places.to(module.weight.device)
    columns = (places[:, None] * per + torch.arange(per, device=places.device)).flatten()
    _cut(module, "weight", module.weight[:, columns])
    if isinstance(module, nn.Linear):
        module.in_features = len(columns)
    else:
        module.in_channels = len(columns)

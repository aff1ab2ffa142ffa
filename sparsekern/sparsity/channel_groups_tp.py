"""Channel groups from torch-pruning's dependency graph, for models that the own walk refuses."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from sparsekern.sparsity.channel_groups import ChannelGroup

# Autograd's names of what maps zeros to zeros; anything else between two layers keeps a group whole.
_KEEP_ZERO = ("Relu", "LeakyRelu", "Elu", "Gelu", "Silu", "Hardswish", "Mish", "Tanh", "Hardtanh", "Add", "Sub", "Mul", "AvgPool2D",
              "MaxPool2DWithIndices", "AdaptiveAvgPool2D", "Mean", "View", "Reshape", "UnsafeView", "Clone", "T", "Slice", "Cat", "Squeeze")


def torch_pruning_groups(model: nn.Module, example: Tensor, keep_first: bool) -> list[ChannelGroup]:
    """`find_channel_groups` with backend="torch-pruning". A sum with a number other than 0 is not seen: channels behind it must not be removed.

    A group of which a member has only some channels, or has them in another order (behind a concatenation, for instance), is given
    as one whole group for each of its layers.

    Raises:
        ValueError: torch-pruning is not installed; a model with several outputs, or one that torch-pruning fails on.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise ValueError('find_channel_groups: backend="torch-pruning" needs the package: pip install torch-pruning') from error
    with torch.no_grad():
        outputs = [leaf for leaf in tree_leaves(model(example)) if isinstance(leaf, Tensor)]
    if len(outputs) != 1:
        raise ValueError(f'find_channel_groups: backend="torch-pruning": expected a model with one output tensor, this one has {len(outputs)}')
    trained = [(param, param.requires_grad) for param in model.parameters()]
    try:
        for param, _ in trained:
            param.requires_grad_(True)                              # torch-pruning follows the autograd graph
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
        found = [list(group) for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear])]
    except Exception as error:                                      # whatever it raises on a model it does not know
        raise ValueError(f"find_channel_groups: torch-pruning cannot follow this model ({str(error).splitlines()[0]})") from error
    finally:
        for param, state in trained:
            param.requires_grad_(state)
    names = {module: name for name, module in model.named_modules()}
    order = {name: place for place, name in enumerate(names.values())}
    convolutions = [name for module, name in names.items() if isinstance(module, nn.Conv2d)]
    groups = []
    for items in found:
        groups += _groups(graph, items, names, convolutions[0] if keep_first and convolutions else None)
    return sorted(groups, key=lambda group: order[group.name])


def _groups(graph, items, names: dict[nn.Module, str], first: str | None) -> list[ChannelGroup]:
    producers, norms, consumers, fixed, broken = [], [], [], "", ""
    channels = len(items[0].idxs)
    for item in items:
        module, idxs = item.dep.target.module, item.idxs
        if not item.dep.target.outputs and graph.is_out_channel_pruning_fn(item.dep.handler):
            fixed = fixed or "model output"
        if module not in names:                                     # an operation between the layers
            operation, backward, _ = item.dep.target.name.partition("(")[2].partition("Backward")
            if backward and operation not in _KEEP_ZERO:
                fixed = fixed or f"{operation} may move zeros"
        elif not isinstance(module, (nn.Conv2d, nn.Linear, _BatchNorm)):
            broken = broken or f"{type(module).__name__} {names[module]} is not followed"
        elif isinstance(module, _BatchNorm):
            norms.append(names[module])
            fixed = fixed or ("" if module.affine else f"batch norm {names[module]} has no scale and shift to mask")
        elif graph.is_out_channel_pruning_fn(item.dep.handler):
            producers.append(names[module])
        else:
            consumers.append((names[module], len(idxs) // channels))
        if module in names and not (_whole(graph, item, module) and len(idxs) % channels == 0):
            broken = broken or f"{names[module]} has these channels among others"
        if isinstance(module, nn.Conv2d) and module.groups > 1 and not module.groups == module.in_channels == module.out_channels:
            broken = broken or f"{names[module]} is a grouped convolution"
    if first in producers:
        fixed = fixed or "first convolution"
    producers = sorted(dict.fromkeys(producers), key=list(names.values()).index)
    if broken:
        widths = {name: _width(module) for module, name in names.items() if name in producers}
        return [ChannelGroup(name, widths[name], (name,), (), (), broken) for name in producers]
    return [ChannelGroup(producers[0], channels, tuple(producers), tuple(dict.fromkeys(norms)), tuple(dict.fromkeys(consumers)), fixed)]


def _width(module: nn.Module) -> int:
    return module.out_channels if isinstance(module, nn.Conv2d) else module.out_features


def _whole(graph, item, module: nn.Module) -> bool:
    """Whether the member has all its channels in order."""
    idxs: Sequence[int] = item.idxs
    if isinstance(module, _BatchNorm):
        size = module.num_features
    elif isinstance(module, (nn.Conv2d, nn.Linear)):
        takes = module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
        size = _width(module) if graph.is_out_channel_pruning_fn(item.dep.handler) else takes
    else:
        return False
    return [int(index) for index in idxs] == list(range(size))

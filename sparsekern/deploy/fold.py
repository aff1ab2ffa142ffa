"""Fold batch norms into the layers before them: in evaluation a norm is one factor and one summand for each channel."""
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.modules.batchnorm import _BatchNorm

from sparsekern.nn import NMWeight, PackedNM, SparseWeight

_SPARSE = (SparseWeight, NMWeight, PackedNM)


class _Tracer(fx.Tracer):
    """Every layer is a leaf, those of other makers too."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (nn.Conv2d, nn.Linear, _BatchNorm, *_SPARSE)) or super().is_leaf_module(module, name)


@torch.no_grad()
def fold_norms(model: nn.Module, example: Tensor) -> tuple[tuple[str, ...], dict[str, str]]:
    """Fold every batch norm that can be into the convolution or linear layer (dense, sparse or packed n:m) before it, in place.

    W' = W g / sqrt(v + eps) and b' = (b - mean) g / sqrt(v + eps) + beta, computed in float64; an nn.Identity takes the norm's place. A
    norm is folded where its input is the output of that layer and nothing else reads it.

    Args:
        model: in eval mode. example: an input that it takes.
    Returns:
        The names of the norms that were folded, and {name: why not} of the others.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        return (), {}
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
        ShapeProp(traced).propagate(example)
    except Exception as error:                                      # whatever the model's own code raises on a tracer's stand-ins
        return (), dict.fromkeys(norms, f"torch.fx cannot trace the model ({_first_line(error)})")
    modules, nodes = dict(model.named_modules()), list(traced.graph.nodes)
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    read = {node.target for node in nodes if node.op == "get_attr"}
    owners = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values() if parameter is not None)
    folded, left = [], dict.fromkeys(norms, "the forward pass does not call it")
    for node in nodes:
        if node.op != "call_module" or node.target not in norms:
            continue
        source = node.args[0] if node.args else None
        layer = modules.get(source.target) if isinstance(source, fx.Node) and source.op == "call_module" else None
        names = {f"{name}.{key}" for name in (node.target, getattr(source, "target", "")) for key in ("weight", "bias")}
        if calls[node.target] > 1:
            why = "it is used in several places"
        elif not isinstance(layer, (nn.Conv2d, nn.Linear, *_SPARSE)):
            why = "its input is not the output of a convolution or linear layer"
        elif len(source.users) > 1:
            why = f"the output of {source.target} is read elsewhere, too"
        elif calls[source.target] > 1 or names & read:
            why = f"it or {source.target} is used in several places"
        else:
            why = _obstacle(layer, norms[node.target], source, owners)
        if why:
            left[node.target] = why
        else:
            _fold(layer, norms[node.target])
            parent, _, key = node.target.rpartition(".")
            model.get_submodule(parent)._modules[key] = nn.Identity().train(norms[node.target].training)
            folded.append(node.target)
            del left[node.target]
    return tuple(folded), left


def _obstacle(layer: nn.Module, norm: _BatchNorm, source: fx.Node, owners: Counter) -> str:
    """Why two modules that follow each other cannot be one; empty: they can."""
    for module, kinds in ((layer, (nn.Conv2d, nn.Linear)), (norm, (_BatchNorm,))):
        own = isinstance(module, _SPARSE) or type(module).forward in [kind.forward for kind in kinds]
        if not own or isinstance(module, nn.Conv2d) and type(module)._conv_forward is not nn.Conv2d._conv_forward:
            return f"{type(module).__name__} has a forward of its own"
        if module._forward_hooks or module._forward_pre_hooks:
            return "hooks are registered on it or on the layer before it"
        if any(owners[id(parameter)] > 1 for parameter in module._parameters.values() if parameter is not None):
            return "it or the layer before it shares its parameters"
    if isinstance(layer, nn.Conv2d | nn.Linear) and "weight" not in layer._parameters:
        return "the weight of the layer before it is computed from other parameters"
    if norm.running_mean is None or norm.training:
        return "it normalises by the batch"
    shape = getattr(source.meta.get("tensor_meta"), "shape", ())
    convolves = hasattr(layer, "kernel_size")
    if len(shape) != (4 if convolves else 2) or shape[1] != norm.num_features:
        return f"it is over another dimension than the outputs of {source.target}"
    return ""


def _fold(layer: nn.Module, norm: _BatchNorm) -> None:
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale if norm.bias is None else norm.bias.double() - norm.running_mean.double() * scale
    stored = layer.values if isinstance(layer, SparseWeight | PackedNM) else layer.weight
    if isinstance(layer, SparseWeight):
        factor = torch.repeat_interleave(scale, layer.crow.diff().long(), output_size=layer.nnz)
    else:
        factor = scale.view(-1, *[1] * (stored.dim() - 1))
    stored.copy_(stored.double() * factor)
    bias = (shift if layer.bias is None else layer.bias.double() * scale + shift).to(stored.dtype)
    if layer.bias is not None:
        layer.bias.copy_(bias)
    else:
        layer.bias = bias if isinstance(layer, PackedNM) else nn.Parameter(bias, requires_grad=stored.requires_grad)
    if isinstance(layer, PackedNM):
        layer._derive()                                             # its products hold copies of the values


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""A deployed net as one safe file: its tensors, and in the header which layer has which form.

The file names an architecture; a layer's kernel size, stride, padding and groups are that architecture's, and no width may exceed it. So the
header can ask for no other memory than the net it names has, and the tensors are taken as they lie in the file.
"""
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsekern.deploy.layer_forms import memory_order, set_memory_order
from sparsekern.nn import PackedNM, PackedNMConv2d, PackedNMLinear, SparseConv2d, SparseLinear, SparseWeight
from sparsekern.sparsity.slim import is_cut_from, take_widths
from sparsekern.support.models import outline
from sparsekern.support.provenance import finite
from sparsekern.support.tensor_file import TensorFileError, load_tensors, save_tensors

FORMAT = "sparsekern-deployed-1"
_STORED = {kind.__name__: kind for kind in (SparseLinear, SparseConv2d, PackedNMLinear, PackedNMConv2d)}
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def save_deployed(module: nn.Module, deployment, path: Path | str, *, model: Mapping | None = None, **facts) -> Path:
    """Write a deployed net: one safetensors file, complete before it gets its name. No pickle.

    Args:
        deployment: the report of `compact`, kept in the header; None for a net that has none.
        model: {"name": "resnet20", "classes": 10, "shape": [3, 32, 32]}, the architecture as `build_model` takes it; the net is fitted into
            it once before the file is written. None: `load_deployed` wants `model=`.
        facts: json-able values that stand in the header, too (`read_deployed` gives them).
    Raises:
        ValueError: a net that does not fit the architecture.
    """
    tensors, layers = module.state_dict(), describe_layers(module)
    model = None if model is None else {key: list(model[key]) if key == "shape" else model[key] for key in ("name", "classes", "shape")}
    if model is not None:
        _fit(outline(model, tensors.values()), dict(tensors), layers)
    rows = None if deployment is None else deployment.to_dict()
    return save_tensors(path, FORMAT, tensors, {"model": model, "layers": layers, "memory_format": memory_order(module),
                                                "deployment": finite(rows), "facts": finite(facts)})


def load_deployed(path: Path | str, model: nn.Module | None = None) -> nn.Module:
    """The net that `save_deployed` wrote, in eval mode, without gradients, on the CPU; `.deployment` is the report it was saved with, as a dict.

    Args:
        model: a fresh model of the architecture, for a file that names none; it is changed and returned (another one where it is a single layer).
    Raises:
        ValueError: a file that cannot be read, was changed, or does not fit the architecture; patterns that are not sound.
    """
    tensors, meta = load_tensors(path, FORMAT, "a deployed net of sparsekern")
    try:
        if model is None:
            if meta.get("model") is None:
                raise TensorFileError("it names no architecture; pass model=")
            model = outline(meta["model"], tensors.values())
        model = _fit(model, tensors, meta["layers"])
        if meta.get("memory_format") == "channels_last":    # a 1x1 weight lies the same in both orders, and says so by its strides alone
            set_memory_order(model, "channels_last")
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, OverflowError, RecursionError) as error:
        raise TensorFileError(f"{Path(path).name}: {_sentence(error)}") from error
    model.deployment = meta.get("deployment")
    return model.eval().requires_grad_(False)


def read_deployed(path: Path | str) -> dict:
    """{"model", "layers", "deployment", "facts"} of the header. ValueError as for `load_deployed`."""
    return load_tensors(path, FORMAT, "a deployed net of sparsekern")[1]


def describe_layers(module: nn.Module) -> dict[str, dict]:
    """{name: form} of the layers that are no longer plain: {"kind", "widths": [in, out], "backend"}, n and m where packed, or "Identity"."""
    found = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        kind = type(layer).__name__
        if isinstance(layer, SparseWeight | PackedNM):
            if type(layer) is not _STORED.get(kind):
                raise ValueError(f"save_deployed: {name or 'the module'}: {kind} has no form in a file; they are {', '.join(_STORED)}")
            widths = [layer.in_features, layer.out_features] if kind.endswith("Linear") else [layer.in_channels, layer.out_channels]
            found[name] = {"kind": kind, "widths": widths, "backend": layer.backend}
            if isinstance(layer, PackedNM):
                found[name] |= {"n": layer.n, "m": layer.m}
            elif getattr(layer, "inference_only", False):
                found[name] |= {"inference_only": True}
        elif isinstance(layer, nn.Identity):
            found[name] = {"kind": "Identity"}
    return found


def _fit(model: nn.Module, tensors: dict[str, Tensor], layers: Mapping[str, Mapping]) -> nn.Module:
    """The model with the layers and the tensors; every tensor finds its place or ValueError says which does not."""
    plain = dict(model.named_modules(remove_duplicate=False))
    for name, form in layers.items():
        if name not in plain:
            raise ValueError(f"{name}: the architecture has no such layer")
        new = _stored(name, plain[name], form, tensors) if form["kind"] in _STORED else _identity(name, plain[name], form)
        if name:
            model.set_submodule(name, new)
        else:                                               # the model itself is the layer
            model = new
    for name, module in model.named_modules(remove_duplicate=False):
        if name not in layers:
            _take(name, module, tensors)
    if tensors:
        raise ValueError(f"{', '.join(sorted(tensors)[:4])}: the architecture has no place for it")
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        raise ValueError(f"{', '.join(left[:4])}: missing")
    return model


def _identity(name: str, old: nn.Module, form: Mapping) -> nn.Identity:
    if form["kind"] != "Identity" or not isinstance(old, _BatchNorm | nn.Identity):
        raise ValueError(f"{name}: expected one of {', '.join(_STORED)}, or Identity for a batch norm, got {str(form['kind'])[:40]!r} for "
                         f"{type(old).__name__}")
    return nn.Identity()


def _stored(name: str, old: nn.Module, form: Mapping, tensors: dict[str, Tensor]) -> nn.Module:
    """The sparse or packed layer in place of the plain one, checked by its own constructor."""
    kind, linear = _STORED[form["kind"]], form["kind"].endswith("Linear")
    if not isinstance(old, nn.Linear if linear else nn.Conv2d):
        raise ValueError(f"{name}: expected a form of {type(old).__name__}, got {form['kind']}")
    inputs, outputs = form["widths"]
    most = (old.in_features, old.out_features) if linear else (old.in_channels, old.out_channels)
    for width, limit in zip((inputs, outputs), most):
        if not isinstance(width, int) or isinstance(width, bool) or not 1 <= width <= limit:
            raise ValueError(f"{name}: expected widths of 1 to {limit}, got {str(width)[:40]}")
    geometry = {} if linear else {key: getattr(old, key) for key in _GEOMETRY}
    if not linear and old.groups == old.in_channels == old.out_channels:
        geometry["groups"] = inputs                         # depthwise stays depthwise when channels go
    sizes = (inputs, outputs) if linear else (inputs, outputs, geometry.pop("kernel_size"))
    keys = ("values", "index", "bias") if issubclass(kind, PackedNM) else ("crow", "col", "values", "bias")
    parts = {key: tensors.pop(f"{name}.{key}".lstrip("."), None) for key in keys}
    if old.bias is not None and parts["bias"] is None:
        raise ValueError(f"{name}.bias: missing")
    if issubclass(kind, PackedNM):
        return kind(*sizes, form["n"], form["m"], **parts, **geometry, backend=form["backend"])
    made = kind(*sizes, **parts, **geometry, backend=form["backend"])
    return made.for_inference() if form.get("inference_only") else made


def _take(name: str, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Exchange the module's own tensors for those of the file: of the same sizes, or of fewer channels; a folded norm leaves a bias."""
    prefix = f"{name}." if name else ""
    for table in (module._parameters, module._buffers):
        for key, old in table.items():
            new = tensors.pop(f"{prefix}{key}", None)
            if new is None:
                if old is not None and key not in module._non_persistent_buffers_set:
                    raise ValueError(f"{prefix}{key}: missing")
                continue
            wanted = module._parameters["weight"].shape[:1] if old is None and key == "bias" else None if old is None else old.shape
            if wanted is None or not is_cut_from(new, wanted) or (old is not None and new.is_floating_point() != old.is_floating_point()):
                raise ValueError(f"{prefix}{key}: expected {'nothing' if wanted is None else f'at most {list(wanted)}'}, got {new.dtype} "
                                 f"{list(new.shape)}")
            table[key] = nn.Parameter(new, requires_grad=new.is_floating_point()) if table is module._parameters else new
    take_widths(module)
    lengths = {len(tensor) for tensor in module.state_dict(keep_vars=True).values() if tensor.dim()}
    if isinstance(module, nn.Linear | nn.Conv2d | _BatchNorm) and len(lengths) > 1:
        raise ValueError(f"{name}: its tensors have different numbers of channels, {sorted(lengths)}")


def _sentence(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"not a sound file ({type(error).__name__}: {text[0] if text else ''})" if not isinstance(error, ValueError) else text[0]

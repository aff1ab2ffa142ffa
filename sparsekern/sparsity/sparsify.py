"""sparsify: exchange the linear layers and convolutions of a model for always-sparse ones, each with the product that is faster here."""
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsekern import ops
from sparsekern.nn import NMWeight, PackedNM, SparseConv2d, SparseLinear, SparseWeight
from sparsekern.nn.choose import choose_backend
from sparsekern.sparsity.allocation import erdos_renyi, global_masks, uniform
from sparsekern.sparsity.layers import survey_layers
from sparsekern.sparsity.patterns import Unstructured

ALLOCATIONS = ("er", "erk", "uniform", "global")
_HOOKS = {"_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"}
_ASSUMED_BATCH, _ASSUMED_SIZE = 128, 16                     # of inputs that no example shows


@dataclass(frozen=True)
class SparsifiedLayer:
    """One exchanged layer. Times are median milliseconds of forward and backward, None where nothing was measured."""
    name: str
    shape: tuple[int, ...]
    nnz: int
    sparsity: float
    backend: str
    sparse_ms: float | None
    dense_ms: float | None
    reason: str


@dataclass(frozen=True)
class SparsifyReport:
    """What `sparsify` did: `layers` in order, and `left_dense`: {name of the weight: why}. `str()` of it is a table."""
    layers: tuple[SparsifiedLayer, ...]
    left_dense: Mapping[str, str]

    @property
    def nnz(self) -> int:
        """Weights that are left in the exchanged layers."""
        return sum(layer.nnz for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Over all exchanged layers together."""
        return 1.0 - self.nnz / max(1, sum(torch.Size(layer.shape).numel() for layer in self.layers))

    def __iter__(self) -> Iterator[SparsifiedLayer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> SparsifiedLayer:
        return next(layer for layer in self.layers if layer.name == name)

    def __str__(self) -> str:
        width = max([len(layer.name) for layer in self.layers] + [5])
        lines = [f"{'layer':{width}}  {'shape':>18}  {'nnz':>9}  sparsity  product  sparse ms  dense ms  why"]
        for layer in self.layers:
            times = [f"{ms:.2f}" if ms is not None else "-" for ms in (layer.sparse_ms, layer.dense_ms)]
            shape = "x".join(map(str, layer.shape))
            lines.append(f"{layer.name:{width}}  {shape:>18}  {layer.nnz:>9}  {layer.sparsity:>8.4f}  {layer.backend:7}  {times[0]:>9}  "
                         f"{times[1]:>8}  {layer.reason}")
        lines.append(f"{self.nnz} weights, sparsity {self.sparsity:.4f}")
        return "\n".join(lines + [f"left dense: {name}: {reason}" for name, reason in self.left_dense.items()])


@torch.no_grad()
def sparsify(model: nn.Module, sparsity: float | None = None, *, allocation: str = "er", keep: str = "random",
             masks: Mapping[str, Tensor] | None = None, backend: str = "auto", example=None, seed: int = 0, skip_first: bool = False,
             skip_last: bool = False, skip_depthwise: bool = False, only: str | None = None, exclude: str | None = None) -> SparsifyReport:
    """Exchange every nn.Linear and nn.Conv2d of `model`, in place, for SparseLinear and SparseConv2d.

    Parameters are replaced, so build the optimizer afterwards. Weights that are tied, belong to a module used in several places or with
    hooks on it, or are read outside their own forward (`out_proj` of nn.MultiheadAttention) are left dense and named in the report.

    Args:
        model: any module that contains such layers (itself not one of them).
        sparsity: fraction of zeros over all exchanged layers together; the count is met exactly.
        allocation: how it is shared: "er" (Erdos-Renyi over the flattened weight [out, in * kernel], as always-sparse training has it),
            "erk" (with the kernel's own dimensions), "uniform", or "global" (one ranking of |weight|, with keep="magnitude").
        keep: "random": random places with fresh values U(-1, 1) * sqrt(3 / fan-in), for training from scratch; nothing of the dense
            weights is kept. "magnitude": the largest weights stay with their values, to go on from a trained model.
        masks: {"layer.weight": bool tensor of its shape} instead of `sparsity`; the weights under them stay. Only the layers named are
            exchanged.
        backend: "csr", "dense" or "auto": forward and backward of both products are measured, and the dense one is kept (over sparse
            storage, see SparseWeight) where the sparse one is not faster.
        example: an input (a tensor, a tuple of arguments, or a dict of keywords): one forward in eval mode, without gradients, shows the
            shapes to measure at. Without it linear layers are measured at 128 rows and convolutions at 128 images of 16 x 16. Call
            sparsify under autocast if training runs under it.
        seed: of the random places and values; each layer draws its own.
        skip_first, skip_last, skip_depthwise, only, exclude: as in `find_layers`; here nothing is skipped unless asked for.
    Returns:
        SparsifyReport: per layer name, shape, nnz, sparsity, product, measured times and the reason in words.
    Raises:
        ValueError: nothing to exchange, a sparsity out of range or one that leaves a layer empty, an unknown option or layer name,
            a convolution with another padding_mode than "zeros". The model is unchanged then.
    """
    for name, value, known in (("allocation", allocation, ALLOCATIONS), ("keep", keep, ("random", "magnitude")),
                               ("backend", backend, ("auto", "csr", "dense"))):
        if value not in known:
            raise ValueError(f"sparsify: {name}: expected one of {', '.join(known)}, got {value!r}")
    if (sparsity is None) == (masks is None):
        raise ValueError(f"sparsify: expected either sparsity or masks, got {'neither' if masks is None else 'both'}")
    found, left = exchangeable(model, skip_first=skip_first, skip_last=skip_last, skip_depthwise=skip_depthwise, only=only, exclude=exclude)
    if masks is not None:
        _check_names(masks, found)
        found = {name: module for name, module in found.items() if name in masks}
    if not found:
        raise ValueError("sparsify: nothing to exchange: no nn.Linear or nn.Conv2d is left" + listed(left))
    seen = input_shapes(model, example, list(found.values()))
    make = _makers(found, sparsity, allocation, keep, masks, seed)
    made = {name: make(name) for name in found}
    rows = []
    for name, layer in made.items():
        shape, dtype, known = seen.get(found[name]) or (*assumed_input(found[name]), False)
        if backend == "auto":
            choice = choose_backend(layer, shape, dtype)
            layer.backend = choice.backend
            reason = choice.reason + ("" if known else " (an assumed input: pass example= to measure at yours)")
            rows.append((name, choice.sparse_ms, choice.dense_ms, reason))
        else:
            layer.backend = backend
            rows.append((name, None, None, f'backend="{backend}" was asked for'))
    report = SparsifyReport(tuple(SparsifiedLayer(name.removesuffix(".weight"), tuple(found[name].weight.shape), made[name].nnz,
                                                  made[name].sparsity, made[name].backend, *rest) for name, *rest in rows), left)
    exchange(model, {found[name]: layer for name, layer in made.items()})
    return report


def exchangeable(model: nn.Module, op: str = "sparsify", **options) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """{weight name: module} that can be exchanged, and {weight name: why not}."""
    if isinstance(model, nn.Linear | nn.Conv2d):
        kind = type(model).__name__
        instead = f"NM{kind}.from_dense" if op == "sparsify_nm" else f"Sparse{kind}.from_shape or from_dense"
        raise ValueError(f"{op}: the model is itself a {kind} and cannot be exchanged in place; use {instead}")
    layers, unseen = survey_layers(model, **options)
    left = dict.fromkeys(unseen, "its weight is read outside its own forward")
    places = [id(child) for module in model.modules() for child in module._modules.values() if child is not None]
    found = {}
    for layer in layers:
        module, kind = layer.modules[0], type(layer.modules[0])
        own = kind.forward in (nn.Linear.forward, nn.Conv2d.forward) and "forward" not in vars(module)
        if len(layer.modules) > 1:
            left[layer.name] = f"tied: {len(layer.modules)} modules share it"
        elif places.count(id(module)) > 1:
            left[layer.name] = "its module is used in several places"
        elif not own or (isinstance(module, nn.Conv2d) and kind._conv_forward is not nn.Conv2d._conv_forward):
            left[layer.name] = f"{kind.__name__} has a forward of its own"
        elif any(hooks for name, hooks in vars(module).items() if name in _HOOKS):
            left[layer.name] = "hooks are registered on its module; remove them first"
        else:
            found[layer.name] = module
    return found, left


def _check_names(masks: Mapping[str, Tensor], found: Mapping[str, nn.Module]) -> None:
    unknown = [name for name in masks if name not in found]
    if unknown:
        raise ValueError(f"sparsify: masks: {', '.join(map(repr, unknown))} cannot be exchanged; expected names among {', '.join(found)}")


def listed(left: Mapping[str, str]) -> str:
    """{name: reason} as the end of a message."""
    return "".join(f"; {name}: {reason}" for name, reason in left.items())


def _makers(found: Mapping[str, nn.Module], sparsity, allocation, keep, masks, seed) -> Callable[[str], SparseWeight]:
    """A function from a name to its new layer."""
    names, weights = list(found), [module.weight for module in found.values()]
    if masks is None:
        total = Unstructured(sparsity).nnz(sum(weight.numel() for weight in weights))
        if allocation == "global":
            if keep != "magnitude":
                raise ValueError('sparsify: allocation="global" ranks magnitudes, so it needs keep="magnitude"')
            kept, counts, _ = global_masks(weights, total)
        else:
            counts = _counts([tuple(weight.shape) for weight in weights], total, allocation)
        empty = [name for name, count, weight in zip(names, counts, weights) if count == 0 and weight.numel()]
        if empty:
            raise ValueError(f"sparsify: sparsity {sparsity} with allocation={allocation!r} leaves {', '.join(empty)} without a weight; "
                             f"lower it, choose another allocation, or exclude these layers")
        if keep == "random":
            draws = torch.Generator().manual_seed(seed)
            seeds = torch.randint(2**62, (len(names),), generator=draws).tolist()
            fresh = {name: (count, own) for name, count, own in zip(names, counts, seeds)}
            return lambda name: _random(found[name], *fresh[name])
        masks = dict(zip(names, kept if allocation == "global" else ops.topk_mask(weights, counts)[0]))
    return lambda name: _pruned(found[name], masks[name])


def _counts(shapes: list[tuple[int, ...]], total: int, allocation: str) -> list[int]:
    if allocation == "uniform":
        return uniform(shapes, total)
    if allocation == "er":
        shapes = [(shape[0], torch.Size(shape[1:]).numel()) for shape in shapes]
    return erdos_renyi(shapes, total)


def _random(module: nn.Module, nnz: int, seed: int) -> SparseWeight:
    weight = module.weight
    options = {"nnz": nnz, "seed": seed, "bias": module.bias is not None, "device": weight.device, "dtype": weight.dtype}
    if isinstance(module, nn.Linear):
        layer = SparseLinear.from_shape(module.in_features, module.out_features, **options)
    else:
        layer = SparseConv2d.from_shape(module.in_channels, module.out_channels, module.kernel_size, stride=module.stride,
                                        padding=module.padding, dilation=module.dilation, groups=module.groups,
                                        padding_mode=module.padding_mode, **options)
    return _as_trained(layer, module)


def _pruned(module: nn.Module, mask: Tensor) -> SparseWeight:
    kind = SparseLinear if isinstance(module, nn.Linear) else SparseConv2d
    return _as_trained(kind.from_dense(module, mask.to(module.weight.device)), module)


def _as_trained(layer: SparseWeight, module: nn.Module) -> SparseWeight:
    layer.values.requires_grad_(module.weight.requires_grad)
    if layer.bias is not None:
        layer.bias.requires_grad_(module.bias.requires_grad)
    return layer.train(module.training)


def input_shapes(model: nn.Module, example, modules: list[nn.Module]) -> dict[nn.Module, tuple[tuple[int, ...], torch.dtype, bool]]:
    """{module: (shape, dtype, True)} of the largest input that each sees in one forward of `example`; modules not reached are absent."""
    seen: dict[nn.Module, tuple] = {}
    if example is None:
        return seen

    def look(module, args, kwargs):
        x = args[0] if args else kwargs["input"]
        if module not in seen or x.numel() > torch.Size(seen[module][0]).numel():
            seen[module] = (tuple(x.shape), x.dtype, True)

    args, kwargs = ((), example) if isinstance(example, dict) else (example if isinstance(example, tuple | list) else (example,), {})
    training = [(module, module.training) for module in model.modules()]
    hooks = [module.register_forward_pre_hook(look, with_kwargs=True) for module in modules]
    try:
        model.eval()
        model(*args, **kwargs)
    finally:
        for module, mode in training:
            module.training = mode
        for hook in hooks:
            hook.remove()
    return seen


def assumed_input(module: nn.Module) -> tuple[tuple[int, ...], torch.dtype]:
    """(shape, dtype) to measure a layer at whose input no example showed."""
    if module.weight.dim() == 2:
        return (_ASSUMED_BATCH, module.in_features), module.weight.dtype
    return (_ASSUMED_BATCH, module.in_channels, _ASSUMED_SIZE, _ASSUMED_SIZE), module.weight.dtype


def exchange(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put every new module in the places of the old one."""
    for module in list(model.modules()):
        for key, child in module._modules.items():
            if child in new:
                module._modules[key] = new[child]
    # the fused inference paths of torch's encoder read weights past any forward; this turns them off
    sparse = (SparseWeight, NMWeight, PackedNM)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(isinstance(child, sparse) for child in module.children()):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder) and any(isinstance(child, sparse) for child in module.modules()):
            module.use_nested_tensor = False

"""sparsify_nm and pack_nm: give the layers of a model N:M masks to train with, and pack them for inference when they are trained."""
import torch
from torch import nn

from sparsekern.nn import NMConv2d, NMLinear, NMWeight, PackedNM
from sparsekern.nn.choose import choose_backend
from sparsekern.sparsity.layers import Layer
from sparsekern.sparsity.nm_groups import obstacle
from sparsekern.sparsity.patterns import NM
from sparsekern.sparsity.sparsify import SparsifiedLayer, SparsifyReport, assumed_input, exchange, exchangeable, input_shapes, listed

_ASSUMED = " (an assumed input: pass example= to measure at yours)"


@torch.no_grad()
def sparsify_nm(model: nn.Module, pattern: str | NM = "2:4", *, gradient: str = "straight_through", lambda_w: float | None = None,
                refresh: str = "forward", backend: str = "auto", example=None, skip_first: bool = False, skip_last: bool = False,
                only: str | None = None, exclude: str | None = None) -> SparsifyReport:
    """Exchange every nn.Linear and nn.Conv2d of `model`, in place, for NMLinear and NMConv2d, which go on with the same parameters.

    Parameters stay the objects they are and keep their names, so an optimizer made before goes on. Layers without whole groups of m
    along their input channels, grouped and depthwise convolutions, and what `sparsify` cannot exchange are left dense and named in the
    report with the reason.

    Args:
        model: any module that contains such layers (itself not one of them).
        pattern: "n:m", n the number kept of every m ("zeros 3:4": the number of zeros, keeps 1:4), or an NM.
        gradient, lambda_w, refresh: as in NMWeight.
        backend: of the training products: "dense" (of the masked weight), "csr" (of the kept weights), or "auto": forward and backward
            of both are measured, and the dense one is taken where the other is not faster.
        example: an input, as for `sparsify`, which shows the shapes to measure at.
        skip_first, skip_last, only, exclude: as in `find_layers`; here nothing is skipped unless asked for.
    Returns:
        SparsifyReport: per layer name, shape, nnz, sparsity, product, measured times and the reason in words.
    Raises:
        ValueError: nothing to exchange, an unknown option, a malformed pattern, a convolution with another padding_mode than "zeros".
            The model is unchanged then.
    """
    pattern = pattern if isinstance(pattern, NM) else NM.parse(pattern)
    if backend not in ("auto", "csr", "dense"):
        raise ValueError(f"sparsify_nm: backend: expected one of auto, csr, dense, got {backend!r}")
    found, left = exchangeable(model, "sparsify_nm", skip_first=skip_first, skip_last=skip_last, skip_depthwise=False, only=only, exclude=exclude)
    for name, module in list(found.items()):
        why = obstacle(Layer(name, module.weight, [module]), pattern)
        if why is not None:
            left[name] = why
            del found[name]
    if not found:
        raise ValueError(f"sparsify_nm: nothing to exchange: no nn.Linear or nn.Conv2d takes {pattern}{listed(left)}")
    options = {"gradient": gradient, "lambda_w": lambda_w, "refresh": refresh, "backend": "dense" if backend == "auto" else backend}
    made = {name: _trainable(module, pattern, options) for name, module in found.items()}
    shapes, rows = input_shapes(model, example, list(found.values())), []
    for name, layer in made.items():
        shape, dtype, known = shapes.get(found[name]) or (*assumed_input(found[name]), False)
        choice = choose_backend(layer, shape, dtype) if backend == "auto" else None
        if choice is not None:
            layer.backend = choice.backend
        rows.append(_row(name.removesuffix(".weight"), layer, tuple(layer.weight.shape), choice, backend, known))
    exchange(model, {found[name]: layer for name, layer in made.items()})
    return SparsifyReport(tuple(rows), left)


@torch.no_grad()
def pack_nm(model: nn.Module, *, backend: str = "auto", example=None) -> SparsifyReport:
    """Exchange every NMLinear and NMConv2d of `model`, in place, for its packed form: kept weights and positions, no dense weight.

    For inference: what was a parameter there is a buffer now.

    Args:
        model: any module that contains such layers (itself not one of them).
        backend: "packed", "dense" or "auto": the forward pass of every product is measured, and the dense one is taken (over packed storage)
            where no other is faster.
        example: an input, as for `sparsify`, which shows the shapes to measure at.
    Returns:
        SparsifyReport: per layer name, shape, nnz, sparsity, product, measured times of the forward pass and the reason in words.
    Raises:
        ValueError: no such layer, an unknown backend. The model is unchanged then.
    """
    if backend not in ("auto", *PackedNM.backends):
        raise ValueError(f"pack_nm: backend: expected one of auto, {', '.join(PackedNM.backends)}, got {backend!r}")
    if isinstance(model, NMWeight):
        raise ValueError(f"pack_nm: the model is itself an {type(model).__name__} and cannot be exchanged in place; use its pack()")
    found = {name: module for name, module in model.named_modules() if isinstance(module, NMWeight)}
    if not found:
        raise ValueError("pack_nm: nothing to exchange: the model has no NMLinear or NMConv2d; sparsify_nm makes them")
    shapes, rows, new = input_shapes(model, example, list(found.values())), [], {}
    for name, module in found.items():
        shape, dtype, known = shapes.get(module) or (*assumed_input(module), False)
        new[module] = module.pack(backend="packed" if backend == "auto" else backend)
        choice = new[module].choose(shape, dtype) if backend == "auto" else None
        rows.append(_row(name, new[module], tuple(module.weight.shape), choice, backend, known))
    exchange(model, new)
    return SparsifyReport(tuple(rows), {})


def _trainable(module: nn.Module, pattern: NM, options: dict) -> NMWeight:
    kind = NMLinear if isinstance(module, nn.Linear) else NMConv2d
    made = kind.from_dense(module, pattern.keep, pattern.group, **options)
    made.weight, made.bias = module.weight, module.bias
    return made


def _row(name: str, layer: nn.Module, shape: tuple[int, ...], choice, backend: str, known: bool) -> SparsifiedLayer:
    if choice is None:
        return SparsifiedLayer(name, shape, layer.nnz, layer.sparsity, backend, None, None, f'backend="{backend}" was asked for')
    reason = choice.reason + ("" if known else _ASSUMED)
    return SparsifiedLayer(name, shape, layer.nnz, layer.sparsity, choice.backend, choice.sparse_ms, choice.dense_ms, reason)

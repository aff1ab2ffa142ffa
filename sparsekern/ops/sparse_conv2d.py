"""Convolution with a weight of which only the nonzeros exist: forward and both gradients, never a dense weight on the CPU."""
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern.ops._register import autocast_kernel, autograd, define, fake, reference

_GEOMETRY = "int[2] kernel_size, *, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int groups=1"
define(f"sparse_conv2d(Tensor x, Tensor crow, Tensor col, Tensor val, Tensor? bias, {_GEOMETRY}) -> Tensor")
define(f"sparse_conv2d_input_grad(Tensor grad_y, Tensor crow, Tensor col, Tensor val, SymInt[] input_size, {_GEOMETRY}) -> Tensor")
define(f"sparse_conv2d_weight_grad(Tensor x, Tensor grad_y, Tensor crow, Tensor col, {_GEOMETRY}) -> Tensor")

_forward = torch.ops.sparsekern.sparse_conv2d.default
_input_grad = torch.ops.sparsekern.sparse_conv2d_input_grad.default
_weight_grad = torch.ops.sparsekern.sparse_conv2d_weight_grad.default


def sparse_conv2d(x: Tensor, crow: Tensor, col: Tensor, val: Tensor, bias: Tensor | None, kernel_size: int | tuple[int, int], *,
                  stride: int | tuple[int, int] = 1, padding: int | tuple[int, int] = 0, dilation: int | tuple[int, int] = 1,
                  groups: int = 1) -> Tensor:
    """`F.conv2d` with a weight given by its nonzeros, in CSR order of the weight flattened to [O, C / groups * R * S].

    Gradients reach `x`, `val` (at the pattern only) and `bias`; differentiable twice. Under autocast it runs in the autocast dtype
    as a convolution does.

    Args:
        x: [N, C, H, W] float32, bfloat16, float16 or float64.
        crow, col: [O + 1] int32 or int64 and [nnz] int32, columns sorted within each row.
        val: [nnz] in the dtype of `x`; sums are taken in float32 (float64 for float64), by column within each row.
        bias: [O] in the dtype of `x`, or None.
        kernel_size, stride, padding, dilation, groups: as in `F.conv2d`; one number stands for both directions.
    Returns:
        [N, O, H_out, W_out], contiguous. On the CPU a NaN or inf in `x` reaches only what a stored weight connects it to.
    Raises:
        ValueError: shapes, pattern or geometry that do not fit together.
        TypeError: dtypes that are not supported or differ.
    Cost: 2 nnz N H_out W_out operations forward, twice that backward.
    """
    return _forward(x, crow, col, val, bias, _pair(kernel_size), stride=_pair(stride), padding=_pair(padding), dilation=_pair(dilation),
                    groups=groups)


def sparse_conv2d_input_grad(grad_y: Tensor, crow: Tensor, col: Tensor, val: Tensor, input_size: tuple[int, int, int, int],
                             kernel_size: int | tuple[int, int], *, stride: int | tuple[int, int] = 1, padding: int | tuple[int, int] = 0,
                             dilation: int | tuple[int, int] = 1, groups: int = 1) -> Tensor:
    """The gradient of `sparse_conv2d` with respect to an input of shape `input_size`; `grad_y` [N, O, H_out, W_out]. Errors as there."""
    return _input_grad(grad_y, crow, col, val, list(input_size), _pair(kernel_size), stride=_pair(stride), padding=_pair(padding),
                       dilation=_pair(dilation), groups=groups)


def sparse_conv2d_weight_grad(x: Tensor, grad_y: Tensor, crow: Tensor, col: Tensor, kernel_size: int | tuple[int, int], *,
                              stride: int | tuple[int, int] = 1, padding: int | tuple[int, int] = 0, dilation: int | tuple[int, int] = 1,
                              groups: int = 1) -> Tensor:
    """The weight gradient of a convolution at the places of a pattern, in pattern order: [nnz] in the dtype of `x`.

    The pattern may be any, not only that of a weight: the gradient at sampled positions comes without unfolding.
    `x` [N, C, H, W], `grad_y` [N, O, H_out, W_out]; other arguments and errors as in `sparse_conv2d`.
    """
    return _weight_grad(x, grad_y, crow, col, _pair(kernel_size), stride=_pair(stride), padding=_pair(padding), dilation=_pair(dilation),
                        groups=groups)


def _pair(value) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


# ---- shapes ----

def _output_size(op, input_size, crow, col, kernel_size, stride, padding, dilation, groups) -> list[int]:
    """[N, O, H_out, W_out], or the error that says why there is none."""
    if len(input_size) != 4:
        raise ValueError(f"{op}: x: expected [N, C, H, W], got shape {list(input_size)}")
    for name, pair, least in (("kernel_size", kernel_size, 1), ("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(pair) != 2 or min(pair) < least:
            raise ValueError(f"{op}: {name}: expected two numbers >= {least}, got {list(pair)}")
    if crow.dim() != 1 or crow.numel() < 1:
        raise ValueError(f"{op}: crow: expected [O + 1] row pointers, got shape {list(crow.shape)}")
    rows, channels = crow.shape[0] - 1, input_size[1]
    if groups < 1 or channels % groups or rows % groups:
        raise ValueError(f"{op}: groups: expected a divisor of {channels} input and {rows} output channels, got {groups}")
    size = [(input_size[2 + i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    if min(size) < 1:
        raise ValueError(f"{op}: kernel_size: expected a kernel that fits into the padded input, got {list(kernel_size)} with dilation "
                         f"{list(dilation)} for an input of {list(input_size[2:])} and padding {list(padding)}")
    return [input_size[0], rows, *size]


def _check_same(op, name, tensor, like_name, like) -> None:
    if tensor.dtype != like.dtype:
        raise TypeError(f"{op}: {name}: expected {like.dtype} like {like_name}, got {tensor.dtype}; convert it with .to()")


def _check_shape(op, name, tensor, shape) -> None:
    if list(tensor.shape) != list(shape):
        raise ValueError(f"{op}: {name}: expected shape {list(shape)}, got {list(tensor.shape)}")


def _check_float(op, name, tensor) -> None:
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(f"{op}: {name}: expected float32, bfloat16, float16 or float64, got {tensor.dtype}")


def _check_forward(x, crow, col, val, bias, kernel_size, stride, padding, dilation, groups) -> list[int]:
    op = "sparse_conv2d"
    size = _output_size(op, x.shape, crow, col, kernel_size, stride, padding, dilation, groups)
    _check_float(op, "x", x)
    _check_same(op, "val", val, "x", x)
    _check_shape(op, "val", val, col.shape)
    if bias is not None:
        _check_same(op, "bias", bias, "x", x)
        _check_shape(op, "bias", bias, [size[1]])
    return size


def _check_input_grad(grad_y, crow, col, val, input_size, kernel_size, stride, padding, dilation, groups) -> None:
    op = "sparse_conv2d_input_grad"
    _check_shape(op, "grad_y", grad_y, _output_size(op, input_size, crow, col, kernel_size, stride, padding, dilation, groups))
    _check_float(op, "grad_y", grad_y)
    _check_same(op, "val", val, "grad_y", grad_y)
    _check_shape(op, "val", val, col.shape)


def _check_weight_grad(x, grad_y, crow, col, kernel_size, stride, padding, dilation, groups) -> None:
    op = "sparse_conv2d_weight_grad"
    _check_shape(op, "grad_y", grad_y, _output_size(op, x.shape, crow, col, kernel_size, stride, padding, dilation, groups))
    _check_float(op, "x", x)
    _check_same(op, "grad_y", grad_y, "x", x)


# ---- reference: the dense weight, torch's convolution, and a gather ----

def _row_of(crow: Tensor, nnz: int) -> Tensor:
    rows = torch.arange(crow.numel() - 1, device=crow.device)
    return torch.repeat_interleave(rows, crow.diff(), output_size=nnz)


def _dense_weight(crow, col, val, channels, kernel_size, groups) -> Tensor:
    shape = (crow.numel() - 1, channels // groups, *kernel_size)
    flat = val.new_zeros(shape[0], shape[1] * shape[2] * shape[3])
    return flat.index_put_((_row_of(crow, col.numel()), col.long()), val, accumulate=True).view(shape)


@reference("sparse_conv2d")
def sparse_conv2d_reference(x, crow, col, val, bias, kernel_size, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1) -> Tensor:
    size = _check_forward(x, crow, col, val, bias, kernel_size, stride, padding, dilation, groups)
    weight = _dense_weight(crow, col, val, x.shape[1], kernel_size, groups)
    if weight.numel() == 0:                                     # torch's convolution of no channels has no outputs
        return x.new_zeros(size) + (0 if bias is None else bias.view(-1, 1, 1))
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups).contiguous()


@reference("sparse_conv2d_input_grad")
def sparse_conv2d_input_grad_reference(grad_y, crow, col, val, input_size, kernel_size, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1),
                                       groups=1) -> Tensor:
    _check_input_grad(grad_y, crow, col, val, input_size, kernel_size, stride, padding, dilation, groups)
    weight = _dense_weight(crow, col, val, input_size[1], kernel_size, groups)
    if weight.numel() == 0:
        return grad_y.new_zeros(input_size)
    return torch.nn.grad.conv2d_input(input_size, weight, grad_y, stride, padding, dilation, groups).contiguous()


@reference("sparse_conv2d_weight_grad")
def sparse_conv2d_weight_grad_reference(x, grad_y, crow, col, kernel_size, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1),
                                        groups=1) -> Tensor:
    _check_weight_grad(x, grad_y, crow, col, kernel_size, stride, padding, dilation, groups)
    shape = (grad_y.shape[1], x.shape[1] // groups, *kernel_size)
    if col.numel() == 0:
        return x.new_zeros(0)
    dense = torch.nn.grad.conv2d_weight(x, shape, grad_y, stride, padding, dilation, groups)
    return dense.flatten(1)[_row_of(crow, col.numel()), col.long()]


@fake("sparse_conv2d")
def _(x, crow, col, val, bias, kernel_size, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    return x.new_empty(_check_forward(x, crow, col, val, bias, kernel_size, stride, padding, dilation, groups))


@fake("sparse_conv2d_input_grad")
def _(grad_y, crow, col, val, input_size, kernel_size, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    _check_input_grad(grad_y, crow, col, val, input_size, kernel_size, stride, padding, dilation, groups)
    return grad_y.new_empty(input_size)


@fake("sparse_conv2d_weight_grad")
def _(x, grad_y, crow, col, kernel_size, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    _check_weight_grad(x, grad_y, crow, col, kernel_size, stride, padding, dilation, groups)
    return x.new_empty(col.shape)


# ---- gradients: the three ops are the derivatives of <conv(x, val), grad_y>, so each one's gradient is made of the other two ----

def _setup_forward(ctx, inputs, keyword_only_inputs, output):
    x, crow, col, val, bias, ctx.kernel_size = inputs
    ctx.options, ctx.size, ctx.has_bias = keyword_only_inputs, x.shape, bias is not None
    ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, crow, col, val if ctx.needs_input_grad[0] else None)


def _backward_forward(ctx, grad):
    x, crow, col, val = ctx.saved_tensors
    needs_x, _, _, needs_val, needs_bias, _ = ctx.needs_input_grad
    return (_input_grad(grad, crow, col, val, ctx.size, ctx.kernel_size, **ctx.options) if needs_x else None, None, None,
            _weight_grad(x, grad, crow, col, ctx.kernel_size, **ctx.options) if needs_val else None,
            grad.sum((0, 2, 3)) if ctx.has_bias and needs_bias else None, None)


def _setup_input_grad(ctx, inputs, keyword_only_inputs, output):
    grad_y, crow, col, val, _, ctx.kernel_size = inputs
    ctx.options = keyword_only_inputs
    ctx.save_for_backward(grad_y, crow, col, val)


def _backward_input_grad(ctx, grad):
    grad_y, crow, col, val = ctx.saved_tensors
    needs_grad_y, _, _, needs_val, _, _ = ctx.needs_input_grad
    return (_forward(grad, crow, col, val, None, ctx.kernel_size, **ctx.options) if needs_grad_y else None, None, None,
            _weight_grad(grad, grad_y, crow, col, ctx.kernel_size, **ctx.options) if needs_val else None, None, None)


def _setup_weight_grad(ctx, inputs, keyword_only_inputs, output):
    x, grad_y, crow, col, ctx.kernel_size = inputs
    ctx.options = keyword_only_inputs
    ctx.save_for_backward(x, grad_y, crow, col)


def _backward_weight_grad(ctx, grad):
    x, grad_y, crow, col = ctx.saved_tensors
    needs_x, needs_grad_y, _, _, _ = ctx.needs_input_grad
    return (_input_grad(grad_y, crow, col, grad, x.shape, ctx.kernel_size, **ctx.options) if needs_x else None,
            _forward(x, crow, col, grad, None, ctx.kernel_size, **ctx.options) if needs_grad_y else None, None, None, None)


autograd("sparse_conv2d", _backward_forward, _setup_forward)
autograd("sparse_conv2d_input_grad", _backward_input_grad, _setup_input_grad)
autograd("sparse_conv2d_weight_grad", _backward_weight_grad, _setup_weight_grad)


@autocast_kernel("sparse_conv2d")
def _(dtype, x, crow, col, val, bias, kernel_size, **options):
    cast = [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in (x, val, bias)]
    return _forward(cast[0], crow, col, cast[1], cast[2], kernel_size, **options)

"""A linear layer whose weight is sparse: neither the weight nor its gradient is ever dense."""
import torch
from torch import Tensor

from sparsekern.ops._csr_pattern import accumulator, check_pattern, check_positions, pieces, row_ids
from sparsekern.ops._register import autocast_kernel, autograd, define, fake, reference, uses_triton
from sparsekern.ops.csr_spmm import check_operands, spmm_sums

define("csr_linear(Tensor x, Tensor crow, Tensor col, Tensor val, Tensor crow_t, Tensor row_t, Tensor perm, Tensor? bias, int rows) -> Tensor")
define("csr_linear_backward(Tensor x, Tensor grad_y, Tensor crow, Tensor col, Tensor val, Tensor crow_t, Tensor row_t, Tensor perm, "
       "bool need_x, bool need_val, bool need_bias) -> (Tensor grad_x, Tensor grad_val, Tensor grad_bias)")

_linear = torch.ops.sparsekern.csr_linear.default
_backward = torch.ops.sparsekern.csr_linear_backward.default


def csr_linear(x: Tensor, crow: Tensor, col: Tensor, val: Tensor, crow_t: Tensor, row_t: Tensor, perm: Tensor, bias: Tensor | None,
               rows: int) -> Tensor:
    """`x @ W.T + bias` for the sparse `[rows, in]` weight W; the backward pass finds all gradients in one sweep over the nonzeros.

    Under autocast `x` is cast to the autocast dtype; values stay as they are, so their gradient has its full precision.

    Args:
        x: `[..., in]` float32, bfloat16, float16 (sums in float32) or float64.
        crow, col, val: the weight: int32 or int64 `[rows + 1]`, int32 `[nnz]`, `[nnz]` of x's dtype, or float32 beside half x.
        crow_t, row_t, perm: of `csr_plan(crow, col, rows, in)`.
        bias: `[rows]` or None; dtype like `val`.
    Returns:
        `[..., rows]` of x's dtype. Differentiable in `x`, `val` (nnz numbers, never a dense gradient) and `bias`, twice and more.
    Raises:
        ValueError: shapes that do not fit, columns out of range. TypeError: unsupported dtypes.
    """
    if x.dim() == 2:
        return _linear(x, crow, col, val, crow_t, row_t, perm, bias, rows)
    if x.dim() == 0:
        raise ValueError("csr_linear: x: expected shape [..., in], got a scalar")
    flat = x.flatten(0, -2) if x.dim() > 2 else x.unsqueeze(0)
    return _linear(flat, crow, col, val, crow_t, row_t, perm, bias, rows).reshape(*x.shape[:-1], rows)


# ---- gradients ----

def _keep(ctx, inputs, output):
    x, crow, col, val, crow_t, row_t, perm, bias, ctx.rows = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x, crow, col, val, crow_t, row_t, perm)


def _gradients(ctx, grad_y):
    x, *pattern = ctx.saved_tensors
    need_x, need_val, need_bias = (ctx.needs_input_grad[i] for i in (0, 3, 7))
    dx, d_val, d_bias = _backward(x, grad_y, *pattern, need_x, need_val, need_bias)
    return (dx if need_x else None, None, None, d_val if need_val else None, None, None, None,
            d_bias.to(ctx.bias_dtype) if need_bias else None, None)


def _keep_backward(ctx, inputs, output):
    *tensors, ctx.need_x, ctx.need_val, ctx.need_bias = inputs
    ctx.save_for_backward(*tensors)


def _second_gradients(ctx, d_dx, d_dval, d_dbias):
    """dx = dy W, dval = (dy.T x) at the pattern, dbias = sum dy: linear in each of x, dy and val, so the two ops serve again."""
    x, grad_y, crow, col, val, *transposed = ctx.saved_tensors
    d_x = d_grad_y = d_val = None

    def backward(x, val, need_x, need_val):
        return _backward(x, grad_y, crow, col, val, *transposed, need_x, need_val, False)

    if ctx.need_val and ctx.needs_input_grad[0]:
        d_x = backward(x, d_dval, True, False)[0]
    if ctx.need_x and ctx.needs_input_grad[4]:
        d_val = backward(d_dx, val, False, True)[1]
    if ctx.needs_input_grad[1]:
        terms = []
        if ctx.need_x:
            terms.append(_linear(d_dx, crow, col, val, *transposed, None, grad_y.shape[1]))
        if ctx.need_val:
            terms.append(_linear(x, crow, col, d_dval, *transposed, None, grad_y.shape[1]))
        if ctx.need_bias:
            terms.append(d_dbias.to(grad_y.dtype).expand_as(grad_y))
        d_grad_y = sum(terms)
    return d_x, d_grad_y, None, None, d_val, None, None, None, None, None, None


autograd("csr_linear", _gradients, _keep)
autograd("csr_linear_backward", _second_gradients, _keep_backward)


@autocast_kernel("csr_linear")
def _(dtype, x, crow, col, val, crow_t, row_t, perm, bias, rows):
    def narrow(t):
        return t.float() if t is not None and t.dtype not in (dtype, torch.float32, torch.float64) else t

    if x.dtype == torch.float64:
        return _linear(x, crow, col, val, crow_t, row_t, perm, bias, rows)
    return _linear(x.to(dtype), crow, col, narrow(val), crow_t, row_t, perm, narrow(bias), rows)


# ---- references ----

def _check(op, x, crow, col, val, crow_t, row_t, perm, bias, rows):
    if x.dim() != 2:
        raise ValueError(f"{op}: x: expected two dimensions, got shape {list(x.shape)}")
    cols = x.shape[1]
    check_pattern(op, crow, col, rows, cols)
    check_pattern(op, crow_t, row_t, cols, rows, "crow_t", "row_t")
    check_positions(op, "perm", perm, row_t.numel(), col.numel())
    check_operands(op, val, col.numel(), "x", x.t(), cols, bias, rows)


@reference("csr_linear")
def csr_linear_reference(x, crow, col, val, crow_t, row_t, perm, bias, rows):
    _check("csr_linear", x, crow, col, val, crow_t, row_t, perm, bias, rows)
    return spmm_sums(crow, col, val, x.t(), bias).t().contiguous()


@reference("csr_linear_backward")
def csr_linear_backward_reference(x, grad_y, crow, col, val, crow_t, row_t, perm, need_x, need_val, need_bias):
    rows = crow.numel() - 1
    _check("csr_linear_backward", x, crow, col, val, crow_t, row_t, perm, None, rows)
    if grad_y.dtype != x.dtype:
        raise TypeError(f"csr_linear_backward: grad_y: expected {x.dtype} like x, got {grad_y.dtype}")
    if grad_y.shape != (x.shape[0], rows):
        raise ValueError(f"csr_linear_backward: grad_y: expected shape {[x.shape[0], rows]}, got {list(grad_y.shape)}")
    dtype = accumulator(x.dtype)
    grad_x, grad_val, grad_bias = x.new_empty(0), val.new_empty(0), val.new_empty(0)
    if need_x:
        grad_x = spmm_sums(crow_t, row_t, val.index_select(0, perm), grad_y.t(), None).t().contiguous()
    if need_val:
        of_row, grad_val = row_ids(crow, col.numel()), torch.empty_like(val)
        for part in pieces(col.numel(), x.shape[0]):
            grad_val[part] = (grad_y[:, of_row[part]].to(dtype) * x[:, col[part]].to(dtype)).sum(0)
    if need_bias:
        grad_bias = grad_y.sum(0, dtype=dtype).to(val.dtype)
    return grad_x, grad_val, grad_bias


# ---- shapes ----

@fake("csr_linear")
def _(x, crow, col, val, crow_t, row_t, perm, bias, rows):
    return x.new_empty(x.shape[0], rows)


@fake("csr_linear_backward")
def _(x, grad_y, crow, col, val, crow_t, row_t, perm, need_x, need_val, need_bias):
    return (torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0),
            val.new_empty(val.shape if need_val else 0), val.new_empty(grad_y.shape[1] if need_bias else 0))


uses_triton("csr_linear")
uses_triton("csr_linear_backward", "csr_linear")

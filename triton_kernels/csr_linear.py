"""csr_linear and csr_linear_backward out of the kernels of csr_spmm and csr_sddmm: activations are read and written as [batch, features].

Their transposes are strides only. Compiled ahead of time and interpreted so far, not yet run on a GPU.
"""
import torch

from .csr_sddmm import sample
from .csr_spmm import check_matrix, check_pattern, check_positions, check_vector, multiply


def _checked(op, x, crow, col, val, crow_t, row_t, perm, rows):
    if x.dim() != 2:
        raise ValueError(f"{op}: x: expected two dimensions, got shape {list(x.shape)}")
    crow, col = check_pattern(op, crow, col, rows)
    crow_t, row_t = check_pattern(op, crow_t, row_t, x.shape[1], "crow_t", "row_t")
    check_matrix(op, "x", x, x.shape[0])
    if row_t.numel() != col.numel():
        raise ValueError(f"{op}: row_t: expected {col.numel()} entries like col, got {row_t.numel()}")
    return crow, col, check_vector(op, "val", val, col.numel(), x), crow_t, row_t, check_positions(op, "perm", perm, col.numel())


def csr_linear(x, crow, col, val, crow_t, row_t, perm, bias, rows):
    op = "csr_linear"
    crow, col, val, *_ = _checked(op, x, crow, col, val, crow_t, row_t, perm, rows)
    bias, y = check_vector(op, "bias", bias, rows, x), x.new_empty(x.shape[0], rows)
    multiply(y.t(), crow, col, val, x.t(), bias=bias)
    return y


def csr_linear_backward(x, grad_y, crow, col, val, crow_t, row_t, perm, need_x, need_val, need_bias):
    op, rows = "csr_linear_backward", crow.numel() - 1
    crow, col, val, crow_t, row_t, perm = _checked(op, x, crow, col, val, crow_t, row_t, perm, rows)
    if grad_y.dtype != x.dtype:
        raise TypeError(f"{op}: grad_y: expected {x.dtype} like x, got {grad_y.dtype}")
    if grad_y.shape != (x.shape[0], rows):
        raise ValueError(f"{op}: grad_y: expected shape {[x.shape[0], rows]}, got {list(grad_y.shape)}")
    grad_x, grad_val, grad_bias = x.new_empty(0), val.new_empty(0), val.new_empty(0)
    if need_x:
        grad_x = x.new_empty(x.shape)
        multiply(grad_x.t(), crow_t, row_t, val, grad_y.t(), perm=perm)
    if need_val:
        grad_val = sample(torch.empty_like(val), crow, col, grad_y.t(), x.t())
    if need_bias:
        grad_bias = grad_y.sum(0, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32).to(val.dtype)
    return grad_x, grad_val, grad_bias

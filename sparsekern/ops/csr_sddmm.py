"""Sampled dense-dense products: dot products of rows of two matrices, only where a sparse pattern asks for them.

The gradient of a sparse product w.r.t. its values, and the gradient at candidates for growth.
"""
import torch
from torch import Tensor

from sparsekern.ops._csr_pattern import FLOATS, accumulator, check_pattern, pieces, row_ids
from sparsekern.ops._register import autograd, define, fake, reference, uses_triton

define("csr_sddmm(Tensor crow, Tensor col, Tensor a, Tensor b, *, str algo='auto') -> Tensor")
define("coo_sddmm(Tensor rows, Tensor cols, Tensor count, Tensor a, Tensor b) -> Tensor")


def csr_sddmm(crow: Tensor, col: Tensor, a: Tensor, b: Tensor, *, algo: str = "auto") -> Tensor:
    """`val[e] = sum_n a[row(e), n] * b[col(e), n]` for every nonzero e of the pattern, in pattern order.

    With a = dY^T and b = X^T this is the gradient of a sparse layer's values; the dense gradient is never made.

    Args:
        crow: int32 or int64 [rows + 1]; col: int32 [nnz].
        a: [rows, N], b: [cols, N], row-major or column-major (a transposed view costs no copy); float32, bfloat16, float16 or float64, both the same.
        algo: "auto"; a GPU also takes "gather", "staged" (CUDA C++ only) and "dense" (entries of the whole product).
    Returns:
        [nnz] in the dtype of `a`; sums in fp32 (fp64 for float64), rounded once.
    Raises:
        ValueError: shapes or devices that disagree, a malformed pattern (on the CPU). TypeError: dtypes.
    """
    return torch.ops.sparsekern.csr_sddmm(crow, col, a, b, algo=algo)


def coo_sddmm(rows: Tensor, cols: Tensor, count: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The dot of row `rows[e]` of `a` [R, N] and row `cols[e]` of `b` [C, N] for e < count, else 0.

    Args:
        rows, cols: int32 [S], in any order (sorted by row is fastest); what stands past `count` is not looked at.
        count: integer tensor of one element, on the device of `a`.
        a, b: as for `csr_sddmm`.
    Returns:
        [S] in the dtype of `a`.
    Raises:
        ValueError: shapes or devices that disagree, a row or column out of range, a count above S (on the CPU). TypeError: dtypes.
    """
    return torch.ops.sparsekern.coo_sddmm(rows, cols, count, a, b)


def _check_operands(op: str, a: Tensor, b: Tensor) -> None:
    if a.dtype not in FLOATS:
        raise TypeError(f"{op}: a: expected float32, bfloat16, float16 or float64, got {a.dtype}")
    if b.dtype != a.dtype:
        raise TypeError(f"{op}: b: expected {a.dtype} like a, got {b.dtype}")
    for name, tensor in (("a", a), ("b", b)):
        if tensor.dim() != 2:
            raise ValueError(f"{op}: {name}: expected two dimensions, got shape {list(tensor.shape)}")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{op}: b: expected {a.shape[1]} columns like a, got {b.shape[1]}")


def _dots(a: Tensor, b: Tensor, row: Tensor, col: Tensor) -> Tensor:
    wide, out = accumulator(a.dtype), a.new_empty(col.numel())
    for part in pieces(col.numel(), a.shape[1]):
        out[part] = (a[row[part]].to(wide) * b[col[part]].to(wide)).sum(1)
    return out


@reference("csr_sddmm")
def csr_sddmm_reference(crow, col, a, b, *, algo="auto") -> Tensor:
    _check_operands("csr_sddmm", a, b)
    if algo != "auto":
        raise ValueError(f"csr_sddmm: algo: expected 'auto', got {algo!r}")
    check_pattern("csr_sddmm", crow, col, a.shape[0], b.shape[0])
    return _dots(a, b, row_ids(crow, col.numel()), col)


@reference("coo_sddmm")
def coo_sddmm_reference(rows, cols, count, a, b) -> Tensor:
    _check_operands("coo_sddmm", a, b)
    for name, tensor in (("rows", rows), ("cols", cols)):
        if tensor.dtype != torch.int32:
            raise TypeError(f"coo_sddmm: {name}: expected int32, got {tensor.dtype}")
        if tensor.dim() != 1 or tensor.numel() != rows.numel():
            raise ValueError(f"coo_sddmm: {name}: expected shape [{rows.numel()}] like the rows, got {list(tensor.shape)}")
    if count.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"coo_sddmm: count: expected int32 or int64, got {count.dtype}")
    if count.numel() != 1:
        raise ValueError(f"coo_sddmm: count: expected one element, got shape {list(count.shape)}")
    if count.is_cpu:
        _check_places(rows, cols, count.item(), a.shape[0], b.shape[0])
    valid = torch.arange(rows.numel(), device=rows.device) < count.to(rows.device)
    if a.shape[0] == 0 or b.shape[0] == 0:
        return a.new_zeros(rows.numel())
    dots = _dots(a, b, torch.where(valid, rows, 0), torch.where(valid, cols, 0))
    return torch.where(valid, dots, torch.zeros((), dtype=dots.dtype, device=dots.device))


def _check_places(rows: Tensor, cols: Tensor, count: int, height: int, width: int) -> None:
    if not 0 <= count <= rows.numel():
        raise ValueError(f"coo_sddmm: count: expected 0 to {rows.numel()}, got {count}")
    for name, tensor, limit in (("rows", rows[:count], height), ("cols", cols[:count], width)):
        bad = ((tensor < 0) | (tensor >= limit)).nonzero().flatten()
        if bad.numel():
            raise ValueError(f"coo_sddmm: {name}: expected {name} in [0, {limit}), got {tensor[bad[0]].item()} at {bad[0].item()}")


@fake("csr_sddmm")
def _(crow, col, a, b, *, algo="auto"):
    return a.new_empty(col.shape[0])


@fake("coo_sddmm")
def _(rows, cols, count, a, b):
    return a.new_empty(rows.shape[0])


# ---- gradients ----

def _csr_setup(ctx, inputs, keyword_only_inputs, output):
    ctx.save_for_backward(*inputs)


def _csr_backward(ctx, grad):
    crow, col, a, b = ctx.saved_tensors
    rows, cols = a.shape[0], b.shape[0]
    grad_a = grad_b = None
    if ctx.needs_input_grad[2]:
        grad_a = torch.ops.sparsekern.csr_spmm(crow, col, grad, b, rows, cols)
    if ctx.needs_input_grad[3]:
        _, crow_t, row_t, perm = torch.ops.sparsekern.csr_plan(crow, col, rows, cols)
        grad_b = torch.ops.sparsekern.csr_spmm_t(crow_t, row_t, perm, grad, a, rows, cols)
    return None, None, grad_a, grad_b


def _coo_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _coo_backward(ctx, grad):
    rows, cols, count, a, b = ctx.saved_tensors
    valid = torch.arange(rows.numel(), device=rows.device) < count
    row, col = torch.where(valid, rows, 0), torch.where(valid, cols, 0)
    grad = torch.where(valid, grad, 0)[:, None]
    grad_a = torch.zeros_like(a).index_add(0, row, grad * b[col]) if ctx.needs_input_grad[3] else None
    grad_b = torch.zeros_like(b).index_add(0, col, grad * a[row]) if ctx.needs_input_grad[4] else None
    return None, None, None, grad_a, grad_b


autograd("csr_sddmm", _csr_backward, _csr_setup)
autograd("coo_sddmm", _coo_backward, _coo_setup)
uses_triton("csr_sddmm")
uses_triton("coo_sddmm", "csr_sddmm")

"""Products of a sparse matrix in CSR form with a dense one, from the left and transposed, and the plan that both share."""
import torch
from torch import Tensor

from sparsekern.ops._csr_pattern import FLOATS, accumulator, check_pattern, check_positions, pieces, row_ids
from sparsekern.ops._register import autograd, autograd_kernel, define, fake, reference, uses_triton

define("csr_plan(Tensor crow, Tensor col, int rows, int cols) -> (Tensor row_order, Tensor crow_t, Tensor row_t, Tensor perm)")
define("csr_spmm(Tensor crow, Tensor col, Tensor val, Tensor b, int rows, int cols, *, Tensor? row_order=None, Tensor? bias=None, "
       "str algo='auto') -> Tensor")
define("csr_spmm_t(Tensor crow_t, Tensor row_t, Tensor perm, Tensor val, Tensor b, int rows, int cols, *, str algo='auto') -> Tensor")

_plan = torch.ops.sparsekern.csr_plan.default
_spmm = torch.ops.sparsekern.csr_spmm.default
_spmm_t = torch.ops.sparsekern.csr_spmm_t.default
_below_autograd = torch._C._AutoDispatchBelowAutograd


def csr_plan(crow: Tensor, col: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the products of one pattern share; make it once per pattern.

    Args:
        crow: int32 or int64 `[rows + 1]` row pointers. col: int32 `[nnz]`, sorted and unique within a row.
    Returns:
        row_order: int32 `[rows]`, rows by falling length, equal ones by index.
        crow_t `[cols + 1]` (crow's dtype), row_t int32 `[nnz]`: the pattern of the transpose.
        perm: int32 `[nnz]`: the transposed nonzero `e` is `val[perm[e]]`, so values are never sorted again.
    Raises:
        ValueError: row pointers that do not fit the columns, columns out of range. TypeError: other dtypes.
    """
    return _plan(crow, col, rows, cols)


def csr_spmm(crow: Tensor, col: Tensor, val: Tensor, b: Tensor, rows: int, cols: int, *, row_order: Tensor | None = None,
             bias: Tensor | None = None, algo: str = "auto") -> Tensor:
    """`W @ b + bias[:, None]` for the sparse `[rows, cols]` matrix W, without ever making it dense.

    Sums run over a row's nonzeros in a fixed order, so results depend neither on `row_order` nor on the number of threads.
    NaN and inf come from stored entries only. Differentiable in `val` (at the pattern only), `b` and `bias`; the gradient of
    `b` makes a plan each time: layers use `csr_linear`, which takes one.

    Args:
        crow, col, val: the matrix: int32 or int64 `[rows + 1]`, int32 `[nnz]`, `[nnz]`.
        b: `[cols, N]` float32, bfloat16, float16 (sums in float32) or float64, any strides. `val`: of b's dtype, or float32 beside half b.
        row_order: int32 `[rows]` of `csr_plan`, a hint for balance. bias: `[rows]`.
        algo: "auto". On CUDA that is what should be fastest of "scalar" (rows of b gathered from the L2 cache), "staged" (from shared memory;
            the same bits) and "densify" (a dense matrix of b's dtype and the library's product; where b is not finite, "scalar" again).
    Returns:
        `[rows, N]` of b's dtype, row-major; empty rows are 0 (or the bias).
    Raises:
        ValueError: shapes that do not fit, columns out of range. TypeError: unsupported dtypes.
    """
    return _spmm(crow, col, val, b, rows, cols, row_order=row_order, bias=bias, algo=algo)


def csr_spmm_t(crow_t: Tensor, row_t: Tensor, perm: Tensor, val: Tensor, b: Tensor, rows: int, cols: int, *, algo: str = "auto") -> Tensor:
    """`W.T @ b` for the sparse `[rows, cols]` matrix W, with the transposed pattern and `perm` of `csr_plan`.

    Args:
        val: `[nnz]` in the order of W's own rows. b: `[rows, N]`; dtypes and algo as for `csr_spmm`.
    Returns:
        `[cols, N]` of b's dtype. Deterministic; differentiable in `val` and `b`.
    Raises:
        ValueError: shapes that do not fit, rows or positions out of range. TypeError: unsupported dtypes.
    """
    return _spmm_t(crow_t, row_t, perm, val, b, rows, cols, algo=algo)


def check_operands(op: str, val: Tensor, nnz: int, name: str, b: Tensor, height: int, bias: Tensor | None, rows: int, algo: str = "auto") -> None:
    """The checks of values and dense operand, `b` of [height, N], that every product makes."""
    if b.dtype not in FLOATS:
        raise TypeError(f"{op}: {name}: expected float32, bfloat16, float16 or float64, got {b.dtype}")
    check_like(op, "val", val, b, nnz)
    if b.dim() != 2 or b.shape[0] != height:
        raise ValueError(f"{op}: {name}: expected shape [{height}, N], got {list(b.shape)}")
    if bias is not None:
        check_like(op, "bias", bias, b, rows)
    if algo != "auto":
        raise ValueError(f"{op}: algo: expected 'auto', got {algo!r}")


def check_like(op: str, name: str, given: Tensor, b: Tensor, count: int) -> None:
    """`count` numbers of b's dtype, or float32 beside a half type."""
    if given.dtype != b.dtype and (given.dtype != torch.float32 or b.dtype == torch.float64):
        raise TypeError(f"{op}: {name}: expected {b.dtype}{' or torch.float32' if b.dtype.itemsize == 2 else ''} beside {b.dtype}, got {given.dtype}")
    if given.shape != (count,):
        raise ValueError(f"{op}: {name}: expected shape [{count}], got {list(given.shape)}")


# ---- gradients ----

class _Spmm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, crow, col, val, b, rows, cols, row_order, bias, algo):
        ctx.save_for_backward(crow, col, val, b)
        ctx.shape, ctx.bias_dtype = (rows, cols), None if bias is None else bias.dtype
        with _below_autograd():
            return _spmm(crow, col, val, b, rows, cols, row_order=row_order, bias=bias, algo=algo)

    @staticmethod
    def backward(ctx, grad):
        crow, col, val, b = ctx.saved_tensors
        d_val = d_b = d_bias = None
        if ctx.needs_input_grad[2]:
            d_val = torch.ops.sparsekern.csr_sddmm(crow, col, grad, b).to(val.dtype)
        if ctx.needs_input_grad[3]:
            _, crow_t, row_t, perm = _plan(crow, col, *ctx.shape)
            d_b = csr_spmm_t(crow_t, row_t, perm, val, grad, *ctx.shape)
        if ctx.needs_input_grad[7]:
            d_bias = grad.sum(1, dtype=ctx.bias_dtype)
        return None, None, d_val, d_b, None, None, None, d_bias, None


@autograd_kernel("csr_spmm")
def _(crow, col, val, b, rows, cols, *, row_order=None, bias=None, algo="auto"):
    if torch.is_grad_enabled() and (val.requires_grad or b.requires_grad or (bias is not None and bias.requires_grad)):
        return _Spmm.apply(crow, col, val, b, rows, cols, row_order, bias, algo)
    with _below_autograd():
        return _spmm(crow, col, val, b, rows, cols, row_order=row_order, bias=bias, algo=algo)


def _keep_t(ctx, inputs, keyword_only_inputs, output):
    *tensors, ctx.rows, ctx.cols = inputs
    ctx.save_for_backward(*tensors)


def _spmm_t_backward(ctx, grad):
    crow_t, row_t, perm, val, b = ctx.saved_tensors
    d_val = d_b = None
    if ctx.needs_input_grad[3]:
        at_pattern = torch.ops.sparsekern.csr_sddmm(crow_t, row_t, grad, b).to(val.dtype)
        d_val = torch.zeros_like(val).index_add(0, perm, at_pattern)
    if ctx.needs_input_grad[4]:
        # The transpose of the transpose: its own plan leads back to W, and both permutations to the order of `val`.
        _, crow, col, back = _plan(crow_t, row_t, ctx.cols, ctx.rows)
        d_b = csr_spmm_t(crow, col, perm.index_select(0, back), val, grad, ctx.cols, ctx.rows)
    return None, None, None, d_val, d_b, None, None


autograd("csr_spmm_t", _spmm_t_backward, _keep_t)


# ---- references ----

@reference("csr_plan")
def csr_plan_reference(crow, col, rows, cols):
    check_pattern("csr_plan", crow, col, rows, cols)
    row_order = torch.argsort(crow.diff(), descending=True, stable=True).int()
    perm = torch.argsort(col, stable=True)
    counts = torch.bincount(col, minlength=cols)
    crow_t = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(crow.dtype)
    return row_order, crow_t, row_ids(crow, col.numel())[perm].int(), perm.int()


@reference("csr_spmm")
def csr_spmm_reference(crow, col, val, b, rows, cols, *, row_order=None, bias=None, algo="auto"):
    check_pattern("csr_spmm", crow, col, rows, cols)
    check_operands("csr_spmm", val, col.numel(), "b", b, cols, bias, rows, algo)
    if row_order is not None:
        check_positions("csr_spmm", "row_order", row_order, rows, rows)
    return spmm_sums(crow, col, val, b, bias)


@reference("csr_spmm_t")
def csr_spmm_t_reference(crow_t, row_t, perm, val, b, rows, cols, *, algo="auto"):
    check_pattern("csr_spmm_t", crow_t, row_t, cols, rows, "crow_t", "row_t")
    check_operands("csr_spmm_t", val, row_t.numel(), "b", b, rows, None, cols, algo)
    check_positions("csr_spmm_t", "perm", perm, row_t.numel(), row_t.numel())
    return spmm_sums(crow_t, row_t, val.index_select(0, perm), b, None)


def spmm_sums(crow: Tensor, col: Tensor, val: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """The product, nonzero by nonzero, in pieces."""
    dtype, rows = accumulator(b.dtype), row_ids(crow, col.numel())
    out = torch.zeros(crow.numel() - 1, b.shape[1], dtype=dtype, device=b.device)
    for part in pieces(col.numel(), b.shape[1]):
        out.index_add_(0, rows[part], val[part, None].to(dtype) * b.index_select(0, col[part]).to(dtype))
    return (out if bias is None else out + bias[:, None].to(dtype)).to(b.dtype)


# ---- shapes ----

@fake("csr_plan")
def _(crow, col, rows, cols):
    return col.new_empty(rows), crow.new_empty(cols + 1), torch.empty_like(col), torch.empty_like(col)


@fake("csr_spmm")
def _(crow, col, val, b, rows, cols, *, row_order=None, bias=None, algo="auto"):
    return b.new_empty(rows, b.shape[1])


@fake("csr_spmm_t")
def _(crow_t, row_t, perm, val, b, rows, cols, *, algo="auto"):
    return b.new_empty(cols, b.shape[1])


uses_triton("csr_spmm")
uses_triton("csr_spmm_t", "csr_spmm")

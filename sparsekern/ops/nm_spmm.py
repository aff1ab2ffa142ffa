"""Matrices with n of every m kept, packed to what is kept, and their products with dense ones."""
import torch
from torch import Tensor

from sparsekern.ops._csr_pattern import FLOATS, accumulator, pieces
from sparsekern.ops._register import autograd_kernel, define, fake, reference, uses_triton
from sparsekern.ops._remember import Remembered
from sparsekern.ops.nm_mask import check_floats, check_ratio

define("nm_pack(Tensor x, int n, int m, *, int v=1) -> (Tensor values, Tensor index)")
define("nm_spmm(Tensor values, Tensor index, Tensor b, int n, int m, int cols, *, int v=1, Tensor? bias=None) -> Tensor")

_spmm = torch.ops.sparsekern.nm_spmm.default
_below_autograd = torch._C._AutoDispatchBelowAutograd
_patterns = Remembered(slots=128)


@torch.no_grad()
def nm_pack(x: Tensor, n: int, m: int, *, v: int = 1) -> tuple[Tensor, Tensor]:
    """The kept elements of a matrix with at most n non-zeros in every m consecutive columns, and where they stand.

    Every group stores n elements in ascending position, bit for bit; with fewer non-zeros its first zeros are stored, too, so
    positions never repeat. NaN is a non-zero, -0.0 a zero.

    Args:
        x: [rows, cols], float32, bfloat16, float16 or (not by the CUDA kernel) float64, any strides; cols divisible by m. n, m: 0 <= n <= m <= 64.
        v: so many rows share their columns (V:N:M); at most n columns of a group may then have a non-zero in those rows.
    Returns:
        values: [rows, cols / m * n] of x's dtype. index: uint8 [rows / v, cols / m * n], the position within the group.
    Raises:
        ValueError: sides that do not divide, n or m out of range, a group with more than n non-zeros (CUDA keeps the n columns with
            the largest sums of magnitudes, NaN and inf first, instead: looking would wait for the device). TypeError: an unsupported dtype.
    Cost: 4 bytes per fp32 element and 4 + 1 / v per stored one. The CUDA kernel has not run on a GPU yet.
    """
    return torch.ops.sparsekern.nm_pack(x, n, m, v=v)


def nm_spmm(values: Tensor, index: Tensor, b: Tensor, n: int, m: int, cols: int, *, v: int = 1, bias: Tensor | None = None) -> Tensor:
    """`W @ b + bias[:, None]` for the [rows, cols] matrix that `nm_pack` packed; what is not stored costs nothing.

    Sums run over a row's stored elements in a fixed order, whatever the number of threads. NaN and inf come from stored elements
    only (stored zeros among them). Differentiable in `values` (at the stored positions only), `b` and `bias`. The gradients go through the
    CSR form, made once for as long as `index` lives and is not written to: 4 bytes per stored element for that of values, 8 for that of b.

    Args:
        values, index, n, m, v: as from `nm_pack`; values of b's dtype, or float32 beside half b. cols: of W, divisible by m.
        b: [cols, N] float32, bfloat16, float16 (sums in float32) or float64, any strides. bias: [rows].
    Returns:
        [rows, N] of b's dtype, row-major.
    Raises:
        ValueError: shapes that do not fit, a position not below m (CPU; CUDA takes it for m - 1: looking would wait for the device).
        TypeError: unsupported dtypes.
    Cost: 2 rows cols N n / m operations; 5 bytes per stored fp32 element. On a CPU `csr_spmm` of the same matrix takes about as long or a little
        less (8 bytes per element there); rows that share columns (v > 1) are where this form is the faster one.
        On CUDA the way that should be fastest is taken: rows of b gathered from the L2 cache or from shared memory (fp32: from about 1:8 on
        faster than a dense product), the tensor cores (16-bit values and b, v a multiple of 16), or, where stored elements are many, a dense
        matrix of b's dtype and the library's product (where b is not finite, gathered again). 16-bit types with v = 1 gain over a dense
        product only far below 1:16. The CUDA and Triton kernels have been compiled and emulated, not yet run on a GPU: rates are guesses.
    """
    return _spmm(values, index, b, n, m, cols, v=v, bias=bias)


# ---- checks, in the words of the compiled kernels ----

def _check_band(op: str, v: int) -> None:
    if v < 1:
        raise ValueError(f"{op}: v: expected at least 1 row that shares its columns, got {v}")


def check_pack(x: Tensor, n: int, m: int, v: int) -> None:
    check_floats("nm_pack", x)
    check_ratio("nm_pack", n, m)
    _check_band("nm_pack", v)
    if x.dim() != 2 or x.shape[1] % m:
        raise ValueError(f"nm_pack: x: expected a matrix with columns divisible by m = {m}, got shape {list(x.shape)}")
    if x.shape[0] % v:
        raise ValueError(f"nm_pack: x: expected rows divisible by v = {v}, got shape {list(x.shape)}")


def check_product(values: Tensor, index: Tensor, b: Tensor, n: int, m: int, cols: int, v: int, bias: Tensor | None) -> None:
    check_ratio("nm_spmm", n, m)
    _check_band("nm_spmm", v)
    if cols < 0 or cols % m:
        raise ValueError(f"nm_spmm: cols: expected a multiple of m = {m}, got {cols}")
    per_row = cols // m * n
    if values.dim() != 2 or values.shape[1] != per_row:
        raise ValueError(f"nm_spmm: values: expected shape [rows, {per_row}], got {list(values.shape)}")
    if values.shape[0] % v:
        raise ValueError(f"nm_spmm: values: expected rows divisible by v = {v}, got shape {list(values.shape)}")
    if index.dtype != torch.uint8:
        raise TypeError(f"nm_spmm: index: expected uint8, got {index.dtype}")
    if index.shape != (values.shape[0] // v, per_row):
        raise ValueError(f"nm_spmm: index: expected shape [{values.shape[0] // v}, {per_row}], got {list(index.shape)}")
    if b.dtype not in FLOATS:
        raise TypeError(f"nm_spmm: b: expected float32, bfloat16, float16 or float64, got {b.dtype}")
    if b.dim() != 2 or b.shape[0] != cols:
        raise ValueError(f"nm_spmm: b: expected shape [{cols}, N], got {list(b.shape)}")
    for name, given in (("values", values), ("bias", bias)):
        if given is not None and given.dtype != b.dtype and (given.dtype != torch.float32 or b.dtype == torch.float64):
            wide = " or torch.float32" if b.dtype.itemsize == 2 else ""
            raise TypeError(f"nm_spmm: {name}: expected {b.dtype}{wide} beside {b.dtype}, got {given.dtype}")
    if bias is not None and bias.shape != (values.shape[0],):
        raise ValueError(f"nm_spmm: bias: expected shape [{values.shape[0]}], got {list(bias.shape)}")
    if index.device.type == "cpu" and (index >= m).any():
        row, place = (index >= m).nonzero()[0].tolist()
        raise ValueError(f"nm_spmm: index: expected positions in [0, {m}), got {index[row, place]} in row {row}, position {place}")


# ---- gradients ----

def nm_columns(index: Tensor, n: int, m: int, v: int = 1) -> Tensor:
    """int32 [rows, cols / m * n]: the column of every stored element. A position that is none counts as the last one."""
    first = torch.arange(index.shape[1], dtype=torch.int32, device=index.device)
    first = first.div(max(n, 1), rounding_mode="floor") * m
    return (first + index.clamp(max=m - 1).int()).repeat_interleave(v, 0)


def as_csr(index: Tensor, n: int, m: int, v: int) -> tuple[Tensor, Tensor]:
    """Row pointers and columns: positions ascend within a group, and so do a row's columns."""
    col = nm_columns(index, n, m, v)
    return torch.arange(col.shape[0] + 1, dtype=torch.int32, device=col.device) * col.shape[1], col.flatten()


def transposed(index: Tensor, n: int, m: int, v: int, rows: int, cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the gradient of b needs: crow_t, row_t and perm of `csr_plan`."""
    return torch.ops.sparsekern.csr_plan(*as_csr(index, n, m, v), rows, cols)[1:]


class _Spmm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, index, b, n, m, cols, v, bias):
        ctx.save_for_backward(values, index, b)
        ctx.layout, ctx.bias_dtype = (n, m, cols, v), None if bias is None else bias.dtype
        with _below_autograd():
            return _spmm(values, index, b, n, m, cols, v=v, bias=bias)

    @staticmethod
    def backward(ctx, grad):
        values, index, b = ctx.saved_tensors
        n, m, cols, v = ctx.layout
        ops, rows = torch.ops.sparsekern, values.shape[0]
        d_values = d_b = d_bias = None
        if ctx.needs_input_grad[0]:
            crow, col = _patterns.get(index, ("pattern", *ctx.layout), lambda: as_csr(index, n, m, v))
            d_values = ops.csr_sddmm(crow, col, grad, b).to(values.dtype).view_as(values)
        if ctx.needs_input_grad[2]:
            crow_t, row_t, perm = _patterns.get(index, ("plan", *ctx.layout), lambda: transposed(index, n, m, v, rows, cols))
            d_b = ops.csr_spmm_t(crow_t, row_t, perm, values.flatten(), grad, rows, cols)
        if ctx.needs_input_grad[7]:
            d_bias = grad.sum(1, dtype=accumulator(grad.dtype)).to(ctx.bias_dtype)
        return d_values, None, d_b, None, None, None, None, d_bias


@autograd_kernel("nm_spmm")
def _autograd(values, index, b, n, m, cols, *, v=1, bias=None):
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (values, b, bias)):
        return _Spmm.apply(values, index, b, n, m, cols, v, bias)
    with _below_autograd():
        return _spmm(values, index, b, n, m, cols, v=v, bias=bias)


# ---- references ----

@reference("nm_pack")
def nm_pack_reference(x, n, m, *, v=1):
    check_pack(x, n, m, v)
    rows, groups = x.shape[0], x.shape[1] // m
    bands = x.reshape(rows // v, v, groups, m)
    size = bands.abs().to(accumulator(x.dtype)).sum(1)                  # [band, group, m]: NaN and inf first, then by magnitude
    size = torch.where(size.isnan(), torch.inf, size)
    counts = (size != 0).sum(-1)
    if x.device.type == "cpu" and (counts > n).any():
        band, group = (counts > n).nonzero()[0].tolist()
        what, where = ("columns", f"rows {band * v} and following") if v > 1 else ("elements", f"row {band}")
        raise ValueError(f"nm_pack: x: expected at most {n} non-zero {what} in each group of {m}, got more in {where}, group {group}; "
                         f"apply nm_mask first")
    index = size.argsort(dim=-1, descending=True, stable=True)[..., :n].sort(-1).values
    values = bands.gather(-1, index[:, None].expand(-1, v, -1, -1))
    return values.reshape(rows, groups * n), index.reshape(rows // v, groups * n).to(torch.uint8)


@reference("nm_spmm")
def nm_spmm_reference(values, index, b, n, m, cols, *, v=1, bias=None):
    check_product(values, index, b, n, m, cols, v, bias)
    dtype = accumulator(b.dtype)
    columns = nm_columns(index, n, m, v).long()
    out = torch.zeros(values.shape[0], b.shape[1], dtype=dtype, device=b.device)
    for part in pieces(values.shape[0], values.shape[1] * b.shape[1]):
        out[part] = (values[part, :, None].to(dtype) * b[columns[part]].to(dtype)).sum(1)
    return (out if bias is None else out + bias[:, None].to(dtype)).to(b.dtype)


# ---- shapes ----

@fake("nm_pack")
def _(x, n, m, *, v=1):
    rows, stored = x.shape[0], x.shape[1] // m * n
    return x.new_empty(rows, stored), x.new_empty(rows // v, stored, dtype=torch.uint8)


@fake("nm_spmm")
def _(values, index, b, n, m, cols, *, v=1, bias=None):
    return b.new_empty(values.shape[0], b.shape[1])


uses_triton("nm_spmm")

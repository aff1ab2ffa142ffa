"""2:4 matrices in the form of the GPU's sparse tensor cores: packing, unpacking, products."""
from typing import NamedTuple

import torch
from torch import Tensor

from sparsekern.ops import _sp24_backends as backends
from sparsekern.ops._csr_pattern import accumulator
from sparsekern.ops._register import autocast_kernel, autograd_kernel, composed, define, fake, reference
from sparsekern.ops.mask_bits import check_mask, dense_mask
from sparsekern.ops.nm_mask import check_floats, nm_mask_transposable

define("sp24_compress(Tensor x, *, Tensor? mask=None, bool both=False, str layout=\"sm80\") -> (Tensor v, Tensor e, Tensor vt, Tensor et)")
define("sp24_decompress(Tensor v, Tensor e, int[] shape, *, str layout=\"sm80\") -> Tensor")
define("sp24_mm(Tensor v, Tensor e, Tensor b, *, Tensor? bias=None, str layout=\"sm80\", ScalarType? out_dtype=None) -> Tensor")

LAYOUTS = ("sm80", "linear")
ROWS, COLS = 32, 64                                         # what sides must divide by
_mm = torch.ops.sparsekern.sp24_mm.default
_below_autograd = torch._C._AutoDispatchBelowAutograd


class _Pairs(NamedTuple):
    v: Tensor
    e: Tensor
    vt: Tensor
    et: Tensor


class Sp24(_Pairs):
    """(v, e, vt, et) of a packed 2:4 matrix and its transpose, and as `shape` that of the matrix before zeros filled it up."""

    shape: tuple[int, int]


@torch.no_grad()
def sp24_compress(x: Tensor, *, mask: Tensor | None = None, both: bool = False, layout: str = "sm80") -> Sp24:
    """Two of every four consecutive columns, bit for bit and in ascending position, with two bits that say where each stands.

    Without a mask the two largest by magnitude are kept (ties, NaN: as `nm_mask`; with `both` the pattern of
    `nm_mask_transposable`). With a mask the two largest of what it marks; where it marks fewer than two, +0 fills up, standing in the
    lowest free columns. -0.0 is stored as it is where it is kept. Zeros are added up to rows % 32 == 0 and cols % 64 == 0 (`both`: 64).

    Args:
        x: [rows, cols] float16 or bfloat16, on the CPU also float32 and float64, any strides.
        mask: bool [rows, cols], or packed int32 words beside a row-major x. With `both` it must be 2:4 along rows and columns (looked at on
            the CPU; on CUDA each direction would keep its own two).
        both: also pack the transpose.
        layout: of e. "sm80": the order in which CUTLASS hands metadata to sparse tensor cores, as torch's CUTLASS path takes it.
            "linear": row by row.
    Returns:
        (v, e, vt, et), which knows x's `shape`. v: [rows, cols / 2] of x's dtype. e: int16 [rows, cols / 16]; a word holds four groups,
        four bits each, lowest first, the position of the group's first value in the lower two. vt, et: the same of the transpose, empty
        without `both`.
    Raises:
        ValueError: shapes that do not fit, an unknown layout, `both` with a mask that is not transposable (CPU). TypeError: dtypes.
    Cost: 3.125 bytes per 16-bit element, 4.25 with `both`, x being read once; a bool mask adds 1. On the CPU `both` without a mask first makes
        one, which reads x twice. The CUDA kernel is compiled and emulated only: it has not run on a GPU.
    """
    shape = tuple(x.shape)
    if x.dim() == 2:
        fill = -shape[0] % (COLS if both else ROWS), -shape[1] % COLS
        if any(fill):
            if mask is not None:
                check_mask("sp24_compress", "mask", mask, x)
                mask = torch.nn.functional.pad(dense_mask(mask, x), (0, fill[1], 0, fill[0])) if mask.numel() else None
            x = torch.nn.functional.pad(x, (0, fill[1], 0, fill[0]))
    packed = Sp24(*torch.ops.sparsekern.sp24_compress(x, mask=mask, both=both, layout=layout))
    packed.shape = shape
    return packed


@torch.no_grad()
def sp24_decompress(v: Tensor, e: Tensor, shape, *, layout: str = "sm80") -> Tensor:
    """The matrix that `sp24_compress` packed, +0 where nothing is stored.

    Args:
        v, e, layout: as from `sp24_compress`. shape: of the matrix, [rows, cols]; what was filled up is cut off.
    Returns:
        `shape` of v's dtype. Two values of a group that claim one position: the second stands.
    Raises:
        ValueError: shapes that do not fit, an unknown layout. TypeError: dtypes.
    Cost: 3.125 bytes per 16-bit element. The CUDA kernel is compiled and emulated only: it has not run on a GPU.
    """
    check_packed("sp24_decompress", v, e, layout)
    stored = [v.shape[0], 2 * v.shape[1]]
    if len(shape) != 2 or not all(map(_fills_up, shape, stored)):
        raise ValueError(f"sp24_decompress: shape: expected that of the matrix which was packed, at most {COLS - 1} short of {stored}, "
                         f"got {list(shape)}")
    return torch.ops.sparsekern.sp24_decompress(v, e, stored, layout=layout)[:shape[0], :shape[1]]


def sp24_mm(v: Tensor, e: Tensor, b: Tensor, *, bias: Tensor | None = None, layout: str = "sm80", out_dtype: torch.dtype | None = None,
            rows: int | None = None) -> Tensor:
    """`W @ b + bias[:, None]` for the W that `sp24_compress` packed, sums in float32. Differentiable in b and bias.

    On CUDA the first of these that takes the operands and has passed a self-test: cuSPARSELt through torch, CUTLASS through torch, W
    unpacked and multiplied densely; always the latter where a side is below 2048, where dense products win. `sp24_backend` tells
    which and why. On the CPU W is unpacked. The GPU paths have not run on a GPU, nor has the bound of 2048 been measured.

    Args:
        v, e, layout: as from `sp24_compress`. b: [cols, N] of v's dtype, any strides. bias: [rows] of b's dtype or float32; cuSPARSELt
            and CUTLASS get it in b's dtype. cols and rows: those of W, or of the matrix before it was filled up.
        out_dtype: b's dtype (the default) or float32 beside a half one (always dense).
        rows: leave out the rows that were filled up.
    Returns:
        [rows, N].
    Raises:
        ValueError: shapes that do not fit, an unknown layout. TypeError: dtypes.
    Cost: 2 rows cols N operations at twice the dense rate, at best. cuSPARSELt keeps its own copy of W, made when a v is first seen.
    """
    if v.dim() == b.dim() == 2 and b.shape[0] != 2 * v.shape[1] and _fills_up(b.shape[0], 2 * v.shape[1]):
        b = torch.nn.functional.pad(b, (0, 0, 0, 2 * v.shape[1] - b.shape[0]))
    if bias is not None and bias.dim() == 1 and bias.shape[0] != v.shape[0] and _fills_up(bias.shape[0], v.shape[0]):
        bias = torch.nn.functional.pad(bias, (0, v.shape[0] - bias.shape[0]))
    if rows is not None and not _fills_up(rows, v.shape[0]):
        raise ValueError(f"sp24_mm: rows: expected those of the matrix which was packed, at most {COLS - 1} fewer than {v.shape[0]}, got {rows}")
    out = _mm(v, e, b, bias=bias, layout=layout, out_dtype=out_dtype)
    return out if rows is None else out[:rows]


def _fills_up(true: int, stored: int) -> bool:
    """Whether filling `true` up to a multiple of 32 or 64 may have given `stored`."""
    return 0 <= true <= stored < true + COLS


def sp24_backend(rows: int, cols: int, n: int, *, dtype: torch.dtype = torch.bfloat16, layout: str = "sm80",
                 out_dtype: torch.dtype | None = None, device: torch.device | str = "cuda") -> backends.Choice:
    """(backend, reason): what `sp24_mm` does with [rows, cols] 2:4 @ [cols, n] on this device, and why. Runs self-tests that are due."""
    check_layout("sp24_backend", layout)
    return backends.choose(backends.Problem(rows, cols, n, dtype, layout, out_dtype or dtype, torch.device(device)))


# ---- checks, in the words of the compiled kernels ----

def check_layout(op: str, layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f'{op}: layout: expected "sm80" or "linear", got "{layout}"')


def check_compress(x: Tensor, mask: Tensor | None, both: bool, layout: str) -> None:
    check_floats("sp24_compress", x)
    check_layout("sp24_compress", layout)
    rows = COLS if both else ROWS
    if x.dim() != 2 or x.shape[0] % rows or x.shape[1] % COLS:
        raise ValueError(f"sp24_compress: x: expected a matrix with rows divisible by {rows} and columns by {COLS} (fill it up with zeros), "
                         f"got shape {list(x.shape)}")
    if mask is not None:
        check_mask("sp24_compress", "mask", mask, x)


def check_packed(op: str, v: Tensor, e: Tensor, layout: str) -> None:
    if v.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(f"{op}: v: expected float32, bfloat16, float16 or float64, got {v.dtype}")
    if e.dtype != torch.int16:
        raise TypeError(f"{op}: e: expected int16, got {e.dtype}")
    check_layout(op, layout)
    if v.dim() != 2 or v.shape[0] % ROWS or v.shape[1] % (COLS // 2):
        raise ValueError(f"{op}: v: expected a matrix with rows and columns divisible by 32, got shape {list(v.shape)}")
    if e.shape != (v.shape[0], v.shape[1] // 8):
        raise ValueError(f"{op}: e: expected shape [{v.shape[0]}, {v.shape[1] // 8}], got {list(e.shape)}")
    if e.device != v.device:
        raise ValueError(f"{op}: e: expected a tensor on {v.device}, got {e.device}; move it with .to()")


def check_decompress(v: Tensor, e: Tensor, shape, layout: str) -> None:
    check_packed("sp24_decompress", v, e, layout)
    if list(shape) != [v.shape[0], 2 * v.shape[1]]:
        raise ValueError(f"sp24_decompress: shape: expected [{v.shape[0]}, {2 * v.shape[1]}], got {list(shape)}")


def check_mm(v: Tensor, e: Tensor, b: Tensor, bias: Tensor | None, layout: str, out_dtype: torch.dtype | None) -> None:
    check_packed("sp24_mm", v, e, layout)
    if b.dtype != v.dtype:
        raise TypeError(f"sp24_mm: b: expected {v.dtype} like v, got {b.dtype}")
    if b.dim() != 2 or b.shape[0] != 2 * v.shape[1]:
        raise ValueError(f"sp24_mm: b: expected shape [{2 * v.shape[1]}, N], got {list(b.shape)}")
    wide = {b.dtype} if b.dtype == torch.float64 else {b.dtype, torch.float32}
    if bias is not None and bias.dtype not in wide:
        raise TypeError(f"sp24_mm: bias: expected {' or '.join(sorted(map(str, wide)))} beside {b.dtype}, got {bias.dtype}")
    if bias is not None and bias.shape != (v.shape[0],):
        raise ValueError(f"sp24_mm: bias: expected shape [{v.shape[0]}], got {list(bias.shape)}")
    if out_dtype is not None and out_dtype not in wide:
        raise TypeError(f"sp24_mm: out_dtype: expected {' or '.join(sorted(map(str, wide)))} beside {b.dtype}, got {out_dtype}")
    for name, given in (("b", b), ("bias", bias)):
        if given is not None and given.device != v.device:
            raise ValueError(f"sp24_mm: {name}: expected a tensor on {v.device}, got {given.device}; move it with .to()")


# ---- references ----

def arrange(words: Tensor, layout: str) -> Tensor:
    """[rows, words] row by row -> the order of the layout, in the same shape.

    sm80: within 32 rows and 2 words, row r's word w is number 8 (r % 8) + 4 (r / 16) + 2 w + r / 8 % 2; such tiles follow each other
    down the rows, then to the right.
    """
    if layout == "linear":
        return words
    rows, count = words.shape
    return words.view(rows // 32, 2, 2, 8, count // 2, 2).permute(4, 0, 3, 1, 5, 2).reshape(rows, count)


def arranged(e: Tensor, layout: str) -> Tensor:
    """The inverse of `arrange`."""
    if layout == "linear":
        return e
    rows, count = e.shape
    return e.reshape(count // 2, rows // 32, 8, 2, 2, 2).permute(1, 3, 5, 2, 0, 4).reshape(rows, count)


def _compress(x: Tensor, mask: Tensor | None, layout: str) -> tuple[Tensor, Tensor]:
    rows, cols = x.shape
    groups = x.reshape(rows, cols // 4, 4)
    size = groups.abs().to(accumulator(x.dtype))
    size = torch.where(size.isnan(), -1.0, size)                        # below all numbers, above what is not marked
    if mask is not None:
        mask = mask.reshape(rows, cols // 4, 4)
        size = torch.where(mask, size, -2.0)
    place = size.argsort(dim=-1, descending=True, stable=True)[..., :2].sort(-1).values
    values = groups.gather(-1, place)
    if mask is not None:
        values = torch.where(mask.gather(-1, place), values, 0)
    bits = (place[..., 0] | place[..., 1] << 2).view(rows, cols // 16, 4)
    words = (bits << torch.arange(0, 16, 4, device=x.device)).sum(-1).to(torch.int16)                  # bit 15 wraps into the sign
    return values.reshape(rows, cols // 2), arrange(words, layout)


@reference("sp24_compress")
def sp24_compress_reference(x, *, mask=None, both=False, layout="sm80"):
    check_compress(x, mask, both, layout)
    mask = None if mask is None or mask.numel() == 0 else dense_mask(mask, x)
    if both and mask is None:
        mask = nm_mask_transposable(x)
    elif both and x.device.type == "cpu":
        check_both_ways(mask)
    v, e = _compress(x, mask, layout)
    vt, et = _compress(x.t(), mask.t(), layout) if both else (x.new_empty(0, 0), x.new_empty(0, 0, dtype=torch.int16))
    return v, e, vt, et


def check_both_ways(mask: Tensor) -> None:
    rows, cols = mask.shape
    count = mask.view(rows // 4, 4, cols // 4, 4).int()
    over = (count.sum(3).amax(1) > 2) | (count.sum(1).amax(2) > 2)
    if over.any():
        row, col = (over.nonzero()[0] * 4).tolist()
        raise ValueError(f"sp24_compress: mask: expected at most 2 of 4 along rows and along columns (both=True), got more in the 4 x 4 block "
                         f"at row {row}, column {col}; make it with nm_mask_transposable")


@reference("sp24_decompress")
def sp24_decompress_reference(v, e, shape, *, layout="sm80"):
    check_decompress(v, e, shape, layout)
    rows, cols = shape
    bits = arranged(e, layout).int()[..., None] >> torch.arange(0, 16, 4, dtype=torch.int32, device=e.device)
    bits = bits.view(rows, cols // 4, 1)
    pair, column = v.reshape(rows, cols // 4, 2), torch.arange(4, dtype=torch.int32, device=v.device)
    first, second = (bits & 3) == column, (bits >> 2 & 3) == column
    return torch.where(second, pair[..., 1:], torch.where(first, pair[..., :1], 0)).view(rows, cols)


@reference("sp24_mm")
def sp24_mm_reference(v, e, b, *, bias=None, layout="sm80", out_dtype=None):
    check_mm(v, e, b, bias, layout, out_dtype)
    dtype = accumulator(b.dtype)
    out = torch.ops.sparsekern.sp24_decompress(v, e, [v.shape[0], 2 * v.shape[1]], layout=layout).to(dtype) @ b.to(dtype)
    return (out if bias is None else out + bias[:, None].to(dtype)).to(out_dtype or b.dtype)


@composed("sp24_mm", "CUDA")
def sp24_mm_on_gpu(v, e, b, *, bias=None, layout="sm80", out_dtype=None):
    check_mm(v, e, b, bias, layout, out_dtype)
    return backends.product(v, e, b, bias, layout, out_dtype or b.dtype)


# ---- gradient ----

class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, e, b, bias, layout, out_dtype):
        ctx.save_for_backward(v, e)
        ctx.layout, ctx.b_dtype, ctx.bias_dtype = layout, b.dtype, None if bias is None else bias.dtype
        with _below_autograd():
            return _mm(v, e, b, bias=bias, layout=layout, out_dtype=out_dtype)

    @staticmethod
    def backward(ctx, grad):
        v, e = ctx.saved_tensors
        d_b = d_bias = None
        if ctx.needs_input_grad[2]:
            w = torch.ops.sparsekern.sp24_decompress(v, e, [v.shape[0], 2 * v.shape[1]], layout=ctx.layout)
            wide = grad.dtype if grad.is_cuda else accumulator(grad.dtype)          # a GPU's product sums in float32 by itself
            with torch.autocast(grad.device.type, enabled=False):
                d_b = (w.t().to(wide) @ grad.to(wide)).to(ctx.b_dtype)
        if ctx.needs_input_grad[3]:
            d_bias = grad.sum(1, dtype=accumulator(grad.dtype)).to(ctx.bias_dtype)
        return None, None, d_b, d_bias, None, None


@autograd_kernel("sp24_mm")
def _autograd(v, e, b, *, bias=None, layout="sm80", out_dtype=None):
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (b, bias)):
        return _Product.apply(v, e, b, bias, layout, out_dtype)
    with _below_autograd():
        return _mm(v, e, b, bias=bias, layout=layout, out_dtype=out_dtype)


@autocast_kernel("sp24_mm")
def _(dtype, *args, **kwargs):
    """In the types that were given: the library's products inside must not take another, nor fail their self-test for it."""
    return _mm(*args, **kwargs)


# ---- shapes ----

@fake("sp24_compress")
def _(x, *, mask=None, both=False, layout="sm80"):
    rows, cols = x.shape
    turned = (cols, rows) if both else (0, 0)
    return (x.new_empty(rows, cols // 2), x.new_empty(rows, cols // 16, dtype=torch.int16),
            x.new_empty(turned[0], turned[1] // 2), x.new_empty(turned[0], turned[1] // 16, dtype=torch.int16))


@fake("sp24_decompress")
def _(v, e, shape, *, layout="sm80"):
    return v.new_empty(shape)


@fake("sp24_mm")
def _(v, e, b, *, bias=None, layout="sm80", out_dtype=None):
    return b.new_empty(v.shape[0], b.shape[1], dtype=out_dtype or b.dtype)

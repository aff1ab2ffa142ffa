"""csr_sddmm and coo_sddmm: dot products of rows of a and rows of b, only where a pattern or a list of places says.

gather: a program owns entries of one row of a and gathers their rows of b: nnz * N * size(b) bytes from L2.
dense: a program computes tiles of the whole product on the tensor cores and stores the pattern's entries of each; 2 R C N operations
whatever the sparsity. The cheaper one by a model of those two rates is taken. Sums are fp32 in a fixed order (float32 operands as
three tf32 products on tensor cores). Compiled ahead of time and interpreted so far, not yet run on a GPU.
"""
import os

import torch
import triton
import triton.language as tl

from .csr_spmm import TYPES, arithmetic, check_pattern, check_positions

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"     # the interpreter's tl.dot of bfloat16 is wrong: it gets float32 operands
GATHER_RATE = 5.5e12                                        # bytes/s from the L2 cache and, below, operations/s of a plain tiled product:
DENSE_RATE = {2: 150e12, 4: 50e12}                          # estimates for a large GPU by bytes per element, to be measured
SECTOR = 32                                                 # bytes that come with each gathered element of a column-major operand
TILE_ROWS, TILE_COLS, WARPS, PROGRAMS = 64, 64, 8, 1024
ENTRIES, BLOCK = 16, 128


@triton.jit
def gather_kernel(crow, col, a, b, out, rows, n, a_row, a_col, b_row, b_col, splits, ARITHMETIC: tl.constexpr, ENTRIES: tl.constexpr,
                  BLOCK: tl.constexpr):
    # out[e] = <a[row(e), :], b[col[e], :]> for every splits-th run of ENTRIES entries of a row.
    row = (tl.program_id(0) % rows).to(tl.int64)
    at, end = tl.load(crow + row) + (tl.program_id(0) // rows) * ENTRIES, tl.load(crow + row + 1)
    while at < end:
        e = at + tl.arange(0, ENTRIES)
        valid = e < end
        k = tl.load(col + e, mask=valid, other=0).to(tl.int64)
        total = tl.zeros([ENTRIES, BLOCK], ARITHMETIC)
        start = 0
        while start < n:
            j = start + tl.arange(0, BLOCK)
            x = tl.load(a + row * a_row + j.to(tl.int64) * a_col, mask=j < n, other=0.0).to(ARITHMETIC)
            y = tl.load(b + k[:, None] * b_row + j[None, :].to(tl.int64) * b_col, mask=valid[:, None] & (j < n)[None, :], other=0.0)
            total += x[None, :] * y.to(ARITHMETIC)
            start += BLOCK
        tl.store(out + e, tl.sum(total, 1).to(out.dtype.element_ty), mask=valid)
        at += splits * ENTRIES


@triton.jit
def places_kernel(rows, cols, count, a, b, out, numel, n, a_row, a_col, b_row, b_col, ARITHMETIC: tl.constexpr, ENTRIES: tl.constexpr,
                  BLOCK: tl.constexpr):
    # out[e] = <a[rows[e], :], b[cols[e], :]> for e < count, then zeros; nothing is read for places past the count.
    e = tl.program_id(0) * ENTRIES + tl.arange(0, ENTRIES)
    valid = e < tl.minimum(tl.load(count), numel)
    r = tl.load(rows + e, mask=valid, other=0).to(tl.int64)
    c = tl.load(cols + e, mask=valid, other=0).to(tl.int64)
    total = tl.zeros([ENTRIES, BLOCK], ARITHMETIC)
    start = 0
    while start < n:
        j = start + tl.arange(0, BLOCK)
        wanted, step = valid[:, None] & (j < n)[None, :], j[None, :].to(tl.int64)
        x = tl.load(a + r[:, None] * a_row + step * a_col, mask=wanted, other=0.0).to(ARITHMETIC)
        y = tl.load(b + c[:, None] * b_row + step * b_col, mask=wanted, other=0.0).to(ARITHMETIC)
        total += x * y
        start += BLOCK
    tl.store(out + e, tl.sum(total, 1).to(out.dtype.element_ty), mask=e < numel)


@triton.jit
def lower_bound(col, low, high, first):
    """Per lane the first place in [low, high) whose column is at least `first`."""
    while tl.max(high - low) > 0:
        middle = low + (high - low) // 2
        open = low < high
        below = tl.load(col + middle, mask=open, other=0) < first
        low = tl.where(open & below, middle + 1, low)
        high = tl.where(open & (below == 0), middle, high)
    return low


@triton.jit
def add_product(total, a, b, r, c, start, rows, cols, n, a_row, a_col, b_row, b_col, FULL: tl.constexpr, BLOCK: tl.constexpr):
    """total + a[r, start : start + BLOCK] b[c, start : start + BLOCK]^T"""
    j = start + tl.arange(0, BLOCK)
    x = tl.load(a + r[:, None].to(tl.int64) * a_row + j[None, :].to(tl.int64) * a_col, mask=(r < rows)[:, None] & (j < n)[None, :], other=0.0)
    y = tl.load(b + c[None, :].to(tl.int64) * b_row + j[:, None].to(tl.int64) * b_col, mask=(c < cols)[None, :] & (j < n)[:, None], other=0.0)
    if FULL:
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, total, input_precision="tf32x3")


@triton.jit
def dense_kernel(crow, col, a, b, out, rows, cols, n, a_row, a_col, b_row, b_col, tiles, INTERPRETED: tl.constexpr, ROWS: tl.constexpr,
                 COLS: tl.constexpr, BLOCK: tl.constexpr):
    # A band of ROWS rows times `tiles` tiles of COLS columns. The entries of a row inside a tile are neighbours in the pattern:
    # each row keeps the place of its next one, and lane i of a row picks the product of entry at + i.
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    left, last = tl.program_id(1) * tiles * COLS, (tl.program_id(1) + 1) * tiles * COLS
    end = tl.load(crow + r + 1, mask=r < rows, other=0)
    at = lower_bound(col, tl.load(crow + r, mask=r < rows, other=0), end, left)
    while left < last:
        c = left + tl.arange(0, COLS)
        total = tl.zeros([ROWS, COLS], tl.float32)
        if INTERPRETED:                                     # older interpreters take no range of an argument; compiled, it is pipelined
            start = 0
            while start < n:
                total = add_product(total, a, b, r, c, start, rows, cols, n, a_row, a_col, b_row, b_col, True, BLOCK)
                start += BLOCK
        else:
            for start in range(0, n, BLOCK):
                total = add_product(total, a, b, r, c, start, rows, cols, n, a_row, a_col, b_row, b_col, False, BLOCK)
        e = at[:, None] + tl.arange(0, COLS)[None, :]
        k = tl.load(col + e, mask=e < end[:, None], other=-1) - left
        here = (k >= 0) & (k < COLS)
        picked = tl.gather(total, tl.where(here, k, 0), 1)
        tl.store(out + e, picked.to(out.dtype.element_ty), mask=here)
        at += tl.sum(here.to(tl.int32), 1)
        left += COLS


def check_operands(op, a, b):
    if a.dtype not in TYPES:
        raise TypeError(f"{op}: a: expected float32, bfloat16, float16 or float64, got {a.dtype}")
    if b.dtype != a.dtype:
        raise TypeError(f"{op}: b: expected {a.dtype} like a, got {b.dtype}")
    for name, given in (("a", a), ("b", b)):
        if given.dim() != 2:
            raise ValueError(f"{op}: {name}: expected two dimensions, got shape {list(given.shape)}")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{op}: b: expected {a.shape[1]} columns like a, got {b.shape[1]}")


def cheaper(nnz, a, b):
    """"gather" or "dense", by bytes to gather from L2 and operations of the whole product. float64 has no dense way."""
    size, n = a.element_size(), a.shape[1]
    if size == 8:
        return "gather"
    of_a, of_b = (size if t.stride(1) == 1 else SECTOR for t in (a, b))
    padded = triton.cdiv(a.shape[0], TILE_ROWS) * TILE_ROWS * triton.cdiv(b.shape[0], TILE_COLS) * TILE_COLS
    return "gather" if nnz * n * (of_b + of_a / ENTRIES) / GATHER_RATE <= 2 * padded * n / DENSE_RATE[size] else "dense"


def _strides(a, b):
    return a.stride(0), a.stride(1), b.stride(0), b.stride(1)


def _block(a):
    return min(BLOCK, max(16, triton.next_power_of_2(a.shape[1])))


def sample(out, crow, col, a, b, algo="auto"):
    """out[nnz] of checked operands."""
    rows, n, nnz = a.shape[0], a.shape[1], col.numel()
    if nnz == 0:
        return out
    if algo == "auto":
        algo = cheaper(nnz, a, b)
    with torch.cuda.device_of(a):
        if algo == "gather" or a.dtype == torch.float64:
            splits = min(triton.cdiv(PROGRAMS, rows), triton.cdiv(nnz, rows * ENTRIES))             # few long rows: several programs each
            gather_kernel[(rows * splits,)](crow, col, a, b, out, rows, n, *_strides(a, b), splits, ARITHMETIC=arithmetic(a.dtype),
                                            ENTRIES=ENTRIES, BLOCK=_block(a))
        else:
            bands, across = triton.cdiv(rows, TILE_ROWS), triton.cdiv(b.shape[0], TILE_COLS)
            tiles = min(across, max(1, bands * across // PROGRAMS))
            dense_kernel[(bands, triton.cdiv(across, tiles))](
                crow, col, a, b, out, rows, b.shape[0], n, *_strides(a, b), tiles, INTERPRETED=INTERPRETED, ROWS=TILE_ROWS, COLS=TILE_COLS,
                BLOCK=16 if a.dtype == torch.float32 else 64, num_warps=WARPS)
    return out


def csr_sddmm(crow, col, a, b, *, algo="auto"):
    op = "csr_sddmm"
    check_operands(op, a, b)
    if algo not in ("auto", "gather", "dense"):
        raise ValueError(f"{op}: algo: expected 'auto', 'gather' or 'dense', got {algo!r}")
    crow, col = check_pattern(op, crow, col, a.shape[0])
    return sample(a.new_empty(col.numel()), crow, col, a, b, algo)


def coo_sddmm(rows, cols, count, a, b):
    op = "coo_sddmm"
    check_operands(op, a, b)
    rows, cols = (check_positions(op, name, given, rows.numel()) for name, given in (("rows", rows), ("cols", cols)))
    if count.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{op}: count: expected int32 or int64, got {count.dtype}")
    if count.numel() != 1:
        raise ValueError(f"{op}: count: expected one element, got shape {list(count.shape)}")
    out = a.new_empty(rows.numel())
    if out.numel() != 0:
        with torch.cuda.device_of(a):
            places_kernel[(triton.cdiv(out.numel(), ENTRIES),)](
                rows, cols, count.to(a.device), a, b, out, out.numel(), a.shape[1], *_strides(a, b), ARITHMETIC=arithmetic(a.dtype),
                ENTRIES=ENTRIES, BLOCK=_block(a))
    return out


_STRIDES = ("a_row", "a_col", "b_row", "b_col")


def _row(kernel, name, pointers, sizes, ones=("a_col", "b_col"), aligned=True, **constants):
    constants |= dict.fromkeys(ones, 1)                                                                     # a launch specialises on 1
    signature = pointers | dict.fromkeys((*sizes, "n", *_STRIDES), "i32") | dict.fromkeys(constants, "constexpr")
    divisible = [name for name in kernel.arg_names if aligned and name not in (*constants, "tiles", "splits")]
    return {"kernel": kernel, "name": name, "signature": signature, "constexprs": constants, "num_warps": WARPS if kernel is dense_kernel else 4,
            "attrs": {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}}


def _pattern(kind, crow="*i32"):
    return {"crow": crow, "col": "*i32"} | dict.fromkeys(("a", "b", "out"), kind)


def _places(kind):
    return {"rows": "*i32", "cols": "*i32", "count": "*i64"} | dict.fromkeys(("a", "b", "out"), kind)


_GATHER = {"ARITHMETIC": tl.float32, "ENTRIES": ENTRIES, "BLOCK": BLOCK}
_DENSE = {"INTERPRETED": False, "ROWS": TILE_ROWS, "COLS": TILE_COLS}
_BOTH = ("a_row", "b_row")
AOT = [
    _row(gather_kernel, "fp32", _pattern("*fp32"), ("rows", "splits"), **_GATHER),
    _row(gather_kernel, "bf16, int64 crow", _pattern("*bf16", "*i64"), ("rows", "splits"), **_GATHER),
    _row(gather_kernel, "fp32, column-major", _pattern("*fp32"), ("rows", "splits"), _BOTH, **_GATHER),
    _row(gather_kernel, "fp64", _pattern("*fp64"), ("rows", "splits"), **_GATHER | {"ARITHMETIC": tl.float64}),
    _row(places_kernel, "fp32", _places("*fp32"), ("numel",), **_GATHER),
    _row(places_kernel, "bf16", _places("*bf16"), ("numel",), **_GATHER),
    _row(dense_kernel, "fp32", _pattern("*fp32"), ("rows", "cols", "tiles"), BLOCK=16, **_DENSE),
    _row(dense_kernel, "bf16", _pattern("*bf16"), ("rows", "cols", "tiles"), BLOCK=64, **_DENSE),
    _row(dense_kernel, "fp16, int64 crow", _pattern("*fp16", "*i64"), ("rows", "cols", "tiles"), BLOCK=64, **_DENSE),
    _row(dense_kernel, "bf16, column-major", _pattern("*bf16"), ("rows", "cols", "tiles"), _BOTH, BLOCK=64, **_DENSE),
    _row(dense_kernel, "fp32, column-major", _pattern("*fp32"), ("rows", "cols", "tiles"), _BOTH, BLOCK=16, **_DENSE),
    _row(dense_kernel, "fp32, no alignment", _pattern("*fp32"), ("rows", "cols", "tiles"), aligned=False, BLOCK=16, **_DENSE),
]

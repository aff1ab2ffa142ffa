"""nm_spmm: a row of the packed matrix, or sixteen and more that share their columns, and a block of b's columns per program.

A single row is csr_spmm's program with columns made of positions: lanes take its entries in order into fp32 sums of their own, which one tree
adds at the end; rows * per_row * N * size(b) bytes are gathered from L2, the bound. Rows that share columns are a dense matrix as they are
stored, and so are the rows of b that their positions name: a product of the two by tl.dot (fp32 without TF32), with one gather for all rows of
the block. The first portable version; compiled ahead of time and interpreted so far, not yet run on a GPU.
"""
import torch
import triton
import triton.language as tl

from .csr_sddmm import INTERPRETED
from .csr_spmm import TILE, TYPES, arithmetic, check_vector

DEPTH, BLOCK = 32, 64                           # entries and columns of b in a step of the dense product


@triton.jit
def columns_of(index, e, per_row, KEEP: tl.constexpr, GROUP: tl.constexpr):
    # The columns of entries e of the band whose positions start at index; a position that is none stays inside of b.
    position = tl.load(index + e, mask=e < per_row, other=0).to(tl.int32)
    return (e // KEEP * GROUP + tl.minimum(position, GROUP - 1)).to(tl.int64)


@triton.jit
def nm_rows_kernel(values, index, b, bias, out, rows, per_row, n, v, b_row, b_col, BIAS: tl.constexpr, KEEP: tl.constexpr, GROUP: tl.constexpr,
                   ARITHMETIC: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr):
    # out[row, :] = sum over the row's entries e of values[row, e] b[column(e), :]; neighbouring programs share a block of b's columns.
    row = (tl.program_id(0) % rows).to(tl.int64)
    j = (tl.program_id(0) // rows).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([LANES, BLOCK], ARITHMETIC)
    start = 0
    while start < per_row:
        e = start + tl.arange(0, LANES)
        k = columns_of(index + row // v * per_row, e, per_row, KEEP, GROUP)
        w = tl.load(values + row * per_row + e, mask=e < per_row, other=0.0).to(ARITHMETIC)
        x = tl.load(b + k[:, None] * b_row + j[None, :] * b_col, mask=(e < per_row)[:, None] & (j < n)[None, :], other=0.0)
        total += w[:, None] * x.to(ARITHMETIC)
        start += LANES
    result = tl.sum(total, 0)
    if BIAS:
        result += tl.load(bias + row).to(ARITHMETIC)
    tl.store(out + row * n + j, result.to(out.dtype.element_ty), mask=j < n)


@triton.jit
def add_product(total, values, index, b, row, j, start, per_row, n, b_row, b_col, KEEP: tl.constexpr, GROUP: tl.constexpr, DEPTH: tl.constexpr,
                FULL: tl.constexpr):
    """total + values[row, start : start + DEPTH] times the rows of b that these entries name"""
    e = start + tl.arange(0, DEPTH)
    k = columns_of(index, e, per_row, KEEP, GROUP)
    w = tl.load(values + row[:, None] * per_row + e[None, :], mask=(e < per_row)[None, :], other=0.0)
    x = tl.load(b + k[:, None] * b_row + j[None, :] * b_col, mask=(e < per_row)[:, None] & (j < n)[None, :], other=0.0)
    if FULL:
        w, x = w.to(tl.float32), x.to(tl.float32)
    return tl.dot(w, x, total, input_precision="ieee")


@triton.jit
def nm_bands_kernel(values, index, b, bias, out, tiles, per_row, n, v, b_row, b_col, INTERPRETED: tl.constexpr, BIAS: tl.constexpr,
                    KEEP: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, BLOCK: tl.constexpr):
    # The same for ROWS rows of one band, v a multiple of ROWS; values of b's dtype.
    row = (tl.program_id(0) % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    j = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    band = (tl.program_id(0) % tiles).to(tl.int64) * ROWS // v
    positions = index + band * per_row
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    if INTERPRETED:                                         # older interpreters take no range of an argument; compiled, it is pipelined
        start = 0
        while start < per_row:
            total = add_product(total, values, positions, b, row, j, start, per_row, n, b_row, b_col, KEEP, GROUP, DEPTH, True)
            start += DEPTH
    else:
        for start in range(0, per_row, DEPTH):
            total = add_product(total, values, positions, b, row, j, start, per_row, n, b_row, b_col, KEEP, GROUP, DEPTH, False)
    if BIAS:
        total += tl.load(bias + row).to(tl.float32)[:, None]
    tl.store(out + row[:, None] * n + j[None, :], total.to(out.dtype.element_ty), mask=(j < n)[None, :])


def check(values, index, b, n, m, cols, v):
    """The checks of the compiled kernels, in their words; positions are trusted, as reading them back would wait for the device."""
    op = "nm_spmm"
    if not 1 <= m <= 64:
        raise ValueError(f"{op}: m: expected a group of 1 to 64 elements, got {m}")
    if not 0 <= n <= m:
        hint = "; n is the number kept, not the number of zeros" if n > m else ""
        raise ValueError(f"{op}: n: expected 0 to m = {m} elements kept of each group, got {n}{hint}")
    if v < 1:
        raise ValueError(f"{op}: v: expected at least 1 row that shares its columns, got {v}")
    if cols < 0 or cols % m:
        raise ValueError(f"{op}: cols: expected a multiple of m = {m}, got {cols}")
    per_row = cols // m * n
    if values.dim() != 2 or values.shape[1] != per_row:
        raise ValueError(f"{op}: values: expected shape [rows, {per_row}], got {list(values.shape)}")
    if values.shape[0] % v:
        raise ValueError(f"{op}: values: expected rows divisible by v = {v}, got shape {list(values.shape)}")
    if index.dtype != torch.uint8:
        raise TypeError(f"{op}: index: expected uint8, got {index.dtype}")
    if index.shape != (values.shape[0] // v, per_row):
        raise ValueError(f"{op}: index: expected shape [{values.shape[0] // v}, {per_row}], got {list(index.shape)}")
    if b.dtype not in TYPES:
        raise TypeError(f"{op}: b: expected float32, bfloat16, float16 or float64, got {b.dtype}")
    if b.dim() != 2 or b.shape[0] != cols:
        raise ValueError(f"{op}: b: expected shape [{cols}, N], got {list(b.shape)}")


def nm_spmm(values, index, b, n, m, cols, *, v=1, bias=None):
    op = "nm_spmm"
    check(values, index, b, n, m, cols, v)
    rows, per_row = values.shape
    values, bias = check_vector(op, "values", values.flatten(), values.numel(), b), check_vector(op, "bias", bias, rows, b)
    index, out, width = index.contiguous(), b.new_empty(rows, b.shape[1]), b.shape[1]
    if out.numel() == 0:
        return out
    common = {"BIAS": bias is not None, "KEEP": max(n, 1), "GROUP": m}
    with torch.cuda.device_of(b):
        if v % 16 == 0 and values.dtype == b.dtype and b.dtype != torch.float64:
            tall = next(r for r in (64, 32, 16) if v % r == 0)
            nm_bands_kernel[(rows // tall * triton.cdiv(width, BLOCK),)](
                values, index, b, bias, out, rows // tall, per_row, width, v, b.stride(0), b.stride(1), **common, ROWS=tall, DEPTH=DEPTH, BLOCK=BLOCK,
                INTERPRETED=INTERPRETED)
            return out
        block = min(128, triton.next_power_of_2(width))
        lanes = min(64, (TILE if b.dtype != torch.float64 else TILE // 2) // block)
        nm_rows_kernel[(rows * triton.cdiv(width, block),)](
            values, index, b, bias, out, rows, per_row, width, v, b.stride(0), b.stride(1), **common, ARITHMETIC=arithmetic(b.dtype), LANES=lanes,
            BLOCK=block)
    return out


def _row(kernel, name, b="*fp32", values=None, row_major=True, **given):
    on = {"BIAS": False, "KEEP": 1, "GROUP": 8} | given | ({"b_col": 1} if row_major else {"b_row": 1})     # a launch specialises on 1
    on |= {} if on["BIAS"] else {"bias": None}
    signature = {"values": values or b, "index": "*u8", "b": b, "bias": values or b, "out": b, "per_row": "i32", "n": "i32", "v": "i32",
                 "b_row": "i32", "b_col": "i32", "rows" if kernel is nm_rows_kernel else "tiles": "i32"} | dict.fromkeys(on, "constexpr")
    divisible = [i for i, parameter in enumerate(kernel.arg_names) if parameter not in on and parameter not in ("rows", "tiles", "v")]
    return {"kernel": kernel, "name": name, "signature": signature, "constexprs": on, "attrs": {(i,): [["tt.divisibility", 16]] for i in divisible}}


_ROWS, _BANDS = {"ARITHMETIC": tl.float32, "LANES": 16, "BLOCK": 128}, {"ROWS": 64, "DEPTH": DEPTH, "BLOCK": BLOCK, "INTERPRETED": False}
AOT = [_row(nm_rows_kernel, "fp32", **_ROWS), _row(nm_rows_kernel, "bf16, fp32 values, 2:16", b="*bf16", values="*fp32", KEEP=2, GROUP=16, **_ROWS),
       _row(nm_rows_kernel, "fp32, narrow, bias", BIAS=True, **_ROWS | {"LANES": 64, "BLOCK": 8}),
       _row(nm_rows_kernel, "fp16, column-major", b="*fp16", row_major=False, **_ROWS),
       _row(nm_rows_kernel, "fp64", b="*fp64", **_ROWS | {"ARITHMETIC": tl.float64, "LANES": 8}),
       _row(nm_bands_kernel, "fp16, 2:16", b="*fp16", KEEP=2, GROUP=16, **_BANDS),
       _row(nm_bands_kernel, "bf16, bias", b="*bf16", BIAS=True, **_BANDS), _row(nm_bands_kernel, "fp32", **_BANDS),
       _row(nm_bands_kernel, "fp32, 16 rows", **_BANDS | {"ROWS": 16})]

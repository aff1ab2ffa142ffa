"""csr_spmm, csr_spmm_t, csr_linear and its gradient: a row of the pattern and a block of columns per program.

A row's nonzeros are dealt to a fixed number of lanes in column order; each lane gathers its rows of b into fp32 sums of its own,
which one tree adds at the end. So a row's result depends on nothing but the row. nnz * N * size(b) bytes are gathered from L2: the
bound. The first portable version; compiled ahead of time and interpreted so far, not yet run on a GPU.
"""
import torch
import triton
import triton.language as tl

TILE = 2048                                     # lanes times columns: 16 sums of each thread of four warps
TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@triton.jit
def spmm_kernel(crow, col, perm, val, b, bias, row_order, out, rows, n, b_row, b_col, out_row, out_col, PERM: tl.constexpr,
                BIAS: tl.constexpr, ORDER: tl.constexpr, ARITHMETIC: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr):
    # out[row, :] = sum over the row's entries e of val[e] b[col[e], :]; neighbouring programs share a block of b's columns.
    row = tl.program_id(0) % rows
    if ORDER:
        row = tl.load(row_order + row)
    row = row.to(tl.int64)
    j = (tl.program_id(0) // rows) * BLOCK + tl.arange(0, BLOCK)
    at, end = tl.load(crow + row), tl.load(crow + row + 1)
    total = tl.zeros([LANES, BLOCK], ARITHMETIC)
    while at < end:
        e = at + tl.arange(0, LANES)
        valid = e < end
        k = tl.load(col + e, mask=valid, other=0).to(tl.int64)
        if PERM:
            e = tl.load(perm + e, mask=valid, other=0)
        w = tl.load(val + e, mask=valid, other=0.0).to(ARITHMETIC)
        x = tl.load(b + k[:, None] * b_row + j[None, :].to(tl.int64) * b_col, mask=valid[:, None] & (j < n)[None, :], other=0.0)
        total += w[:, None] * x.to(ARITHMETIC)
        at += LANES
    result = tl.sum(total, 0)
    if BIAS:
        result += tl.load(bias + row).to(ARITHMETIC)
    tl.store(out + row * out_row + j.to(tl.int64) * out_col, result.to(out.dtype.element_ty), mask=j < n)


def check_pattern(op, crow, col, rows, crow_name="crow", col_name="col"):
    """The pattern as contiguous vectors; its content is trusted, as reading it back would wait for the device."""
    for name, given, types in ((crow_name, crow, (torch.int32, torch.int64)), (col_name, col, (torch.int32,))):
        if given.dtype not in types:
            raise TypeError(f"{op}: {name}: expected int32{' or int64' if len(types) > 1 else ''}, got {given.dtype}")
        if given.dim() != 1:
            raise ValueError(f"{op}: {name}: expected one dimension, got shape {list(given.shape)}")
    if crow.numel() != rows + 1:
        raise ValueError(f"{op}: {crow_name}: expected {rows + 1} row pointers for {rows} rows, got {crow.numel()}")
    return crow.contiguous(), col.contiguous()


def check_matrix(op, name, given, height):
    if given.dtype not in TYPES:
        raise TypeError(f"{op}: {name}: expected float32, bfloat16, float16 or float64, got {given.dtype}")
    if given.dim() != 2 or given.shape[0] != height:
        raise ValueError(f"{op}: {name}: expected shape [{height}, N], got {list(given.shape)}")


def check_vector(op, name, given, count, beside):
    """`count` numbers of the dtype of `beside`, or float32 beside a half type; None stays None."""
    if given is None:
        return None
    if given.dtype != beside.dtype and (given.dtype != torch.float32 or beside.dtype == torch.float64):
        half = " or torch.float32" if beside.dtype.itemsize == 2 else ""
        raise TypeError(f"{op}: {name}: expected {beside.dtype}{half} beside {beside.dtype}, got {given.dtype}")
    if given.shape != (count,):
        raise ValueError(f"{op}: {name}: expected shape [{count}], got {list(given.shape)}")
    return given.contiguous()


def check_positions(op, name, given, count):
    if given is None:
        return None
    if given.dtype != torch.int32:
        raise TypeError(f"{op}: {name}: expected int32, got {given.dtype}")
    if given.shape != (count,):
        raise ValueError(f"{op}: {name}: expected {count} positions, got shape {list(given.shape)}")
    return given.contiguous()


def check_auto(op, algo):
    if algo != "auto":
        raise ValueError(f"{op}: algo: expected 'auto', got {algo!r}")


def arithmetic(dtype):
    """The type sums are taken in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def multiply(out, crow, col, val, b, *, perm=None, bias=None, row_order=None):
    """out[rows, N] = W b + bias for checked operands; b and out of any strides."""
    rows, n = out.shape
    if out.numel() == 0:
        return out
    block = min(128, triton.next_power_of_2(n))
    with torch.cuda.device_of(b):
        spmm_kernel[(rows * triton.cdiv(n, block),)](
            crow, col, perm, val, b, bias, row_order, out, rows, n, b.stride(0), b.stride(1), out.stride(0), out.stride(1),
            PERM=perm is not None, BIAS=bias is not None, ORDER=row_order is not None, ARITHMETIC=arithmetic(b.dtype),
            LANES=min(64, (TILE if b.dtype != torch.float64 else TILE // 2) // block), BLOCK=block)
    return out


def csr_spmm(crow, col, val, b, rows, cols, *, row_order=None, bias=None, algo="auto"):
    op = "csr_spmm"
    crow, col = check_pattern(op, crow, col, rows)
    check_matrix(op, "b", b, cols)
    val, bias = check_vector(op, "val", val, col.numel(), b), check_vector(op, "bias", bias, rows, b)
    row_order = check_positions(op, "row_order", row_order, rows)
    check_auto(op, algo)
    return multiply(b.new_empty(rows, b.shape[1]), crow, col, val, b, bias=bias, row_order=row_order)


def csr_spmm_t(crow_t, row_t, perm, val, b, rows, cols, *, algo="auto"):
    op = "csr_spmm_t"
    crow_t, row_t = check_pattern(op, crow_t, row_t, cols, "crow_t", "row_t")
    check_matrix(op, "b", b, rows)
    val, perm = check_vector(op, "val", val, row_t.numel(), b), check_positions(op, "perm", perm, row_t.numel())
    check_auto(op, algo)
    return multiply(b.new_empty(cols, b.shape[1]), crow_t, row_t, val, b, perm=perm)


def _row(name, b="*fp32", val=None, crow="*i32", row_major=True, **flags):
    on = {"PERM": False, "BIAS": False, "ORDER": False, "ARITHMETIC": tl.float32, "LANES": 16, "BLOCK": 128} | flags
    on |= {"b_col": 1, "out_col": 1} if row_major else {"b_row": 1, "out_row": 1}                          # a launch specialises on 1
    on |= {name: None for name, flag in (("perm", "PERM"), ("bias", "BIAS"), ("row_order", "ORDER")) if not on[flag]}
    signature = {"crow": crow, "col": "*i32", "perm": "*i32", "val": val or b, "b": b, "bias": val or b, "row_order": "*i32", "out": b}
    signature |= dict.fromkeys(("rows", "n", "b_row", "b_col", "out_row", "out_col"), "i32") | dict.fromkeys(on, "constexpr")
    divisible = [i for i, parameter in enumerate(spmm_kernel.arg_names) if parameter not in on and parameter != "rows"]
    return {"kernel": spmm_kernel, "name": name, "signature": signature, "constexprs": on,
            "attrs": {(i,): [["tt.divisibility", 16]] for i in divisible}}


AOT = [_row("fp32"), _row("fp32, order, bias", ORDER=True, BIAS=True), _row("bf16, fp32 values", b="*bf16", val="*fp32"),
       _row("fp16, transposed", b="*fp16", PERM=True), _row("fp32, narrow", LANES=64, BLOCK=8),
       _row("fp64", b="*fp64", ARITHMETIC=tl.float64, LANES=8), _row("fp32, column-major, int64 crow", crow="*i64", row_major=False, BIAS=True)]

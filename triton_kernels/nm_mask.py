"""nm_mask and nm_apply_: the n largest of every m neighbours, ranked by counting. Bytes per fp32 element: 5 (masks), 8 (apply); bandwidth-bound."""
import torch
import triton
import triton.language as tl

from .mask_bits import pack_mask
from .masked_weight import FLOATS, with_layout

BLOCK = 1024            # elements of a program's tile, rows of one group each


@triton.jit
def selection_key(value, USE_ABS: tl.constexpr):
    # Integers in the order of selection: NaN below every number, -0 equal to +0.
    if value.dtype == tl.float64:
        bits = value.to(tl.int64, bitcast=True)
        size = bits & 0x7FFFFFFFFFFFFFFF
        nan = size > 0x7FF0000000000000
        below = tl.full([], -0x7FFFFFFFFFFFFFFF, tl.int64)
    else:
        bits = value.to(tl.float32).to(tl.int32, bitcast=True)
        size = bits & 0x7FFFFFFF
        nan = size > 0x7F800000
        below = tl.full([], -0x7FFFFFFF, tl.int32)
    key = size
    if not USE_ABS:
        key = tl.where(bits < 0, -size, size)
    return tl.where(nan, below, key)


@triton.jit
def nm_mask_kernel(x, mask, lanes, inner, per_line, length, n, M: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr,
                   USE_ABS: tl.constexpr, APPLY: tl.constexpr):
    # x as [line, length, inner] in memory order. One program owns GROUPS groups: a tile [GROUPS, WIDTH], WIDTH >= M a power of two.
    # The elements of a group come a second time, one after another, from cache. APPLY: x itself is written, +0 where not kept.
    lane = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    group = lane // inner
    first = group % per_line * M
    at = (group // per_line * length + first) * inner + lane % inner
    left = tl.where(lane < lanes, tl.minimum(length - first, M), 0)     # elements of each group
    j = tl.arange(0, WIDTH)
    place = at[:, None] + j[None, :] * inner
    inside = j[None, :] < left[:, None]
    own = selection_key(tl.load(x + place, mask=inside, other=0.0), USE_ABS)
    rank = tl.zeros([GROUPS, WIDTH], tl.int32)
    for k in range(M):
        there = k < left
        other = selection_key(tl.load(x + at + k * inner, mask=there, other=0.0), USE_ABS)[:, None]
        ahead = (other > own) | ((other == own) & (k < j)[None, :])
        rank += (ahead & there[:, None]).to(tl.int32)
    if APPLY:
        tl.debug_barrier()                                              # a group's threads may lie in several warps: all have read it
        tl.store(x + place, tl.zeros([GROUPS, WIDTH], x.dtype.element_ty), mask=inside & (rank >= n))
    else:
        tl.store(mask + place, (rank < n).to(tl.uint8), mask=inside)


def checked(op, x, n, m, dim):
    """The dimension counted from the front; the checks of the compiled kernels, in their words."""
    if x.dtype not in FLOATS:
        raise TypeError(f"{op}: x: expected float32, bfloat16, float16 or float64, got {x.dtype}")
    if not 1 <= m <= 64:
        raise ValueError(f"{op}: m: expected a group of 1 to 64 elements, got {m}")
    if not 0 <= n <= m:
        hint = "; n is the number kept, not the number of zeros" if n > m else ""
        raise ValueError(f"{op}: n: expected 0 to m = {m} elements kept of each group, got {n}{hint}")
    dims = max(x.dim(), 1)
    if not -dims <= dim < dims:
        raise ValueError(f"{op}: dim: expected a dimension from {-dims} to {dims - 1}, got {dim}")
    return dim % dims


def launch(x, mask, n, m, dim, use_abs, apply):
    """x dense: [outer, length, inner] in memory order, whatever the order of its dimensions."""
    if x.numel() == 0:
        return
    length = x.shape[dim] if x.dim() else 1
    inner = 1 if length == 1 else x.stride(dim)
    outer = x.numel() // (length * inner)
    per_line, width = triton.cdiv(length, m), triton.next_power_of_2(m)
    lanes, groups = outer * per_line * inner, BLOCK // width
    with torch.cuda.device_of(x):
        nm_mask_kernel[(triton.cdiv(lanes, groups),)](x, mask, lanes, inner, per_line, length, n, M=m, WIDTH=width, GROUPS=groups,
                                                      USE_ABS=use_abs, APPLY=apply)


def nm_mask(x, n, m, *, dim=-1, use_abs=True, packed=False):
    dim = checked("nm_mask", x, n, m, dim)
    if packed:
        x = x.contiguous()
    mask = torch.empty_like(x, dtype=torch.bool)
    launch(with_layout(x, mask), mask.view(torch.uint8), n, m, dim, use_abs, False)
    return pack_mask(mask) if packed else mask


def nm_apply_(x, n, m, *, dim=-1):
    dim = checked("nm_apply_", x, n, m, dim)
    if not torch.ops.aten.is_non_overlapping_and_dense(x):
        raise ValueError(f"nm_apply_: x: expected a dense tensor (it is written in place), got sizes {list(x.shape)} "
                         f"with strides {list(x.stride())}; pass a contiguous tensor")
    launch(x, x, n, m, dim, True, True)


def _row(name, x, m, apply, inner="constexpr"):
    width = triton.next_power_of_2(m)
    constants = {"M": m, "WIDTH": width, "GROUPS": BLOCK // width, "USE_ABS": True, "APPLY": apply} | ({"inner": 1} if inner == "constexpr" else {})
    signature = {"x": x, "mask": x if apply else "*u8", "lanes": "i32", "inner": inner, "per_line": "i32", "length": "i32", "n": "i32"}
    return {"kernel": nm_mask_kernel, "name": name, "constexprs": constants, "signature": signature | dict.fromkeys(constants, "constexpr"),
            "attrs": {(0,): [["tt.divisibility", 16]], (1,): [["tt.divisibility", 16]]}}


AOT = [_row("fp32, m = 4", "*fp32", 4, False), _row("bf16, m = 4", "*bf16", 4, False), _row("fp32, m = 16, strided", "*fp32", 16, False, "i32"),
       _row("fp16, m = 64", "*fp16", 64, False), _row("fp32, m = 4, apply", "*fp32", 4, True), _row("bf16, m = 7, apply", "*bf16", 7, True, "i32")]

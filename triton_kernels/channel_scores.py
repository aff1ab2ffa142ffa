"""channel_scores: sums of |weight| under one or two masks, per output channel. Bytes: 4 and the masks per fp32 element; bandwidth-bound.

A program owns a block of channels and walks along their elements, each lane its own sums; the lanes are added once at the end.
Compiled ahead of time and interpreted so far, not yet run on a GPU.
"""
import torch
import triton
import triton.language as tl

from sparsekern.triton_kernels.masked_weight import FLOATS, inside_mask, mask_operand

TILE = 2048                                     # elements of a step


@triton.jit
def channel_scores_kernel(weight, mask_a, mask_b, out, rows, size, beta, one_minus_beta, KIND_A: tl.constexpr, KIND_B: tl.constexpr,
                          ARITHMETIC: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    # KIND_A and KIND_B as in inside_mask; KIND_B = -1: no second mask.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    sum_a = tl.zeros([ROWS, BLOCK], ARITHMETIC)
    sum_b = tl.zeros([ROWS, BLOCK], ARITHMETIC)
    start = tl.zeros([], tl.int64)
    while start < size:
        at = start + tl.arange(0, BLOCK)
        inside = (row < rows)[:, None] & (at < size)[None, :]
        element = row[:, None] * size + at[None, :]
        on_a = inside_mask(mask_a, element, inside, KIND_A)
        on_b = inside & (row < 0)[:, None]
        if KIND_B >= 0:
            on_b = inside_mask(mask_b, element, inside, KIND_B)
        magnitude = tl.abs(tl.load(weight + element, mask=on_a | on_b, other=0.0).to(ARITHMETIC))
        sum_a += tl.where(on_a, magnitude, 0.0)
        if KIND_B >= 0:
            sum_b += tl.where(on_b, magnitude, 0.0)
        start += BLOCK
    score = beta * tl.sum(sum_a, 1)
    if KIND_B >= 0:
        score += one_minus_beta * tl.sum(sum_b, 1)
    tl.store(out + row, score.to(out.dtype.element_ty), mask=row < rows)


def channel_scores(weights, masks_a, masks_b=None, *, beta=1.0):
    for name, masks in (("masks_a", masks_a), ("masks_b", masks_b)):
        if masks is not None and len(masks) != len(weights):
            raise ValueError(f"channel_scores: {name}: expected a list of {len(weights)} tensors like the first list, got {len(masks)}")
    for i, weight in enumerate(weights):
        if weight.dim() == 0:
            raise ValueError(f"channel_scores: weights[{i}]: expected [channels, ...], got a scalar")
        if weight.dtype not in FLOATS:
            raise TypeError(f"channel_scores: weights: expected float32, bfloat16, float16 or float64, got {weight.dtype}")
    return [_scores(i, weight, masks_a[i], None if masks_b is None else masks_b[i], beta) for i, weight in enumerate(weights)]


def _scores(i, weight, mask_a, mask_b, beta):
    packed = any(mask is not None and mask.numel() != 0 and mask.dtype == torch.int32 for mask in (mask_a, mask_b))
    weight = weight if packed else weight.contiguous()
    kind_a, mask_a = mask_operand("channel_scores", f"masks_a[{i}]", mask_a, weight)
    kind_b, mask_b = (-1, weight) if mask_b is None else mask_operand("channel_scores", f"masks_b[{i}]", mask_b, weight)
    rows, size = weight.shape[0], weight.shape[1:].numel()
    double = weight.dtype == torch.float64
    out = weight.new_zeros(rows, dtype=torch.float64 if double else torch.float32)
    if weight.numel() == 0:
        return out
    block = min(triton.next_power_of_2(size), 1024)
    with torch.cuda.device_of(weight):
        channel_scores_kernel[(triton.cdiv(rows, TILE // block),)](
            weight, mask_a, mask_b, out, rows, size, beta, 1 - beta, KIND_A=kind_a, KIND_B=kind_b,
            ARITHMETIC=tl.float64 if double else tl.float32, ROWS=TILE // block, BLOCK=block)
    return out


def _row(name, kind, mask_a, mask_b, kind_a, kind_b, block=1024):
    on = {"KIND_A": kind_a, "KIND_B": kind_b, "ARITHMETIC": tl.float64 if kind == "*fp64" else tl.float32, "ROWS": TILE // block, "BLOCK": block}
    signature = {"weight": kind, "mask_a": mask_a, "mask_b": mask_b, "out": "*fp64" if kind == "*fp64" else "*fp32", "rows": "i32", "size": "i32",
                 "beta": "fp32", "one_minus_beta": "fp32"} | dict.fromkeys(on, "constexpr")
    return {"kernel": channel_scores_kernel, "name": name, "signature": signature, "constexprs": on,
            "attrs": {(i,): [["tt.divisibility", 16]] for i in (0, 1, 2, 5)}}


AOT = [_row("fp32, bools", "*fp32", "*u8", "*fp32", 1, -1), _row("fp32, two bools", "*fp32", "*u8", "*u8", 1, 1),
       _row("fp32, two of bits", "*fp32", "*i32", "*i32", 2, 2), _row("bf16, two bools, short rows", "*bf16", "*u8", "*u8", 1, 1, 64),
       _row("fp16, dense", "*fp16", "*fp16", "*fp16", 0, -1), _row("fp64, bits", "*fp64", "*i32", "*fp64", 2, -1)]

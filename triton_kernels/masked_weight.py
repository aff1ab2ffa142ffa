"""masked_weight: weight where the mask is on, +0 elsewhere. Bytes per fp32 element: 8 + 1 (bool) or 8 + 1/8 (bits); bandwidth-bound."""
import torch
import triton
import triton.language as tl

BLOCK = 2048
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@triton.jit
def inside_mask(mask, element, inside, KIND: tl.constexpr):
    # KIND 0: no mask; 1: one byte per element; 2: one bit per element of the flattened tensor.
    if KIND == 1:
        inside = inside & (tl.load(mask + element, mask=inside, other=0) != 0)
    if KIND == 2:
        word = tl.load(mask + (element >> 5), mask=inside, other=0)
        inside = inside & (((word >> (element & 31).to(tl.int32)) & 1) != 0)
    return inside


@triton.jit
def masked_weight_kernel(weight, mask, out, numel, KIND: tl.constexpr, BLOCK: tl.constexpr):
    # One program owns BLOCK elements in storage order. Hidden weights are not read: the load is predicated by the mask.
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < numel
    kept = tl.load(weight + element, mask=inside_mask(mask, element, inside, KIND), other=0.0)
    if weight.dtype.element_ty == tl.float64 and out.dtype.element_ty != tl.float64:
        kept = kept.to(tl.float32)                                      # torch's own two steps from fp64 to half precision
    tl.store(out + element, kept.to(out.dtype.element_ty), mask=inside)


def mask_operand(op, name, mask, like):
    """(kind, pointer tensor) of a mask for the dense tensor `like`; a bool mask of another layout is copied into `like`'s."""
    if mask.numel() == 0 and (like.numel() != 0 or mask.dim() == 1):
        return 0, like
    if mask.device != like.device:
        raise ValueError(f"{op}: {name}: expected a mask on {like.device}, got {mask.device}")
    if mask.dtype == torch.bool:
        if mask.shape != like.shape:
            raise ValueError(f"{op}: {name}: expected a bool mask of shape {list(like.shape)}, got {list(mask.shape)}")
        return 1, with_layout(mask, like).view(torch.uint8)
    if mask.dtype != torch.int32:
        raise TypeError(f"{op}: {name}: expected a bool mask, packed int32 words or an empty tensor, got {mask.dtype}")
    words = (like.numel() + 31) // 32
    if mask.shape != (words,) or not mask.is_contiguous():
        raise ValueError(f"{op}: {name}: expected {words} contiguous int32 words for {like.numel()} elements, got shape {list(mask.shape)}")
    if not like.is_contiguous():
        raise ValueError(f"{op}: {name}: a packed mask goes with a row-major tensor, got strides {list(like.stride())}; "
                         f"pass the bool mask instead")
    return 2, mask


def with_layout(tensor, like):
    """`tensor` in the strides of the dense tensor `like`, copied only when they differ."""
    if tensor.stride() == like.stride():
        return tensor
    return torch.empty_strided(like.shape, like.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def masked_weight(weight, mask, *, grad_mask=None, grad_masks=None, dense_grad=False, dtype=None):
    """Both overloads; grad masks and dense_grad speak about the gradient only."""
    if not isinstance(weight, torch.Tensor):
        if len(mask) != len(weight):
            raise ValueError(f"masked_weight: masks: expected a list of {len(weight)} tensors like the first list, got {len(mask)}")
        return [_masked_weight(f"masks[{i}]", one, its, dtype) for i, (one, its) in enumerate(zip(weight, mask))]
    return _masked_weight("masks[0]", weight, mask, dtype)


def _masked_weight(name, weight, mask, dtype):
    for what, given in (("weights", weight.dtype), ("dtype", dtype or weight.dtype)):
        if given not in FLOATS:
            raise TypeError(f"masked_weight: {what}: expected float32, bfloat16, float16 or float64, got {given}")
    out = torch.empty_like(weight, dtype=dtype)
    if mask.dtype == torch.int32 and mask.numel():
        kind, pointer = mask_operand("masked_weight", name, mask, weight)
    else:
        weight = with_layout(weight, out)
        kind, pointer = mask_operand("masked_weight", name, mask, weight)
    if out.numel():
        with torch.cuda.device_of(out):
            masked_weight_kernel[(triton.cdiv(out.numel(), BLOCK),)](weight, pointer, out, out.numel(), KIND=kind, BLOCK=BLOCK)
    return out


def _row(name, weight, mask, out, kind):
    return {"kernel": masked_weight_kernel, "name": name, "constexprs": {"KIND": kind, "BLOCK": BLOCK},
                "signature": {"weight": weight, "mask": mask, "out": out, "numel": "i32", "KIND": "constexpr", "BLOCK": "constexpr"},
                "attrs": {(i,): [["tt.divisibility", 16]] for i in range(3)}}


AOT = [_row("fp32, bool", "*fp32", "*u8", "*fp32", 1), _row("fp32, bits", "*fp32", "*i32", "*fp32", 2),
       _row("fp32 to bf16, bool", "*fp32", "*u8", "*bf16", 1), _row("bf16, bool", "*bf16", "*u8", "*bf16", 1),
       _row("fp16, dense", "*fp16", "*fp16", "*fp16", 0)]

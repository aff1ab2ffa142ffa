"""d = <a, b>, q = <b, b>, n = <a, a> over the active elements; then a -= (d / q) b, or an SGD step with that difference.

A program of the products owns 4096 elements and writes its partial sums to a slot of its own; one program per segment adds the
slots in order in fp64 and leaves the coefficient on the device, 0 where there is nothing to project. The second pass starts by
loading it. Bytes per fp32 element: 8, then 12 with a conflict, or 20 (24) with the step; bandwidth-bound.
One launch per tensor: the way on devices without the compiled kernel. The projection is PCGrad's (Yu et al., 2020).
"""
import torch
import triton
import triton.language as tl

BLOCK = 4096
PAIRS = {(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16),
         (torch.float16, torch.float16)}
NO_MASK, BOOLS, BITS = 0, 1, 2


@triton.jit
def _offsets(n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)    # [BLOCK], 64-bit: a tensor may pass 2^31 elements
    return at, at < n


@triton.jit
def _inside(mask, at, valid, KIND: tl.constexpr, INVERT: tl.constexpr):
    if KIND == 0:
        inside = valid
    elif KIND == 1:
        inside = tl.load(mask + at, mask=valid, other=0) != 0
    else:
        inside = ((tl.load(mask + (at >> 5), mask=valid, other=0) >> (at & 31).to(tl.int32)) & 1) != 0
    if INVERT:
        inside = inside == 0
    return inside & valid


@triton.jit(do_not_specialize=["first", "n"])
def _dots_kernel(a, b, mask, partials, first, n, KIND: tl.constexpr, INVERT: tl.constexpr, NORM: tl.constexpr, BLOCK: tl.constexpr):
    at, valid = _offsets(n, BLOCK)
    inside = _inside(mask, at, valid, KIND, INVERT)
    x = tl.load(a + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(b + at, mask=inside, other=0.0).to(tl.float32)
    slot = partials + 3 * (first + tl.program_id(0)).to(tl.int64)
    tl.store(slot, tl.sum(x * y))
    tl.store(slot + 1, tl.sum(y * y))
    if NORM:
        tl.store(slot + 2, tl.sum(x * x))


@triton.jit
def _sum_slots(partials, first, count, column, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    at = first * 0
    while at < count:
        total += tl.load(partials + 3 * (first + at + lanes).to(tl.int64) + column, mask=at + lanes < count, other=0.0).to(tl.float64)
        at += BLOCK
    return tl.sum(total)


@triton.jit(do_not_specialize=["first", "count", "row"])
def _judge_kernel(partials, first, count, row, eps, found_inf, coefficients, stats, FOUND: tl.constexpr, NORM: tl.constexpr,
                  BLOCK: tl.constexpr):
    d = _sum_slots(partials, first, count, 0, BLOCK)
    q = _sum_slots(partials, first, count, 1, BLOCK)
    applied = (d < 0) & (q > tl.load(eps)) & (tl.abs(d) < float("inf")) & (tl.abs(q) < float("inf"))
    if FOUND:
        applied = applied & (tl.load(found_inf) == 0)
    tl.store(coefficients + row, tl.where(applied, d / tl.where(applied, q, 1.0), 0.0).to(tl.float32))
    if NORM:
        n = _sum_slots(partials, first, count, 2, BLOCK)
        scale = tl.sqrt(q) * tl.sqrt(n)
        zero = (q == 0) | (n == 0)
        out = stats + 4 * row
        tl.store(out, d.to(tl.float32))
        tl.store(out + 1, q.to(tl.float32))
        tl.store(out + 2, tl.where(zero, 0.0, d / tl.where(zero, 1.0, scale)).to(tl.float32))
        tl.store(out + 3, applied.to(tl.float32))


@triton.jit(do_not_specialize=["segment", "n"])
def _subtract_kernel(a, b, mask, coefficients, segment, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    coefficient = tl.load(coefficients + segment)
    if coefficient != 0:
        at, valid = _offsets(n, BLOCK)
        inside = _inside(mask, at, valid, KIND, False)
        x = tl.load(a + at, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(b + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(a + at, (x - coefficient * y).to(a.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["segment", "n"])
def _step_kernel(param, a, b, buffer, mask, coefficients, segment, n, lr, weight_decay, momentum, one_minus_dampening, grad_scale,
                 found_inf, KIND: tl.constexpr, INVERT: tl.constexpr, OTHER: tl.constexpr, LR_TENSOR: tl.constexpr, SCALE: tl.constexpr,
                 FOUND: tl.constexpr, DECAY: tl.constexpr, MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr,
                 FIRST: tl.constexpr, ZERO: tl.constexpr, BLOCK: tl.constexpr):
    if FOUND:
        # After an overflow there is nothing to do, and nothing is read.
        n = tl.where(tl.load(found_inf) == 0, n, 0)
    at, valid = _offsets(n, BLOCK)
    inside = _inside(mask, at, valid, KIND, INVERT)
    g = tl.load(a + at, mask=inside, other=0.0).to(tl.float32)
    if OTHER:
        # Without a conflict the other gradient is not read.
        coefficient = tl.load(coefficients + segment)
        if coefficient != 0:
            g -= coefficient * tl.load(b + at, mask=inside, other=0.0).to(tl.float32)
    if SCALE:
        g *= 1.0 / tl.load(grad_scale).to(tl.float32)
    if MAXIMIZE:
        g = -g
    p = tl.load(param + at, mask=inside, other=0.0).to(tl.float32)
    if DECAY:
        g += weight_decay * p
    if MOMENTUM:
        v = g
        if not FIRST:
            v = momentum * tl.load(buffer + at, mask=inside, other=0.0).to(tl.float32) + one_minus_dampening * g
        g = g + momentum * v if NESTEROV else v
        v = tl.where(inside, v, 0.0)
        tl.store(buffer + at, v.to(buffer.dtype.element_ty), mask=valid if ZERO else inside)
    rate = tl.load(lr).to(tl.float32) if LR_TENSOR else lr
    p = tl.where(inside, p - rate * g, 0.0)
    tl.store(param + at, p.to(param.dtype.element_ty), mask=valid if ZERO else inside)


def _flat(op, name, i, tensor, like, *, written=False):
    """The elements as one row in the memory order of `like`; a tensor of another layout is copied unless it is written."""
    if tensor.shape != like.shape:
        raise ValueError(f"{op}: {name}[{i}]: expected shape {list(like.shape)}, got {list(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{op}: {name}[{i}]: expected a tensor on {like.device}, got {tensor.device}; move it with .to()")
    if tensor.stride() != like.stride():
        if written:
            raise ValueError(f"{op}: {name}[{i}]: expected the strides {list(like.stride())}, got {list(tensor.stride())}")
        tensor = torch.empty_strided(like.shape, like.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    return tensor.as_strided((tensor.numel(),), (1,))


def _dense(op, name, i, tensor):
    if not torch.ops.aten.is_non_overlapping_and_dense(tensor):
        raise ValueError(f"{op}: {name}[{i}]: expected a dense tensor (it is written in place), got sizes {list(tensor.shape)} "
                         f"with strides {list(tensor.stride())}; pass a contiguous tensor")


def _mask(op, i, mask, like):
    """The mask's kind and its elements in the memory order of `like`."""
    if mask is None or (mask.numel() == 0 and (like.numel() != 0 or mask.dim() == 1)):
        return NO_MASK, like
    if mask.dtype == torch.bool:
        return BOOLS, _flat(op, "masks", i, mask, like).view(torch.uint8)
    if mask.dtype != torch.int32:
        raise TypeError(f"{op}: masks[{i}]: expected a bool mask, packed int32 words or an empty tensor, got {mask.dtype}")
    words = (like.numel() + 31) // 32
    if mask.shape != (words,) or not mask.is_contiguous():
        raise ValueError(f"{op}: masks[{i}]: expected {words} contiguous int32 words for {like.numel()} elements, "
                         f"got shape {list(mask.shape)}")
    if not like.is_contiguous():
        raise ValueError(f"{op}: masks[{i}]: a packed mask goes with a row-major tensor, "
                         f"got strides {list(like.stride())}; pass the bool mask instead")
    return BITS, mask


def _same_length(op, name, items, first):
    if len(items) != len(first):
        raise ValueError(f"{op}: {name}: expected a list of {len(first)} tensors like the first list, got {len(items)}")


def _others(op, g_i, g_j, like):
    """Per index the flat partner, or None where it takes no part."""
    _same_length(op, "g_j", g_j, g_i)
    for i, (a, b) in enumerate(zip(g_i, g_j)):
        if b.numel() and b.dtype != a.dtype:
            raise TypeError(f"{op}: g_j[{i}]: expected {a.dtype} like g_i, got {b.dtype}")
    return [_flat(op, "g_j", i, b, x) if b.numel() else None for i, (b, x) in enumerate(zip(g_j, like))]


def _coefficients(op, rows, others, masks, invert, per_tensor, eps, stats, found_inf):
    """[S] float32 d / q on the device, 0 where nothing is to be projected."""
    device, segments = rows[0].device, len(rows) if per_tensor else 1
    if stats is not None:
        if stats.dtype != torch.float32:
            raise TypeError(f"{op}: stats: expected float32, got {stats.dtype}")
        if stats.shape != (segments, 4) or not stats.is_contiguous():
            raise ValueError(f"{op}: stats: expected a contiguous [{segments}, 4] tensor, got shape {list(stats.shape)} with strides "
                             f"{list(stats.stride())}")
    first = [0]
    for row, other in zip(rows, others):
        first.append(first[-1] + (0 if other is None else triton.cdiv(row.numel(), BLOCK)))
    partials = torch.empty(max(first[-1], 1), 3, dtype=torch.float32, device=device)
    for i, (row, other, (kind, mask)) in enumerate(zip(rows, others, masks)):
        if first[i + 1] > first[i]:
            _dots_kernel[(first[i + 1] - first[i],)](row, other, mask, partials, first[i], row.numel(), KIND=kind, INVERT=invert,
                                                     NORM=stats is not None, BLOCK=BLOCK)
    coefficients = torch.empty(segments, dtype=torch.float32, device=device)
    least = torch.full((), eps, dtype=torch.float64, device=device)
    for s in range(segments):
        begin, end = (first[s], first[s + 1]) if per_tensor else (0, first[-1])
        _judge_kernel[(1,)](partials, begin, end - begin, s, least, found_inf, coefficients, stats, FOUND=found_inf is not None,
                            NORM=stats is not None, BLOCK=1024)
    return coefficients


def project_conflict_(g_i, g_j, masks=None, per_tensor=False, eps=0.0, stats=None):
    op = "project_conflict_"
    if masks is not None:
        _same_length(op, "masks", masks, g_i)
    for i, a in enumerate(g_i):
        _dense(op, "g_i", i, a)
        if (a.dtype, a.dtype) not in PAIRS:
            raise TypeError(f"{op}: unsupported pair of dtypes: param {a.dtype} with grad {a.dtype}")
    others = _others(op, g_i, g_j, g_i)
    views = [_mask(op, i, None if masks is None else masks[i], a) for i, a in enumerate(g_i)]
    rows = [_flat(op, "g_i", i, a, a) for i, a in enumerate(g_i)]
    coefficients = _coefficients(op, rows, others, views, False, per_tensor, eps, stats, None)
    for i, (row, other, (kind, mask)) in enumerate(zip(rows, others, views)):
        if other is not None and row.numel():
            grid = (triton.cdiv(row.numel(), BLOCK),)
            _subtract_kernel[grid](row, other, mask, coefficients, i if per_tensor else 0, row.numel(), KIND=kind, BLOCK=BLOCK)


def project_conflict_sgd_(params, g_i, g_j, momentum_buffers, masks, *, weight_decay, momentum, lr, dampening, nesterov, maximize,
                          is_first_step, outside="keep", invert=False, assume_clean=False, grad_scale=None, found_inf=None,
                          per_tensor=False, eps=0.0, stats=None):
    op = "project_conflict_sgd_"
    if outside not in ("keep", "zero"):
        raise ValueError(f'{op}: outside: expected "keep" or "zero", got {outside!r}')
    for name, items in (("g_i", g_i), ("masks", masks)) + ((("momentum_buffers", momentum_buffers),) if momentum != 0 else ()):
        _same_length(op, name, items, params)
    for i, (p, a) in enumerate(zip(params, g_i)):
        _dense(op, "params", i, p)
        if (p.dtype, a.dtype) not in PAIRS:
            raise TypeError(f"{op}: unsupported pair of dtypes: param {p.dtype} with grad {a.dtype}")
        if momentum != 0 and momentum_buffers[i].dtype != p.dtype:
            raise TypeError(f"{op}: momentum_buffers[{i}]: expected {p.dtype} like the param, got {momentum_buffers[i].dtype}")
    others = _others(op, g_i, g_j, params)
    rows = [_flat(op, "g_i", i, a, p) for i, (a, p) in enumerate(zip(g_i, params))]
    views = [_mask(op, i, mask, p) for i, (mask, p) in enumerate(zip(masks, params))]
    values = [_flat(op, "params", i, p, p) for i, p in enumerate(params)]
    buffers = values if momentum == 0 else [_flat(op, "momentum_buffers", i, v, p, written=True)
                                            for i, (v, p) in enumerate(zip(momentum_buffers, params))]
    coefficients = _coefficients(op, rows, others, views, invert, per_tensor, eps, stats, found_inf)
    for i, (value, row, other, buffer, (kind, mask)) in enumerate(zip(values, rows, others, buffers, views)):
        if value.numel():
            _step_kernel[(triton.cdiv(value.numel(), BLOCK),)](
                value, row, other, buffer, mask, coefficients, i if per_tensor else 0, value.numel(), lr, weight_decay, momentum,
                1 - dampening, grad_scale, found_inf, KIND=kind, INVERT=invert, OTHER=other is not None,
                LR_TENSOR=isinstance(lr, torch.Tensor), SCALE=grad_scale is not None, FOUND=found_inf is not None,
                DECAY=weight_decay != 0, MOMENTUM=momentum != 0,
                NESTEROV=nesterov, MAXIMIZE=maximize, FIRST=is_first_step, ZERO=outside == "zero", BLOCK=BLOCK)


def _row(kernel, name, signature, **constants):
    return {"kernel": kernel, "name": name, "signature": signature | dict.fromkeys(constants, "constexpr"), "constexprs": constants,
            "attrs": {(i,): [["tt.divisibility", 16]] for i in range(2)}}


_DOTS = {"mask": "*u8", "partials": "*fp32", "first": "i32", "n": "i64"}
_JUDGE = {"partials": "*fp32", "first": "i32", "count": "i32", "row": "i32", "eps": "*fp64", "found_inf": "*fp32", "coefficients": "*fp32",
          "stats": "*fp32"}
_STEP = {"mask": "*u8", "coefficients": "*fp32", "segment": "i32", "n": "i64", "lr": "fp32", "weight_decay": "fp32", "momentum": "fp32",
         "one_minus_dampening": "fp32", "grad_scale": "*fp32", "found_inf": "*fp32"}
_PLAIN = {"KIND": BOOLS, "INVERT": False, "OTHER": True, "LR_TENSOR": False, "SCALE": False, "FOUND": False, "DECAY": True, "MOMENTUM": True,
          "NESTEROV": False, "MAXIMIZE": False, "FIRST": False, "ZERO": False, "BLOCK": BLOCK}
AOT = [
    _row(_dots_kernel, "fp32, bool", {"a": "*fp32", "b": "*fp32"} | _DOTS, KIND=BOOLS, INVERT=False, NORM=True, BLOCK=BLOCK),
    _row(_dots_kernel, "bf16, bits", {"a": "*bf16", "b": "*bf16"} | _DOTS | {"mask": "*i32"}, KIND=BITS, INVERT=False, NORM=False, BLOCK=BLOCK),
    _row(_judge_kernel, "stats, scaler", _JUDGE, FOUND=True, NORM=True, BLOCK=1024),
    _row(_subtract_kernel, "fp32, bool", {"a": "*fp32", "b": "*fp32", "mask": "*u8", "coefficients": "*fp32", "segment": "i32", "n": "i64"},
         KIND=BOOLS, BLOCK=BLOCK),
    _row(_step_kernel, "fp32, bool", {"param": "*fp32", "a": "*fp32", "b": "*fp32", "buffer": "*fp32"} | _STEP, **_PLAIN),
    _row(_step_kernel, "bf16 grad, bits, zero, scaler, tensor lr", {"param": "*fp32", "a": "*bf16", "b": "*bf16", "buffer": "*fp32"} | _STEP
         | {"mask": "*i32", "lr": "*fp32"}, **_PLAIN | {"KIND": BITS, "ZERO": True, "SCALE": True, "FOUND": True, "LR_TENSOR": True}),
]

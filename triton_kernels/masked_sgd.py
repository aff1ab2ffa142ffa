"""masked_sgd_ and packed_sgd_: one launch per tensor over its flat storage, where csrc/cuda is not built.

Bytes per fp32 element: 20 + 1 (bool) or 20 + 1/8 (bits); bandwidth-bound.
"""
import torch
import triton
import triton.language as tl

from .masked_weight import inside_mask, mask_operand, with_layout

BLOCK = 1024
PAIRS = {(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float16),
         (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)}


@triton.jit
def sgd_step(p, g, v, weight_decay, momentum, lr, undamped, HAS_MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr,
             FIRST: tl.constexpr):
    # torch.optim.SGD: sign, coupled decay, momentum (a first step copies the gradient), dampening, nesterov. All fp32.
    if MAXIMIZE:
        g = -g
    g = tl.where(weight_decay != 0.0, g + p * weight_decay, g)          # 0 * inf must not reach the gradient
    if HAS_MOMENTUM:
        if FIRST:
            v = g
        else:
            v = v * momentum + g * undamped
        if NESTEROV:
            g = g + v * momentum
        else:
            g = v
    return p - g * lr, v


@triton.jit
def rescale(g, grad_scale, HAS_SCALE: tl.constexpr):
    if HAS_SCALE:
        g = g * (1.0 / tl.load(grad_scale).to(tl.float32))
    return g


@triton.jit
def learning_rate(lr, LR_TENSOR: tl.constexpr):
    if LR_TENSOR:
        return tl.load(lr).to(tl.float32)
    else:
        return lr


@triton.jit
def masked_sgd_kernel(param, grad, buffer, mask, grad_scale, found_inf, lr, weight_decay, momentum, undamped, numel, KIND: tl.constexpr,
                      INVERT: tl.constexpr, ZERO: tl.constexpr, HAS_MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr,
                      MAXIMIZE: tl.constexpr, FIRST: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_FOUND: tl.constexpr,
                      LR_TENSOR: tl.constexpr, BLOCK: tl.constexpr):
    # v = mu v + (1 - damp)(g + wd p);  p -= lr (v or g + mu v) inside the mask; outside untouched, or +0 with ZERO.
    # One program owns BLOCK elements in storage order; hidden ones are neither read nor, unless ZERO, written.
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if HAS_FOUND:
        numel = tl.where(tl.load(found_inf) == 0.0, numel, 0)           # an overflow anywhere: nothing changes
    bounds = element < numel
    inside = inside_mask(mask, element, bounds, KIND)
    if INVERT:
        inside = bounds & (inside == 0)
    p = tl.load(param + element, mask=inside, other=0.0).to(tl.float32)
    g = rescale(tl.load(grad + element, mask=inside, other=0.0).to(tl.float32), grad_scale, HAS_SCALE)
    v = p
    if HAS_MOMENTUM:
        v = tl.load(buffer + element, mask=inside, other=0.0).to(tl.float32)
    p, v = sgd_step(p, g, v, weight_decay, momentum, learning_rate(lr, LR_TENSOR), undamped, HAS_MOMENTUM, NESTEROV, MAXIMIZE, FIRST)
    written = inside
    if ZERO:
        p = tl.where(inside, p, 0.0)
        v = tl.where(inside, v, 0.0)
        written = bounds
    tl.store(param + element, p.to(param.dtype.element_ty), mask=written)
    if HAS_MOMENTUM:
        tl.store(buffer + element, v.to(buffer.dtype.element_ty), mask=written)


@triton.jit
def packed_sgd_kernel(value, grad, buffer, index, grad_scale, found_inf, lr, weight_decay, momentum, undamped, numel, GATHER: tl.constexpr,
                      HAS_MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, MAXIMIZE: tl.constexpr, FIRST: tl.constexpr,
                      HAS_SCALE: tl.constexpr, HAS_FOUND: tl.constexpr, BLOCK: tl.constexpr):
    # The same update of stored nonzeros; with GATHER their gradients lie at `index` in a dense gradient.
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if HAS_FOUND:
        numel = tl.where(tl.load(found_inf) == 0.0, numel, 0)
    inside = element < numel
    source = element
    if GATHER:
        source = tl.load(index + element, mask=inside, other=0).to(tl.int64)
    p = tl.load(value + element, mask=inside, other=0.0).to(tl.float32)
    g = rescale(tl.load(grad + source, mask=inside, other=0.0).to(tl.float32), grad_scale, HAS_SCALE)
    v = p
    if HAS_MOMENTUM:
        v = tl.load(buffer + element, mask=inside, other=0.0).to(tl.float32)
    p, v = sgd_step(p, g, v, weight_decay, momentum, lr, undamped, HAS_MOMENTUM, NESTEROV, MAXIMIZE, FIRST)
    tl.store(value + element, p.to(value.dtype.element_ty), mask=inside)
    if HAS_MOMENTUM:
        tl.store(buffer + element, v.to(buffer.dtype.element_ty), mask=inside)


def _check_lengths(op, count, **lists):
    for name, items in lists.items():
        if len(items) != count:
            raise ValueError(f"{op}: {name}: expected a list of {count} tensors like the first list, got {len(items)}")


def _check_types(op, param, grad):
    if (param.dtype, grad.dtype) not in PAIRS:
        raise TypeError(f"{op}: unsupported pair of dtypes: param {param.dtype} with grad {grad.dtype}; supported on this device: equal "
                        f"float32, bfloat16 or float16, and float32 params with bfloat16 or float16 grads")


def _momentum(op, i, buffers, param, momentum):
    """The buffer of a param; without momentum the param stands in for the pointer and is not read."""
    if momentum == 0:
        return param
    buffer = buffers[i]
    if buffer.shape != param.shape:
        raise ValueError(f"{op}: momentum_buffers[{i}]: expected shape {list(param.shape)}, got {list(buffer.shape)}")
    if buffer.dtype != param.dtype:
        raise TypeError(f"{op}: momentum_buffers[{i}]: expected {param.dtype} like the param, got {buffer.dtype}")
    if buffer.stride() != param.stride():
        raise ValueError(f"{op}: momentum_buffers[{i}]: expected the param's strides {list(param.stride())}, got {list(buffer.stride())}; "
                         f"allocate it with torch.zeros_like(param)")
    return buffer


def _dense(tensor):
    """Whether the tensor fills one block of storage, each place once."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape) if size != 1):
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def masked_sgd_(params, grads, momentum_buffers, masks, *, weight_decay, momentum, lr, dampening, nesterov, maximize, is_first_step,
                outside="keep", invert=False, assume_clean=False, grad_scale=None, found_inf=None):
    op = "masked_sgd_"
    _check_lengths(op, len(params), grads=grads, masks=masks, **({"momentum_buffers": momentum_buffers} if momentum != 0 else {}))
    if outside not in ("keep", "zero"):
        raise ValueError(f'{op}: outside: expected "keep" or "zero", got "{outside}"')
    checked = []
    for i, (param, grad) in enumerate(zip(params, grads)):              # every error before the first launch
        if not _dense(param):
            raise ValueError(f"{op}: params[{i}]: expected a dense tensor (it is written in place), got sizes {list(param.shape)} with "
                             f"strides {list(param.stride())}; pass a contiguous tensor")
        if grad.shape != param.shape:
            raise ValueError(f"{op}: grads[{i}]: expected shape {list(param.shape)}, got {list(grad.shape)}")
        _check_types(op, param, grad)
        buffer = _momentum(op, i, momentum_buffers, param, momentum)
        checked.append((param, with_layout(grad, param), buffer, *mask_operand(op, f"masks[{i}]", masks[i], param)))
    for param, grad, buffer, kind, mask in checked:
        if param.numel() == 0:
            continue
        if isinstance(lr, torch.Tensor):
            lr = lr.to(param.device, non_blocking=True)                 # schedulers may keep it on the host
        with torch.cuda.device_of(param):
            masked_sgd_kernel[(triton.cdiv(param.numel(), BLOCK),)](
                param, grad, buffer, mask, param if grad_scale is None else grad_scale, param if found_inf is None else found_inf, lr,
                float(weight_decay), float(momentum), 1.0 - dampening, param.numel(), KIND=kind, INVERT=invert,
                ZERO=outside == "zero" and not assume_clean, HAS_MOMENTUM=momentum != 0, NESTEROV=nesterov, MAXIMIZE=maximize,
                FIRST=is_first_step, HAS_SCALE=grad_scale is not None, HAS_FOUND=found_inf is not None,
                LR_TENSOR=isinstance(lr, torch.Tensor), BLOCK=BLOCK, enable_fp_fusion=False)


def packed_sgd_(values, grads, momentum_buffers, indices, *, weight_decay, momentum, lr, dampening, nesterov, maximize, is_first_step,
                grad_scale=None, found_inf=None):
    op = "packed_sgd_"
    _check_lengths(op, len(values), grads=grads, indices=indices, **({"momentum_buffers": momentum_buffers} if momentum != 0 else {}))
    checked = []
    for i, (value, grad, index) in enumerate(zip(values, grads, indices)):
        if value.dim() != 1 or not value.is_contiguous():
            raise ValueError(f"{op}: values[{i}]: expected a contiguous vector of nonzeros, got sizes {list(value.shape)} with strides "
                             f"{list(value.stride())}")
        _check_types(op, value, grad)
        if index is not None and index.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{op}: indices[{i}]: expected int32 or int64, got {index.dtype}")
        if index is not None and index.shape != value.shape:
            raise ValueError(f"{op}: indices[{i}]: expected one index per value, {list(value.shape)}, got {list(index.shape)}")
        if index is None and grad.numel() != value.numel():
            raise ValueError(f"{op}: grads[{i}]: expected a packed gradient of {value.numel()} values, got {grad.numel()}; "
                             f"pass indices[{i}] to gather from a dense one")
        buffer = _momentum(op, i, momentum_buffers, value, momentum)
        checked.append((value, grad.contiguous(), buffer, None if index is None else index.contiguous()))
    for value, grad, buffer, index in checked:
        if value.numel() == 0:
            continue
        with torch.cuda.device_of(value):
            packed_sgd_kernel[(triton.cdiv(value.numel(), BLOCK),)](
                value, grad, buffer, value if index is None else index, value if grad_scale is None else grad_scale,
                value if found_inf is None else found_inf, float(lr), float(weight_decay), float(momentum), 1.0 - dampening, value.numel(),
                GATHER=index is not None, HAS_MOMENTUM=momentum != 0, NESTEROV=nesterov, MAXIMIZE=maximize, FIRST=is_first_step,
                HAS_SCALE=grad_scale is not None, HAS_FOUND=found_inf is not None, BLOCK=BLOCK, enable_fp_fusion=False)


_FLAGS = dict.fromkeys(("HAS_MOMENTUM", "NESTEROV", "MAXIMIZE", "FIRST", "HAS_SCALE", "HAS_FOUND", "BLOCK"), "constexpr")
_SCALARS = {"lr": "fp32", "weight_decay": "fp32", "momentum": "fp32", "undamped": "fp32", "numel": "i32"}


def _masked_row(name, param, grad, mask, lr="fp32", **flags):
    on = {"KIND": 1, "INVERT": False, "ZERO": False, "LR_TENSOR": lr != "fp32", "HAS_MOMENTUM": True, "NESTEROV": False, "MAXIMIZE": False,
          "FIRST": False, "HAS_SCALE": False, "HAS_FOUND": False, "BLOCK": BLOCK} | flags
    signature = {"param": param, "grad": grad, "buffer": param, "mask": mask, "grad_scale": "*fp32", "found_inf": "*fp32", **_SCALARS,
                 "KIND": "constexpr", "INVERT": "constexpr", "ZERO": "constexpr", **_FLAGS, "LR_TENSOR": "constexpr"} | {"lr": lr}
    return {"kernel": masked_sgd_kernel, "name": name, "signature": signature, "constexprs": on,
                "attrs": {(i,): [["tt.divisibility", 16]] for i in range(4)}}


def _packed_row(name, index, **flags):
    on = {"GATHER": True, "HAS_MOMENTUM": True, "NESTEROV": False, "MAXIMIZE": False, "FIRST": False, "HAS_SCALE": False, "HAS_FOUND": False,
          "BLOCK": BLOCK} | flags
    signature = {"value": "*fp32", "grad": "*fp32", "buffer": "*fp32", "index": index, "grad_scale": "*fp32", "found_inf": "*fp32",
                 **_SCALARS, "GATHER": "constexpr", **_FLAGS}
    return {"kernel": packed_sgd_kernel, "name": name, "signature": signature, "constexprs": on,
                "attrs": {(i,): [["tt.divisibility", 16]] for i in range(4)}}


AOT = [_masked_row("fp32, bool", "*fp32", "*fp32", "*u8"),
       _masked_row("fp32 with bf16 grad, bits, zero", "*fp32", "*bf16", "*i32", KIND=2, ZERO=True),
       _masked_row("bf16, scaler, tensor lr", "*bf16", "*bf16", "*u8", lr="*fp32", HAS_SCALE=True, HAS_FOUND=True, NESTEROV=True),
       _packed_row("fp32, gathered", "*i32"), _packed_row("fp32, packed", "*fp32", GATHER=False)]

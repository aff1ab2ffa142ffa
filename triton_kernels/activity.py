"""activity: sums over positions of |x|, or of x under random signs, per feature or per convolution tap.

A first launch makes the sign bits, one Philox counter for 128 positions. Then a program sums a chunk of positions for a block of
features, each lane its own, straight from x: a tap is an offset, nothing is unfolded (x comes R * S times from the caches). The last
launch adds the chunks of a feature in order, in fp64. Bandwidth-bound. Compiled ahead of time and interpreted so far, not yet run on
a GPU.
"""
import torch
import triton
import triton.language as tl

TILE, STEPS = 2048, 16                          # elements of a tile, tiles of a chunk
SUMS = 32                                       # features of a program of the last launch


@triton.jit(do_not_specialize=["first"])
def signs_kernel(seed, words, first, blocks, BLOCK: tl.constexpr):
    # Bit i & 31 of word (i >> 5) & 3 of counter (i >> 7, 0, 1) is the sign of number i; a set bit is -1.
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    counter = at.to(tl.int64) + first
    w0, w1, w2, w3 = tl.philox(tl.load(seed), (counter & 0xFFFFFFFF).to(tl.uint32), (counter >> 32).to(tl.uint32), 0, 1)
    place, valid = words + 4 * at.to(tl.int64), at < blocks
    tl.store(place, w0.to(tl.int32, bitcast=True), mask=valid)
    tl.store(place + 1, w1.to(tl.int32, bitcast=True), mask=valid)
    tl.store(place + 2, w2.to(tl.int32, bitcast=True), mask=valid)
    tl.store(place + 3, w3.to(tl.int32, bitcast=True), mask=valid)


@triton.jit(do_not_specialize=["shift"])
def partial_kernel(x, words, partials, features, positions, shift, x_n, x_h, x_w, x_c, out_h, out_w, height, width, taps_w, taps, stride_h,
                   stride_w, padding_h, padding_w, dilation_h, dilation_w, SIGNED: tl.constexpr, FLAT: tl.constexpr, WINDOW: tl.constexpr,
                   FEATURES_LAST: tl.constexpr, ARITHMETIC: tl.constexpr, INDEX: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
                   STEPS: tl.constexpr):
    # partials[chunk, f] = sum over the chunk's positions b of |x| or s_b x; the tile's faster side lies along x's own.
    blocks = tl.cdiv(features, BLOCK)
    chunk = tl.program_id(0) // blocks
    f = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    feature = f[None, :] if FEATURES_LAST else f[:, None]
    channel = feature // taps if WINDOW else feature
    row, column = feature // taps_w % (taps // taps_w) * dilation_h - padding_h, feature % taps_w * dilation_w - padding_w
    total = tl.zeros([LANES, BLOCK] if FEATURES_LAST else [BLOCK, LANES], ARITHMETIC)
    for step in range(STEPS):
        b = chunk.to(INDEX) * (STEPS * LANES) + step * LANES + tl.arange(0, LANES)
        b = b[:, None] if FEATURES_LAST else b[None, :]
        valid = (b < positions) & (feature < features)
        if FLAT:
            at = b.to(tl.int64) * x_w + channel.to(tl.int64) * x_c
        else:
            n, h, w = b // (out_h * out_w), b // out_w % out_h, b % out_w
            if WINDOW:
                h, w = h * stride_h + row, w * stride_w + column
                valid = valid & (h >= 0) & (h < height) & (w >= 0) & (w < width)
            at = n.to(tl.int64) * x_n + h.to(tl.int64) * x_h + w.to(tl.int64) * x_w + channel.to(tl.int64) * x_c
        value = tl.load(x + at, mask=valid, other=0.0).to(ARITHMETIC)
        if SIGNED:
            number = b + shift
            negative = (tl.load(words + (number >> 5), mask=b < positions, other=0) >> (number & 31).to(tl.int32)) & 1
            total += tl.where(negative != 0, -value, value)
        else:
            total += tl.abs(value)
    sums = tl.sum(total, 0 if FEATURES_LAST else 1)
    tl.store(partials + chunk.to(tl.int64) * features + f, sums, mask=f < features)


@triton.jit
def sum_kernel(partials, out, features, chunks, LANES: tl.constexpr, BLOCK: tl.constexpr):
    f = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([LANES, BLOCK], tl.float64)
    start = 0
    while start < chunks:
        chunk = start + tl.arange(0, LANES)
        total += tl.load(partials + chunk[:, None].to(tl.int64) * features + f[None, :], mask=(chunk < chunks)[:, None] & (f < features)[None, :],
                         other=0.0).to(tl.float64)
        start += LANES
    tl.store(out + f, tl.sum(total, 0).to(out.dtype.element_ty), mask=f < features)


def _leading(x):
    """[(size, stride)] of the leading dimensions, neighbours merged where one stride serves both."""
    merged = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1]):
        if merged and merged[-1][1] == stride * size:
            merged[-1] = (merged[-1][0] * size, stride)
        elif size != 1:
            merged.append((size, stride))
    return merged


def _window(x, kernel_size, stride, padding, dilation):
    """The integers of partial_kernel from out_h on; kernel_size etc. of two numbers."""
    size = [(x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    if min(size) < 0:
        raise ValueError(f"activity: kernel_size: expected a window that fits the padded input {list(x.shape[2:])}, got an output of {size}")
    return size, (*size, *x.shape[2:], kernel_size[1], kernel_size[0] * kernel_size[1], *stride, *padding, *dilation)


def _check(x, signed, seed, offset, kernel_size, stride, padding, dilation):
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise TypeError(f"activity: x: expected float32, bfloat16, float16 or float64, got {x.dtype}")
    if signed:
        if seed is None:
            raise ValueError("activity: seed: expected an int64 tensor with signed=True, got None")
        if seed.dtype != torch.int64:
            raise TypeError(f"activity: seed: expected int64, got {seed.dtype}")
        if seed.numel() != 1:
            raise ValueError(f"activity: seed: expected one number, got shape {list(seed.shape)}")
        if seed.device != x.device:
            raise ValueError(f"activity: seed: expected a tensor on {x.device}, got {seed.device}; move it with .to()")
    if not 0 <= offset <= 2**62:
        raise ValueError(f"activity: offset: expected a number from 0 to 2^62, got {offset}")
    if not kernel_size:
        if x.dim() == 0:
            raise ValueError("activity: x: expected [..., features], got a scalar")
        return
    if x.dim() != 4:
        raise ValueError(f"activity: x: expected [N, C, H, W] with kernel_size, got shape {list(x.shape)}")
    for name, numbers, least in (("kernel_size", kernel_size, 1), ("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(numbers) != 2 or min(numbers) < least:
            raise ValueError(f"activity: {name}: expected two numbers >= {least}, got {list(numbers)}")


def _signs(seed, offset, positions):
    """The words of sign bits from the block of `offset` on, and the place of its own bit among them."""
    blocks = triton.cdiv(offset % 128 + positions, 128)
    words = torch.empty(4 * blocks, dtype=torch.int32, device=seed.device)
    signs_kernel[(triton.cdiv(blocks, 256),)](seed, words, offset // 128, blocks, BLOCK=256)
    return words, offset % 128


def activity(x, *, signed=False, seed=None, offset=0, kernel_size=(), stride=(), padding=(), dilation=()):
    stride, padding, dilation = stride or (1, 1), padding or (0, 0), dilation or (1, 1)
    _check(x, signed, seed, offset, kernel_size, stride, padding, dilation)
    if kernel_size:
        (high, wide), sizes = _window(x, kernel_size, stride, padding, dilation)
        positions, features, flat = x.shape[0] * high * wide, x.shape[1] * sizes[5], False
        strides = x.stride(0), x.stride(2), x.stride(3), x.stride(1)
    else:
        if len(_leading(x)) > 3:
            x = x.contiguous()
        lead = _leading(x)
        positions, features, flat = x.shape[:-1].numel(), x.shape[-1], len(lead) <= 1
        lead = [(1, 0)] * (3 - len(lead)) + lead
        (high, wide), strides = [size for size, _ in lead[1:]], (*(stride for _, stride in lead), x.stride(-1))
        sizes = high, wide, high, wide, 1, 1, 1, 1, 0, 0, 1, 1
    out = x.new_zeros(features, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    if features == 0 or positions == 0:
        return out
    features_last = strides[3] == 1 and strides[2] != 1
    block = min(128 if features_last else 16, triton.next_power_of_2(features))
    lanes = TILE // block
    chunks = triton.cdiv(positions, lanes * STEPS)
    with torch.cuda.device_of(x):
        words, shift = _signs(seed, offset, positions) if signed else (None, 0)
        partials = out.new_empty(chunks, features)
        partial_kernel[(triton.cdiv(features, block) * chunks,)](
            x, words, partials, features, positions, shift, *strides, *sizes, SIGNED=signed, FLAT=flat, WINDOW=bool(kernel_size),
            FEATURES_LAST=features_last, ARITHMETIC=tl.float64 if x.dtype == torch.float64 else tl.float32,
            INDEX=tl.int32 if positions + 128 + lanes * STEPS < 2**31 else tl.int64, LANES=lanes, BLOCK=block, STEPS=STEPS)
        sum_kernel[(triton.cdiv(features, SUMS),)](partials, out, features, chunks, LANES=SUMS, BLOCK=SUMS)
    return out


def _row(name, kind="*fp32", signed=False, flat=False, window=False, features_last=False, block=16, wide=False):
    strides = {"x_n": "i32", "x_h": "i32", "x_w": "i32", "x_c": "i32"} | {"x_c" if features_last else "x_w": "constexpr"}
    sizes = dict.fromkeys(partial_kernel.arg_names[10:22], "i32")
    on = {"SIGNED": signed, "FLAT": flat, "WINDOW": window, "FEATURES_LAST": features_last, "LANES": TILE // block, "BLOCK": block, "STEPS": STEPS,
          "ARITHMETIC": tl.float64 if kind == "*fp64" else tl.float32, "INDEX": tl.int64 if wide else tl.int32}
    on |= {name: 1 for name, kind in strides.items() if kind == "constexpr"} | ({} if signed else {"words": None})
    signature = {"x": kind, "words": "*i32", "partials": "*fp64" if kind == "*fp64" else "*fp32", "features": "i32",
                 "positions": "i64" if wide else "i32", "shift": "i32", **strides, **sizes} | dict.fromkeys(on, "constexpr")
    divisible = ("x", "partials", "features", "x_n", "x_h", "x_w") if features_last else ("x", "partials")
    return {"kernel": partial_kernel, "name": name, "signature": signature, "constexprs": on,
            "attrs": {(partial_kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}}


AOT = [
    {"kernel": signs_kernel, "signature": {"seed": "*i64", "words": "*i32", "first": "i64", "blocks": "i32", "BLOCK": "constexpr"},
     "constexprs": {"BLOCK": 256}},
    {"kernel": sum_kernel, "signature": {"partials": "*fp32", "out": "*fp32", "features": "i32", "chunks": "i32", "LANES": "constexpr",
                                         "BLOCK": "constexpr"}, "constexprs": {"LANES": SUMS, "BLOCK": SUMS}},
    _row("fp32, linear", flat=True, features_last=True, block=128), _row("bf16, linear, signs", "*bf16", True, True, features_last=True, block=128),
    _row("fp32, linear, transposed, 64-bit", flat=True, wide=True, signed=True), _row("fp32, NCHW"), _row("fp16, NCHW, signs", "*fp16", True),
    _row("fp32, taps", window=True), _row("fp32, taps, signs", window=True, signed=True),
    _row("bf16, taps, channels-last, signs", "*bf16", True, window=True, features_last=True, block=128),
    _row("fp64, taps, signs", "*fp64", True, window=True),
]

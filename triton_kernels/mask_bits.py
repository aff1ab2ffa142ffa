"""pack_mask, unpack_mask and mask_stats. Bytes: 1 + 1/8 per element to pack or unpack, 1 or 1/8 per element and mask to count."""
import torch
import triton
import triton.language as tl

WORDS = 256             # words of a program: 8,192 elements
BLOCK = 4096            # elements of an unpacking program, bytes or words of a counting one


@triton.jit
def pack_mask_kernel(mask, bits, numel, WORDS: tl.constexpr):
    # bits[w] = sum over k of mask[32 w + k] << k. One program owns WORDS words; a row of 32 bytes becomes one word.
    word = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    place = tl.arange(0, 32)
    element = word[:, None] * 32 + place[None, :]                       # [WORDS, 32]
    on = tl.load(mask + element, mask=element < numel, other=0) != 0
    packed = tl.sum(on.to(tl.int32) << place[None, :], axis=1)          # distinct bits: a sum without carries, in [-2^31, 2^31)
    tl.store(bits + word, packed, mask=word * 32 < numel)


@triton.jit
def unpack_mask_kernel(bits, mask, numel, BLOCK: tl.constexpr):
    # mask[i] = bits[i >> 5] >> (i & 31) & 1. One program owns BLOCK elements; 32 of them read one word, from cache.
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = element < numel
    word = tl.load(bits + (element >> 5), mask=inside, other=0)
    tl.store(mask + element, ((word >> (element & 31).to(tl.int32)) & 1).to(tl.uint8), mask=inside)


@triton.jit
def popcount(x):
    # Bits of each int32 word, in parallel by halves; shifts of negative words bring in ones, which the masks drop.
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return (x + (x >> 16)) & 0x3F


@triton.jit
def mask_stats_kernel(a, b, stats, numel, PACKED: tl.constexpr, HAS_B: tl.constexpr, BLOCK: tl.constexpr):
    # stats[0:4] += |a|, |b|, |a and b|, |a xor b|. One program owns BLOCK words (or bytes) and adds its counts once;
    # integer sums do not depend on the order of the atomics.
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    x = tl.load(a + at, mask=inside, other=0)
    if PACKED:
        count_a = tl.sum(popcount(x), axis=0)
    else:
        x = (x != 0).to(tl.int32)
        count_a = tl.sum(x, axis=0)
    tl.atomic_add(stats, count_a.to(tl.int64), sem="relaxed")
    if HAS_B:
        y = tl.load(b + at, mask=inside, other=0)
        if PACKED:
            count_b = tl.sum(popcount(y), axis=0)
            both = tl.sum(popcount(x & y), axis=0)
        else:
            y = (y != 0).to(tl.int32)
            count_b = tl.sum(y, axis=0)
            both = tl.sum(x & y, axis=0)
        tl.atomic_add(stats + 1, count_b.to(tl.int64), sem="relaxed")
        tl.atomic_add(stats + 2, both.to(tl.int64), sem="relaxed")
        tl.atomic_add(stats + 3, (count_a + count_b - 2 * both).to(tl.int64), sem="relaxed")


def pack_mask(mask):
    if mask.dtype != torch.bool:
        raise TypeError(f"pack_mask: mask: expected bool, got {mask.dtype}; compare first, e.g. mask != 0")
    numel = mask.numel()
    bits = mask.new_empty([(numel + 31) // 32], dtype=torch.int32)
    if numel:
        with torch.cuda.device_of(mask):
            pack_mask_kernel[(triton.cdiv(numel, 32 * WORDS),)](mask.contiguous().view(torch.uint8), bits, numel, WORDS=WORDS)
    return bits


def unpack_mask(bits, shape):
    numel = torch.Size(shape).numel()
    if bits.dtype != torch.int32:
        raise TypeError(f"unpack_mask: bits: expected int32 words, got {bits.dtype}")
    if bits.shape != ((numel + 31) // 32,):
        raise ValueError(f"unpack_mask: bits: expected [{(numel + 31) // 32}] words for shape {list(shape)} ({numel} elements), "
                         f"got {list(bits.shape)}")
    mask = bits.new_empty(shape, dtype=torch.bool)
    if numel:
        with torch.cuda.device_of(bits):
            unpack_mask_kernel[(triton.cdiv(numel, BLOCK),)](bits.contiguous(), mask.view(torch.uint8), numel, BLOCK=BLOCK)
    return mask


def mask_stats(a, b=None):
    if b is not None and len(b) != len(a):
        raise ValueError(f"mask_stats: b: expected a list of {len(a)} tensors like the first list, got {len(b)}")
    if not a:
        return torch.zeros(0, 4, dtype=torch.int64)
    stats = a[0].new_zeros([len(a), 4], dtype=torch.int64)
    for i, (one, row) in enumerate(zip(a, stats)):
        two = one if b is None else b[i]
        if one.dtype not in (torch.bool, torch.int32):
            raise TypeError(f"mask_stats: a[{i}]: expected a bool mask or packed int32 words, got {one.dtype}")
        if two.dtype != one.dtype:
            raise TypeError(f"mask_stats: b[{i}]: expected {one.dtype} like a[{i}], got {two.dtype}; pack or unpack one of them")
        if two.shape != one.shape:
            raise ValueError(f"mask_stats: b[{i}]: expected shape {list(one.shape)}, got {list(two.shape)}")
        if one.numel() == 0:
            continue
        packed = one.dtype == torch.int32
        one, two = (mask.contiguous() if packed else mask.contiguous().view(torch.uint8) for mask in (one, two))
        with torch.cuda.device_of(one):
            mask_stats_kernel[(triton.cdiv(one.numel(), BLOCK),)](one, two, row, one.numel(), PACKED=packed, HAS_B=b is not None, BLOCK=BLOCK)
    return stats


_ALIGNED = [["tt.divisibility", 16]]
_STATS = {"a": "*i32", "b": "*i32", "stats": "*i64", "numel": "i32", "PACKED": "constexpr", "HAS_B": "constexpr", "BLOCK": "constexpr"}
AOT = [
    {"kernel": pack_mask_kernel, "signature": {"mask": "*u8", "bits": "*i32", "numel": "i64", "WORDS": "constexpr"}, "constexprs": {"WORDS": WORDS},
         "attrs": {(0,): _ALIGNED, (1,): _ALIGNED}},
    {"kernel": unpack_mask_kernel, "signature": {"bits": "*i32", "mask": "*u8", "numel": "i64", "BLOCK": "constexpr"},
         "constexprs": {"BLOCK": BLOCK}, "attrs": {(0,): _ALIGNED, (1,): _ALIGNED}},
    {"kernel": mask_stats_kernel, "name": "packed, two lists", "signature": _STATS, "constexprs": {"PACKED": True, "HAS_B": True, "BLOCK": BLOCK},
         "attrs": {(0,): _ALIGNED, (1,): _ALIGNED}},
    {"kernel": mask_stats_kernel, "name": "bool, one list", "signature": _STATS | {"a": "*u8", "b": "*u8"},
         "constexprs": {"PACKED": False, "HAS_B": False, "BLOCK": BLOCK}, "attrs": {(0,): _ALIGNED, (1,): _ALIGNED}},
]

"""Masks as bits: 32 elements per int32 word, element i in bit i & 31 of word i >> 5 of the flattened tensor."""
import torch
from torch import Tensor

from sparsekern.ops._register import define, fake, reference, uses_triton

define("pack_mask(Tensor mask) -> Tensor")
define("unpack_mask(Tensor bits, int[] shape) -> Tensor")
define("mask_stats(Tensor[] a, Tensor[]? b=None) -> Tensor")

_NO_MASK: dict[torch.device, Tensor] = {}


def packed_words(numel: int) -> int:
    """Number of int32 words that hold the bits of `numel` elements."""
    return (numel + 31) // 32


def no_mask(device: torch.device) -> Tensor:
    """The empty tensor that means "no mask: dense" where an op asks for one."""
    if device not in _NO_MASK:
        _NO_MASK[device] = torch.empty(0, dtype=torch.bool, device=device)
    return _NO_MASK[device]


def dense_mask(mask: Tensor, like: Tensor) -> Tensor:
    """[*like.shape] bool from a bool mask, packed int32 words, or an empty tensor meaning all of it."""
    if mask.numel() == 0:
        return torch.ones_like(like, dtype=torch.bool)
    return mask if mask.dtype == torch.bool else unpack_mask_reference(mask, like.shape)


def check_mask(op: str, name: str, mask: Tensor, like: Tensor) -> None:
    """The checks of the compiled kernels, in their words, for a mask that Python looks at first."""
    if mask.numel() == 0 and (like.numel() != 0 or mask.dim() == 1):
        return
    if mask.device != like.device:
        raise ValueError(f"{op}: {name}: expected a mask on {like.device}, got {mask.device}")
    if mask.dtype == torch.bool:
        if mask.shape != like.shape:
            raise ValueError(f"{op}: {name}: expected a bool mask of shape {list(like.shape)}, got {list(mask.shape)}")
        return
    if mask.dtype != torch.int32:
        raise TypeError(f"{op}: {name}: expected a bool mask, packed int32 words or an empty tensor, got {mask.dtype}")
    if mask.shape != (packed_words(like.numel()),) or not mask.is_contiguous():
        raise ValueError(f"{op}: {name}: expected {packed_words(like.numel())} contiguous int32 words for {like.numel()} elements, "
                         f"got shape {list(mask.shape)}")
    if not like.is_contiguous():
        raise ValueError(f"{op}: {name}: a packed mask goes with a row-major tensor, got strides {list(like.stride())}; "
                         f"pass the bool mask instead")


def pack_mask(mask: Tensor) -> Tensor:
    """One bit per element of a mask, in its logical row-major order.

    Args:
        mask: bool, any shape and strides.
    Returns:
        [ceil(numel / 32)] int32; the bits past the last element are 0.
    Raises:
        TypeError: `mask` is not bool.
    Cost: 1 + 1/8 bytes per element.
    """
    return torch.ops.sparsekern.pack_mask(mask)


@reference("pack_mask")
def pack_mask_reference(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        raise TypeError(f"pack_mask: mask: expected bool, got {mask.dtype}; compare first, e.g. mask != 0")
    words = torch.zeros(packed_words(mask.numel()) * 32, dtype=torch.int32, device=mask.device)
    words[:mask.numel()] = mask.reshape(-1).to(torch.int32)
    place = torch.arange(32, dtype=torch.int32, device=mask.device)
    return (words.view(-1, 32) << place).sum(1, dtype=torch.int64).to(torch.int32)      # bit 31 wraps into the sign


@fake("pack_mask")
def _(mask):
    return mask.new_empty([packed_words(mask.numel())], dtype=torch.int32)


def unpack_mask(bits: Tensor, shape) -> Tensor:
    """The bool mask that `pack_mask` packed.

    Args:
        bits: [ceil(numel / 32)] int32 words.
        shape: sizes of the mask; its number of elements must fit the words.
    Returns:
        `shape` bool, row-major.
    Raises:
        ValueError: another number of words than `shape` needs; on the CPU also set bits past the last element.
        TypeError: `bits` is not int32.
    Cost: 1 + 1/8 bytes per element.
    """
    return torch.ops.sparsekern.unpack_mask(bits, list(shape))


@reference("unpack_mask")
def unpack_mask_reference(bits: Tensor, shape) -> Tensor:
    numel = torch.Size(shape).numel()
    if bits.dtype != torch.int32:
        raise TypeError(f"unpack_mask: bits: expected int32 words, got {bits.dtype}")
    if bits.shape != (packed_words(numel),):
        raise ValueError(f"unpack_mask: bits: expected [{packed_words(numel)}] words for shape {list(shape)} ({numel} elements), "
                         f"got {list(bits.shape)}")
    place = torch.arange(32, dtype=torch.int32, device=bits.device)
    mask = ((bits.reshape(-1, 1) >> place) & 1).bool().view(-1)
    if bits.device.type == "cpu" and mask[numel:].any():                # elsewhere looking would wait for the device
        raise ValueError(f"unpack_mask: bits: expected zeros past element {numel}, got word {int(bits[-1])} at the end; "
                         f"these words belong to another shape")
    return mask[:numel].reshape(shape).clone()


@fake("unpack_mask")
def _(bits, shape):
    return bits.new_empty(shape, dtype=torch.bool)


def mask_stats(a: list[Tensor], b: list[Tensor] | None = None) -> Tensor:
    """Sizes of masks and of what two lists of masks share, counted in one pass and left on the device.

    The union is |a| + |b| - |a and b|; intersection over union follows (take 1 where both masks are empty).

    Args:
        a: masks, each bool of any shape or packed int32 words.
        b: None, or masks that match those of `a` in form and shape.
    Returns:
        [len(a), 4] int64: |a|, |b|, |a and b|, |a xor b|; without `b` the last three are 0.
    Raises:
        ValueError: lists or masks of different sizes. TypeError: one mask packed and the other not.
    Cost: 1 byte (bool) or 1/8 byte (packed) per element and mask.
    """
    if not a:
        return torch.zeros(0, 4, dtype=torch.int64)
    return torch.ops.sparsekern.mask_stats(a, b)


def check_stats_lists(a, b) -> None:
    if b is not None and len(b) != len(a):
        raise ValueError(f"mask_stats: b: expected a list of {len(a)} tensors like the first list, got {len(b)}")
    for i, mask in enumerate(a):
        if mask.dtype not in (torch.bool, torch.int32):
            raise TypeError(f"mask_stats: a[{i}]: expected a bool mask or packed int32 words, got {mask.dtype}")
        if b is None:
            continue
        if b[i].dtype != mask.dtype:
            raise TypeError(f"mask_stats: b[{i}]: expected {mask.dtype} like a[{i}], got {b[i].dtype}; pack or unpack one of them")
        if b[i].shape != mask.shape:
            raise ValueError(f"mask_stats: b[{i}]: expected shape {list(mask.shape)}, got {list(b[i].shape)}")


@reference("mask_stats")
def mask_stats_reference(a, b=None) -> Tensor:
    check_stats_lists(a, b)

    def bools(mask: Tensor) -> Tensor:
        return mask if mask.dtype == torch.bool else unpack_mask_reference(mask, [mask.numel() * 32])
    if not a:
        return torch.zeros(0, 4, dtype=torch.int64)
    rows = []
    for i, mask in enumerate(a):
        one = bools(mask)
        two = bools(b[i]) if b is not None else torch.zeros_like(one)
        counts = [one.sum(), two.sum(), (one & two).sum(), (one ^ two).sum()]
        rows.append(torch.stack(counts if b is not None else counts[:1] + [torch.zeros_like(counts[0])] * 3))
    return torch.stack(rows)


@fake("mask_stats")
def _(a, b=None):
    return torch.empty(len(a), 4, dtype=torch.int64, device=a[0].device if a else None)


uses_triton("pack_mask", "mask_bits")
uses_triton("unpack_mask", "mask_bits")
uses_triton("mask_stats", "mask_bits")

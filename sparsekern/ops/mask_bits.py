"""Masks as bits: 32 elements per int32 word, element i in bit i & 31 of word i >> 5 of the flattened tensor."""
import torch
from torch import Tensor

from sparsekern.ops._register import define, fake, reference

define("pack_mask(Tensor mask) -> Tensor")
define("unpack_mask(Tensor bits, int[] shape) -> Tensor")


def packed_words(numel: int) -> int:
    """Number of int32 words that hold the bits of `numel` elements."""
    return (numel + 31) // 32


def pack_mask(mask: Tensor) -> Tensor:
    return torch.ops.sparsekern.pack_mask(mask)


@reference("pack_mask")
def pack_mask_reference(mask: Tensor) -> Tensor:
    words = torch.zeros(packed_words(mask.numel()) * 32, dtype=torch.int32, device=mask.device)
    words[:mask.numel()] = mask.reshape(-1).to(torch.int32)
    place = torch.arange(32, dtype=torch.int32, device=mask.device)
    return (words.view(-1, 32) << place).sum(1, dtype=torch.int64).to(torch.int32)      # bit 31 wraps into the sign


@fake("pack_mask")
def _(mask):
    return mask.new_empty([packed_words(mask.numel())], dtype=torch.int32)


def unpack_mask(bits: Tensor, shape) -> Tensor:
    return torch.ops.sparsekern.unpack_mask(bits, list(shape))


@reference("unpack_mask")
def unpack_mask_reference(bits: Tensor, shape) -> Tensor:
    numel = torch.Size(shape).numel()
    place = torch.arange(32, dtype=torch.int32, device=bits.device)
    return ((bits.view(-1, 1) >> place) & 1).bool().view(-1)[:numel].view(shape)


@fake("unpack_mask")
def _(bits, shape):
    return bits.new_empty(shape, dtype=torch.bool)

"""The masks of many sub-nets over one weight in few bits: equal ones once, whole rows as one bit, nested ones as levels."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsekern import ops
from sparsekern.ops.mask_bits import packed_words


@dataclass(frozen=True)
class Chain:
    """Masks of one weight of which each lies within the one before.

    An element's level is the number of masks that keep it; mask number i keeps what has a level above i. S masks have S + 1 levels, which
    take ceil(log2(S + 1)) bits an element: 4 for ten nested masks, and 1 for a mask that is alone.

    planes: int32 [ceil(log2(S + 1)), ceil(elements / 32)]; plane p holds bit p of every level, packed as `ops.pack_mask` does.
    members: per mask, largest first, the places of the sub-nets that have it.
    rows: the elements are the weight's output rows, which stand or fall as a whole.
    """
    planes: Tensor
    members: tuple[tuple[int, ...], ...]
    rows: bool

    def words(self, position: int) -> Tensor:
        """int32 words of the elements that mask number `position` keeps."""
        above, equal = torch.zeros_like(self.planes[0]), torch.full_like(self.planes[0], -1)
        for place in reversed(range(len(self.planes))):
            plane = self.planes[place]
            if position >> place & 1:
                equal = equal & plane
            else:
                above, equal = above | (equal & plane), equal & ~plane
        return above

    def mask(self, position: int, shape: Sequence[int]) -> Tensor:
        """bool mask of a weight of this shape."""
        if not self.rows:
            return ops.unpack_mask(self.words(position), shape)
        kept = ops.unpack_mask(self.words(position), shape[:1])
        return kept.view(-1, *[1] * (len(shape) - 1)).expand(shape)

    def packed(self, position: int, shape: Sequence[int]) -> Tensor:
        """The same as words over every element."""
        return ops.pack_mask(self.mask(position, shape)) if self.rows else self.words(position)

    def fault(self, shape: Sequence[int]) -> str | None:
        """What is wrong with these planes for a weight of this shape; None where nothing is."""
        if self.rows and len(shape) < 2:
            return f"rows of a tensor of shape {list(shape)}"
        bits = elements(shape, self.rows)
        wanted = [planes(len(self.members)), packed_words(bits)]
        if self.planes.dtype != torch.int32 or list(self.planes.shape) != wanted:
            return f"expected int32 {wanted} for {len(self.members)} masks over {bits} elements, got {self.planes.dtype} {list(self.planes.shape)}"
        if bits % 32 and bool((self.planes[:, -1] & (-1 << bits % 32)).any()):
            return f"bits past element {bits}"
        if len(self.members) + 1 < 1 << len(self.planes) and bool(self.words(len(self.members)).any()):
            return f"a level above {len(self.members)}"
        return None


def planes(masks: int) -> int:
    """Bits of a level of so many nested masks: ceil(log2(masks + 1))."""
    return masks.bit_length()


def elements(shape: Sequence[int], rows: bool) -> int:
    """Bits of one plane of a weight of this shape."""
    return shape[0] if rows else torch.Size(shape).numel()


def chains(masks: Mapping[int, Tensor], shape: Sequence[int]) -> list[Chain]:
    """The masks of one weight in as few chains as taking the first that fits gives.

    Args:
        masks: {place of the sub-net: int32 words of its mask}; those that keep everything are left out of the result.
        shape: of the weight.
    """
    numel = torch.Size(shape).numel()
    owners: dict[bytes, list[int]] = {}
    distinct: dict[bytes, Tensor] = {}
    for place in sorted(masks):
        key = masks[place].numpy().tobytes()
        owners.setdefault(key, []).append(place)
        distinct.setdefault(key, masks[place])
    split: dict[bool, list[tuple[int, int, bytes, Tensor]]] = {True: [], False: []}
    for key, words in distinct.items():
        count = popcount(words)
        if count < numel:
            row_words = whole_rows(words, shape)
            split[row_words is not None].append((-count, owners[key][0], key, words if row_words is None else row_words))
    found = []
    for rows, family in split.items():
        open_chains: list[list[tuple[bytes, Tensor]]] = []
        for *_, key, words in sorted(family, key=lambda entry: entry[:2]):
            for chain in open_chains:
                if not bool((words & ~chain[-1][1]).any()):
                    chain.append((key, words))
                    break
            else:
                open_chains.append([(key, words)])
        found += [Chain(levels([words for _, words in chain]), tuple(tuple(owners[key]) for key, _ in chain), rows) for chain in open_chains]
    return found


def levels(nested: Sequence[Tensor]) -> Tensor:
    """int32 [planes, words]: how many of the masks keep each element, counted in bits."""
    counted = torch.zeros(planes(len(nested)), len(nested[0]), dtype=torch.int32)
    for carry in nested:
        for plane in counted:
            before = plane.clone()
            plane ^= carry
            carry = carry & before
    return counted


def whole_rows(words: Tensor, shape: Sequence[int]) -> Tensor | None:
    """int32 words of the rows that are kept, where every row is kept as a whole or not at all; else None."""
    if len(shape) < 2:
        return None
    mask = ops.unpack_mask(words, shape).flatten(1)
    kept = mask[:, :1]
    return ops.pack_mask(kept.flatten()) if torch.equal(mask, kept.expand_as(mask)) else None


def popcount(words: Tensor) -> int:
    """Bits that are set."""
    return int(ops.mask_stats([words])[0, 0])

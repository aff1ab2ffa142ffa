"""MaskSet: the named masks over the prunable weights, with their counts known on the host."""
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsekern import ops
from sparsekern.sparsity.timeline import ALL, rest


class MaskSet:
    """One bool mask per layer under each name; True means kept. Writing copies in place, so the tensors stay the same ones.

    `version` grows with every change. Names are those of the sub-nets; `ALL` is always there and masks nothing, and so is `rest(name)`, all
    that a mask hides.

    Args:
        weights: the masked tensors by name.
        counted: per tensor whether it counts as prunable; norms and biases that follow the channels of a weight do not. Default: all do.
    """

    def __init__(self, weights: Mapping[str, Tensor], counted: Sequence[bool] | None = None):
        self.layers = tuple(weights)
        self.numels = [weight.numel() for weight in weights.values()]
        self.counted = [True] * len(self.layers) if counted is None else list(counted)
        self.numel = self._sum(self.numels)
        self.version = 0
        self._weights = list(weights.values())
        self._masks: dict[str, list[Tensor]] = {}
        self._counts: dict[str, list[int]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the masks, in the order they were added."""
        return tuple(self._masks)

    def add(self, name: str) -> None:
        """A new, dense mask."""
        self._masks[name] = [torch.ones_like(weight, dtype=torch.bool, requires_grad=False) for weight in self._weights]
        self._counts[name] = list(self.numels)

    def __getitem__(self, name: str) -> list[Tensor]:
        """The masks in layer order. Read them; `write` changes them."""
        if name.startswith(rest("")):
            return [~mask for mask in self[name[1:]]]
        return self._masks[self._known(name)]

    def active(self, name: str) -> list[Tensor | None]:
        """The masks in layer order, None for a layer of which nothing is masked."""
        if name == ALL:
            return [None] * len(self.layers)
        return [None if count == numel else mask for mask, count, numel in zip(self[name], self.counts(name), self.numels)]

    def counts(self, name: str) -> list[int]:
        """Kept weights per layer, exact, without asking the device."""
        if name.startswith(rest("")):
            return [numel - count for numel, count in zip(self.numels, self.counts(name[1:]))]
        return list(self.numels) if name == ALL else list(self._counts[self._known(name)])

    def nnz(self, name: str) -> int:
        """Kept weights, those that count."""
        return self._sum(self.counts(name))

    def sparsity(self, name: str) -> float:
        """Over all prunable weights together."""
        return 1.0 - self.nnz(name) / self.numel

    def effective_sparsity(self, name: str) -> float:
        """`sparsity`, and what vanishes besides: where whole channels go, the weights that read them, over all weights of such layers."""
        return self.sparsity(name)

    def densities(self, name: str) -> dict[str, float]:
        """{weight: share of it that takes part in products}; weights left out are dense."""
        return {layer: count / numel for layer, count, numel, own in zip(self.layers, self.counts(name), self.numels, self.counted) if own}

    def write(self, name: str, masks: Sequence[Tensor], counts: Sequence[int]) -> None:
        """Replace the masks of a name by ones whose counts are known."""
        torch._foreach_copy_(self[name], list(masks))
        self._counts[name] = list(counts)
        self.version += 1

    def set(self, name: str, masks: Mapping[str, Tensor]) -> None:
        """Replace masks by hand: {layer: bool tensor of the weight's shape}; layers left out keep theirs.

        Raises:
            ValueError: an unknown name or layer, a mask that is not bool or of another shape.
        """
        new = list(self[name])
        for layer, mask in masks.items():
            if layer not in self.layers:
                raise ValueError(f"masks of {name!r}: {layer!r} is not a masked layer; they are {', '.join(self.layers)}")
            index = self.layers.index(layer)
            wanted = list(new[index].shape)
            if mask.dtype != torch.bool or list(mask.shape) != wanted:
                raise ValueError(f"masks of {name!r}: {layer}: expected a bool mask of shape {wanted}, got {mask.dtype} {list(mask.shape)}")
            new[index] = mask.to(new[index].device)
        self.write(name, new, ops.mask_stats(new)[:, 0].tolist())

    def restore(self, masks: Mapping[str, Sequence[Tensor]], counts: Mapping[str, Sequence[int]]) -> None:
        """What `unpacked` returned."""
        for name, saved in masks.items():
            self.write(name, saved, counts[name])

    def packed(self) -> dict[str, Tensor]:
        """{"mask/<name>/<layer>": int32 words}, for a checkpoint."""
        return {f"mask/{name}/{layer}": ops.pack_mask(mask) for name, masks in self._masks.items()
                for layer, mask in zip(self.layers, masks)}

    def unpacked(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, list[Tensor]], dict[str, list[int]]]:
        """The masks and counts that `packed` wrote, checked, with nothing changed here: for `restore`."""
        masks, counts = {}, {}
        for name, own in self._masks.items():
            masks[name] = [ops.unpack_mask(tensors[f"mask/{name}/{layer}"].to(mask.device), mask.shape)
                           for layer, mask in zip(self.layers, own)]
            counts[name] = ops.mask_stats(masks[name])[:, 0].tolist()
        return masks, counts

    def _sum(self, numbers: Sequence[int]) -> int:
        return sum(number for number, own in zip(numbers, self.counted) if own)

    def _known(self, name: str) -> str:
        if name not in self._masks:
            raise ValueError(f"unknown sub-net {name!r}; there are {', '.join(self._masks) or 'none'}")
        return name

"""Masks of earlier events, kept as bits, for the numbers that compare events."""
from collections.abc import Mapping, Sequence

from torch import Tensor

from sparsekern import ops


class PastMasks:
    """Lists of masks under names, one bit per weight."""

    def __init__(self, layers: Sequence[str]):
        self.layers = list(layers)
        self._bits: dict[str, list[Tensor]] = {}

    def keep(self, name: str, masks: Sequence[Tensor]) -> None:
        """Remember bool masks, one per layer, in place of those of that name."""
        self._bits[name] = [ops.pack_mask(mask) for mask in masks]

    def iou(self, name: str, masks: Sequence[Tensor]) -> float | None:
        """Intersection over union of all layers together; None where there is no past."""
        past, now, both = self._sizes(name, masks)
        return both / (past + now - both) if past else None

    def left(self, name: str, masks: Sequence[Tensor]) -> float | None:
        """Share of the remembered positions that `masks` still have; None where there are none."""
        past, _, both = self._sizes(name, masks)
        return both / past if past else None

    def _sizes(self, name: str, masks: Sequence[Tensor]) -> tuple[int, int, int]:
        if name not in self._bits:
            return 0, 0, 0
        past, now, both, _ = ops.mask_stats(self._bits[name], [ops.pack_mask(mask) for mask in masks]).sum(0).tolist()
        return past, now, both

    def tensors(self) -> dict[str, Tensor]:
        """{"past/<name>/<layer>": int32 words}, for a checkpoint."""
        return {f"past/{name}/{layer}": bits for name, masks in self._bits.items() for layer, bits in zip(self.layers, masks)}

    def load(self, tensors: Mapping[str, Tensor], like: Sequence[Tensor]) -> None:
        """Put back what `tensors` gave, on the devices of `like`, one tensor per layer."""
        self._bits.clear()
        for name in dict.fromkeys(key.split("/")[1] for key in tensors if key.startswith("past/")):
            self._bits[name] = [tensors[f"past/{name}/{layer}"].to(own.device, copy=True) for layer, own in zip(self.layers, like)]

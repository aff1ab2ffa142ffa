"""What the comparison of consecutive gradients showed, kept on the device and read on request only."""
import torch
from torch import Tensor

from sparsekern.sparsity.update import Correction, Measured


class ConflictLog:
    """Whole-model inner products <g_t, g_{t-1}> per step, and how often each layer was projected.

    Args:
        steps: length of the run; later steps are not logged.
        layers: number of masked layers.
        device: where the counters live.
    """

    def __init__(self, steps: int, layers: int, device: torch.device):
        self.products = torch.full((steps,), float("nan"), dtype=torch.float32, device=device)       # NaN: not measured
        self.fired = torch.zeros(layers + 1, dtype=torch.float32, device=device)        # the last entry: parameters without a mask
        self.applied_steps = torch.zeros((), dtype=torch.int64)

    def record(self, step: int, correction: Correction | None, measured: list[Measured]) -> None:
        """Add one step; nothing is read back from the device."""
        if not measured or step >= len(self.products):
            return
        totals = [one.products.sum() for one in measured]
        self.products[step] = totals[0] if len(totals) == 1 else sum(totals)
        if correction.apply:
            self.applied_steps += 1
            for one in measured:
                if one.layers is None:
                    self.fired += one.applied
                else:
                    self.fired.index_add_(0, one.layers, one.applied)

    def tensors(self) -> dict[str, Tensor]:
        return {"metric/products": self.products, "metric/fired": self.fired, "metric/applied_steps": self.applied_steps}

    def summary(self, group: int, layers: tuple[str, ...]) -> dict:
        """Sign shares inside groups of `group` steps and between them, and the share of (step, layer) pairs that were projected."""
        products, steps = self.products.cpu(), int(self.applied_steps)
        position = torch.arange(len(products)) % group
        fired = (self.fired[:-1] / max(1, steps)).tolist()
        return {"sign_ratio": {"inner": _signs(products[position != 0]), "inter": _signs(products[position == 0])},
                "projection": {"steps": steps, "fire_rate": sum(fired) / max(1, len(fired)), "per_layer": dict(zip(layers, fired))}}


def _signs(products: Tensor) -> dict:
    measured = int((~products.isnan()).sum())
    return {"measured": measured, "negative": int((products < 0).sum()) / max(1, measured),
            "positive": int((products > 0).sum()) / max(1, measured)}

"""Dense training in the shape of an algorithm, so that a training loop treats the yardstick like the rest."""
import torch

from sparsekern.sparsity.patterns import Unstructured
from sparsekern.sparsity.sparsifier import Sparsifier, overflowed
from sparsekern.sparsity.timeline import ALL, FOREVER, Phase, Timeline, View


class Dense(Sparsifier):
    """No mask and no event: `step()` is the optimizer's own."""
    masked = False

    def make_patterns(self) -> dict[str, Unstructured]:
        return {"dense": Unstructured(0.0)}

    def make_timeline(self) -> Timeline:
        return Timeline((Phase("dense", FOREVER, View(ALL, ALL)),))

    def step(self, max_norm: float | None = None, scaler: torch.amp.GradScaler | None = None) -> None:
        if scaler is None or not overflowed(scaler, self.optimizer):
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_([param for group in self.optimizer.param_groups for param in group["params"]], max_norm)
            self.optimizer.step()
        self.steps += 1

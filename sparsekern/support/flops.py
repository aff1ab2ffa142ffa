"""FLOPs of a forward pass, dense and under masks, and of training: 2 per multiply-add, convolutions and linear layers only."""
from collections.abc import Mapping

import torch
from torch import nn


@torch.no_grad()
def layer_flops(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Dense forward FLOPs per sample by the name of the layer's weight, measured by one hooked forward of one black image.

    A layer that runs several times counts several times; biases, norms and activations are left out, as in the papers.
    """
    counts: dict[str, int] = {}

    def count(name: str, module: nn.Module):
        per_output = module.weight.numel() // module.weight.shape[0]           # multiply-adds per output value
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            raise ValueError(f"layer_flops: {name}: transposed convolutions are not supported")
        def hook(_module, _inputs, output):
            counts[name] = counts.get(name, 0) + 2 * per_output * output.numel()
        return hook

    hooks, was_training = [], model.training
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            hooks.append(module.register_forward_hook(count(f"{name}.weight" if name else "weight", module)))
    parameter = next(model.parameters())
    try:
        model.eval()
        model(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return counts


def sparse_flops(dense: Mapping[str, int], density: Mapping[str, float], others: float = 1.0) -> float:
    """Forward FLOPs per sample when the weight `name` has the share `density[name]` of nonzeros; others have the share `others`."""
    return float(sum(flops * density.get(name, others) for name, flops in dense.items()))


class TrainingFlops:
    """Sums what the three products of each step cost, times the samples of the step: 3 zeta where all use one sub-net.

    zeta is the forward FLOPs of a sub-net at that step; forward, gradient of the inputs and gradient of the weights cost one zeta each,
    of the masks that they use. Dense gradients on the few mask-event steps are not added, as in the papers' formulas.
    """

    def __init__(self):
        self.total = 0.0
        self.samples = 0

    def add(self, forward: float, input_grad: float | None = None, weight_grad: float | None = None, *, extra: float = 0.0,
            samples: int) -> None:
        """A step whose products cost so much per sample; those left out cost as much as the forward one. `extra`: forward passes besides."""
        backward = (forward if input_grad is None else input_grad) + (forward if weight_grad is None else weight_grad)
        self.total += (forward + backward + extra) * samples
        self.samples += samples

    @property
    def per_sample(self) -> float:
        """Mean over all samples so far: (1/T) times the sum over steps of 3 zeta."""
        return self.total / self.samples if self.samples else 0.0

    def state_dict(self) -> dict:
        return {"total": self.total, "samples": self.samples}

    def load_state_dict(self, state: Mapping) -> None:
        self.total, self.samples = float(state["total"]), int(state["samples"])

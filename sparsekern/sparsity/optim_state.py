"""The optimizer's side: who owns what, momentum where torch keeps it, and nothing moving outside a mask."""
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def check_owned(optimizer: Optimizer, params: Mapping[str, nn.Parameter]) -> None:
    """ValueError naming the parameters that the optimizer does not hold."""
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    missing = [name for name, param in params.items() if param.requires_grad and id(param) not in held]
    if missing:
        raise ValueError(f"the optimizer does not own {', '.join(missing)}; build it from the parameters of this very model "
                         f"(after moving it to its device)")


def fused_sgd(optimizer: Optimizer) -> bool:
    """Whether the fused update computes what this optimizer computes: torch's own SGD, without dampening.

    Dampening depends on each parameter's first gradient, and parameters get theirs at different steps.
    """
    return type(optimizer) is torch.optim.SGD and not any(group["dampening"] or group["differentiable"] for group in optimizer.param_groups)


def momentum_buffers(optimizer: Optimizer, params: Sequence[Tensor]) -> list[Tensor]:
    """SGD's buffers, in `optimizer.state` as torch has them; made of zeros where they are missing."""
    buffers = []
    for param in params:
        state = optimizer.state[param]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(param, requires_grad=False)
        buffers.append(state["momentum_buffer"])
    return buffers


def shaped_state(optimizer: Optimizer, param: Tensor) -> dict[str, Tensor]:
    """The optimizer's state of a parameter that has one entry per weight: momentum, moments."""
    return {key: value for key, value in optimizer.state.get(param, {}).items()
            if isinstance(value, Tensor) and value.shape == param.shape}


class Outside:
    """Keeps parameters and their same-shaped optimizer state outside masks through any optimizer's step, bit for bit."""

    def __init__(self, optimizer: Optimizer, params: Sequence[Tensor], masks: Sequence[Tensor | None]):
        self.optimizer = optimizer
        self.saved = [(param, mask, param.detach().clone(), {key: value.clone() for key, value in shaped_state(optimizer, param).items()})
                      for param, mask in zip(params, masks) if mask is not None and param.grad is not None]

    def restore(self) -> None:
        for param, mask, value, state in self.saved:
            param.copy_(torch.where(mask, param, value))
            for key, tensor in shaped_state(self.optimizer, param).items():
                if key in state:
                    tensor.copy_(torch.where(mask, tensor, state[key]))
                else:
                    tensor.masked_fill_(~mask, 0)               # made by this very step

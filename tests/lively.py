"""Models as after some training."""
import torch
from torch import nn


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms with scales, shifts and statistics of their own; the model itself."""
    draws = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=draws)
            module.bias.data.normal_(0, 0.3, generator=draws)
            module.running_mean.normal_(0, 0.3, generator=draws)
            module.running_var.uniform_(0.5, 2, generator=draws)
    return model

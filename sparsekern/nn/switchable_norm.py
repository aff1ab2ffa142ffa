"""Switchable batch norm: every sub-net has its own scale, shift and running statistics.

The module stays what it is; its tensors are exchanged. Bank 0 is the module's own tensors, so a model with one sub-net, or after
`remove`, is the plain model. The tensors of the other banks belong to the NormBanks, and to the optimizer.
"""
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

_PARAMETERS = ("weight", "bias")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class NormBanks:
    """One set of batch-norm tensors per sub-net for each of the given modules.

    Args:
        modules: (name, module) pairs, one per distinct module.
        banks: number of sub-nets; with one bank there is nothing to switch.
    """

    def __init__(self, modules: Iterable[tuple[str, _BatchNorm]], banks: int):
        self.modules = list(modules) if banks > 1 else []
        self.banks: list[dict[str, Tensor]] = []                         # per bank: "<module>.<tensor>" -> tensor
        self._places: list[list[tuple[dict, str, Tensor]]] = []          # per bank: what to put where
        self.shown = 0
        for bank in range(max(1, banks)):
            tensors, places = {}, []
            for name, module in self.modules:
                for table, keys in ((module._parameters, _PARAMETERS), (module._buffers, _BUFFERS)):
                    for key in keys:
                        own = table.get(key)
                        if own is not None:
                            tensors[f"{name}.{key}"] = tensor = own if bank == 0 else _twin(own)
                            places.append((table, key, tensor))
            self.banks.append(tensors)
            self._places.append(places)

    def show(self, bank: int) -> None:
        """Let the modules hold the tensors of one bank."""
        if bank != self.shown:
            for table, key, tensor in self._places[bank]:
                table[key] = tensor
            self.shown = bank

    def parameters(self, bank: int) -> list[nn.Parameter]:
        return [tensor for tensor in self.banks[bank].values() if isinstance(tensor, nn.Parameter)]

    def owned(self) -> dict[str, nn.Parameter]:
        """The modules' own parameters by name."""
        return {name: tensor for name, tensor in self.banks[0].items() if isinstance(tensor, nn.Parameter)}

    @torch.no_grad()
    def fold(self, bank: int) -> None:
        """Copy a bank into the modules' own tensors."""
        if bank < len(self.banks):
            for name, own in self.banks[0].items():
                own.copy_(self.banks[bank][name])

    def join(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the parameters of the further banks to the group that holds the module's own, so that schedulers see them."""
        group_of = {param: group for group in optimizer.param_groups for param in group["params"]}
        for bank in self.banks[1:]:
            for name, tensor in bank.items():
                group = group_of.get(self.banks[0][name]) if isinstance(tensor, nn.Parameter) else None
                if group is not None:
                    group["params"].append(tensor)

    def leave(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the further banks out of the optimizer."""
        gone = {param for bank in range(1, len(self.banks)) for param in self.parameters(bank)}
        for group in optimizer.param_groups:
            group["params"] = [param for param in group["params"] if param not in gone]
        for param in gone:
            optimizer.state.pop(param, None)


class HeldStatistics:
    """Running statistics that can stand still: held, the norms of a model in training normalise by the batch and record nothing."""

    def __init__(self, model: nn.Module):
        self.norms = [module for module in model.modules() if isinstance(module, _NormBase) and module.track_running_stats]
        self.held = False

    def hold(self, held: bool) -> None:
        if held != self.held:
            for norm in self.norms:
                norm.track_running_stats = not held                     # in evaluation the statistics are used either way
            self.held = held


def find_norms(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """The batch-norm modules in registration order."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def _twin(tensor: Tensor) -> Tensor:
    copy = tensor.detach().clone()
    return nn.Parameter(copy, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy

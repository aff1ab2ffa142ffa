"""The processes of a distributed run, which must agree on every connection."""
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """All ranks at once. Its process group is its own: sums are made inside the backward pass, between those of DistributedDataParallel.

    Make it on every rank at the same point of the program. Without a distributed run there is one rank, and nothing is sent.
    """

    def __init__(self):
        self.count = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self.rank = dist.get_rank() if self.count > 1 else 0
        self._group = dist.new_group() if self.count > 1 else None

    def sum(self, *tensors: Tensor) -> Sequence[Tensor]:
        """The sums over the ranks, in one message."""
        if self.count == 1 or not tensors:
            return tensors
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=self._group)
        return [part.view_as(tensor) for part, tensor in zip(flat.split([tensor.numel() for tensor in tensors]), tensors)]

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace the tensors by their means over the ranks."""
        if self.count > 1:
            for tensor, total in zip(tensors, self.sum(*tensors)):
                tensor.copy_(total / self.count)

"""Random sparse weights, made without their dense ones: how an always-sparse layer begins."""
import math

import torch
from torch import Tensor


def wanted_nnz(where: str, rows: int, cols: int, sparsity: float | None, nnz: int | None) -> int:
    """How many weights a fresh [rows, cols] layer gets: `nnz`, or floor((1 - sparsity) * rows * cols + 1/2).

    Raises:
        ValueError: not exactly one of the two, a value out of range, or a sparsity that leaves the layer empty.
    """
    if (sparsity is None) == (nnz is None):
        raise ValueError(f"{where}: expected either sparsity= or nnz=, got {'both' if nnz is not None else 'neither'}")
    total = rows * cols
    if sparsity is None:
        if not 0 <= nnz <= total:
            raise ValueError(f"{where}: nnz: expected 0 to {total}, the size of the weight, got {nnz}")
        return nnz
    if not 0.0 <= sparsity < 1.0:
        percent = f"; did you mean {sparsity / 100:g}?" if 1 < sparsity < 100 else ""
        raise ValueError(f"{where}: sparsity: expected a fraction of zeros in [0, 1), got {sparsity}{percent}")
    count = math.floor((1.0 - sparsity) * total + 0.5)
    if count == 0 and total:
        raise ValueError(f"{where}: sparsity {sparsity} leaves none of the {total} weights; lower it to at most {1 - 1 / total:.6g}")
    return count


def random_pattern(rows: int, cols: int, nnz: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """crow [rows + 1], col [nnz] of `nnz` distinct places, every set of them equally likely.

    Works on sorted int64 keys: about 16 bytes per nonzero while it runs, whatever the size of the dense weight.
    """
    keys = _distinct(nnz, rows * cols, generator)
    crow = torch.searchsorted(keys, torch.arange(rows + 1) * cols)
    return crow.to(torch.int32 if nnz < 2**31 else torch.int64), keys.remainder_(max(cols, 1)).int()


def fan_in_scale(crow: Tensor) -> Tensor:
    """[rows] float32 sqrt(3 / fan-in) with each row's own number of weights (at least 1): U(-1, 1) times it has variance 1 / fan-in."""
    return (3.0 / crow.diff().clamp_(min=1)).sqrt_()


def initial_values(crow: Tensor, nnz: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """[nnz] values from U(-1, 1) * sqrt(3 / fan-in of the row)."""
    values = _signed_uniform(nnz, generator)
    return values.mul_(torch.repeat_interleave(fan_in_scale(crow), crow.diff())).to(dtype)


def initial_bias(crow: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """[rows] biases from the same law as the row's weights."""
    return _signed_uniform(crow.numel() - 1, generator).mul_(fan_in_scale(crow)).to(dtype)


def _signed_uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator).mul_(2).sub_(1)


def _distinct(count: int, total: int, generator: torch.Generator) -> Tensor:
    """`count` distinct numbers below `total`, sorted: the first `count` different ones of a sequence of independent draws."""
    if count > total // 2:                                      # few are missing: draw those
        absent = torch.ones(total, dtype=torch.bool)
        absent[_distinct(total - count, total, generator)] = False
        return absent.nonzero().squeeze(1)
    keys = torch.randint(max(total, 1), (count,), generator=generator)
    while True:
        keys.numpy().sort()                                     # in place; torch.sort would make three more arrays
        keys = keys.unique_consecutive()
        missing = count - keys.numel()                          # shrinks by the density in each round
        if missing == 0:
            return keys
        keys = torch.cat([keys, torch.randint(total, (missing,), generator=generator)])

"""How a net that is sparse from the first step begins: which connections it has, and their values. Nothing of dense size is made."""
import torch
from torch import Tensor

from sparsekern.sparsity.counter_rng import uniform, words

_POSITIONS, _VALUES, _BIASES = 1, 2, 3


def random_positions(rows: int, cols: int, nnz: int, *keys: int, device: torch.device | str = "cpu") -> Tensor:
    """[nnz] int64, ascending: distinct positions row * cols + col, every subset of that size equally likely.

    Draws pairs and keeps the first `nnz` distinct ones; above half density it draws what is left out. O(nnz) memory up to there.
    """
    size = rows * cols
    if not 0 <= nnz <= size:
        raise ValueError(f"random_positions: nnz: expected 0 to {size} (= {rows} x {cols}), got {nnz}")
    if nnz > size // 2:
        absent = torch.zeros(size, dtype=torch.bool, device=device)
        absent[random_positions(rows, cols, size - nnz, *keys, device=device)] = True
        return (~absent).nonzero().flatten()
    drawn = torch.empty(0, dtype=torch.int64, device=device)
    more = nnz + nnz // 8 + 16
    while True:
        places = 2 * torch.arange(len(drawn), len(drawn) + more, device=device)
        row, col = ((words(places + side, _POSITIONS, *keys) * width) >> 32 for side, width in ((0, rows), (1, cols)))
        drawn = torch.cat([drawn, row * cols + col])
        ordered, order = drawn.sort(stable=True)
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        earliest = order[first].sort().values                       # the draws that were new, in the order they were made
        if len(earliest) >= nnz:
            return drawn[earliest[:nnz]].sort().values
        more = 2 * more


def fan_in_values(positions: Tensor, rows: int, cols: int, *keys: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Weights [nnz] and biases [rows], uniform in +-sqrt(3 / fan-in) with the fan-in that the row really has (at least 1).

    Source: GSE's initialisation. Every unit's output has about unit variance, however the connections were drawn.
    """
    row = positions // max(cols, 1)
    bound = (3.0 / torch.bincount(row, minlength=rows).clamp(min=1).double()).sqrt()
    values = (2 * uniform(positions, _VALUES, *keys).double() - 1) * bound[row]
    return values.to(dtype), ((2 * uniform(bound, _BIASES, *keys).double() - 1) * bound).to(dtype)

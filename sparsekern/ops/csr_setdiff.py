"""Which of the sampled positions are new: neither active in a CSR pattern nor drawn before."""
import torch
from torch import Tensor

from sparsekern.ops._csr_pattern import check_pattern, row_ids
from sparsekern.ops._register import define, fake, reference

define("csr_setdiff(Tensor rows, Tensor cols, Tensor crow, Tensor col, int n_cols) -> (Tensor rows, Tensor cols, Tensor count)")

_op = torch.ops.sparsekern.csr_setdiff.default
_LAST = 2**63 - 1                                           # sorts behind every position


def csr_setdiff(rows: Tensor, cols: Tensor, crow: Tensor, col: Tensor, n_cols: int) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct positions among (rows, cols) that the pattern (crow, col) does not hold, sorted by row and column.

    Args:
        rows, cols: [S] int32, positions in any order, repeated or not. One with a negative row or column is padding and left out.
        crow, col: the CSR pattern, int32 or int64 [R + 1] and int32 [nnz], columns sorted within each row.
        n_cols: columns of the matrix.
    Returns:
        rows, cols: [S] int32, the first `count` entries valid, the rest -1.
        count: int64, 0-d, on the device.
    Raises:
        ValueError: lengths that disagree, and on the CPU a position outside the matrix (CUDA kernels leave it out) or a malformed pattern.
        TypeError: indices of another dtype.
    Cost: on the CPU one counting sort by row, then a row's positions are marks in a bitmap, from which its columns are wiped;
        on CUDA the same, a row to a block.
    """
    return _op(rows, cols, crow, col, n_cols)


def pattern_keys(crow: Tensor, col: Tensor, cols: int) -> Tensor:
    """[nnz] int64: row * cols + column of each entry."""
    return row_ids(crow, col.numel()) * cols + col


@reference("csr_setdiff")
def csr_setdiff_reference(rows, cols, crow, col, n_cols):
    for name, t in (("rows", rows), ("cols", cols)):
        if t.dtype != torch.int32:
            raise TypeError(f"csr_setdiff: {name}: expected int32, got {t.dtype}")
        if t.dim() != 1 or t.numel() != rows.numel():
            raise ValueError(f"csr_setdiff: {name}: expected one dimension and the length of rows, got shape {list(t.shape)}")
        if t.numel() >= 2**31:
            raise ValueError(f"csr_setdiff: {name}: expected fewer than 2^31 positions, got {t.numel()}")
    n_rows = max(crow.numel() - 1, 0)
    check_pattern("csr_setdiff", crow, col, n_rows, n_cols)
    valid = (rows >= 0) & (cols >= 0)
    outside = valid & ((rows.long() >= n_rows) | (cols.long() >= n_cols))          # as int64: 2^31 columns are allowed
    if rows.device.type == "cpu" and outside.any():
        at = int(outside.nonzero()[0])
        raise ValueError(f"csr_setdiff: rows, cols: expected positions inside {n_rows} x {n_cols}, got ({int(rows[at])}, {int(cols[at])}) at {at}")
    keys = torch.where(valid, rows.long() * n_cols + cols, _LAST).sort().values
    active = torch.cat([pattern_keys(crow, col, n_cols).sort().values, keys.new_full((1,), _LAST)])
    new = (keys != _LAST) & (active[torch.searchsorted(active, keys)] != keys)
    new[1:] &= keys[1:] != keys[:-1]
    # The new ones move to the front by their rank, the others to one place behind the end: no count has to reach the host.
    place = torch.where(new, new.cumsum(0) - 1, keys.numel())
    found = keys.new_full((keys.numel() + 1,), -1).scatter(0, place, torch.where(new, keys, -1))[:-1]
    width = max(n_cols, 1)
    out_rows, out_cols = found.div(width, rounding_mode="floor"), torch.where(found < 0, -1, found % width)
    return out_rows.to(torch.int32), out_cols.to(torch.int32), new.sum()


@fake("csr_setdiff")
def _(rows, cols, crow, col, n_cols):
    return torch.empty_like(rows), torch.empty_like(cols), rows.new_empty((), dtype=torch.int64)

"""What the references of the CSR ops share: the check of a pattern, the row of every nonzero, pieces of bounded size."""
from collections.abc import Iterator

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_ELEMENTS = 1 << 22                                         # of a temporary in one piece of a reference


def check_pattern(op: str, crow: Tensor, col: Tensor, rows: int, cols: int, crow_name: str = "crow", col_name: str = "col") -> None:
    """ValueError or TypeError unless `crow` and `col` are a pattern of [rows, cols]; order and duplicates are `csr_validate`'s business."""
    for name, given, types in ((crow_name, crow, (torch.int32, torch.int64)), (col_name, col, (torch.int32,))):
        if given.dtype not in types:
            raise TypeError(f"{op}: {name}: expected int32{' or int64' if len(types) > 1 else ''}, got {given.dtype}")
        if given.dim() != 1:
            raise ValueError(f"{op}: {name}: expected one dimension, got shape {list(given.shape)}")
    if rows < 0 or cols < 0 or cols > 2**31:
        raise ValueError(f"{op}: expected a shape with sides >= 0 and at most 2^31 columns, got {rows} x {cols}")
    if crow.numel() != rows + 1:
        raise ValueError(f"{op}: {crow_name}: expected {rows + 1} row pointers for {rows} rows, got {crow.numel()}")
    if crow.device.type != "cpu":
        return                                              # no read-back: modules validate a pattern when it is made
    if crow[0] != 0:
        raise ValueError(f"{op}: {crow_name}: expected to start at 0, got {crow[0]}")
    falls = (crow.diff() < 0).nonzero().flatten()
    if falls.numel():
        r = int(falls[0])
        raise ValueError(f"{op}: {crow_name}: expected row pointers that never fall, got {crow[r]} then {crow[r + 1]} at row {r}")
    if crow[-1] != col.numel():
        raise ValueError(f"{op}: {crow_name}: expected the last row pointer to be the number of columns stored ({col.numel()}), got {crow[-1]}")
    outside = ((col < 0) | (col.long() >= cols)).nonzero().flatten()    # as int64: 2^31 columns are allowed
    if outside.numel():
        bad = int(outside[0])
        row = int(torch.searchsorted(crow, bad, right=True)) - 1
        raise ValueError(f"{op}: {col_name}: expected columns in [0, {cols}), got {col[bad]} in row {row}, position {bad}")


def check_positions(op: str, name: str, positions: Tensor, count: int, limit: int) -> None:
    """ValueError or TypeError unless `positions` are `count` int32 places in [0, limit), like `perm` of `csr_plan`."""
    if positions.dtype != torch.int32:
        raise TypeError(f"{op}: {name}: expected int32, got {positions.dtype}")
    if positions.dim() != 1:
        raise ValueError(f"{op}: {name}: expected one dimension, got shape {list(positions.shape)}")
    if positions.numel() != count:
        raise ValueError(f"{op}: {name}: expected {count} positions, got {positions.numel()}")
    outside = ((positions < 0) | (positions >= limit)).nonzero().flatten() if positions.device.type == "cpu" else positions[:0]
    if outside.numel():
        raise ValueError(f"{op}: {name}: expected positions in [0, {limit}), got {positions[outside[0]]} at {int(outside[0])}")


def row_ids(crow: Tensor, nnz: int) -> Tensor:
    """int64 [nnz]: the row of every nonzero."""
    return torch.repeat_interleave(torch.arange(crow.numel() - 1, device=crow.device), crow.diff().long(), output_size=nnz)


def pieces(nnz: int, width: int) -> Iterator[slice]:
    """The nonzeros in runs short enough that [run, width] stays a small temporary."""
    step = max(1, _ELEMENTS // max(width, 1))
    return (slice(at, at + step) for at in range(0, nnz, step))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type sums are taken in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32

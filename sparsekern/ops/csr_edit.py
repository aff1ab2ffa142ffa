"""Making and changing sparse patterns: CSR from a mask, the check of a pattern, and dropping and inserting nonzeros.

Row pointers `crow` are int32 or int64 [rows + 1], columns `col` int32 [nnz], sorted and unique within a row.
"""
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekern.ops._csr_pattern import check_pattern, row_ids
from sparsekern.ops._register import define, fake, reference

define("csr_from_mask(Tensor mask, Tensor? values=None, *, int nnz=-1, bool index64=False) -> (Tensor crow, Tensor col, Tensor val)")
define("csr_validate(Tensor crow, Tensor col, int rows, int cols, Tensor? val=None) -> Tensor")
define("csr_replace(Tensor crow, Tensor col, Tensor[] vals, Tensor drop, Tensor rows, Tensor cols, Tensor take, *, "
       "Tensor[]? inserted=None, int nnz=-1) -> (Tensor crow, Tensor col, Tensor[] vals)")

SOUND, POINTER_COUNT, POINTER_START, POINTER_FALLS, POINTER_END, COLUMN_RANGE, COLUMN_ORDER, COLUMN_TWICE, VALUE_COUNT, VALUE_NOT_FINITE = range(10)


def csr_from_mask(mask: Tensor, values: Tensor | None = None, *, nnz: int = -1, index64: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(crow, col, val) of a bool mask, flattened to [rows, everything else].

    Args:
        mask: bool [rows, ...], two dimensions at least, any strides.
        values: of the mask's shape; `val` is what it holds where the mask is on. None: `val` is empty float32. No gradient flows.
        nnz: how many are on, if known: that spares a device the read-back. -1: counted.
        index64: int64 row pointers, else int32.
    Raises:
        ValueError: another shape, a wrong `nnz`, more than 2^31 - 1 nonzeros with int32 pointers. TypeError: a mask that is not bool.
    """
    return torch.ops.sparsekern.csr_from_mask(mask, None if values is None else values.detach(), nnz=nnz, index64=index64)


def csr_validate(crow: Tensor, col: Tensor, rows: int, cols: int, val: Tensor | None = None) -> Tensor:
    """int64 [3]: (fault code, row, position) of the first fault of a pattern; (0, -1, -1) for a sound one. Reads nothing out of bounds.

    The lengths are looked at first, then the row pointers (position counts in `crow`), then the entries from the first on (position counts
    in `col`): column range, order, duplicates and, with `val`, NaN and infinities. The codes are this module's constants.
    `check_csr` makes an error of it.
    """
    return torch.ops.sparsekern.csr_validate(crow, col, rows, cols, val)


def check_csr(crow: Tensor, col: Tensor, rows: int, cols: int, val: Tensor | None = None, *, op: str = "check_csr") -> None:
    """Raise ValueError with the row and the column or position of the first fault of a pattern (`csr_validate`); reads back from a device."""
    code, row, at = csr_validate(crow, col, rows, cols, val).tolist()
    if code != SOUND:
        raise ValueError(f"{op}: " + _words(code, row, at, crow, col, rows, cols, val))


def _words(code: int, row: int, at: int, crow: Tensor, col: Tensor, rows: int, cols: int, val: Tensor | None) -> str:
    if code == POINTER_COUNT:
        return f"crow: expected {rows + 1} row pointers for {rows} rows, got {crow.numel()}"
    if code == POINTER_START:
        return f"crow: expected to start at 0, got {crow[0].item()}"
    if code == POINTER_FALLS:
        return f"crow: expected row pointers that never fall, got {crow[at - 1].item()} then {crow[at].item()} at row {row}"
    if code == POINTER_END:
        return f"crow: expected the last row pointer to be the number of columns stored ({col.numel()}), got {crow[-1].item()}"
    if code == VALUE_COUNT:
        return f"val: expected {col.numel()} values like the columns, got {val.numel()}"
    place = f"in row {row}, position {at}"
    if code == COLUMN_RANGE:
        return f"col: expected columns in [0, {cols}), got {col[at].item()} {place}"
    if code == COLUMN_ORDER:
        return f"col: expected columns that rise within a row, got {col[at - 1].item()} then {col[at].item()} {place}"
    if code == COLUMN_TWICE:
        return f"col: expected each column once in a row, got column {col[at].item()} twice {place}"
    return f"val: expected finite values, got {val[at].item()} in column {col[at].item()} {place}"


def csr_replace(crow: Tensor, col: Tensor, vals: Sequence[Tensor], drop: Tensor, rows: Tensor, cols: Tensor, take: Tensor, *,
                inserted: Sequence[Tensor] | None = None, nnz: int = -1) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The pattern after its nonzeros with `drop` left and the candidates with `take` came in; every array of `vals` goes along.

    Args:
        crow, col: a sound pattern.
        vals: arrays [nnz] of any dtype: value, momentum, ...
        drop: bool [nnz].
        rows, cols: int32 [S], the candidates in any order (sorted by row and column is fastest); an entry of -1 is never taken.
        take: bool [S]; the candidates taken must be distinct and, but for those that `drop` frees, inactive.
        inserted: for each of `vals` an array [S] with the entries of the candidates. None: zeros.
        nnz: the new number of nonzeros, known to the caller. -1: as before, so as many come as go.
    Returns:
        New crow (same dtype), col and list of vals; the inputs are left alone. No gradient flows.
    Raises:
        ValueError: lengths that disagree, a candidate outside the rows, taken twice or already active, a count other than `nnz` (these four
            not on devices: there what is outside is left out, nothing is written past the end, `crow` shows the count of kept and taken, and
            places that stay free are column 0). TypeError: dtypes.
    """
    grown = None if inserted is None else [grown.detach() for grown in inserted]
    return torch.ops.sparsekern.csr_replace(crow, col, [val.detach() for val in vals], drop, rows, cols, take, inserted=grown, nnz=nnz)


# ---- references ----

def _first_fault(crow: Tensor, col: Tensor, cols: int, val: Tensor | None) -> tuple[int, int, int]:
    nnz = col.numel()
    if crow[0] != 0:
        return POINTER_START, 0, 0
    falls = (crow.diff() < 0).nonzero().flatten()
    if falls.numel():
        return POINTER_FALLS, falls[0].item(), falls[0].item() + 1
    if crow[-1] != nnz:
        return POINTER_END, crow.numel() - 2, crow.numel() - 1
    row, code = row_ids(crow, nnz), torch.zeros(nnz, dtype=torch.int64, device=col.device)
    if val is not None:
        code[~torch.isfinite(val)] = VALUE_NOT_FINITE
    if nnz > 1:
        same = row[1:] == row[:-1]
        code[1:][same & (col[1:] < col[:-1])] = COLUMN_ORDER
        code[1:][same & (col[1:] == col[:-1])] = COLUMN_TWICE
    code[(col < 0) | (col.long() >= cols)] = COLUMN_RANGE
    bad = code.nonzero().flatten()
    return (code[bad[0]].item(), row[bad[0]].item(), bad[0].item()) if bad.numel() else (SOUND, -1, -1)


@reference("csr_from_mask")
def csr_from_mask_reference(mask, values=None, *, nnz=-1, index64=False):
    if mask.dtype != torch.bool:
        raise TypeError(f"csr_from_mask: mask: expected bool, got {mask.dtype}")
    if mask.dim() < 2:
        raise ValueError(f"csr_from_mask: mask: expected two dimensions or more, got shape {list(mask.shape)}")
    if values is not None and values.shape != mask.shape:
        raise ValueError(f"csr_from_mask: values: expected the mask's shape {list(mask.shape)}, got {list(values.shape)}")
    flat = mask.flatten(1)
    count = flat.count_nonzero().item() if nnz < 0 or mask.is_cpu else nnz
    if nnz >= 0 and count != nnz:
        raise ValueError(f"csr_from_mask: nnz: expected the number of entries that are on ({count}), got {nnz}")
    if count >= 2**31 and not index64:
        raise ValueError(f"csr_from_mask: {count} nonzeros need int64 row pointers; pass index64=True")
    crow = torch.nn.functional.pad(flat.sum(1).cumsum(0), (1, 0)).to(torch.int64 if index64 else torch.int32)
    col = torch.nonzero_static(flat, size=count)[:, 1].to(torch.int32)
    val = torch.empty(0, device=mask.device) if values is None else values.masked_select(mask)
    return crow, col, val


@fake("csr_from_mask")
def _(mask, values=None, *, nnz=-1, index64=False):
    size = nnz if nnz >= 0 else torch.library.get_ctx().new_dynamic_size()
    val = mask.new_empty(0, dtype=torch.float32) if values is None else values.new_empty(size)
    return mask.new_empty(mask.shape[0] + 1, dtype=torch.int64 if index64 else torch.int32), mask.new_empty(size, dtype=torch.int32), val


@reference("csr_validate")
def csr_validate_reference(crow, col, rows, cols, val=None):
    for name, tensor, dtypes, words in (("crow", crow, (torch.int32, torch.int64), "int32 or int64"), ("col", col, (torch.int32,), "int32")):
        if tensor.dtype not in dtypes:
            raise TypeError(f"csr_validate: {name}: expected {words}, got {tensor.dtype}")
    if val is not None and not val.is_floating_point():
        raise TypeError(f"csr_validate: val: expected float32, bfloat16, float16 or float64, got {val.dtype}")
    if rows < 0 or cols < 0 or crow.dim() != 1 or col.dim() != 1 or crow.numel() != rows + 1:
        fault = POINTER_COUNT, -1, -1
    elif val is not None and val.shape != col.shape:
        fault = VALUE_COUNT, -1, -1
    else:
        fault = _first_fault(crow, col, cols, val)
    return torch.tensor(fault, dtype=torch.int64, device=crow.device)


@fake("csr_validate")
def _(crow, col, rows, cols, val=None):
    return crow.new_empty(3, dtype=torch.int64)


@reference("csr_replace")
def csr_replace_reference(crow, col, vals, drop, rows, cols, take, *, inserted=None, nnz=-1):
    _check_replace(crow, col, vals, drop, rows, cols, take, inserted)
    height, before = max(crow.numel() - 1, 0), col.numel()
    check_pattern("csr_replace", crow, col, height, 2**31)
    keep, take = (~drop).nonzero().flatten(), (take & (rows >= 0) & (cols >= 0)).nonzero().flatten()
    if take.numel() and rows[take].max() >= height:
        at = take[(rows[take] >= height).nonzero()[0, 0]].item()
        raise ValueError(f"csr_replace: rows: expected rows in [0, {height}), got {rows[at].item()} at {at}")
    expected, count = before if nnz < 0 else nnz, keep.numel() + take.numel()
    if count != expected:
        raise ValueError(f"csr_replace: nnz: expected {expected} nonzeros after the change, got {count} "
                         f"({before} - {before - keep.numel()} dropped + {take.numel()} taken)")
    row = torch.cat([row_ids(crow, before)[keep], rows[take].long()])
    both = torch.cat([col[keep], cols[take]])
    key, order = torch.sort(row << 32 | both, stable=True)
    twice = (key.diff() == 0).nonzero().flatten()
    if twice.numel():
        at = key[twice[0]].item()
        raise ValueError(f"csr_replace: rows, cols: expected distinct and inactive candidates, got row {at >> 32}, column {at & (2**32 - 1)} twice")
    counts = torch.bincount(row, minlength=height)
    arrays = []
    for i, val in enumerate(vals):
        grown = val.new_zeros(take.numel()) if inserted is None else inserted[i][take]
        arrays.append(torch.cat([val[keep], grown])[order])
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(crow.dtype), both[order], arrays


def _check_replace(crow, col, vals, drop, rows, cols, take, inserted) -> None:
    for name, tensor, dtype, like, length in (("drop", drop, torch.bool, "nonzeros", col.numel()), ("rows", rows, torch.int32, "rows", rows.numel()),
                                              ("cols", cols, torch.int32, "rows", rows.numel()), ("take", take, torch.bool, "rows", rows.numel())):
        if tensor.dtype != dtype:
            raise TypeError(f"csr_replace: {name}: expected {dtype}, got {tensor.dtype}")
        if tensor.dim() != 1 or tensor.numel() != length:
            raise ValueError(f"csr_replace: {name}: expected shape [{length}] like the {like}, got {list(tensor.shape)}")
    for i, val in enumerate(vals):
        if val.shape != col.shape:
            raise ValueError(f"csr_replace: vals[{i}]: expected shape [{col.numel()}] like the nonzeros, got {list(val.shape)}")
    if inserted is None:
        return
    if len(inserted) != len(vals):
        raise ValueError(f"csr_replace: inserted: expected a list of {len(vals)} tensors like vals, got {len(inserted)}")
    for i, (grown, val) in enumerate(zip(inserted, vals)):
        if grown.shape != rows.shape:
            raise ValueError(f"csr_replace: inserted[{i}]: expected shape [{rows.numel()}] like the rows, got {list(grown.shape)}")
        if grown.dtype != val.dtype:
            raise TypeError(f"csr_replace: inserted[{i}]: expected {val.dtype} like vals[{i}], got {grown.dtype}")


@fake("csr_replace")
def _(crow, col, vals, drop, rows, cols, take, *, inserted=None, nnz=-1):
    size = col.shape[0] if nnz < 0 else nnz
    return torch.empty_like(crow), col.new_empty(size), [val.new_empty(size) for val in vals]

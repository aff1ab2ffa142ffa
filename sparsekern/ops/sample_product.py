"""Positions drawn from a product distribution over rows and columns, and the growth candidates made of them."""
import torch
from torch import Tensor

from sparsekern.ops._csr_pattern import check_pattern
from sparsekern.ops._philox import SAMPLES, check_seed, multiply_high, random_words
from sparsekern.ops._register import define, fake, reference
from sparsekern.ops.csr_setdiff import csr_setdiff_reference, pattern_keys

define("sample_product(Tensor row_weights, Tensor col_weights, int num_samples, *, Tensor seed) -> (Tensor rows, Tensor cols)")
define("gse_candidates(Tensor row_weights, Tensor col_weights, Tensor crow, Tensor col, int num_samples, *, Tensor seed, int rounds=1) "
       "-> (Tensor rows, Tensor cols, Tensor count)")

_sample = torch.ops.sparsekern.sample_product.default
_candidates = torch.ops.sparsekern.gse_candidates.default
_MOST = 2**24                                               # items: above, the sum of a table would pass 2^62
_UNIT = 2.0**38


def sample_product(row_weights: Tensor, col_weights: Tensor, num_samples: int, *, seed: Tensor | int) -> tuple[Tensor, Tensor]:
    """`num_samples` pairs, row and column drawn independently, with replacement, in proportion to their weights.

    The draws are the same on every device, launch shape and thread count, bit for bit:
    1. A weight w becomes the integer round(w / max * 2^38) (fp64, ties to even), at least 1 if w > 0; all zero: 1 each.
       A weight of 0 is never drawn. `table` is the running sum.
    2. Sample i takes the four words of Philox 4x32-10 with key (low, high word of seed) and counter (low, high word of i, 0, 0).
       Words 0 and 1 are the low and high half of the row's 64-bit uniform u, words 2 and 3 those of the column's.
    3. The index is the first whose table entry exceeds the high 64 bits of u * total.

    Args:
        row_weights, col_weights: float32 [R], [C], at most 2^24 each. Negative and NaN weights count as 0. inf is an error on the
            CPU; on a GPU it counts as the largest float.
        num_samples: may be 0.
        seed: int64, one element on the weights' device, or a number.
    Returns:
        rows, cols: int32 [num_samples], in the order of the sample numbers.
    Raises:
        ValueError: no weights though samples are asked for, an infinite weight, a negative number of samples.
        TypeError: weights not float32, seed not int64.
    """
    return _sample(row_weights, col_weights, num_samples, seed=_as_seed(seed, row_weights))


def gse_candidates(row_weights: Tensor, col_weights: Tensor, crow: Tensor, col: Tensor, num_samples: int, *, seed: Tensor | int,
                   rounds: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct inactive positions to grow at: samples of the product distribution without those active and drawn before.

    The samples are those of `sample_product`, taken in order: the first round takes `num_samples`, every further one as many
    as are still missing. Where at least half of the matrix is active all its inactive positions are returned instead.

    Args:
        row_weights, col_weights, seed: as for `sample_product`.
        crow, col: the active positions as a CSR pattern, int32 or int64 [R + 1] and int32 [nnz], columns sorted and distinct.
        num_samples: how many positions are wanted.
        rounds: how often to draw at most; fewer than `num_samples` may come back all the same.
    Returns:
        rows, cols: int32 [num_samples] (of a matrix at least half full: [R * C - nnz]), sorted by row and column; the first `count`
            are valid, the rest -1.
        count: int64, 0-d, on the device.
    Raises:
        ValueError, TypeError: as `sample_product`; `rounds` below 1; on the CPU a malformed pattern.
    Source: Heddes et al., Always-Sparse Training by Growing Connections with Guided Stochastic Exploration (2024).
    """
    return _candidates(row_weights, col_weights, crow, col, num_samples, seed=_as_seed(seed, row_weights), rounds=rounds)


def _as_seed(seed: Tensor | int, like: Tensor) -> Tensor:
    return seed if isinstance(seed, Tensor) else torch.tensor(seed, device=like.device)


def check_sampling(op: str, row_weights: Tensor, col_weights: Tensor, num_samples: int, seed: Tensor, rounds: int = 1) -> None:
    """The checks of the compiled kernels, in their words."""
    for name, weights in (("row_weights", row_weights), ("col_weights", col_weights)):
        if weights.dtype != torch.float32:
            raise TypeError(f"{op}: {name}: expected float32, got {weights.dtype}; convert it with .float()")
        if weights.dim() != 1 or weights.numel() > _MOST:
            raise ValueError(f"{op}: {name}: expected one dimension and at most 2^24 weights, got shape {list(weights.shape)}")
        if weights.device != row_weights.device:
            raise ValueError(f"{op}: {name}: expected a tensor on {row_weights.device}, got {weights.device}; move it with .to()")
    check_seed(op, seed, row_weights.device)
    if num_samples < 0:
        raise ValueError(f"{op}: num_samples: expected a number >= 0, got {num_samples}")
    if num_samples >= 2**31:
        raise ValueError(f"{op}: num_samples: expected fewer than 2^31, got {num_samples}")
    if rounds < 1:
        raise ValueError(f"{op}: rounds: expected a number >= 1, got {rounds}")


def cumulative_table(op: str, name: str, weights: Tensor) -> Tensor:
    """[n] int64, the running sum of the weights as integers; strictly positive at the end."""
    if weights.numel() == 0:
        raise ValueError(f"{op}: {name}: expected at least one weight to draw from, got none")
    if weights.device.type == "cpu" and weights.isinf().any():
        at = int(weights.isinf().nonzero()[0])
        raise ValueError(f"{op}: {name}: expected finite weights, got {weights[at].item()} at {at}")
    usable = torch.where(weights > 0, weights, 0.0).clamp(max=torch.finfo(torch.float32).max).double()
    most = usable.max()
    units = (usable / torch.where(most > 0, most, 1.0) * _UNIT).round().long()
    units = torch.where(usable > 0, units.clamp(min=1), torch.where(most > 0, 0, 1))
    return units.cumsum(0)


def draw(row_table: Tensor, col_table: Tensor, seed: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """int64 rows and columns of the samples with these numbers."""
    words = random_words(seed, number, SAMPLES)
    found = [torch.searchsorted(table, multiply_high(u, table[-1]), right=True)
             for table, u in ((row_table, words[:2]), (col_table, words[2:]))]
    return found[0], found[1]


@reference("sample_product")
def sample_product_reference(row_weights, col_weights, num_samples, *, seed):
    op = "sample_product"
    check_sampling(op, row_weights, col_weights, num_samples, seed)
    if num_samples == 0:
        return row_weights.new_empty(0, dtype=torch.int32), row_weights.new_empty(0, dtype=torch.int32)
    tables = [cumulative_table(op, "row_weights", row_weights), cumulative_table(op, "col_weights", col_weights)]
    rows, cols = draw(*tables, seed, torch.arange(num_samples, device=row_weights.device))
    return rows.to(torch.int32), cols.to(torch.int32)


@reference("gse_candidates")
def gse_candidates_reference(row_weights, col_weights, crow, col, num_samples, *, seed, rounds=1):
    op, n_rows, n_cols = "gse_candidates", row_weights.numel(), col_weights.numel()
    check_sampling(op, row_weights, col_weights, num_samples, seed, rounds)
    check_pattern(op, crow, col, n_rows, n_cols)
    if 2 * col.numel() >= n_rows * n_cols:
        return _complement(op, crow, col, n_rows, n_cols)
    rows = cols = row_weights.new_full((num_samples,), -1, dtype=torch.int32)
    count = drawn = torch.zeros((), dtype=torch.int64, device=row_weights.device)
    if num_samples == 0:
        return rows, cols.clone(), count
    tables = [cumulative_table(op, "row_weights", row_weights), cumulative_table(op, "col_weights", col_weights)]
    place = torch.arange(num_samples, device=row_weights.device)
    for _ in range(rounds):
        fresh = draw(*tables, seed, drawn + place - count)  # read only behind the ones found so far
        drawn = drawn + num_samples - count
        rows, cols = (torch.where(place < count, old, new).to(torch.int32) for old, new in zip((rows, cols), fresh))
        rows, cols, count = csr_setdiff_reference(rows, cols, crow, col, n_cols)
    return rows, cols, count


def _complement(op, crow, col, n_rows, n_cols):
    """All inactive positions; a dense mask is no larger than twice the pattern here."""
    keys = pattern_keys(crow, col, n_cols)
    if keys.device.type == "cpu" and (keys.diff() <= 0).any():
        row = int(keys[1:][keys.diff() <= 0][0]) // n_cols
        raise ValueError(f"{op}: col: expected columns that rise within each row, got others in row {row}")
    inactive = torch.ones(n_rows * n_cols, dtype=torch.bool, device=col.device)
    inactive[keys] = False
    size = n_rows * n_cols - col.numel()
    found = torch.nonzero_static(inactive, size=size).flatten()
    width = max(n_cols, 1)
    return (found // width).to(torch.int32), (found % width).to(torch.int32), torch.full((), size, device=col.device)


@fake("sample_product")
def _(row_weights, col_weights, num_samples, *, seed):
    return tuple(row_weights.new_empty([num_samples], dtype=torch.int32) for _ in range(2))


@fake("gse_candidates")
def _(row_weights, col_weights, crow, col, num_samples, *, seed, rounds=1):
    size = row_weights.numel() * col_weights.numel()
    length = size - col.numel() if 2 * col.numel() >= size else num_samples
    return *(row_weights.new_empty([length], dtype=torch.int32) for _ in range(2)), row_weights.new_empty((), dtype=torch.int64)

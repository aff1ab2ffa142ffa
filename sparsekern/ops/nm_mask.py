"""N:M masks: the n largest of every m neighbours, as a mask or applied in place, and 2:4 masks that hold along rows and columns."""
import functools
import itertools

import torch
from torch import Tensor

from sparsekern.ops._csr_pattern import FLOATS
from sparsekern.ops._register import define, fake, reference, uses_triton
from sparsekern.ops.mask_bits import pack_mask_reference, packed_words

define("nm_mask(Tensor x, int n, int m, *, int dim=-1, bool use_abs=True, bool packed=False) -> Tensor")
define("nm_apply_(Tensor(a!) x, int n, int m, *, int dim=-1) -> ()")
define("nm_mask_transposable(Tensor x, int n=2, int m=4) -> Tensor")

LARGEST_GROUP = 64


@torch.no_grad()
def nm_mask(x: Tensor, n: int, m: int, *, dim: int = -1, use_abs: bool = True, packed: bool = False) -> Tensor:
    """Mark the n largest of every m consecutive elements along `dim`: n is the number kept ("2:4" keeps 2 of 4).

    Ties go to the lowest index. -0 equals +0. NaN ranks below all numbers: it is kept only where fewer than n numbers exist.
    Where `dim` is not divisible by m, the last group has r < m elements and keeps min(n, r) of them.

    Args:
        x: any shape and strides, float32, bfloat16, float16 or (not by the CUDA kernels) float64.
        n, m: 0 <= n <= m <= 64; n = 0 keeps nothing, n = m everything.
        dim: the dimension the groups lie along.
        use_abs: compare magnitudes, else signed values.
        packed: return packed int32 words (`pack_mask`), in row-major order.
    Returns:
        bool in x's shape and strides, or [ceil(numel / 32)] int32.
    Raises:
        ValueError: n, m or dim out of range. TypeError: an unsupported dtype.
    Cost: 5 bytes per fp32 element (packed 4 1/8), m^2 comparisons of lanes per group. The CUDA kernels have not run on a GPU yet.
    """
    return torch.ops.sparsekern.nm_mask(x, n, m, dim=dim, use_abs=use_abs, packed=packed)


@torch.no_grad()
def nm_apply_(x: Tensor, n: int, m: int, *, dim: int = -1) -> None:
    """Set to +0, in place, what `nm_mask(x, n, m, dim=dim)` does not keep; what it keeps stays as it is, bit for bit.

    Args:
        x: dense (its elements fill a block of memory, in any order of dimensions); dtypes and n, m, dim as for `nm_mask`.
    Raises:
        ValueError: x is not dense; n, m or dim out of range. TypeError: an unsupported dtype.
    Cost: 8 bytes per fp32 element.
    """
    torch.ops.sparsekern.nm_apply_(x, n, m, dim=dim)


@torch.no_grad()
def nm_mask_transposable(x: Tensor, n: int = 2, m: int = 4) -> Tensor:
    """The mask that is 2:4 along rows and along columns: for every 4 x 4 block the best of the 90 patterns by sum of magnitudes.

    The sum is taken in float32 (float64 for float64) as (row 0 + row 1) + (row 2 + row 3). Ties go to the first pattern in the
    order of kept columns, (0, 1) before (0, 2) ... before (2, 3), first row first. NaN counts as 0, and magnitudes above 2^124
    (float64: 2^1020) as that, so that inf is one more large number.

    Args:
        x: [rows, cols] with sides divisible by 4, any strides; dtypes as for `nm_mask`. n, m: 2 and 4.
    Returns:
        bool [rows, cols], row-major.
    Raises:
        ValueError: other sides, n or m. TypeError: an unsupported dtype.
    Source: Hubara et al., "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M Transposable Masks", 2021.
    """
    return torch.ops.sparsekern.nm_mask_transposable(x, n, m)


# ---- checks, in the words of the compiled kernels ----

def check_floats(op: str, x: Tensor) -> None:
    if x.dtype not in FLOATS:
        raise TypeError(f"{op}: x: expected float32, bfloat16, float16 or float64, got {x.dtype}")


def check_ratio(op: str, n: int, m: int) -> None:
    """n of m, 0 <= n <= m <= 64."""
    if not 1 <= m <= LARGEST_GROUP:
        raise ValueError(f"{op}: m: expected a group of 1 to {LARGEST_GROUP} elements, got {m}")
    if not 0 <= n <= m:
        hint = "; n is the number kept, not the number of zeros" if n > m else ""
        raise ValueError(f"{op}: n: expected 0 to m = {m} elements kept of each group, got {n}{hint}")


def _check(op: str, x: Tensor, n: int, m: int, dim: int) -> None:
    check_floats(op, x)
    check_ratio(op, n, m)
    dims = max(x.dim(), 1)
    if not -dims <= dim < dims:
        raise ValueError(f"{op}: dim: expected a dimension from {-dims} to {dims - 1}, got {dim}")


# ---- references ----

def _keep(x: Tensor, n: int, m: int, dim: int, use_abs: bool) -> Tensor:
    """bool in x's shape, by two stable sorts: the values, then numbers before NaN before what fills the last group up."""
    if x.dim() == 0:
        return _keep(x[None], n, m, 0, use_abs)[0]
    if x.numel() == 0:
        return torch.zeros_like(x, dtype=torch.bool)
    lines = x.movedim(dim, -1)
    values = lines.abs() if use_abs else lines
    values = torch.where(values == 0, torch.zeros_like(values), values)                 # -0 is 0
    fill = -lines.shape[-1] % m
    rank = torch.nn.functional.pad(values.isnan().to(torch.uint8), (0, fill), value=2).unflatten(-1, (-1, m))
    values = torch.nn.functional.pad(torch.where(values.isnan(), -torch.inf, values), (0, fill)).unflatten(-1, (-1, m))
    order = values.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, rank.gather(-1, order).argsort(dim=-1, stable=True))
    kept = torch.zeros_like(rank, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return kept.flatten(-2)[..., :lines.shape[-1]].movedim(-1, dim)


@reference("nm_mask")
def nm_mask_reference(x, n, m, *, dim=-1, use_abs=True, packed=False) -> Tensor:
    _check("nm_mask", x, n, m, dim)
    mask = _keep(x, n, m, dim, use_abs)
    return pack_mask_reference(mask) if packed else torch.empty_like(x, dtype=torch.bool).copy_(mask)


@reference("nm_apply_")
def nm_apply_reference(x, n, m, *, dim=-1) -> None:
    _check("nm_apply_", x, n, m, dim)
    if not torch.ops.aten.is_non_overlapping_and_dense(x):
        raise ValueError(f"nm_apply_: x: expected a dense tensor (it is written in place), got sizes {list(x.shape)} "
                         f"with strides {list(x.stride())}; pass a contiguous tensor")
    x.masked_fill_(~_keep(x, n, m, dim, True), 0)


def check_transposable(x: Tensor, n: int, m: int) -> None:
    check_floats("nm_mask_transposable", x)
    if (n, m) != (2, 4):
        raise ValueError(f"nm_mask_transposable: n, m: expected 2 of 4, the only transposable pattern there is a kernel for, got {n} of {m}")
    if x.dim() != 2 or x.shape[0] % 4 or x.shape[1] % 4:
        raise ValueError(f"nm_mask_transposable: x: expected a matrix with sides divisible by 4, got shape {list(x.shape)}")


@functools.cache
def transposable_patterns() -> Tensor:
    """bool [90, 4, 4], in the order that decides ties."""
    pairs = torch.tensor([[i in pair for i in range(4)] for pair in itertools.combinations(range(4), 2)])
    every = pairs[torch.tensor(list(itertools.product(range(6), repeat=4)))]
    return every[(every.sum(1) == 2).all(1)]


@reference("nm_mask_transposable")
def nm_mask_transposable_reference(x, n=2, m=4) -> Tensor:
    check_transposable(x, n, m)
    rows, cols = x.shape
    size = x.abs().to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    size = torch.where(size.isnan(), 0, size).clamp(max=2.0**1020 if x.dtype == torch.float64 else 2.0**124)
    blocks = size.reshape(rows // 4, 4, cols // 4, 4).transpose(1, 2)                   # [row, column, 4, 4]
    patterns = transposable_patterns().to(x.device)
    pairs = patterns.nonzero()[:, 2].view(-1, 4, 2)                                     # the two columns that each row of a pattern keeps
    row = [blocks[..., i, pairs[:, i, 0]] + blocks[..., i, pairs[:, i, 1]] for i in range(4)]
    sums = (row[0] + row[1]) + (row[2] + row[3])
    best = (sums == sums.amax(-1, keepdim=True)).int().argmax(-1)                       # the first of equal ones
    return patterns[best].transpose(1, 2).reshape(rows, cols)


# ---- shapes ----

@fake("nm_mask")
def _(x, n, m, *, dim=-1, use_abs=True, packed=False):
    return x.new_empty([packed_words(x.numel())], dtype=torch.int32) if packed else torch.empty_like(x, dtype=torch.bool)


@fake("nm_apply_")
def _(x, n, m, *, dim=-1):
    return None


@fake("nm_mask_transposable")
def _(x, n=2, m=4):
    return x.new_empty(x.shape, dtype=torch.bool)


uses_triton("nm_mask")
uses_triton("nm_apply_", "nm_mask")

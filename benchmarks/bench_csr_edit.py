"""Making, checking and changing sparse patterns, beside what one composes of torch's operations."""
import warnings

import pytest
import torch

from sparsekern import ops
from sparsekern.testing import random_csr

SHAPES = {"1024^2": (1024, 1024), "4096^2": (4096, 4096), "2048x512": (2048, 512)}


def row_ids(crow, nnz):
    return torch.repeat_interleave(torch.arange(crow.numel() - 1), crow.diff().long(), output_size=nnz)


@pytest.mark.parametrize("sparsity", [0.9, 0.98])
@pytest.mark.parametrize("shape", SHAPES)
def bench_from_mask(race, shape, sparsity):
    rows, cols = SHAPES[shape]
    weight = torch.randn(rows, cols)
    mask = torch.rand(rows, cols) >= sparsity
    crow, col, val = ops.csr_from_mask(mask, weight)

    def composed():
        return torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(1).cumsum(0)]).int(), mask.nonzero()[:, 1].int(), weight[mask]

    def verify():
        assert all(torch.equal(got, want) for got, want in zip((crow, col, val), composed()))

    race("csr_from_mask", f"{shape}, {sparsity:.0%} sparse, fp32 values", {
        "sparsekern": lambda: ops.csr_from_mask(mask, weight),
        "count, nonzero, index": composed,
        "(w * mask).to_sparse_csr()": lambda: (weight * mask).to_sparse_csr(),
    }, check={"sparsekern": verify}, targets=[("sparsekern", ">=", 2.0, "count, nonzero, index")])


@pytest.mark.parametrize("sparsity", [0.9, 0.98])
@pytest.mark.parametrize("shape", SHAPES)
def bench_validate(race, shape, sparsity):
    rows, cols = SHAPES[shape]
    crow, col, val = random_csr(rows, cols, sparsity)
    row = row_ids(crow, col.numel())

    def checks():
        rises = (col[1:] > col[:-1]) | (row[1:] != row[:-1])
        return bool((crow.diff() >= 0).all() and (col >= 0).all() and (col < cols).all() and rises.all() and torch.isfinite(val).all())

    race("csr_validate", f"{shape}, {sparsity:.0%} sparse, with values", {
        "sparsekern": lambda: ops.csr_validate(crow, col, rows, cols, val),
        "comparisons, rows known": checks,
        "torch's own check": lambda: torch._validate_sparse_csr_tensor_args(crow, col, val, (rows, cols)),
    }, targets=[("sparsekern", "<=", 1.0, "comparisons, rows known")])


@pytest.mark.parametrize("sparsity", [0.9, 0.98])
@pytest.mark.parametrize("shape", SHAPES)
def bench_replace(race, shape, sparsity):
    """30 % of the nonzeros leave, as many candidates come in; the value and its momentum go along."""
    rows, cols = SHAPES[shape]
    crow, col, val = random_csr(rows, cols, sparsity)
    nnz, momentum = col.numel(), torch.randn_like(val)
    drop = torch.rand(nnz) < 0.3
    new_rows, new_cols, count = ops.csr_setdiff(torch.randint(rows, (nnz,), dtype=torch.int32), torch.randint(cols, (nnz,), dtype=torch.int32),
                                                crow, col, cols)
    take = torch.zeros(nnz, dtype=torch.bool)
    take[torch.randperm(int(count))[:int(drop.sum())]] = True

    def composed():
        keep = ~drop
        key = torch.cat([row_ids(crow, nnz)[keep] * cols + col[keep], new_rows[take].long() * cols + new_cols[take]])
        key, order = key.sort()
        arrays = [torch.cat([array[keep], array.new_zeros(int(take.sum()))])[order] for array in (val, momentum)]
        counts = torch.bincount(key // cols, minlength=rows)
        return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int(), (key % cols).int(), arrays

    def ours():
        return ops.csr_replace(crow, col, [val, momentum], drop, new_rows, new_cols, take)

    def verify():
        got, want = ours(), composed()
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]) and all(torch.equal(x, y) for x, y in zip(got[2], want[2]))

    contenders = {"sparsekern": ours, "cat, sort, index": composed}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                 # torch's sparse layouts are in beta
        race("csr_replace", f"{shape}, {sparsity:.0%} sparse, 30 % replaced, two arrays", contenders, check={"sparsekern": verify},
             targets=[("sparsekern", ">=", 5.0, "cat, sort, index")])

"""Sampled dense-dense products: the gradient of sparse values, and of candidates for growth, without the dense gradient."""
import warnings

import pytest
import torch

from sparsekern import ops
from sparsekern.testing import assert_close, random_csr

SHAPES = {"1024^2": (1024, 1024), "4096^2": (4096, 4096), "3072x768": (3072, 768), "2048x512": (2048, 512)}


def by_columns(tensor):
    return tensor.t().contiguous().t()


def agrees(function, a, b, rows, cols):
    """Whether 2,000 entries of the result are right."""
    def verify():
        at = torch.randint(rows.numel(), (2000,))
        assert_close(function()[at], (a[rows[at].long()].double() * b[cols[at].long()].double()).sum(1), dtype=torch.float32, reduction=a.shape[1])
    return verify


@pytest.mark.parametrize("length", [128, 512])
@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.98])
@pytest.mark.parametrize("shape", SHAPES)
def bench_csr_sddmm(race, shape, sparsity, length):
    rows, cols = SHAPES[shape]
    crow, col, val = random_csr(rows, cols, sparsity)
    a, b = torch.randn(rows, length), torch.randn(cols, length)
    # The operands of a layer's gradient: dY^T and X^T, transposed views of [batch, features].
    a_view, b_view, b_t = by_columns(a), by_columns(b), b.t()
    a_half, b_half = a_view.bfloat16(), b_view.bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                 # torch's CSR layout is in beta
        matrix = torch.sparse_csr_tensor(crow, col, val, (rows, cols))
    row = torch.repeat_interleave(torch.arange(rows), crow.diff().long())
    column = col.long()
    contenders = {
        "sparsekern": lambda: ops.csr_sddmm(crow, col, a, b),
        "sparsekern, column-major operands": lambda: ops.csr_sddmm(crow, col, a_view, b_view),
        "sparsekern, bf16, column-major": lambda: ops.csr_sddmm(crow, col, a_half, b_half),
        "torch.sparse.sampled_addmm": lambda: torch.sparse.sampled_addmm(matrix, a, b_t, beta=0.0).values(),
        "torch.mm, then index": lambda: (a @ b_t)[row, column],
        "torch.mm bf16, then index": lambda: (a_half @ b_half.t())[row, column],
    }
    race("csr_sddmm", f"{shape}, {sparsity:.0%} sparse, N = {length}", contenders,
         check={name: agrees(contenders[name], a, b, row, col) for name in list(contenders)[:2]},
         targets=[("sparsekern", ">=", 1.7, "torch.sparse.sampled_addmm"),
                  ("sparsekern, column-major operands", ">=", 1.7, "torch.sparse.sampled_addmm")],
         notes=lambda medians: [f"{2e-9 * col.numel() * length / medians['sparsekern']:.0f} GFLOP/s"])


@pytest.mark.parametrize("length", [128, 512])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.13, 0.3, 0.5])
def bench_coo_sddmm(race, share, length):
    """Samples of a 4096 x 4096 gradient, sorted by row, as growth asks for them."""
    crow, cols, _ = random_csr(4096, 4096, 1 - share)
    rows = torch.repeat_interleave(torch.arange(4096), crow.diff().long()).int()
    count, shuffle = torch.tensor(cols.numel()), torch.randperm(cols.numel())
    mixed = rows[shuffle], cols[shuffle]
    a, b = torch.randn(length, 4096).t(), torch.randn(length, 4096).t()
    a_half, b_half, row, column = a.bfloat16(), b.bfloat16(), rows.long(), cols.long()
    contenders = {
        "sparsekern": lambda: ops.coo_sddmm(rows, cols, count, a, b),
        "sparsekern, unsorted": lambda: ops.coo_sddmm(*mixed, count, a, b),
        "sparsekern, bf16": lambda: ops.coo_sddmm(rows, cols, count, a_half, b_half),
        "torch.mm, then index": lambda: (a @ b.t())[row, column],
        "torch.mm bf16, then index": lambda: (a_half @ b_half.t())[row, column],
    }
    if share * length < 6:                                              # beyond, its temporaries take gigabytes
        contenders["(a[rows] * b[cols]).sum(1)"] = lambda: (a[row] * b[column]).sum(1)
    targets = [("sparsekern", "<=", 1.0 if share <= 0.13 else 1.5, "torch.mm, then index"),
               ("sparsekern, bf16", "<=", 1.0 if share <= 0.13 else 1.5, "torch.mm bf16, then index"),
               ("sparsekern", ">=", 2.0, "(a[rows] * b[cols]).sum(1)")]
    race("coo_sddmm", f"{share:.0%} of 4096^2, N = {length}", contenders, targets=targets,
         check={"sparsekern": agrees(contenders["sparsekern"], a, b, rows, cols),
                "sparsekern, unsorted": agrees(contenders["sparsekern, unsorted"], a, b, *mixed)})

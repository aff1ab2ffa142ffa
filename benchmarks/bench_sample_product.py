"""Growth candidates: positions drawn from a product distribution, without the active ones and the repeated ones."""
import bisect
import itertools
import random
import time

import pytest
import torch

from sparsekern import ops

LOOP = 10_000                                       # samples of the Python loop; its time is scaled to the others' number


def pattern(n, sparsity):
    """A random CSR pattern of n x n and its sorted flat positions, without a permutation of n * n numbers."""
    flat = torch.randint(n * n, (int((1 - sparsity) * n * n),)).unique()
    crow = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(flat // n, minlength=n).cumsum(0)])
    return crow, (flat % n).to(torch.int32), flat


def torch_composition(row_weights, col_weights, active, samples):
    """What one writes with torch: two multinomials, unique, a search among the active positions."""
    n = col_weights.numel()
    keys = torch.unique(torch.multinomial(row_weights, samples, True) * n + torch.multinomial(col_weights, samples, True))
    found = torch.searchsorted(active, keys).clamp(max=active.numel() - 1)
    keys = keys[active[found] != keys]
    return keys // n, keys % n


def set_loop(draw_row, draw_col, n, active, samples):
    """A loop with a Python set, on LOOP samples; seconds for `samples` of them."""
    taken, start = set(), time.perf_counter()
    for _ in range(LOOP):
        row, col = draw_row(), draw_col()
        if row * n + col not in active:
            taken.add((row, col))
    return (time.perf_counter() - start) * samples / LOOP


def by_bisection(weights):
    sums = list(itertools.accumulate(weights.tolist()))
    return lambda: bisect.bisect(sums, random.random() * sums[-1])


def by_multinomial(weights):
    return lambda: torch.multinomial(weights, 1).item()


@pytest.mark.parametrize("n, sparsity, samples", [(1024, 0.9, 105_000), (4096, 0.9, 1_000_000), (4096, 0.95, 839_000), (4096, 0.99, 168_000),
                                                  (16384, 0.99, 2_684_000)])
def bench_candidates(race, n, sparsity, samples):
    crow, col, active = pattern(n, sparsity)
    row_weights, col_weights, seed = torch.randn(n).abs(), torch.randn(n).abs(), torch.tensor(1)
    drawn = ops.sample_product(row_weights, col_weights, samples, seed=seed)
    active_set = set(active.tolist()) if samples == 1_000_000 else set()

    def check():
        rows, cols, count = ops.gse_candidates(row_weights, col_weights, crow, col, samples, seed=seed)
        keys = rows[:count].long() * n + cols[:count]
        wanted = torch.unique(drawn[0].long() * n + drawn[1])
        assert torch.equal(keys, wanted[~torch.isin(wanted, active)])

    contenders = {
        "sparsekern gse_candidates": lambda: ops.gse_candidates(row_weights, col_weights, crow, col, samples, seed=seed),
        "sparsekern sample_product alone": lambda: ops.sample_product(row_weights, col_weights, samples, seed=seed),
        "sparsekern csr_setdiff alone": lambda: ops.csr_setdiff(*drawn, crow, col, n),
        "torch multinomial + unique + searchsorted": lambda: torch_composition(row_weights, col_weights, active, samples),
        "torch multinomial alone": lambda: (torch.multinomial(row_weights, samples, True), torch.multinomial(col_weights, samples, True)),
    }
    targets = [("sparsekern gse_candidates", ">=", 5, "torch multinomial + unique + searchsorted")]
    if active_set:
        for name, draw in (("bisect", by_bisection), ("torch.multinomial", by_multinomial)):
            loop = f"Python set loop, {name} (10K, scaled)"
            contenders[loop] = lambda draw=draw: set_loop(draw(row_weights), draw(col_weights), n, active_set, samples)
            targets.append(("sparsekern gse_candidates", ">=", 1000, loop))
    race("gse_candidates", f"{samples:,} samples at {n}², {sparsity:.0%} sparse", contenders, check={"sparsekern gse_candidates": check},
         targets=targets)

"""Draws, set differences and candidates on a GPU at the size of real layers, and in graphs that follow the seed; exactly the CPU's results."""
import pytest
import torch

from sparsekern import ops
from sparsekern._native import native
from sparsekern.testing import random_csr

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not native.cuda, reason="built without CUDA")]
DEVICE = "cuda"


def move(*tensors):
    return [t.to(DEVICE) for t in tensors]


def same(got, want):
    return all(one.dtype == other.dtype and torch.equal(one.cpu(), other) for one, other in zip(got, want, strict=True))


@pytest.mark.parametrize("rows, cols, sparsity, count", [(4096, 4096, 0.9, 1 << 20), (1024, 16384, 0.99, 200_000), (10, 500_000, 0.95, 300_000),
                                                         (200_000, 40, 0.9, 500_000), (4096, 4096, 0.4, 1000)])
def test_agrees_with_the_cpu_at_real_size(rows, cols, sparsity, count):
    crow, col, _ = random_csr(rows, cols, sparsity)
    for weights in ((torch.rand(rows), torch.randn(cols)), (torch.rand(rows) ** 20, torch.rand(cols) ** 20)):
        drawn = ops.sample_product(*weights, count, seed=5)
        assert same(ops.sample_product(*move(*weights), count, seed=5), drawn)
        assert same(ops.csr_setdiff(*move(*drawn, crow, col), cols), ops.csr_setdiff(*drawn, crow, col, cols))
        for rounds in (1, 3):
            want = ops.gse_candidates(*weights, crow, col, count, seed=7, rounds=rounds)
            for _ in range(2):
                assert same(ops.gse_candidates(*move(*weights, crow, col), count, seed=7, rounds=rounds), want)


def test_millions_of_weights():
    weights = torch.rand(3_000_000) ** 8, torch.rand(1 << 20)
    assert same(ops.sample_product(*move(*weights), 100_000, seed=1), ops.sample_product(*weights, 100_000, seed=1))


def test_a_replayed_graph_follows_seed_and_weights():
    crow, col, _ = random_csr(500, 700, 0.9)
    rows, cols, seed, there, columns = *move(torch.rand(500), torch.rand(700)), torch.tensor([1], device=DEVICE), *move(crow, col)

    def run():
        return ops.gse_candidates(rows, cols, there, columns, 5000, seed=seed, rounds=3)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for turn in range(3):
        rows.uniform_(), cols.uniform_(), seed.fill_(turn + 10)
        graph.replay()
        assert same(captured, ops.gse_candidates(rows.cpu(), cols.cpu(), crow, col, 5000, seed=turn + 10, rounds=3))

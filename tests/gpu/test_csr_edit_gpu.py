"""Patterns made, planned, checked and changed on a GPU, at the size of real layers and in replayed graphs; exactly the CPU's results."""
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


def exchange(rows, cols, sparsity, share, seed=0):
    """A pattern, its values, what is dropped, and as many candidates in random order, all taken."""
    crow, col, val = random_csr(rows, cols, sparsity, seed=seed)
    drop = torch.rand(col.numel()) < share
    row = torch.repeat_interleave(torch.arange(rows), crow.diff().long())
    draw = torch.randint(rows * cols, (4 * int(drop.sum()),)).unique()
    draw = draw[~torch.isin(draw, row * cols + col)]
    draw = draw[torch.randperm(draw.numel())[:int(drop.sum())]]
    return crow, col, [val, val.bfloat16(), val.double()], drop, (draw // cols).int(), (draw % cols).int(), torch.ones(draw.numel(), dtype=torch.bool)


@pytest.mark.parametrize("rows, cols, sparsity", [(4096, 4096, 0.9), (11008, 4096, 0.98), (1000, 2048, 0.5), (64, 200_000, 0.95),
                                                  (100_000, 300, 0.99)])
def test_agrees_with_the_cpu_at_real_size(rows, cols, sparsity):
    crow, col, vals, drop, new_rows, new_cols, take = exchange(rows, cols, sparsity, 0.2)
    mask = torch.rand(rows, cols) > sparsity
    dense = torch.randn(rows, cols)
    assert same(ops.csr_from_mask(*move(mask, dense)), ops.csr_from_mask(mask, dense))
    assert same(ops.csr_plan(*move(crow, col), rows, cols), ops.csr_plan(crow, col, rows, cols))
    assert ops.csr_validate(*move(crow, col), rows, cols, vals[0].to(DEVICE)).tolist() == [0, -1, -1]
    broken = col.clone()
    broken[col.numel() // 2] = cols
    assert same([ops.csr_validate(*move(crow, broken), rows, cols)], [ops.csr_validate(crow, broken, rows, cols)])
    want = ops.csr_replace(crow, col, vals, drop, new_rows, new_cols, take)
    for _ in range(3):
        got = ops.csr_replace(*move(crow, col), move(*vals), *move(drop, new_rows, new_cols, take))
        assert same(got[:2], want[:2]) and same(got[2], want[2])


def test_a_replayed_graph_follows_its_inputs():
    crow, col, (val, *_), drop = exchange(300, 500, 0.9, 0.3)[:4]
    held, none = move(crow, col, val, drop), torch.empty(0, dtype=torch.int32, device=DEVICE)
    kept = int((~drop).sum())

    def run():
        new_crow, new_col, (new,) = ops.csr_replace(held[0], held[1], [held[2]], held[3], none, none, none.bool(), nnz=kept)
        return new_crow, new_col, new, *ops.csr_plan(held[0], held[1], 300, 500)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for tensor, other in zip(held[:3], random_csr(300, 500, 0.9, seed=1)):               # another pattern of as many nonzeros
        tensor.copy_(other)
    graph.replay()
    assert same(captured, [t.cpu() for t in run()])

"""What only a GPU shows of the sampled products: every way at real size, in a graph, under autocast, and how much memory it takes."""
import pytest
import torch

from sparsekern import ops
from sparsekern._native import native
from sparsekern.testing import assert_close, random_csr

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not native.cuda, reason="built without CUDA")]
WAYS = ["gather", "staged", "dense"]


def pattern(rows, cols, sparsity):
    crow, col, _ = (t.cuda() for t in random_csr(rows, cols, sparsity))
    return crow, col, torch.repeat_interleave(torch.arange(rows, device="cuda"), crow.diff().long(), output_size=col.numel())


def draw(dtype, *shape, columns=False):
    return torch.randn(*reversed(shape), device="cuda").to(dtype).t() if columns else torch.randn(*shape, device="cuda").to(dtype)


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n", [128, 500, 5000])
def test_every_way_agrees_at_real_size(dtype, n, columns):
    crow, col, row = pattern(2048, 3000, 0.97)
    a, b = draw(dtype, 2048, n, columns=columns), draw(dtype, 3000, n, columns=columns)
    want = (a.double() @ b.double().t())[row, col.long()]
    for algo in [*WAYS, "auto"]:
        got = ops.csr_sddmm(crow, col, a, b, algo=algo)
        assert_close(got, want, reduction=n)
        assert torch.equal(got, ops.csr_sddmm(crow, col, a, b, algo=algo)), algo
    some = torch.randperm(col.numel(), device="cuda")[:1000]
    picked = ops.coo_sddmm(row[some].int(), col[some], torch.tensor(900, device="cuda"), a, b)
    assert_close(picked[:900], want[some[:900]], reduction=n)
    assert not picked[900:].any()


@pytest.mark.parametrize("algo", WAYS)
def test_every_way_is_captured(algo):
    crow, col, row = pattern(512, 700, 0.9)
    a, b = draw(torch.bfloat16, 512, 256), draw(torch.bfloat16, 700, 256, columns=True)
    ops.csr_sddmm(crow, col, a, b, algo=algo)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.csr_sddmm(crow, col, a, b, algo=algo)
    a.normal_()
    graph.replay()
    assert torch.equal(captured, ops.csr_sddmm(crow, col, a, b, algo=algo))


def test_autocast_does_not_narrow_the_dense_way():
    crow, col, row = pattern(300, 400, 0.5)
    a, b = draw(torch.float32, 300, 64), draw(torch.float32, 400, 64)
    with torch.autocast("cuda", torch.bfloat16):
        got = ops.csr_sddmm(crow, col, a, b, algo="dense")
    assert_close(got, (a.double() @ b.double().t())[row, col.long()], reduction=64)


def test_the_dense_gradient_of_a_large_layer_is_never_whole():
    crow, col, _ = pattern(16384, 16384, 0.99)
    a, b = draw(torch.bfloat16, 16384, 64), draw(torch.bfloat16, 16384, 64)
    ops.csr_sddmm(crow, col, a, b, algo="dense")
    for algo in WAYS:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ops.csr_sddmm(crow, col, a, b, algo=algo)
        assert torch.cuda.max_memory_allocated() - before < 128 << 20, algo                 # the whole of it takes 1 GB


def test_devices_are_named():
    crow, col, _ = pattern(4, 6, 0.5)
    a, b = draw(torch.float32, 4, 8), draw(torch.float32, 6, 8)
    with pytest.raises(ValueError, match="csr_sddmm: b: expected a tensor on cuda:0 like a, got cpu; move it"):
        ops.csr_sddmm(crow, col, a, b.cpu())
    with pytest.raises(ValueError, match="csr_sddmm: crow: expected a tensor on cuda:0, got cpu; move it"):
        ops.csr_sddmm(crow.cpu(), col, a, b)
    with pytest.raises(ValueError, match="coo_sddmm: count: expected a tensor on cuda:0, got cpu; move it"):
        ops.coo_sddmm(col, col, torch.tensor(1), a, b)

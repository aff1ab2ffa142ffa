"""2:4 matrices on a GPU: torch's own sparse products take what is packed, the choice of one, large sizes, CUDA graphs."""
import pytest
import torch

from sparsekern import ops
from sparsekern._native import native
from sparsekern.ops import _sp24_backends as backends
from sparsekern.testing import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not native.cuda, reason="built without CUDA")]


def packed(rows, cols, dtype=torch.bfloat16):
    x = torch.randn(rows, cols, device="cuda").to(dtype)
    v, e = ops.sp24_compress(x)[:2]
    return v, e, ops.sp24_decompress(v, e, (rows, cols)).double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", backends.BACKENDS, ids=lambda b: b.name)
def test_each_backend_agrees_or_is_left_alone(backend, dtype):
    problem = backends.Problem(512, 1024, 77, dtype, "sm80", dtype, torch.device("cuda", torch.cuda.current_device()))
    why = backend.refuses(problem) or backends._self_test(backend, problem)
    if why:
        pytest.skip(f"{backend.name}: {why}")
    v, e, w = packed(512, 1024, dtype)
    for b in (torch.randn(1024, 77, device="cuda").to(dtype), torch.randn(77, 1024, device="cuda").to(dtype).t()):
        for bias in (None, torch.randn(512, device="cuda").to(dtype)):
            assert_close(backend.product(v, e, b, bias, problem), w @ b.double() + (0 if bias is None else bias.double()[:, None]),
                         dtype=dtype, reduction=1024)


def test_product_and_gradient_at_a_size_where_sparse_may_serve():
    v, e, w = packed(2048, 4096)
    b, bias = torch.randn(4096, 2048, device="cuda").bfloat16().requires_grad_(), torch.randn(2048, device="cuda").requires_grad_()
    out = ops.sp24_mm(v, e, b, bias=bias)
    assert_close(out, w @ b.detach().double() + bias.detach().double()[:, None], reduction=4096)
    grad = torch.randn_like(out)
    out.backward(grad)
    assert_close(b.grad, w.t() @ grad.double(), reduction=2048)
    choice = ops.sp24_backend(2048, 4096, 2048)
    assert choice.backend in {"dense", *(backend.name for backend in backends.BACKENDS)} and choice.reason


def test_both_ways_of_a_large_matrix():
    x = torch.randn(8192, 8192, device="cuda").half()
    v, e, vt, et = ops.sp24_compress(x, both=True)
    w = ops.sp24_decompress(v, e, x.shape)
    assert torch.equal(ops.sp24_decompress(vt, et, x.shape), w.t()) and int((w != 0).sum()) <= x.numel() // 2
    assert torch.equal(w, torch.where(w != 0, x, 0))


def test_packing_in_a_graph():
    x = torch.randn(256, 256, device="cuda").bfloat16()
    ops.sp24_compress(x, both=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        v, e, vt, et = ops.sp24_compress(x, both=True)
    x.copy_(torch.randn_like(x))
    graph.replay()
    for got, want in zip((v, e, vt, et), ops.sp24_compress(x, both=True)):
        assert torch.equal(got.view(torch.int16), want.view(torch.int16))


def test_the_private_form_belongs_to_a_stream(monkeypatch):
    monkeypatch.setattr(backends.CuSparseLt, "pack", staticmethod(backends._dense))
    lt, (v, e, _) = backends.CuSparseLt(), packed(64, 64)
    here = lt.packed(v, e, "sm80")
    assert lt.packed(v, e, "sm80") is here
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):                        # which waits for nothing that the other one still does
        assert lt.packed(v, e, "sm80") is not here

"""The CSR products, sampled products and activity sums on a GPU against the float64 reference, small and at the size of real layers."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern.ops._register import triton_reason
from sparsekern.testing import assert_close, random_csr

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(triton_reason() is not None, reason="the GPU kernels of these ops are Triton's")]
DEVICE = "cuda"
F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
TYPES = [(F32, F32), (BF16, BF16), (F16, F16), (F32, BF16), (F64, F64)]                         # of values, of the dense operand
REAL, SMALL = (4096, 4096, 512), [(1, 1, 1), (1, 3000, 5), (300, 1, 70), (37, 130, 129), (64, 64, 64), (5, 7, 0), (0, 7, 3), (7, 0, 3)]
WINDOW = {"kernel_size": [3, 3], "stride": [2, 1], "padding": [1, 1], "dilation": [1, 2]}
ids = {"ids": lambda types: "-".join(str(t)[6:] for t in types)}


def move(*tensors):
    return [t.to(DEVICE) for t in tensors]


def draw(*shape, dtype=F32):
    return torch.randn(*shape, device=DEVICE).to(dtype)


def matrix(rows, cols, sparsity, **kind):
    """crow, col, val on the device and [row_order, crow_t, row_t, perm]."""
    crow, col, val = move(*random_csr(rows, cols, sparsity, **kind))
    return crow, col, val, ops.csr_plan(crow, col, rows, cols)


def wide(op, *args, **kwargs):
    """The reference on the same device with every floating tensor in float64."""
    def double(t):
        return t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t
    return ops.implementations(op)["reference"](*map(double, args), **{key: double(value) for key, value in kwargs.items()})


# ---- products ----

def assert_products_agree(rows, cols, n, sparsity, types, index64=False):
    crow, col, val, (row_order, *transposed) = matrix(rows, cols, sparsity, dtype=types[0], index64=index64)
    b, tall, bias = draw(cols, n, dtype=types[1]), draw(rows, n, dtype=types[1]), draw(rows, dtype=types[0])
    got = ops.csr_spmm(crow, col, val, b, rows, cols, row_order=row_order, bias=bias)
    assert got.dtype == types[1]
    assert_close(got, wide("csr_spmm", crow, col, val, b, rows, cols, bias=bias), reduction=max(col.numel() // max(rows, 1), 1))
    assert torch.equal(got, ops.csr_spmm(crow, col, val, b, rows, cols, bias=bias))             # neither the order nor the run shows
    assert_close(ops.csr_spmm_t(*transposed, val, tall, rows, cols), wide("csr_spmm_t", *transposed, val, tall, rows, cols),
                 reduction=max(col.numel() // max(cols, 1), 1))


@pytest.mark.parametrize("types", TYPES, **ids)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_small_products(shape, types):
    for sparsity in (0.0, 0.8, 1.0):
        assert_products_agree(*shape, sparsity, types, index64=sparsity == 0.8)


@pytest.mark.parametrize("types", TYPES[:4], **ids)
@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.99])
def test_products_at_real_size(sparsity, types):
    assert_products_agree(*REAL, sparsity, types)


def test_products_of_any_strides():
    crow, col, val, (_, *transposed) = matrix(70, 300, 0.8)
    b, tall = draw(300, 40), draw(70, 40)
    want, want_t = ops.csr_spmm(crow, col, val, b, 70, 300), ops.csr_spmm_t(*transposed, val, tall, 70, 300)
    for turn in (lambda t: t.t().contiguous().t(), lambda t: torch.stack([t, t], 2)[:, :, 1], lambda t: torch.cat([t[:1, :1].repeat(1, 3).expand(
            len(t), 3), t], 1)[:, 3:]):
        assert_close(ops.csr_spmm(crow, col, val, turn(b), 70, 300), want.double(), reduction=60)
        assert_close(ops.csr_spmm_t(*transposed, val, turn(tall), 70, 300), want_t.double(), reduction=14)


def test_only_stored_entries_carry_nan_and_inf():
    crow, col, val = move(torch.tensor([0, 1, 3, 3]).int(), torch.tensor([0, 0, 2]).int(), torch.tensor([1.0, 0.0, 2.0]))
    b = torch.tensor([[1.0], [math.inf], [math.nan]]).to(DEVICE).expand(3, 9)
    got = ops.csr_spmm(crow, col, val, b, 3, 3)
    assert got[0].eq(1).all() and got[1].isnan().all() and got[2].eq(0).all()


# ---- the layer ----

@pytest.mark.parametrize("types", TYPES, **ids)
@pytest.mark.parametrize("shape", [*SMALL[:5], (4096, 1024, 256)], ids=str)
def test_layer_and_its_gradients(shape, types):
    rows, cols, batch = shape
    crow, col, val, (_, *transposed) = matrix(rows, cols, 0.9, dtype=types[0])
    x, bias, grad_y = draw(batch, cols, dtype=types[1]), draw(rows, dtype=types[0]), draw(batch, rows, dtype=types[1])
    leaves = [t.requires_grad_() for t in (x, val, bias)]
    y = ops.csr_linear(x, crow, col, val, *transposed, bias, rows)
    assert_close(y, wide("csr_linear", *(t.detach() for t in (x, crow, col, val, *transposed, bias)), rows), reduction=cols)
    got = torch.autograd.grad(y, leaves, grad_y)
    want = wide("csr_linear_backward", *(t.detach() for t in (x, grad_y, crow, col, val, *transposed)), True, True, True)
    for mine, right, length in zip(got, want, (rows, batch, batch)):
        assert_close(mine, right, reduction=length)


def test_layer_learns_in_a_compiled_step_and_under_autocast():
    crow, col, val, (_, *transposed) = matrix(64, 96, 0.8)
    x, val = draw(32, 96), val.requires_grad_()

    def loss(x, val):
        return ops.csr_linear(x, crow, col, val, *transposed, None, 64).square().mean()

    eager = torch.autograd.grad(loss(x, val), val)[0]
    assert_close(torch.autograd.grad(torch.compile(loss, fullgraph=True)(x, val), val)[0], eager.double(), reduction=32)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert ops.csr_linear(x, crow, col, val, *transposed, None, 64).dtype == BF16


# ---- sampled products ----

@pytest.mark.parametrize("algo", ["gather", "dense"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape", [*SMALL, (130, 1000, 200), REAL], ids=str)
def test_sampled_products(shape, dtype, algo):
    rows, cols, n = shape
    for sparsity, index64 in ((0.3, True), (0.95, False)) if shape != REAL else ((0.95, False),):
        crow, col, _ = move(*random_csr(rows, cols, sparsity, index64=index64))
        for a, b in ((draw(rows, n, dtype=dtype), draw(cols, n, dtype=dtype)), (draw(n, rows, dtype=dtype).t(), draw(n, cols, dtype=dtype).t())):
            got = ops.csr_sddmm(crow, col, a, b, algo=algo)
            assert_close(got, wide("csr_sddmm", crow, col, a, b), reduction=n)
            assert torch.equal(got, ops.csr_sddmm(crow, col, a, b, algo=algo))


@pytest.mark.parametrize("algo", ["gather", "dense"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_nan_and_inf_stay_in_their_row_and_column(dtype, algo):
    # Also through the three products of a float32 tile, whose small parts of an inf are no numbers.
    crow, col, _ = move(*random_csr(100, 90, 0.5))
    a, b = draw(100, 48).abs().to(dtype), draw(90, 48).abs().to(dtype)
    a[3, 5], b[70, 40] = math.nan, math.inf
    got, want = ops.csr_sddmm(crow, col, a, b, algo=algo), wide("csr_sddmm", crow, col, a, b)
    assert want.isnan().any() and want.isinf().any()
    assert_close(got, want, reduction=48)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("count", [0, 999, 100_000])
def test_places(count, dtype):
    rows, cols = (torch.randint(2048, (100_000,), device=DEVICE).int() for _ in range(2))
    rows[count:], cols[count:] = -1, -1
    a, b, valid = draw(2048, 128, dtype=dtype), draw(2048, 128, dtype=dtype), torch.tensor(count, device=DEVICE)
    got = ops.coo_sddmm(rows, cols, valid, a, b)
    assert_close(got, wide("coo_sddmm", rows, cols, valid, a, b), reduction=128)
    assert got[count:].eq(0).all()


# ---- activity ----

@pytest.mark.parametrize("offset", [0, 127, 2**40 + 77])
@pytest.mark.parametrize("seed", [0, -1, 2**62 + 12345])
def test_signs_are_those_of_the_cpu(seed, offset):
    numbers = torch.randint(1 - 2**10, 2**10, (5000, 33)).float()                               # sums of small integers are exact
    got = ops.activity(numbers.to(DEVICE), signed=True, seed=torch.tensor(seed, device=DEVICE), offset=offset)
    assert torch.equal(got.cpu(), ops.activity(numbers, signed=True, seed=torch.tensor(seed), offset=offset))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_activity(dtype, signed):
    options = {"signed": True, "seed": torch.tensor(5, device=DEVICE), "offset": 100} if signed else {}
    pictures = draw(128, 64, 32, 32, dtype=dtype)
    for x, window, length in ((draw(2048, 4096, dtype=dtype), {}, 2048), (draw(4096, 300, dtype=dtype).t(), {}, 300),
                              (draw(8, 197, 768, dtype=dtype), {}, 1576), (pictures.permute(0, 2, 3, 1), {}, 131072), (pictures, WINDOW, 61440),
                              (pictures.to(memory_format=torch.channels_last), WINDOW, 61440), (draw(3, 5, 0, dtype=dtype), {}, 15)):
        got = ops.activity(x, **options, **window)
        assert got.dtype == F32
        assert_close(got, wide("activity", x, **options, **window), reduction=length)
        assert torch.equal(got, ops.activity(x, **options, **window))


# ---- streams, graphs ----

def work():
    """Every op once, as a function that returns the results; nothing in it depends on data on the host."""
    crow, col, val, (row_order, *transposed) = matrix(256, 512, 0.9)
    x, wide_grad, seed, count = draw(64, 512), draw(64, 256), torch.tensor([3], device=DEVICE), torch.tensor(1000, device=DEVICE)
    rows, cols = torch.randint(256, (2000,), device=DEVICE).int(), torch.randint(512, (2000,), device=DEVICE).int()

    def run():
        return [ops.csr_spmm(crow, col, val, x.t(), 256, 512, row_order=row_order), ops.csr_linear(x, crow, col, val, *transposed, None, 256),
                *torch.ops.sparsekern.csr_linear_backward(x, wide_grad, crow, col, val, *transposed, True, True, True),
                ops.csr_sddmm(crow, col, wide_grad.t(), x.t(), algo="dense"), ops.csr_sddmm(crow, col, wide_grad.t(), x.t(), algo="gather"),
                ops.coo_sddmm(rows, cols, count, wide_grad.t(), x.t()), ops.activity(x), ops.activity(x, signed=True, seed=seed, offset=9)]
    return run, (x, wide_grad)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device():
    run, _ = work()
    want = run()                                     # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


def test_captured_in_a_graph():
    run, inputs = work()
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for _ in range(2):
        for tensor in inputs:
            tensor.normal_()
        graph.replay()
        for got, want in zip(captured, run()):
            assert torch.equal(got, want)


def test_runs_on_the_current_stream():
    crow, col, val, _ = matrix(4, 1024, 0.0)
    b = torch.zeros(1024, 1 << 15, device=DEVICE)
    val.fill_(1.0)
    ops.csr_spmm(crow, col, val, b, 4, 1024)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)                # work on another stream would overtake this
        b.fill_(1.0)
        got = ops.csr_spmm(crow, col, val, b, 4, 1024)
    stream.synchronize()
    assert got.eq(1024).all()


def test_misuse_is_named():
    crow, col, val, _ = matrix(4, 6, 0.5)
    with pytest.raises(ValueError, match=r"csr_spmm: b: expected shape \[6, N\], got \[5, 2\]"):
        ops.csr_spmm(crow, col, val, draw(5, 2), 4, 6)
    with pytest.raises(TypeError, match="csr_sddmm: b: expected .* like a, got"):
        ops.csr_sddmm(crow, col, draw(4, 2), draw(6, 2).double())

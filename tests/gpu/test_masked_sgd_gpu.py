"""masked_sgd_ and packed_sgd_ on a GPU against the CPU kernels (same bits) and the float64 reference."""
import pytest
import torch

from sparsekern import ops
from sparsekern._native import native
from sparsekern.testing import assert_close, awkward_shapes, double, random_masks, resnet50_shapes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not native.cuda, reason="built without CUDA")]
SCALARS = {"weight_decay": 0.01, "momentum": 0.9, "lr": 0.1}
VARIANTS = [{}, {"nesterov": True}, {"maximize": True, "dampening": 0.3}, {"is_first_step": True, "dampening": 0.5}, {"momentum": 0.0},
            {"outside": "zero"}, {"invert": True}, {"outside": "zero", "invert": True}]
PAIRS = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16),
         (torch.float16, torch.float16)]


def make(shapes, param_type=torch.float32, grad_type=None):
    params = [torch.randn(s).to(param_type) for s in shapes]
    grads = [torch.randn(s).to(grad_type or param_type) for s in shapes]
    return params, grads, [torch.randn(s).to(param_type) for s in shapes]


def on_gpu(value):
    return value.cuda() if isinstance(value, torch.Tensor) else value if value is None else [on_gpu(v) for v in value]


def as_form(masks, form):
    return {"bool": masks, "bits": [ops.pack_mask(m) for m in masks], "none": [None] * len(masks)}[form]


def assert_same_bits(got, want):
    for a, b in zip(got, want):
        assert torch.equal(a.cpu(), b), (a.cpu().double() - b.double()).abs().max()


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0]}-{p[1]}".replace("torch.", ""))
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("form", ["bool", "bits", "none"])
def test_agrees_with_the_cpu(pair, variant, form):
    params, grads, buffers = make(awkward_shapes, *pair)
    masks = as_form(random_masks(params, 0.3), form)
    theirs, their_buffers, wide, wide_buffers = on_gpu(params), on_gpu(buffers), double(params), double(buffers)
    scalars = SCALARS | variant
    ops.masked_sgd_(theirs, on_gpu(grads), their_buffers, on_gpu(masks), **scalars)
    ops.masked_sgd_(wide, double(grads), wide_buffers, masks, **scalars)
    for got, want in zip(theirs + their_buffers, wide + wide_buffers):
        assert_close(got, want)
    ops.masked_sgd_(params, grads, buffers, masks, **scalars)
    assert_same_bits(theirs + their_buffers, params + buffers)


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0]}-{p[1]}".replace("torch.", ""))
def test_packed_agrees_with_the_cpu(pair, index_type):
    params, grads, buffers = make([(301, 7), (33,), (0,), (70001,)], *pair)
    masks = random_masks(params, 0.2)
    indices = [m.flatten().nonzero().flatten().to(index_type) for m in masks]
    values, momenta = [p[m] for p, m in zip(params, masks)], [v[m] for v, m in zip(buffers, masks)]
    for gradients, where in ((grads, indices), ([g[m] for g, m in zip(grads, masks)], None)):
        theirs, their_momenta = on_gpu(values), on_gpu(momenta)
        ops.packed_sgd_(theirs, on_gpu(gradients), their_momenta, on_gpu(where), **SCALARS)
        mine, my_momenta = [v.clone() for v in values], [v.clone() for v in momenta]
        ops.packed_sgd_(mine, gradients, my_momenta, where, **SCALARS)
        assert_same_bits(theirs + their_momenta, mine + my_momenta)


def test_views_at_any_offset():
    # Slices of a flat buffer, as DDP buckets are: every combination of 4-byte offsets of param and gradient.
    for p_shift in range(4):
        for g_shift in range(4):
            flat, flat_grad, mask = torch.randn(5003), torch.randn(5003), torch.rand(4999) < 0.5
            theirs, their_grad = flat.cuda(), flat_grad.cuda()
            ops.masked_sgd_([theirs[p_shift:p_shift + 4999]], [their_grad[g_shift:g_shift + 4999]], [], [mask.cuda()], lr=0.1)
            ops.masked_sgd_([flat[p_shift:p_shift + 4999]], [flat_grad[g_shift:g_shift + 4999]], [], [mask], lr=0.1)
            assert_same_bits([theirs], [flat])


@pytest.mark.parametrize("shapes", [resnet50_shapes(), [(65,)] * 1500], ids=["ResNet-50", "1500 small tensors"])
def test_long_lists(shapes):
    params, grads, buffers = make(shapes)
    masks = random_masks(params, 0.1)
    theirs, their_buffers = on_gpu(params), on_gpu(buffers)
    ops.masked_sgd_(theirs, on_gpu(grads), their_buffers, on_gpu(masks), **SCALARS)
    ops.masked_sgd_(params, grads, buffers, masks, **SCALARS)
    assert_same_bits(theirs + their_buffers, params + buffers)


def test_mixed_dtypes_in_one_list():
    made = [make([(1000,), (33,)], *pair) for pair in PAIRS]
    params, grads, buffers = ([t for m in made for t in m[k]] for k in range(3))
    masks = random_masks(params, 0.5)
    theirs, their_buffers = on_gpu(params), on_gpu(buffers)
    ops.masked_sgd_(theirs, on_gpu(grads), their_buffers, on_gpu(masks), **SCALARS)
    ops.masked_sgd_(params, grads, buffers, masks, **SCALARS)
    assert_same_bits(theirs + their_buffers, params + buffers)


def test_hidden_nan_reaches_nothing_and_keep_means_the_same_bits():
    param, grad, mask = torch.randn(4099), torch.randn(4099), torch.rand(4099) < 0.5
    grad[~mask] = float("nan")
    param[7], mask[7] = float("nan"), False
    theirs = param.cuda()
    ops.masked_sgd_([theirs], [grad.cuda()], [], [mask.cuda()], lr=0.1)
    assert torch.equal(theirs.cpu().view(torch.int32)[~mask], param.view(torch.int32)[~mask])
    assert torch.isfinite(theirs.cpu()[mask]).all()
    ops.masked_sgd_([theirs], [grad.cuda()], [], [mask.cuda()], lr=0.1, outside="zero")
    assert (theirs.cpu()[~mask].view(torch.int32) == 0).all()


def test_assume_clean_agrees_on_clean_state():
    mask = torch.rand(70001) < 0.1
    param, buffer, grad = torch.randn(70001) * mask, torch.randn(70001) * mask, torch.randn(70001)
    param, buffer = torch.where(mask, param, torch.zeros(())), torch.where(mask, buffer, torch.zeros(()))
    for form in (mask, ops.pack_mask(mask)):
        theirs, their_buffer, mine, my_buffer = param.cuda(), buffer.cuda(), param.clone(), buffer.clone()
        ops.masked_sgd_([theirs], [grad.cuda()], [their_buffer], [form.cuda()], outside="zero", assume_clean=True, **SCALARS)
        ops.masked_sgd_([mine], [grad], [my_buffer], [form], outside="zero", **SCALARS)
        assert_same_bits([theirs, their_buffer], [mine, my_buffer])


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("inf", [0.0, 1.0])
def test_scaler_and_rate_stay_on_the_device(inf):
    params, grads, buffers = make([(1031,), (64, 33)])
    masks = random_masks(params, 0.5)
    scale, found, rate = torch.tensor([1024.0]), torch.tensor([inf]), torch.tensor(0.05)
    scalars = {"weight_decay": 0.01, "momentum": 0.9}
    theirs, their_buffers = on_gpu(params), on_gpu(buffers)
    args = theirs, on_gpu(grads), their_buffers, on_gpu(masks)
    on_device = {"lr": rate.cuda(), "grad_scale": scale.cuda(), "found_inf": found.cuda()}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")          # nothing may wait for the device
    try:
        ops.masked_sgd_(*args, **on_device, **scalars)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    ops.masked_sgd_(params, grads, buffers, masks, lr=rate, grad_scale=scale, found_inf=found, **scalars)
    assert_same_bits(theirs + their_buffers, params + buffers)


def test_captured_in_a_graph_and_follows_a_schedule():
    params, grads, buffers = make([(4097,)] * 3)
    masks = random_masks(params, 0.5)
    theirs, their_grads, their_buffers, their_masks = on_gpu(params), on_gpu(grads), on_gpu(buffers), on_gpu(masks)
    rate = torch.tensor(0.0, device="cuda")
    ops.masked_sgd_([p.clone() for p in theirs], their_grads, [v.clone() for v in their_buffers], their_masks, lr=rate, momentum=0.9)
    graph = torch.cuda.CUDAGraph()                   # that call loaded the kernel; the pointers captured here are new to it
    with torch.cuda.graph(graph):
        ops.masked_sgd_(theirs, their_grads, their_buffers, their_masks, lr=rate, momentum=0.9)
    for value in (0.1, 0.05, 0.01):
        rate.fill_(value)
        graph.replay()
        ops.masked_sgd_(params, grads, buffers, masks, lr=torch.tensor(value), momentum=0.9)
    assert_same_bits(theirs + their_buffers, params + buffers)


def test_runs_on_the_current_stream():
    stream = torch.cuda.Stream()
    param = torch.zeros(1 << 20, device="cuda")
    grad = torch.zeros_like(param)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)                # work on another stream would overtake this
        grad.fill_(1.0)
        ops.masked_sgd_([param], [grad], [], [None], lr=1.0)
    stream.synchronize()
    assert (param == -1).all()


def test_channels_last_and_foreign_gradient_layout():
    param = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    grad, mask = torch.randn(4, 3, 5, 5), torch.rand(4, 3, 5, 5) < 0.5
    theirs = param.cuda()
    ops.masked_sgd_([theirs], [grad.cuda()], [], [mask.cuda()], lr=0.1)
    ops.masked_sgd_([param], [grad], [], [mask], lr=0.1)
    assert_same_bits([theirs], [param])


def test_more_than_2_to_31_elements():
    n = 2**31 + 1000003
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GB of free device memory")
    param, grad = torch.zeros(n, dtype=torch.bfloat16, device="cuda"), torch.ones(n, dtype=torch.bfloat16, device="cuda")
    words = torch.full(((n + 31) // 32,), -1, dtype=torch.int32, device="cuda")
    ops.masked_sgd_([param], [grad], [], [words], lr=1.0)
    assert param.max().item() == -1 and param.min().item() == -1


def test_misuse_is_named():
    x, mask = [torch.zeros(3, device="cuda")], [torch.ones(3, dtype=torch.bool, device="cuda")]
    with pytest.raises(TypeError, match="masked_sgd_: params: expected float32, bfloat16 or float16 on a CUDA device, got Double"):
        ops.masked_sgd_([x[0].double()], [x[0].double()], [], mask, lr=0.1)
    with pytest.raises(ValueError, match=r"masked_sgd_: found_inf: expected a tensor on cuda:0, got cpu"):
        ops.masked_sgd_(x, x, [], mask, lr=0.1, found_inf=torch.zeros(1))
    with pytest.raises(ValueError, match=r"masked_sgd_: grads\[0\]: expected a tensor on cuda:0, got cpu"):
        ops.masked_sgd_(x, [torch.zeros(3)], [], mask, lr=0.1)

"""masked_sgd_ and packed_sgd_: torch's SGD inside a mask, the same bits outside."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import native
from sparsekern.ops._register import has_kernel, op_names
from sparsekern.testing import assert_close, awkward_shapes, double, each_implementation, random_masks, threads

SCALARS = {"weight_decay": 0.01, "momentum": 0.9, "lr": 0.1, "dampening": 0.0, "nesterov": False, "maximize": False, "is_first_step": False}
PLAIN = SCALARS | {"momentum": 0.0, "weight_decay": 0.0}
VARIANTS = [{}, {"nesterov": True}, {"maximize": True, "dampening": 0.3}, {"is_first_step": True, "dampening": 0.5}, {"momentum": 0.0},
            {"outside": "zero"}, {"invert": True}, {"outside": "zero", "invert": True}]
PAIRS = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16),
         (torch.float16, torch.float16), (torch.float64, torch.float64)]
NONE = torch.empty(0, dtype=torch.bool)


def make(shapes, param_type=torch.float32, grad_type=None):
    params = [torch.randn(s).to(param_type) for s in shapes]
    grads = [torch.randn(s).to(grad_type or param_type) for s in shapes]
    buffers = [torch.randn(s).to(param_type) for s in shapes]
    return params, grads, buffers


def call(name, *args, op="masked_sgd_", **kwargs):
    ops.implementations(op)[name](*args, **kwargs)


# ---- worked examples ----

@pytest.mark.parametrize("name", each_implementation("masked_sgd_"))
def test_worked_example_plain(name):
    # 1 - 0.5 * 2 = 0 inside; the second element is hidden and keeps its value.
    param = torch.tensor([1.0, 1.0])
    call(name, [param], [torch.tensor([2.0, 2.0])], [], [torch.tensor([True, False])], **PLAIN | {"lr": 0.5})
    assert param.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", each_implementation("masked_sgd_"))
def test_worked_example_momentum_decay_zero(name):
    # d = 1 + 0.5 * 2 = 2; v = 0.5 * 4 + 2 = 4; p = 2 - 0.25 * 4 = 1. The hidden one loses value and momentum.
    param, buffer = torch.tensor([2.0, 2.0]), torch.tensor([4.0, 4.0])
    call(name, [param], [torch.tensor([1.0, math.nan])], [buffer], [torch.tensor([True, False])],
         **SCALARS | {"lr": 0.25, "momentum": 0.5, "weight_decay": 0.5}, outside="zero")
    assert param.tolist() == [1.0, 0.0] and buffer.tolist() == [4.0, 0.0]
    assert math.copysign(1, param[1].item()) == 1 and math.copysign(1, buffer[1].item()) == 1


@pytest.mark.parametrize("name", each_implementation("masked_sgd_"))
def test_worked_example_packed_mask(name):
    # Bits 0 and 33 are on: words 1 and 2.
    param = torch.zeros(40)
    call(name, [param], [torch.ones(40)], [], [torch.tensor([1, 2], dtype=torch.int32)], **PLAIN | {"lr": 1.0})
    assert param.nonzero().flatten().tolist() == [0, 33] and param[0] == -1


@pytest.mark.parametrize("name", each_implementation("packed_sgd_"))
def test_worked_example_gather(name):
    value = torch.tensor([1.0, 1.0])
    call(name, [value], [torch.tensor([[0.0, 10.0], [20.0, 0.0]])], [], [torch.tensor([1, 2], dtype=torch.int32)], op="packed_sgd_",
         **PLAIN | {"lr": 0.1})
    assert value.tolist() == [0.0, -1.0]


# ---- agreement ----

@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0]}-{p[1]}".replace("torch.", ""))
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("form", ["bool", "bits", "none"])
def test_agrees_with_float64(isa, pair, variant, form):
    params, grads, buffers = make(awkward_shapes, *pair)
    masks = random_masks(params, 0.3)
    masks = {"bool": masks, "bits": [ops.pack_mask(m) for m in masks], "none": [NONE] * len(masks)}[form]
    want_p, want_v = double(params), double(buffers)
    scalars = SCALARS | variant
    call("reference", want_p, double(grads), want_v, masks, **scalars)
    call("cpu", params, grads, buffers, masks, **scalars)
    for got, want in zip(params + buffers, want_p + want_v):
        assert_close(got, want)


def test_matches_torch_sgd():
    params, grads, _ = make([(33, 7), (5,)])
    theirs = [torch.nn.Parameter(p.clone()) for p in params]
    optimizer = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    buffers = [torch.zeros_like(p) for p in params]
    for step in range(4):
        for p, g in zip(theirs, grads):
            p.grad = g * (step + 1)
        optimizer.step()
        ops.masked_sgd_(params, [g * (step + 1) for g in grads], buffers, [None, None], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for ours, other in zip(params, theirs):
        torch.testing.assert_close(ours, other.detach(), rtol=1.3e-6, atol=1e-7)


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
def test_packed_agrees_with_masked(isa, index_type):
    params, grads, buffers = make([(301, 7), (33,), (0,)])
    masks = random_masks(params, 0.2)
    indices = [m.flatten().nonzero().flatten().to(index_type) for m in masks]
    values, momenta = [p[m] for p, m in zip(params, masks)], [v[m] for v, m in zip(buffers, masks)]
    again = [v.clone() for v in values], [v.clone() for v in momenta]
    ops.masked_sgd_(params, grads, buffers, masks, lr=0.1, momentum=0.9, weight_decay=0.01)
    ops.packed_sgd_(values, grads, momenta, indices, lr=0.1, momentum=0.9, weight_decay=0.01)
    ops.packed_sgd_(again[0], [g[m] for g, m in zip(grads, masks)], again[1], lr=0.1, momentum=0.9, weight_decay=0.01)
    for i, mask in enumerate(masks):
        assert torch.equal(values[i], params[i][mask]) and torch.equal(momenta[i], buffers[i][mask])
        assert torch.equal(again[0][i], params[i][mask])


def test_same_bits_for_every_isa_and_thread_count():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    params, grads, _ = make([(70001,), (33, 5)])
    masks = random_masks(params, 0.5)
    seen = []
    for isa in ("scalar", "avx2", "avx512"):
        for count in (1, 2):
            try:
                native.set_isa(isa)
            except ValueError:
                continue
            mine = [p.clone() for p in params]
            with threads(count):
                ops.masked_sgd_(mine, grads, [g.clone() for g in grads], masks, lr=0.1, momentum=0.9, weight_decay=0.01)
            seen.append(mine)
    native.set_isa("auto")
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other))


def test_channels_last_and_foreign_gradient_layout(isa):
    param = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    grad, mask = torch.randn(4, 3, 5, 5), torch.rand(4, 3, 5, 5) < 0.5
    want = torch.where(mask, param - 0.1 * grad, param)
    ops.masked_sgd_([param], [grad], [], [mask], lr=0.1)
    assert_close(param, want.double())
    assert param.is_contiguous(memory_format=torch.channels_last)


def test_tensor_lr_and_gradient_scaler():
    params, grads, _ = make([(65,)])
    start, mask = params[0].clone(), torch.rand(65) < 0.5
    ops.masked_sgd_(params, grads, [], [mask], lr=torch.tensor(0.1), grad_scale=torch.tensor([4.0]), found_inf=torch.tensor([1.0]))
    assert torch.equal(params[0], start)
    ops.masked_sgd_(params, grads, [], [mask], lr=torch.tensor(0.1), grad_scale=torch.tensor([4.0]), found_inf=torch.tensor([0.0]))
    assert_close(params[0], torch.where(mask, start - 0.1 * grads[0] / 4, start).double())


# ---- properties ----

@given(st.integers(0, 200), st.floats(0, 1), st.sampled_from(["keep", "zero"]), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_outside_is_never_touched(n, density, outside, packed, seed):
    generator = torch.Generator().manual_seed(seed)
    param, buffer, grad = (torch.randn(n, generator=generator) for _ in range(3))
    mask = torch.rand(n, generator=generator) < density
    grad[~mask] = math.nan
    before = param.clone(), buffer.clone()
    ops.masked_sgd_([param], [grad], [buffer], [ops.pack_mask(mask) if packed and n else mask], lr=0.1, momentum=0.9, outside=outside)
    if n and mask.numel():
        hidden = (torch.zeros_like(param),) * 2 if outside == "zero" else before
        assert torch.equal(param[~mask].view(torch.int32), hidden[0][~mask].view(torch.int32))
        assert torch.equal(buffer[~mask].view(torch.int32), hidden[1][~mask].view(torch.int32))
        assert not param.isnan().any()


@pytest.mark.parametrize("dtype, bits", [
    (torch.float32, [0x7FA00001, 0x7FC12345, -0x80000000, 5]), (torch.bfloat16, [0x7F81, 0x7FD3, -0x8000, 5]),
    (torch.float16, [0x7C01, 0x7E7F, -0x8000, 5])], ids=str)
def test_hidden_nan_bits_survive_keep(isa, dtype, bits):
    # A signalling NaN, a payload, a negative zero and a subnormal come back bit for bit, over a tail and over whole lanes.
    whole = torch.int32 if dtype == torch.float32 else torch.int16
    bits = torch.tensor(bits, dtype=whole).repeat(5)
    param, buffer = bits.view(dtype).clone(), bits.view(dtype).clone()
    ops.masked_sgd_([param], [torch.ones(20, dtype=dtype)], [buffer], [torch.zeros(20, dtype=torch.bool)], lr=0.1, momentum=0.9)
    assert torch.equal(param.view(whole), bits) and torch.equal(buffer.view(whole), bits)


def test_nan_in_an_active_gradient_propagates():
    param = torch.zeros(20)
    grad = torch.zeros(20)
    grad[3] = math.nan
    ops.masked_sgd_([param], [grad], [], [None], lr=0.1)
    assert param.isnan().nonzero().flatten().tolist() == [3]


def test_is_clean():
    mask = torch.tensor([True, False])
    assert ops.is_clean([torch.tensor([1.0, 0.0])], [torch.zeros(2)], [mask])
    assert not ops.is_clean([torch.tensor([1.0, 2.0])], [torch.zeros(2)], [mask])
    assert not ops.is_clean([torch.tensor([1.0, 0.0])], [torch.ones(2)], [mask])


# ---- citizenship ----

def test_what_an_op_writes_counts_as_edited():
    params, grads, buffers = make([(5, 3), (4,)])
    before = [t._version for t in (*params, *grads, *buffers)]
    torch.ops.sparsekern.masked_sgd_(params, grads, buffers, [NONE, NONE], **SCALARS)
    after = [t._version for t in (*params, *grads, *buffers)]
    assert [a > b for a, b in zip(after, before)] == [True, True, False, False, True, True]


def test_every_op_that_writes_counts_it():
    for name in op_names():
        packet, _, overload = name.partition(".")
        schema = getattr(getattr(torch.ops.sparsekern, packet), overload or "default")._schema
        assert not (native.available and schema.is_mutable) or has_kernel(name, "ADInplaceOrView"), name


def test_opcheck():
    params, grads, buffers = make([(5, 3), (4,)])
    torch.library.opcheck(torch.ops.sparsekern.masked_sgd_.default, (params, grads, buffers, [torch.rand(5, 3) < 0.5, NONE]), SCALARS)
    torch.library.opcheck(torch.ops.sparsekern.masked_sgd_.tensor_lr, (params, grads, buffers, [torch.rand(5, 3) < 0.5, NONE]),
                          SCALARS | {"lr": torch.tensor(0.1)})
    torch.library.opcheck(torch.ops.sparsekern.packed_sgd_, ([params[1]], [grads[0]], [buffers[1]], [torch.tensor([0, 3, 5, 6])]), SCALARS)


def test_compiles_whole():
    def step(param, grad, mask):
        buffer = torch.zeros_like(param)
        ops.masked_sgd_([param], [grad], [buffer], [mask], lr=0.1, momentum=0.9)
        return param * 2, buffer

    param, grad, mask = torch.randn(9), torch.randn(9), torch.rand(9) < 0.5
    want = step(param.clone(), grad, mask)
    got = torch.compile(step, fullgraph=True)(param.clone(), grad, mask)
    assert all(torch.equal(a, b) for a, b in zip(got, want))


# ---- misuse ----

@pytest.mark.parametrize("change, error, words", [
    ({"grads": []}, ValueError, r"masked_sgd_: grads: expected a list of 1 .* got 0"),
    ({"grads": [torch.ones(3)]}, ValueError, r"grads\[0\]: expected shape \[4\], got \[3\]"),
    ({"masks": [torch.ones(3, dtype=torch.bool)]}, ValueError, r"masks\[0\]: expected a bool mask of shape \[4\], got \[3\]"),
    ({"masks": [torch.ones(2, dtype=torch.int32)]}, ValueError, r"masks\[0\]: expected 1 contiguous int32 words"),
    ({"masks": [torch.ones(4)]}, TypeError, r"masks\[0\]: expected a bool mask"),
    ({"params": [torch.ones(8)[::2]]}, ValueError, r"params\[0\]: expected a dense tensor"),
    ({"params": [torch.ones(4, dtype=torch.int64)], "grads": [torch.ones(4, dtype=torch.int64)]}, TypeError, r"unsupported pair of dtypes"),
    ({"grads": [torch.ones(4, dtype=torch.float64)]}, TypeError, r"param Float with grad Double"),
    ({"outside": "drop"}, ValueError, r'outside: expected "keep" or "zero", got'),
])
def test_misuse(change, error, words):
    arguments = {"params": [torch.ones(4)], "grads": [torch.ones(4)], "momentum_buffers": [], "masks": [None]} | change
    if not native.available and "dtypes" in words + str(error):
        pytest.skip("the reference takes every dtype")
    with pytest.raises(error, match=words):
        ops.masked_sgd_(**arguments, lr=0.1)


def test_packed_index_outside_the_gradient_raises():
    with pytest.raises(IndexError, match=r"packed_sgd_: indices\[0\]: expected flat positions in \[0, 4\)"):
        ops.packed_sgd_([torch.ones(2)], [torch.ones(4)], [], [torch.tensor([1, 4])], lr=0.1)
    with pytest.raises(IndexError, match="outside"):
        ops.packed_sgd_([torch.ones(2)], [torch.ones(4)], [], [torch.tensor([-1, 2], dtype=torch.int32)], lr=0.1)
    with pytest.raises(ValueError, match=r"expected a packed gradient of 2 values, got 4"):
        ops.packed_sgd_([torch.ones(2)], [torch.ones(4)], [], lr=0.1)

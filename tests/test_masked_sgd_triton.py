"""The Triton launchers of masked_sgd_ and packed_sgd_ against the reference in float64, and against the other kernels' promises."""
import math

import pytest
import torch

from sparsekern import ops
from sparsekern.testing import assert_close, double, each_implementation, random_masks

pytestmark = pytest.mark.skipif("triton" not in each_implementation("masked_sgd_"), reason="Triton runs on a GPU or in its interpreter")

SCALARS = {"weight_decay": 0.01, "momentum": 0.9, "lr": 0.1, "dampening": 0.0, "nesterov": False, "maximize": False, "is_first_step": False}
VARIANTS = [{}, {"nesterov": True, "maximize": True}, {"dampening": 0.3}, {"is_first_step": True, "dampening": 0.5},
            {"momentum": 0.0, "weight_decay": 0.0}, {"outside": "zero"}, {"invert": True}, {"outside": "zero", "invert": True}]
PAIRS = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16),
         (torch.float16, torch.float16)]
SHAPES = [(0,), (), (1,), (31,), (5, 0, 3), (17, 13), (2049,)]
NONE = torch.empty(0, dtype=torch.bool)


def launch(*args, op="masked_sgd_", **kwargs):
    ops.implementations(op)["triton"](*args, **kwargs)


def make(shapes, param_type=torch.float32, grad_type=None):
    return [[torch.randn(s).to(t) for s in shapes] for t in (param_type, grad_type or param_type, param_type)]


def in_form(form, masks):
    return {"bool": masks, "bits": [ops.pack_mask(m) for m in masks], "none": [NONE] * len(masks)}[form]


# ---- agreement ----

def assert_agrees(pair, variant, form):
    params, grads, buffers = make(SHAPES, *pair)
    masks = in_form(form, random_masks(params, 0.3))
    want_p, want_v = double(params), double(buffers)
    scalars = SCALARS | variant
    ops.implementations("masked_sgd_")["reference"](want_p, double(grads), want_v, masks, **scalars)
    launch(params, grads, buffers, masks, **scalars)
    for got, want in ((params, want_p), (buffers, want_v)):             # together: one element alone may cancel to any relative error
        assert_close(*(torch.cat([t.flatten() for t in tensors]) for tensors in (got, want)))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("form", ["bool", "bits", "none"])
def test_variants_agree_with_float64(variant, form):
    assert_agrees((torch.float32, torch.float32), variant, form)


@pytest.mark.parametrize("pair", PAIRS[1:], ids=lambda p: f"{p[0]}-{p[1]}".replace("torch.", ""))
def test_dtypes_agree_with_float64(pair):
    assert_agrees(pair, {}, "bool")


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_same_bits_as_the_other_kernels(variant):
    # No contraction anywhere: in fp32 every implementation rounds alike.
    params, grads, buffers = make([(300,)])
    masks = random_masks(params, 0.5)
    mine = [p.clone() for p in params], [v.clone() for v in buffers]
    launch(*(mine[0], grads, mine[1]), masks, **SCALARS | variant)
    ops.masked_sgd_(params, grads, buffers, masks, **SCALARS | variant)
    assert torch.equal(mine[0][0], params[0]) and torch.equal(mine[1][0], buffers[0])


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64, None])
def test_packed_agrees_with_masked(index_type):
    params, grads, buffers = make([(301, 7), (33,), (0,)])
    masks = random_masks(params, 0.2)
    values, momenta = [p[m] for p, m in zip(params, masks)], [v[m] for v, m in zip(buffers, masks)]
    if index_type is None:
        given, indices = [g[m] for g, m in zip(grads, masks)], [None] * len(masks)
    else:
        given, indices = grads, [m.flatten().nonzero().flatten().to(index_type) for m in masks]
    launch(values, given, momenta, indices, op="packed_sgd_", **SCALARS)
    launch(params, grads, buffers, masks, **SCALARS)
    for i, mask in enumerate(masks):
        assert torch.equal(values[i], params[i][mask]) and torch.equal(momenta[i], buffers[i][mask])


def test_storage_order_of_other_layouts():
    # Channels-last and transposed params; gradients and masks that lie the same way or row-major.
    for param in (torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last), torch.randn(7, 9).t()):
        for same in (True, False):
            grad = torch.randn_like(param) if same else torch.randn(param.shape)
            mask = random_masks([param], 0.5)[0] if same else torch.rand(param.shape) < 0.5
            mine, want = param.clone(), torch.where(mask, param - 0.1 * grad, param)
            launch([mine], [grad], [], [mask], **SCALARS | {"momentum": 0.0, "weight_decay": 0.0})
            assert_close(mine, want.double())
            assert mine.stride() == param.stride()


def test_gradient_scaler_and_tensor_lr():
    for lr in (0.1, torch.tensor(0.1)):
        op = "masked_sgd_.tensor_lr" if isinstance(lr, torch.Tensor) else "masked_sgd_"
        param, grad, mask = torch.randn(65), torch.randn(65), torch.rand(65) < 0.5
        start = param.clone()
        scalars = SCALARS | {"lr": lr, "momentum": 0.0, "weight_decay": 0.0}
        for outside in ("keep", "zero"):
            launch([param], [grad], [], [mask], **scalars, op=op, outside=outside, grad_scale=torch.tensor([4.0]), found_inf=torch.ones(()))
            assert torch.equal(param, start)
        launch([param], [grad], [], [mask], **scalars, op=op, grad_scale=torch.tensor(4.0), found_inf=torch.zeros(1))
        assert_close(param, torch.where(mask, start - 0.1 * grad / 4, start).double())
    value = torch.ones(3)
    launch([value], [torch.ones(3)], [], [None], op="packed_sgd_", **SCALARS | {"momentum": 0.0}, found_inf=torch.ones(1))
    assert value.tolist() == [1.0] * 3


# ---- properties ----

@pytest.mark.parametrize("outside", ["keep", "zero"])
@pytest.mark.parametrize("form", ["bool", "bits"])
def test_nothing_hidden_is_touched_or_read(form, outside):
    param, grad, buffer = torch.randn(70), torch.randn(70), torch.randn(70)
    mask = torch.rand(70) < 0.5
    param[~mask], grad[~mask], buffer[~mask] = math.nan, math.nan, -0.0
    before = param.view(torch.int32).clone(), buffer.view(torch.int32).clone()
    launch([param], [grad], [buffer], in_form(form, [mask]), **SCALARS, outside=outside)
    for got, old in ((param, before[0]), (buffer, before[1])):
        assert torch.equal(got.view(torch.int32)[~mask], torch.zeros_like(old)[~mask] if outside == "zero" else old[~mask])
        assert not got[mask].isnan().any()


# ---- misuse ----

@pytest.mark.parametrize("change, error, words", [
    ({"grads": []}, ValueError, r"masked_sgd_: grads: expected a list of 1 .* got 0"),
    ({"grads": [torch.ones(3)]}, ValueError, r"grads\[0\]: expected shape \[4\], got \[3\]"),
    ({"masks": [torch.ones(3, dtype=torch.bool)]}, ValueError, r"masks\[0\]: expected a bool mask of shape \[4\], got \[3\]"),
    ({"masks": [torch.ones(2, dtype=torch.int32)]}, ValueError, r"masks\[0\]: expected 1 contiguous int32 words"),
    ({"masks": [torch.ones(4)]}, TypeError, r"masks\[0\]: expected a bool mask"),
    ({"params": [torch.ones(8)[::2]]}, ValueError, r"params\[0\]: expected a dense tensor"),
    ({"params": [torch.ones(2, 2).t()], "grads": [torch.ones(2, 2)], "masks": [torch.ones(1, dtype=torch.int32)]}, ValueError, "row-major"),
    ({"grads": [torch.ones(4, dtype=torch.float64)]}, TypeError, r"unsupported pair of dtypes: param torch.float32 with grad torch.float64"),
    ({"outside": "drop"}, ValueError, r'outside: expected "keep" or "zero", got'),
    ({"momentum": 0.9}, ValueError, r"momentum_buffers: expected a list of 1"),
    ({"momentum": 0.9, "momentum_buffers": [torch.ones(4, dtype=torch.float16)]}, TypeError, r"momentum_buffers\[0\]: expected torch.float32"),
])
def test_misuse(change, error, words):
    arguments = {"params": [torch.ones(4)], "grads": [torch.ones(4)], "momentum_buffers": [], "masks": [NONE]} | SCALARS | {"momentum": 0.0} | change
    lists = [arguments.pop(key) for key in ("params", "grads", "momentum_buffers", "masks")]
    with pytest.raises(error, match=words):
        launch(*lists, **arguments)


def test_packed_misuse():
    scalars = SCALARS | {"momentum": 0.0}
    for indices, words in (([None], "expected a packed gradient of 2 values, got 4"), ([torch.zeros(3, dtype=torch.int32)], "one index per value")):
        with pytest.raises(ValueError, match=words):
            launch([torch.ones(2)], [torch.ones(4)], [], indices, op="packed_sgd_", **scalars)
    with pytest.raises(TypeError, match="expected int32 or int64"):
        launch([torch.ones(2)], [torch.ones(4)], [], [torch.zeros(2)], op="packed_sgd_", **scalars)

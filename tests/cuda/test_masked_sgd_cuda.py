"""masked_sgd_ and packed_sgd_ through their CUDA bindings against the float64 reference."""
import pytest
import torch

from sparsekern import ops
from sparsekern.testing import assert_close, awkward_shapes, double, random_masks

SCALARS = {"weight_decay": 0.01, "momentum": 0.9, "lr": 0.1, "dampening": 0.0, "nesterov": False, "maximize": False, "is_first_step": False}
VARIANTS = [{}, {"nesterov": True}, {"maximize": True, "dampening": 0.3}, {"outside": "zero"}, {"invert": True}]


def make(shapes, param_type, grad_type):
    return ([torch.randn(s).to(param_type) for s in shapes], [torch.randn(s).to(grad_type) for s in shapes],
            [torch.randn(s).to(param_type) for s in shapes])


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("form", ["bool", "bits", "none"])
def test_agrees_with_the_reference(lane, variant, form):
    params, grads, buffers = make(awkward_shapes, torch.float32, torch.bfloat16)
    masks = random_masks(params, 0.3)
    given = {"bool": masks, "bits": [ops.pack_mask(m) for m in masks], "none": [torch.empty(0, dtype=torch.bool)] * len(masks)}[form]
    wide, wide_buffers = double(params), double(buffers)
    ops.masked_sgd_(wide, double(grads), wide_buffers, given, **SCALARS | variant)
    got, got_buffers = lane.put(params), lane.put(buffers)
    lane.op("masked_sgd_")(got, lane.put(grads), got_buffers, lane.put(given), **SCALARS | variant)
    for ours, want in zip(got + got_buffers, wide + wide_buffers):
        assert_close(ours.cpu(), want)


def test_learning_rate_and_flags_stay_on_the_device(lane):
    params, grads, buffers = make([(33, 7), (5,)], torch.float32, torch.float32)
    masks = random_masks(params, 0.5)
    want, want_buffers = [p.clone() for p in params], [b.clone() for b in buffers]
    ops.masked_sgd_(want, grads, want_buffers, masks, **SCALARS | {"lr": 0.25})
    got, got_buffers = lane.put(params), lane.put(buffers)
    scalars = SCALARS | {"lr": lane.put(torch.tensor(0.25))}
    lane.op("masked_sgd_.tensor_lr")(got, lane.put(grads), got_buffers, lane.put(masks), **scalars, found_inf=lane.put(torch.zeros(1)))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got + got_buffers, want + want_buffers))
    lane.op("masked_sgd_.tensor_lr")(got, lane.put(grads), got_buffers, lane.put(masks), **scalars, found_inf=lane.put(torch.ones(1)))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got + got_buffers, want + want_buffers))


def test_packed_values_gather_their_gradients(lane):
    params, grads, buffers = make([(301, 7), (33,), (0,)], torch.float32, torch.float32)
    masks = random_masks(params, 0.2)
    for index_type in (torch.int32, torch.int64):
        indices = [m.flatten().nonzero().flatten().to(index_type) for m in masks]
        want, want_momenta = [p[m] for p, m in zip(params, masks)], [v[m] for v, m in zip(buffers, masks)]
        got, got_momenta = lane.put(want), lane.put(want_momenta)
        ops.packed_sgd_(want, grads, want_momenta, indices, **SCALARS)
        lane.op("packed_sgd_")(got, lane.put(grads), got_momenta, lane.put(indices), **SCALARS)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(got + got_momenta, want + want_momenta))


def test_a_mask_of_another_shape_is_refused(lane):
    x = lane.put([torch.zeros(4)])
    with pytest.raises(ValueError, match=r"masked_sgd_: masks\[0\]"):
        lane.op("masked_sgd_")(x, x, x, lane.put([torch.ones(5, dtype=torch.bool)]), **SCALARS)

"""masked_weight: selection forward, a masked or dense gradient backward, no NaN from what is hidden."""
import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsekern import ops
from sparsekern._native import native
from sparsekern.ops import masked_weight
from sparsekern.testing import awkward_shapes, each_implementation, random_masks, threads

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
NONE = torch.empty(0, dtype=torch.bool)


def call(name, *args, op="masked_weight", **kwargs):
    return ops.implementations(op)[name](*args, **kwargs)


def in_form(form, mask):
    return {"bool": lambda: mask, "bits": lambda: ops.pack_mask(mask), "none": lambda: NONE}[form]()


def bits(tensor):
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def assert_same(got, want, name, rounded=False):
    """Equal values; rounding to bfloat16 in Triton's interpreter cuts bits off instead, as the hardware does not."""
    assert got.dtype == want.dtype and got.shape == want.shape and got.stride() == want.stride()
    if rounded and name == "triton" and want.dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1":
        torch.testing.assert_close(got, want, rtol=2**-7, atol=0)
    else:
        assert torch.equal(got, want)


# ---- worked examples ----

@pytest.mark.parametrize("name", each_implementation("masked_weight"))
def test_worked_example_selection(name):
    weight = torch.tensor([1.5, -2.0, math.nan, -math.inf, 3.0])
    out = call(name, weight, torch.tensor([True, True, False, False, False]))
    assert out.tolist() == [1.5, -2.0, 0.0, 0.0, 0.0]
    assert all(math.copysign(1, v) == 1 for v in out[2:].tolist())


@pytest.mark.parametrize("name", each_implementation("masked_weight"))
def test_worked_example_bits_and_dtype(name):
    # Bits 0 and 2; 1 + 2^-9 lies halfway between two bfloat16 numbers (steps of 2^-7 there) but not above it, and becomes 1.
    out = call(name, torch.tensor([1 + 2**-9, 5.0, 2.0]), torch.tensor([5], dtype=torch.int32), dtype=torch.bfloat16)
    assert out.dtype == torch.bfloat16 and out.tolist() == [1.0, 0.0, 2.0]


def test_worked_example_gradients():
    weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    mask, other = torch.tensor([True, False, True]), torch.tensor([False, True, True])
    incoming = torch.tensor([10.0, 20.0, 30.0])
    for arguments, want in (({}, [10, 0, 30]), ({"grad_mask": other}, [0, 20, 30]), ({"dense_grad": True}, [10, 20, 30]),
                            ({"grad_mask": NONE}, [10, 20, 30]), ({"grad_mask": ops.pack_mask(other)}, [0, 20, 30])):
        (grad,) = torch.autograd.grad(masked_weight(weight, mask, **arguments), weight, incoming)
        assert grad.tolist() == want


# ---- agreement ----

def assert_forward_agrees(name, source, target, form):
    for shape in awkward_shapes:
        weight = torch.randn(shape).to(source)
        mask = torch.rand(shape) < 0.4
        expected = (torch.where(mask, weight, torch.zeros_like(weight)) if form != "none" else weight).to(target or source)
        assert_same(call(name, weight, in_form(form, mask), dtype=target), expected, name, rounded=target not in (None, source))


@pytest.mark.parametrize("form", ["bool", "bits", "none"])
@pytest.mark.parametrize("source", TYPES, ids=str)
def test_cpu_agrees(isa, source, form):
    for target in [None, *TYPES]:
        assert_forward_agrees("cpu", source, target, form)


@pytest.mark.parametrize("name", [n for n in each_implementation("masked_weight") if n != "cpu"])
@pytest.mark.parametrize("form", ["bool", "bits", "none"])
def test_agrees(name, form):
    for source, target in [(t, None) for t in TYPES] + [(torch.float32, torch.bfloat16), (torch.float32, torch.float16),
                                                        (torch.bfloat16, torch.float32), (torch.float64, torch.float16)]:
        assert_forward_agrees(name, source, target, form)


@pytest.mark.parametrize("name", each_implementation("masked_weight"))
def test_strides_are_kept(name):
    weight = torch.randn(4, 3, 5, 7)
    mask = torch.rand(4, 3, 5, 7) < 0.5
    for view in (weight.to(memory_format=torch.channels_last), weight.permute(2, 0, 3, 1), weight[::2, :, 1:], weight[:, :1].expand(4, 3, 5, 7)):
        its = mask.permute(2, 0, 3, 1) if view.shape != mask.shape and view.numel() == mask.numel() else mask[:view.shape[0], :, :view.shape[2]]
        for form in (its, its.contiguous(), NONE):
            want = torch.empty_like(view).copy_(torch.where(its, view, 0.0) if form.numel() else view)
            assert_same(call(name, view, form), want, name)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("name", each_implementation("masked_weight.list"))
def test_list_gives_the_same_bits_as_single_calls(name, dtype):
    weights = [torch.randn(s).to(t) for s, t in zip(awkward_shapes, TYPES * 4)]
    masks = random_masks(weights, 0.5)
    masks[3], masks[4] = NONE, ops.pack_mask(masks[4])
    for got, weight, mask in zip(call(name, weights, masks, op="masked_weight.list", dtype=dtype), weights, masks):
        assert_same(got, call(name, weight, mask, dtype=dtype), name)


def test_same_bits_for_every_thread_count():
    if not native.available:
        pytest.skip(f"compiled kernels are {native.reason}")
    weights = [torch.randn(300_007), torch.randn(33, 5)]
    masks = random_masks(weights, 0.5)
    one = masked_weight(weights, masks)
    with threads(2):
        assert all(torch.equal(a, b) for a, b in zip(one, masked_weight(weights, masks)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_kept_nan_keeps_its_payload(isa, dtype):
    pattern = torch.tensor([-3, 0x7F81, 0x7C01, 5, -0x8000] * 5, dtype=torch.int16)
    weight = (pattern.to(torch.int32) << 16 | 1).view(torch.float32) if dtype == torch.float32 else pattern.view(dtype)
    assert torch.equal(bits(masked_weight(weight, torch.ones(25, dtype=torch.bool))), bits(weight))


# ---- properties ----

@given(st.integers(1, 200), st.floats(0, 1), st.booleans(), st.sampled_from(TYPES), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_hidden_values_never_show(n, density, packed, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, generator=generator).to(dtype)
    mask = torch.rand(n, generator=generator) < density
    weight[~mask] = math.nan
    leaf = weight.clone().requires_grad_()
    given = ops.pack_mask(mask) if packed else mask
    out = masked_weight(leaf, given)
    out.backward(torch.where(mask, 1.0, math.nan).to(dtype))
    assert torch.equal(out[mask], weight[mask]) and torch.equal(bits(out.detach())[~mask], torch.zeros_like(bits(weight))[~mask])
    assert torch.equal(leaf.grad, mask.to(dtype)) and not leaf.grad.signbit().any()
    assert torch.equal(masked_weight(out.detach(), given), out)


# ---- gradients ----

@pytest.mark.parametrize("arguments", [{}, {"grad_mask": "other"}], ids=str)
def test_gradcheck(arguments):
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    mask, other = torch.rand(4, 3) < 0.5, torch.rand(4, 3) < 0.5
    if arguments:
        # With another gradient mask the op is not the derivative of its forward, by design: compare with the formula.
        (grad,) = torch.autograd.grad((masked_weight(weight, mask, grad_mask=other) ** 2).sum(), weight)
        assert torch.equal(grad, torch.where(mask & other, 2 * weight, 0.0).detach())
        return
    assert torch.autograd.gradcheck(lambda w: masked_weight(w, mask), (weight,))
    assert torch.autograd.gradcheck(lambda w: masked_weight(w, ops.pack_mask(mask)), (weight,))
    assert torch.autograd.gradgradcheck(lambda w: masked_weight(w, mask) ** 3, (weight,))


def test_gradcheck_list():
    weights = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((4, 3), (5,), (0,))]
    masks = [torch.rand(4, 3) < 0.5, None, NONE]
    assert torch.autograd.gradcheck(lambda *w: tuple(masked_weight(w, masks)), weights)
    assert torch.autograd.gradgradcheck(lambda *w: tuple(t ** 3 for t in masked_weight(w, masks)), weights)


def test_dense_gradient_is_the_incoming_tensor():
    weight, mask, incoming = torch.randn(40, requires_grad=True), torch.rand(40) < 0.5, torch.randn(40)
    for out in (masked_weight(weight, mask, dense_grad=True), masked_weight([weight], [mask], dense_grad=True)[0]):
        (grad,) = torch.autograd.grad(out, weight, incoming)
        assert grad.data_ptr() == incoming.data_ptr()


def test_gradient_has_the_weights_dtype():
    weight, mask = torch.randn(40, requires_grad=True), torch.rand(40) < 0.5
    for arguments, seen in (({}, mask), ({"dense_grad": True}, torch.ones(40, dtype=torch.bool)), ({"grad_mask": ~mask}, ~mask)):
        incoming = torch.randn(40).bfloat16()
        (grad,) = torch.autograd.grad(masked_weight(weight, mask, dtype=torch.bfloat16, **arguments), weight, incoming)
        assert grad.dtype == torch.float32 and torch.equal(grad, torch.where(seen, incoming.float(), 0.0))


def test_list_gradients_with_gaps():
    # Mixed dtypes, one weight without a gradient, one output unused, one dense entry.
    weights = [torch.randn(9, requires_grad=True), torch.randn(5), torch.randn(7, dtype=torch.bfloat16, requires_grad=True),
               torch.randn(3, requires_grad=True), torch.randn(4, requires_grad=True)]
    masks = random_masks(weights, 0.5)
    masks[4] = None
    out = masked_weight(weights, masks, dtype=torch.float32)
    assert out[4] is weights[4] and out[2].dtype == torch.float32
    (out[0].sum() + out[2].sum() + out[4].sum()).backward()
    assert torch.equal(weights[0].grad, masks[0].float()) and torch.equal(weights[2].grad, masks[2].bfloat16())
    assert weights[3].grad is None and weights[4].grad.tolist() == [1.0] * 4
    (grad,) = torch.autograd.grad(masked_weight([weights[0]], [masks[0]], grad_mask=[~masks[0]])[0].sum(), weights[0])
    assert torch.equal(grad, (~masks[0]).float())


def test_packed_mask_takes_a_channels_last_gradient():
    weight = torch.randn(4, 3, 5, 5, requires_grad=True)
    mask, incoming = torch.rand(4, 3, 5, 5) < 0.5, torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(masked_weight(weight, ops.pack_mask(mask)), weight, incoming)
    assert torch.equal(grad, torch.where(mask, incoming, 0.0))


def test_saves_masks_and_not_the_weight():
    weight, mask = torch.randn(8, requires_grad=True), torch.rand(8) < 0.5
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        masked_weight(weight, mask)
        masked_weight(weight, mask, dense_grad=True)
    assert len(saved) == 1 and saved[0].data_ptr() == mask.data_ptr()
    with torch.no_grad():
        assert not masked_weight(weight, mask).requires_grad


def test_dense_is_the_weight_itself():
    weight = torch.randn(6, requires_grad=True)
    for mask in (None, NONE, torch.empty(0, dtype=torch.int32)):
        assert masked_weight(weight, mask) is weight and masked_weight(weight, mask, dense_grad=True) is weight
        assert masked_weight([weight], [mask])[0] is weight and masked_weight(weight, mask, dtype=torch.float32) is weight
    assert masked_weight(weight, None, dtype=torch.bfloat16).dtype == torch.bfloat16
    hidden = torch.zeros(6, dtype=torch.bool)
    (grad,) = torch.autograd.grad(masked_weight(weight, None, grad_mask=hidden).sum(), weight)
    assert torch.equal(masked_weight(weight, None, grad_mask=hidden), weight) and not grad.any()
    assert masked_weight([], []) == [] and masked_weight(torch.empty(0, 3), torch.empty(0, 3, dtype=torch.bool)).shape == (0, 3)


# ---- citizenship ----

@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")      # opcheck looks at its own copies
@pytest.mark.parametrize("arguments", [{}, {"dense_grad": True, "dtype": torch.bfloat16}, {"grad_mask": torch.ones(5, 3, dtype=torch.bool)}], ids=str)
def test_opcheck(arguments):
    weight, mask = torch.randn(5, 3, requires_grad=True), torch.rand(5, 3) < 0.5
    torch.library.opcheck(torch.ops.sparsekern.masked_weight.default, (weight, mask), arguments)
    many = {("grad_masks" if k == "grad_mask" else k): ([v, v] if k == "grad_mask" else v) for k, v in arguments.items()}
    torch.library.opcheck(torch.ops.sparsekern.masked_weight.list, ([weight, weight.detach()], [mask, mask]), many)


def test_compiles_whole():
    def loss(weight, other, mask, x):
        effective, second = masked_weight([weight, other], [mask, None], dtype=torch.float32)
        return (x @ masked_weight(effective, mask, grad_mask=~mask).t()).square().sum() + second.sum() + (x @ masked_weight(weight, mask).t()).sum()

    arguments = torch.randn(4, 3, requires_grad=True), torch.randn(4, requires_grad=True), torch.rand(4, 3) < 0.5, torch.randn(2, 3)
    results = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        value = function(*arguments)
        results.append((value, *torch.autograd.grad(value, arguments[:2])))
    for got, want in zip(results[1], results[0]):
        torch.testing.assert_close(got, want)


# ---- misuse ----

@pytest.mark.parametrize("weight, mask, arguments, error, words", [
    (torch.ones(4), torch.ones(3, dtype=torch.bool), {}, ValueError, r"masked_weight: masks\[0\]: expected a bool mask of shape \[4\], got \[3\]"),
    (torch.ones(4), torch.ones(2, dtype=torch.int32), {}, ValueError, "expected 1 contiguous int32 words for 4 elements"),
    (torch.ones(4), torch.ones(4), {}, TypeError, "expected a bool mask, packed int32 words or an empty tensor"),
    (torch.ones(4, 4).t()[:2], torch.ones(1, dtype=torch.int32), {}, ValueError, "a packed mask goes with a row-major tensor"),
    (torch.ones(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool), {}, TypeError, "weights: expected float32, bfloat16, float16 or float64"),
    (torch.ones(4), torch.ones(4, dtype=torch.bool), {"dtype": torch.int32}, TypeError, "dtype: expected float32"),
])
@pytest.mark.parametrize("name", each_implementation("masked_weight"))
def test_misuse(name, weight, mask, arguments, error, words):
    with pytest.raises(error, match=words):
        call(name, weight, mask, **arguments)


def test_misuse_of_the_front_door():
    weight, mask = torch.ones(4, requires_grad=True), torch.ones(4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"masked_weight: grad_mask: expected a bool mask of shape \[4\], got \[3\]"):
        masked_weight(weight, mask, grad_mask=mask[:3])
    with pytest.raises(ValueError, match=r"masked_weight: mask: expected a list of 1 masks like the list of weights, got a list of 2"):
        masked_weight([weight], [mask, mask])
    with pytest.raises(ValueError, match=r"masked_weight: mask: expected a list of 1 masks like the list of weights, got a tensor"):
        masked_weight([weight], mask)
    with pytest.raises(ValueError, match=r"grad_mask\[0\]: expected a bool mask of shape \[4\]"):
        masked_weight([weight], [mask], grad_mask=[mask[:2]])
    with pytest.raises(ValueError, match=r"masks: expected a list of 1 tensors"):
        torch.ops.sparsekern.masked_weight.list([weight], [])


def test_mask_changed_before_backward_is_noticed():
    weight, mask = torch.randn(4, requires_grad=True), torch.ones(4, dtype=torch.bool)
    out = masked_weight(weight, mask)
    mask[0] = False
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()

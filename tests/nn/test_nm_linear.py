"""NMLinear: a dense parent seen through its N:M mask, against the same computed with dense masked tensors; and its packed form."""
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sparsekern import ops
from sparsekern.nn import NMLinear, PackedNMLinear
from sparsekern.nn.nm_weight import GRADIENTS, REFRESHES
from sparsekern.testing import assert_close

BACKENDS = ["csr", "dense"]
PATTERNS = [(1, 4), (2, 4), (2, 8), (1, 16), (4, 4), (3, 5)]


def worked(**options):
    """W = [[1, -3, 2, 0], [4, 0.5, -0.5, -5]] in groups of 2: 1:2 keeps -3, 2 and 4, -5."""
    dense = nn.Linear(4, 2, dtype=torch.float64)
    with torch.no_grad():
        dense.weight.copy_(torch.tensor([[1.0, -3.0, 2.0, 0.0], [4.0, 0.5, -0.5, -5.0]]))
        dense.bias.copy_(torch.tensor([100.0, 200.0]))
    return NMLinear.from_dense(dense, 1, 2, **options)


# ---- worked examples ----

@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("refresh", REFRESHES)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_worked_example(backend, refresh, gradient):
    layer = worked(backend=backend, refresh=refresh, gradient=gradient, **({"lambda_w": 0.5} if gradient == "sr_ste" else {}))
    assert layer.current_mask().tolist() == [[False, True, True, False], [True, False, False, True]]
    x = torch.tensor([[1.0, 10.0, 1000.0, 10000.0]], dtype=torch.float64, requires_grad=True)
    y = layer(x)
    assert y.tolist() == [[100 - 30 + 2000, 200 + 4 - 50000]]
    y.backward(torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    assert x.grad.tolist() == [[8, -3, 2, -10]] and layer.bias.grad.tolist() == [1, 2]
    everywhere = torch.tensor([[1.0, 10.0, 1000.0, 10000.0], [2.0, 20.0, 2000.0, 20000.0]])
    if gradient == "masked":
        everywhere = torch.tensor([[0.0, 10.0, 1000.0, 0.0], [2.0, 0.0, 0.0, 20000.0]])
    elif gradient == "sr_ste":                              # half of each hidden weight joins
        everywhere = everywhere + torch.tensor([[0.5, 0.0, 0.0, 0.0], [0.0, 0.25, -0.25, 0.0]])
    assert layer.weight.grad.tolist() == everywhere.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_sr_ste_step_by_hand(backend):
    # y = W_masked x with x = (1, 1) and dy = 1: gradient (1, 1). W = (2, 1): SGD(0.1) with lambda 0.2 gives
    # 2 - 0.1 * 1 = 1.9 and 1 - 0.1 * (1 + 0.2 * 1) = 0.88.
    layer = NMLinear(2, 1, 1, 2, bias=False, gradient="sr_ste", lambda_w=0.2, backend=backend, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, 1.0]]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[1.9, 0.88]], dtype=torch.float64), rtol=0, atol=1e-15)


def test_sr_ste_decay_is_that_of_the_paper_when_asked_for():
    assert worked(gradient="sr_ste").lambda_w == 2e-4 and worked().lambda_w == 0.0
    assert worked(gradient="sr_ste", lambda_w=0.0).lambda_w == 0.0


# ---- agreement ----

def oracle(layer, x, incoming):
    """y and the gradients of x, bias and masked weight, by dense float64 tensors alone."""
    weight = (layer.weight.detach().double() * layer.current_mask()).requires_grad_()
    bias = layer.bias.detach().double().requires_grad_()
    x = x.detach().double().requires_grad_()
    y = F.linear(x, weight, bias)
    return y.detach(), *torch.autograd.grad(y, (x, bias, weight), incoming.double())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("n, m", PATTERNS)
@pytest.mark.parametrize("lead", [(7,), (), (2, 3), (0,)], ids=str)
def test_agrees_with_dense_masked(backend, gradient, n, m, lead):
    layer = NMLinear(m * 6, 9, n, m, gradient=gradient, backend=backend)
    x, incoming = torch.randn(*lead, m * 6, requires_grad=True), torch.randn(*lead, 9)
    want, d_x, d_bias, d_weight = oracle(layer, x, incoming)
    mask = layer.current_mask()
    y = layer(x)
    assert_close(y, want, reduction=6 * n)
    y.backward(incoming)
    if gradient == "masked":
        d_weight = d_weight * mask
        assert not layer.weight.grad[~mask].any()
    elif gradient == "sr_ste":
        d_weight = d_weight + 2e-4 * (layer.weight.detach().double() * ~mask)
    for got, wanted in ((x.grad, d_x), (layer.bias.grad, d_bias), (layer.weight.grad, d_weight)):
        assert_close(got, wanted, reduction=64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_of_the_masked_gradient(backend):
    layer = NMLinear(8, 5, 1, 4, gradient="masked", refresh="fixed", dtype=torch.float64, backend=backend)
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)

    def run(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))
    arguments = (x, layer.weight, layer.bias)
    assert torch.autograd.gradcheck(run, arguments) and torch.autograd.gradgradcheck(run, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_straight_through_is_the_dense_gradient_bit_for_bit_in_float64(backend):
    layer = NMLinear(16, 6, 2, 8, backend=backend, dtype=torch.float64)
    x = torch.randn(5, 16, dtype=torch.float64)
    layer(x).backward(incoming := torch.randn(5, 6, dtype=torch.float64))
    torch.testing.assert_close(layer.weight.grad, incoming.t() @ x, rtol=1e-14, atol=1e-14)
    assert (layer.weight.grad != 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_parts_and_strided_input(backend):
    layer = NMLinear(8, 4, 1, 4, bias=False, backend=backend)
    x = torch.randn(8, 5).t()
    assert_close(layer(x), x.double() @ layer.masked_weight().double().t(), reduction=2)
    layer.weight.requires_grad_(False)
    free = torch.randn(5, 8, requires_grad=True)
    layer(free).sum().backward()
    assert layer.weight.grad is None
    assert_close(free.grad, layer.masked_weight().double().sum(0).expand(5, 8), reduction=4)


# ---- the mask over time ----

@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_training_lowers_the_loss_and_every_step_keeps_exactly_n(backend, gradient):
    torch.manual_seed(0)
    model = nn.Sequential(NMLinear(16, 32, 2, 8, gradient=gradient, backend=backend), nn.ReLU(),
                          NMLinear(32, 4, 1, 4, gradient=gradient, backend=backend))
    x = torch.randn(64, 16)
    labels = x[:, ::4].argmax(1)                            # learnable: the largest of four inputs
    optimizer, losses, masks = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), [], []
    for _ in range(60):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        masks.append(model[0].current_mask())
        for layer in (model[0], model[2]):
            assert (layer.masked_weight().view(layer.rows, -1, layer.m) != 0).sum(-1).eq(layer.n).all()
    assert losses[-1] < 0.5 * losses[0]
    if gradient != "masked":
        assert not torch.equal(masks[0], masks[-1]), "hidden weights never came back"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fixed_mask_stays_until_it_is_updated(backend):
    layer = NMLinear(16, 6, 1, 4, refresh="fixed", backend=backend)
    x, first, address = torch.randn(3, 16), layer.mask.clone(), layer.mask.data_ptr()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(6, 16))
    assert torch.equal(layer.mask, first)
    assert_close(layer(x), x.double() @ (layer.weight.double() * first).t() + layer.bias.double(), reduction=4)
    layer.update_mask()
    assert layer.mask.data_ptr() == address and torch.equal(layer.mask, ops.nm_mask(layer.weight, 1, 4)) and not torch.equal(layer.mask, first)
    assert_close(layer(x), x.double() @ layer.masked_weight().double().t() + layer.bias.double(), reduction=4)
    layer.update_mask(first)
    assert torch.equal(layer.mask, first)
    assert_close(layer(x), x.double() @ (layer.weight.double() * first).t() + layer.bias.double(), reduction=4)


def test_refresh_can_change():
    layer = worked()
    assert layer.mask is None and "mask" not in layer.state_dict()
    layer.refresh = "fixed"
    with torch.no_grad():
        layer.weight[0, 0] = 9
    assert layer.mask.tolist()[0] == [False, True, True, False]
    layer.refresh = "forward"
    assert layer.current_mask().tolist()[0] == [True, False, True, False]
    layer.update_mask()
    assert layer.mask is None


# ---- numbers that are none ----

@pytest.mark.parametrize("backend", BACKENDS)
def test_hidden_nan_and_inf_never_show_and_ties_take_the_first(backend):
    layer = NMLinear(8, 1, 1, 4, bias=False, backend=backend)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, float("nan"), 0.5, float("nan"), -0.0, 0.0, -0.0, 0.0]]))
    x = torch.ones(2, 8, requires_grad=True)
    y = layer(x)
    assert y.tolist() == [[1.0], [1.0]]
    y.sum().backward()
    assert x.grad.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]] * 2 and layer.weight.grad.tolist() == [[2.0] * 8]
    assert layer.current_mask().tolist() == [[True, False, False, False, True, False, False, False]]
    with torch.no_grad():
        layer.weight[0, 2] = float("inf")
    assert layer(x).tolist() == [[float("inf")]] * 2


def test_packing_keeps_every_bit():
    layer = NMLinear(8, 2, 2, 4, refresh="fixed", mask=torch.tensor([[False, True, False, True] * 2, [True, True, False, False] * 2]))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -0.0, 2.0, float("nan"), 0.0, 0.0, 9.0, -0.0],
                                         [float("inf"), -float("inf"), 5.0, 5.0, 1e-45, -1.0, 3.0, 3.0]]))
    packed = layer.pack(backend="packed")
    assert packed.index.tolist() == [[1, 3, 1, 3], [0, 1, 0, 1]]
    kept = layer.weight.detach()[layer.mask].view(2, 4)
    assert torch.equal(packed.values.view(torch.int32), kept.view(torch.int32))          # -0.0 and NaN with their bits
    back = packed.unpack()
    assert torch.equal(back.mask, layer.mask) and back.refresh == "fixed"
    assert torch.equal(back.masked_weight().view(torch.int32), layer.masked_weight().view(torch.int32))
    assert torch.equal(back.weight.detach().view(torch.int32), layer.masked_weight().view(torch.int32))


# ---- inference ----

@given(rows=st.integers(1, 9), groups=st.integers(1, 9), m=st.sampled_from([1, 2, 4, 5, 8, 16, 64]), share=st.floats(0, 1),
       batch=st.integers(0, 9), seed=st.integers(0, 2**32), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
@settings(max_examples=60, deadline=None)
def test_packed_computes_what_the_masked_layer_does(rows, groups, m, share, batch, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    n = max(1, round(share * m))
    layer = NMLinear(groups * m, rows, n, m, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(rows, groups * m, generator=generator))
    packed, x = layer.pack(backend="packed"), torch.randn(batch, groups * m, generator=generator).to(dtype)
    want = x.double() @ layer.masked_weight().double().t() + layer.bias.double()
    assert packed.nnz == rows * groups * n and not list(packed.parameters())
    for backend in packed.backends:
        packed.backend = backend
        y = packed(x)
        assert y.dtype == dtype and y.is_contiguous()
        assert_close(y, want, dtype=dtype, reduction=groups * n + 1)
    assert torch.equal(packed.unpack().masked_weight(), layer.masked_weight())
    assert torch.equal(packed.unpack().mask, layer.current_mask())
    assert torch.equal(packed.to_dense().weight, layer.to_dense().weight)


def test_packed_passes_gradients_to_its_input():
    layer = NMLinear(16, 6, 1, 4)
    packed, x = layer.pack(backend="packed"), torch.randn(2, 3, 16, requires_grad=True)
    packed(x).sum().backward()
    assert_close(x.grad, layer.masked_weight().double().sum(0).expand(2, 3, 16), reduction=6)


@pytest.mark.parametrize("backend", ["packed", "dense"])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_input_beside_float32_values(backend, half):
    packed = NMLinear(16, 6, 1, 4).pack(backend=backend)
    x = torch.randn(5, 16).to(half)
    assert packed(x).dtype == half
    assert_close(packed(x), x.double() @ packed.dense_weight().double().t() + packed.bias.double(), dtype=half, reduction=4)


# ---- misuse ----

def test_misuse():
    for arguments, words in [
            ((12, 4, 1, 8), "NMLinear: 12 inputs cannot be split into groups of m = 8: leave this layer dense"),
            ((8, 4, 5, 4), "n: expected 1 to m = 4 weights kept of each group, got 5; n is the number kept, not the number of zeros"),
            ((8, 4, 0, 4), "n: expected 1 to m = 4"), ((130, 4, 1, 65), "m: expected a group of 1 to 64 weights, got 65"),
            ((8, 4, 1, 0), "m: expected a group of 1 to 64"), ((8, 4, 1.0, 4), "n: expected an integer, got 1.0"),
            ((8, 4, 1, True), "m: expected an integer, got True")]:
        with pytest.raises(ValueError, match=words):
            NMLinear(*arguments)
    for options, words in [
            ({"gradient": "ste"}, "gradient: expected one of straight_through, sr_ste, masked, got 'ste'"),
            ({"refresh": "step"}, "refresh: expected one of forward, fixed"), ({"backend": "packed"}, "backend: expected one of csr, dense"),
            ({"lambda_w": 1e-4}, 'lambda_w: expected a finite number >= 0 with gradient="sr_ste", got 0.0001 with \'straight_through\''),
            ({"gradient": "sr_ste", "lambda_w": -1.0}, "lambda_w: expected a finite number >= 0"),
            ({"gradient": "sr_ste", "lambda_w": float("nan")}, "lambda_w: expected a finite number >= 0"),
            ({"mask": torch.ones(4, 8, dtype=torch.bool)}, 'mask: only refresh="fixed" keeps a mask')]:
        with pytest.raises(ValueError, match=words):
            NMLinear(8, 4, 1, 4, **options)
    with pytest.raises(TypeError, match="NMLinear.from_dense: expected an nn.Linear with its own forward, got Conv2d"):
        NMLinear.from_dense(nn.Conv2d(4, 4, 1), 1, 4)
    with pytest.raises(ValueError, match='update_mask: mask: expected None, as refresh="forward"'):
        NMLinear(8, 4, 1, 4).update_mask(torch.ones(4, 8, dtype=torch.bool))
    layer = NMLinear(8, 4, 1, 4)
    for name, value in (("backend", "auto"), ("refresh", "never")):
        with pytest.raises(ValueError, match=f"NMLinear: {name}: expected one of"):
            setattr(layer, name, value)
    assert (layer.backend, layer.refresh) == ("dense", "forward")


def test_a_mask_with_another_count_is_refused():
    layer = NMLinear(8, 2, 1, 4, refresh="fixed")
    before, wrong = layer.mask.clone(), torch.zeros(2, 8, dtype=torch.bool)
    wrong[0, 0] = wrong[0, 4] = wrong[1, 0] = wrong[1, 5] = wrong[1, 6] = True
    for mask, words in [(wrong, "expected exactly 1 of every 4 along dimension 1 to be kept, got 2 in group 1 of output 1"),
                        (torch.zeros(2, 8, dtype=torch.bool), "got 0 in group 0 of output 0"),
                        (torch.ones(2, 4, dtype=torch.bool), r"expected a bool tensor of the weight's shape \[2, 8\]"),
                        (wrong.float(), "got torch.float32"), ([True], "got list")]:
        with pytest.raises(ValueError, match=words):
            layer.update_mask(mask)
    assert torch.equal(layer.mask, before)


@pytest.mark.parametrize("fault, words", [
    ("index too large", "index: expected 2 rising positions below 4 in every group, got \\[0, 4\\] in row 0, group 0"),
    ("index twice", "got \\[1, 1\\] in row 1, group 1"), ("index falls", "got \\[3, 0\\]"), ("index type", "index: expected uint8"),
    ("values short", "values: expected floating-point numbers of shape \\[2, 4\\]"), ("values of integers", "got torch.int32"),
    ("bias short", "bias: expected shape \\[2\\]")])
def test_corrupt_packed_state_is_refused(fault, words):
    packed = NMLinear(8, 2, 2, 4).pack(backend="packed")
    state, before = copy.deepcopy(packed.state_dict()), copy.deepcopy(packed.state_dict())
    if fault == "index too large":
        state["index"][0, :2] = torch.tensor([0, 4])
    elif fault == "index twice":
        state["index"][1, 2:] = torch.tensor([1, 1])
    elif fault == "index falls":
        state["index"][1, :2] = torch.tensor([3, 0])
    else:
        name, kind = fault.split(maxsplit=1)
        state[name] = state[name][..., :-1] if kind == "short" else state[name].int()
    with pytest.raises(ValueError, match=f"^state: .*{words}"):
        packed.load_state_dict(state)
    assert all(torch.equal(packed.state_dict()[key], before[key]) for key in before)
    with pytest.raises(ValueError, match="PackedNMLinear: "):
        PackedNMLinear(8, 2, 2, 4, state["values"], state["index"], state["bias"])


@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (2, 8), (1, 16)])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_weights_of_at_most_two_in_four_have_the_product_for_sparse_tensor_cores(n, m, half):
    packed = NMLinear(96, 40, n, m, dtype=half).pack(backend="packed")                 # sides that sp24 has to fill up
    x = torch.randn(2, 3, 96).to(half).requires_grad_()
    want = x.double() @ packed.dense_weight().double().t() + packed.bias.double()
    assert packed.backends == ("packed", "sp24", "dense")
    for backend in packed.backends:
        packed.backend = backend
        assert_close(packed(x), want, dtype=half, reduction=48)
    packed.backend = "sp24"
    packed(x).sum().backward()
    assert_close(x.grad, packed.dense_weight().double().sum(0).expand(2, 3, 96), dtype=half, reduction=40)
    with torch.autocast("cpu", half):
        assert packed(x.float()).dtype == half
    other = NMLinear(96, 40, n, m, dtype=half).pack(backend="packed")
    packed.load_state_dict(other.state_dict())
    assert_close(packed(x), other(x).double(), dtype=half, reduction=48)
    for backend in ("packed", "sp24"):
        packed.backend = backend
        with pytest.raises(ValueError, match=r"PackedNMLinear: x: expected shape \[..., 96\], got \[2, 3, 90\]"):
            packed(x[..., :90])


@pytest.mark.parametrize("n, m, dtype", [(3, 4, torch.bfloat16), (4, 8, torch.float16), (1, 3, torch.bfloat16), (2, 4, torch.float32)])
def test_other_weights_have_not(n, m, dtype):
    packed = NMLinear(48, 8, n, m, dtype=dtype).pack(backend="packed")
    with pytest.raises(ValueError, match="backend: expected one of packed, dense, got 'sp24'"):
        packed.backend = "sp24"
    assert packed.backends == ("packed", "dense")

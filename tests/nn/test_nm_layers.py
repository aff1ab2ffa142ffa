"""What both N:M layers and their packed forms promise: state that loads safely, and being a module among modules."""
import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsekern.nn import NMConv2d, NMLinear, choose
from sparsekern.nn.choose import choose_backend
from sparsekern.testing import assert_close

MAKERS = {"linear": lambda **options: NMLinear(16, 9, 1, 4, **options), "conv": lambda **options: NMConv2d(8, 9, 2, 2, 4, **options)}
INPUTS = {"linear": (5, 16), "conv": (5, 8, 4, 4)}
BACKENDS = ["csr", "dense"]


@pytest.fixture(params=MAKERS)
def kind(request):
    return request.param


def same_output(a, b, kind):
    x = torch.randn(INPUTS[kind])
    return torch.equal(a(x), b(x))


# ---- state ----

@pytest.mark.parametrize("backend", BACKENDS)
def test_state_round_trip(kind, backend, tmp_path):
    source, target = (MAKERS[kind](refresh="fixed", backend=backend) for _ in range(2))
    with torch.no_grad():
        source.weight.mul_(-1).add_(0.1)                    # the mask is no longer that of the largest
    assert set(source.state_dict()) == {"weight", "bias", "mask"} and not torch.equal(source.mask, target.mask)
    torch.save(source.state_dict(), tmp_path / "state.pt")
    parameter = target.weight
    target.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert target.weight is parameter and torch.equal(target.mask, source.mask) and same_output(source, target, kind)


def test_the_state_of_a_dense_layer_is_taken(kind):
    layer = MAKERS[kind]()
    other = MAKERS[kind]().to_dense()
    assert set(layer.state_dict()) == set(other.state_dict()) == {"weight", "bias"}
    nn.init.normal_(other.weight)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer.weight, other.weight) and layer.current_mask().sum() == layer.nnz


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_with_an_unsound_mask_changes_nothing(kind, backend):
    model = nn.Sequential(MAKERS[kind](refresh="fixed", backend=backend))
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(model.state_dict())
    state["0.weight"] += 1
    for mask in (torch.ones_like(state["0.mask"]), state["0.mask"][:-1], state["0.mask"].int()):
        with pytest.raises(ValueError, match=r"^0\.\*: mask: expected"):
            model.load_state_dict(state | {"0.mask": mask})
        assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
    model(torch.randn(INPUTS[kind]))


def test_packed_state_round_trip(kind, tmp_path):
    layer = MAKERS[kind]()
    source, target = layer.pack(backend="packed"), MAKERS[kind]().pack(backend="packed")
    assert set(source.state_dict()) == {"values", "index", "bias"}
    torch.save(source.state_dict(), tmp_path / "state.pt")
    assert not same_output(source, target, kind)
    for backend in target.backends:                         # what is derived follows
        target.backend = source.backend = backend
        target.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert set(target.state_dict()) == {"values", "index", "bias"} and same_output(source, target, kind)
        other = MAKERS[kind]().pack(backend=backend)
        target.load_state_dict(other.state_dict())
        assert same_output(other, target, kind)


def test_packed_takes_the_room_of_what_is_kept(kind):
    layer = MAKERS[kind](bias=False)
    packed = layer.pack(backend="packed")
    assert sum(buffer.nbytes for buffer in packed.buffers()) == 5 * layer.nnz       # 4 for the value, 1 for where it is


# ---- choice ----

@pytest.mark.parametrize("sparse_ms, words", [(1, "is 3.0x as fast"), (9, "takes 3.0x the time, so the dense product is kept")])
def test_pack_takes_what_is_quicker(kind, sparse_ms, words, monkeypatch):
    monkeypatch.setattr(choose, "_measured", {})
    seen = []

    def timed(layer, x):
        seen.append((layer.backend, tuple(x.shape)))
        return {"packed": sparse_ms, "csr": sparse_ms + 1, "dense": 3}[layer.backend] / 1e3
    monkeypatch.setattr(choose, "_forward", timed)
    packed = MAKERS[kind]().pack(shape=INPUTS[kind])
    assert packed.backend == packed.choice.backend == ("packed" if sparse_ms == 1 else "dense")
    assert packed.choice.reason == f"input {list(INPUTS[kind])}: packed {words}"
    assert (packed.choice.sparse_ms, packed.choice.dense_ms) == (sparse_ms, 3)
    assert {backend for backend, _ in seen} == set(packed.backends) and {shape for _, shape in seen} == {INPUTS[kind]}


def test_really_measured_and_nothing_moves(kind):
    layer, random = MAKERS[kind](), torch.get_rng_state()
    before = copy.deepcopy(layer.state_dict())
    choice = choose_backend(layer, INPUTS[kind])
    assert choice.backend in BACKENDS and choice.sparse_ms > 0 and choice.dense_ms > 0 and layer.backend == "dense"
    packed = layer.pack()
    assert packed.choice.backend == packed.backend and packed.choice.sparse_ms > 0
    assert torch.equal(random, torch.get_rng_state()) and layer.weight.grad is None
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


# ---- a module among modules ----

def test_copies_are_independent(kind):
    for layer in (MAKERS[kind](refresh="fixed", backend="csr"), MAKERS[kind]().pack(backend="packed"), MAKERS[kind]().pack(backend="dense")):
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        before = copy.deepcopy(layer.state_dict())
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)):
            assert same_output(layer, twin, kind)
            with torch.no_grad():
                for tensor in (*twin.parameters(), *twin.buffers()):
                    tensor.zero_()
            assert all(torch.equal(layer.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_types_and_modes(kind, backend):
    layer, x = MAKERS[kind](refresh="fixed", backend=backend), torch.randn(INPUTS[kind])
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        twin = copy.deepcopy(layer).to(dtype)
        assert twin.mask.dtype == torch.bool and twin(x.to(dtype)).dtype == dtype
        twin(x.to(dtype)).sum().backward()
        assert twin.weight.grad.dtype == dtype
        for form in layer.pack(backend="packed").backends:
            packed = layer.pack(backend=form).to(dtype)
            assert packed.index.dtype == torch.uint8 and packed(x.to(dtype)).dtype == dtype
    assert not layer.eval().to_dense().training and not layer.pack(backend="packed").training and not layer.pack(backend="packed").unpack().training


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gradient", ["straight_through", "sr_ste", "masked"])
def test_autocast(kind, backend, gradient):
    layer = MAKERS[kind](backend=backend, gradient=gradient)
    x = torch.randn(INPUTS[kind], requires_grad=True)
    want = layer.to_dense().double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        packed = layer.pack(backend="packed")
        for form in packed.backends:
            packed.backend = form
            assert packed(x).dtype == torch.bfloat16
            assert_close(packed(x), want, reduction=16)
    assert y.dtype == torch.bfloat16
    assert_close(y, want, reduction=16)
    y.sum().backward()
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32
    if gradient == "sr_ste":                                # the decay joins in float32: it would vanish beside a bfloat16 gradient
        plain = MAKERS[kind](backend=backend)
        plain.load_state_dict(layer.state_dict())
        with torch.autocast("cpu", torch.bfloat16):
            plain(x).sum().backward()
        decay = 2e-4 * layer.weight.detach() * ~layer.current_mask()
        torch.testing.assert_close(layer.weight.grad, plain.weight.grad + decay, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("refresh", ["forward", "fixed"])
@pytest.mark.parametrize("gradient", ["sr_ste", "masked"])
def test_compiled_training_steps(kind, backend, refresh, gradient):
    layer = MAKERS[kind](backend=backend, refresh=refresh, gradient=gradient)
    twin, x = copy.deepcopy(layer), torch.randn(INPUTS[kind])

    def loss_of(layer, x):
        return layer(x).square().mean()
    ours, theirs = (torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (layer, twin))
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    for step in range(4):
        if step == 2:                                       # the compiled graph goes on with the next mask
            layer.update_mask()
            twin.update_mask()
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            got = compiled(layer, x)
        want = loss_of(twin, x)
        for loss, optimizer in ((got, ours), (want, theirs)):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert_close(got, want.double(), reduction=64)
    assert_close(layer.weight, twin.weight.double(), reduction=64)


def test_compile(kind):
    x = torch.randn(INPUTS[kind])
    for backend in MAKERS[kind]().pack(backend="packed").backends:
        packed = MAKERS[kind]().pack(backend=backend)
        torch._dynamo.reset()
        assert_close(torch.compile(packed, fullgraph=True, backend="aot_eager")(x), packed(x).double(), reduction=64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_accumulated_gradients_add_up(kind, backend):
    layer = MAKERS[kind](backend=backend, dtype=torch.float64)
    x = torch.randn(INPUTS[kind], dtype=torch.float64)
    F.mse_loss(layer(x), torch.zeros_like(layer(x)), reduction="sum").backward()
    whole, layer.weight.grad = layer.weight.grad, None
    loss = sum(F.mse_loss(layer(part), torch.zeros_like(layer(part)), reduction="sum") for part in x.split(2))
    loss.backward()                                         # several passes before one way back
    torch.testing.assert_close(layer.weight.grad, whole, rtol=1e-12, atol=1e-12)


def test_repr(kind):
    pattern = {"linear": "1:4", "conv": "2:4"}[kind]
    assert f"{pattern}, bias=True, gradient='straight_through', refresh='forward', backend='dense'" in repr(MAKERS[kind]())
    assert "(lambda_w=0.0002)" in repr(MAKERS[kind](gradient="sr_ste")) and "backend='packed'" in repr(MAKERS[kind]().pack(backend="packed"))

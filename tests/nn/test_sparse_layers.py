"""What both sparse layers promise: state that loads safely, another topology in the same parameter, and being a module among modules."""
import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sparsekern import ops
from sparsekern.nn import SparseConv2d, SparseLinear
from sparsekern.testing import assert_close

MAKERS = {"linear": lambda **options: SparseLinear.from_shape(12, 9, **options),
          "conv": lambda **options: SparseConv2d.from_shape(3, 9, 2, **options)}
INPUTS = {"linear": (5, 12), "conv": (5, 3, 4, 4)}
TOPOLOGY = ("crow", "col", "values")


@pytest.fixture(params=MAKERS)
def kind(request):
    return request.param


def make(kind, **options):
    return MAKERS[kind](**{"sparsity": 0.7, "seed": 0} | options)


def bits(module):
    return {key: (tensor.data_ptr(), tensor.clone()) for key, tensor in module.state_dict().items()}


def assert_unchanged(module, before):
    after = bits(module)
    assert after.keys() == before.keys()
    assert all(after[key][0] == address and torch.equal(after[key][1], tensor) for key, (address, tensor) in before.items())


def same_output(a, b, kind):
    x = torch.randn(INPUTS[kind])
    return torch.equal(a(x), b(x))


# ---- state ----

@pytest.mark.parametrize("backend", ["csr", "dense"])
@pytest.mark.parametrize("nnz", [None, 40, 3, 0])
def test_state_of_another_topology_is_taken(kind, backend, nnz):
    source, target = make(kind, seed=1, **({} if nnz is None else {"sparsity": None, "nnz": nnz})), make(kind, backend=backend)
    parameter = target.values
    target(torch.randn(INPUTS[kind])).sum().backward()
    target.load_state_dict(source.state_dict())
    assert target.values is parameter and target.nnz == source.nnz
    assert target.values.grad is None or target.values.grad.shape == target.values.shape
    source.backend = backend
    assert same_output(source, target, kind)
    before = target.crow.clone()
    source.crow.add_(1)                                     # copies, no aliases
    assert torch.equal(target.crow, before)


def test_state_keys_are_plain_tensors(kind, tmp_path):
    layer = nn.Sequential(make(kind), nn.ReLU())
    assert set(layer.state_dict()) == {"0.values", "0.bias", "0.crow", "0.col"}
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    other = nn.Sequential(make(kind, nnz=5, sparsity=None), nn.ReLU())
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same_output(layer, other, kind)


def test_safetensors(kind, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    layer, other = make(kind), make(kind, sparsity=None, nnz=5)
    safetensors.save_file(layer.state_dict(), tmp_path / "state.safetensors")
    other.load_state_dict(safetensors.load_file(tmp_path / "state.safetensors"))
    assert same_output(layer, other, kind)


def test_state_in_other_types(kind):
    source, target = make(kind, dtype=torch.float64), make(kind, seed=1)
    state = source.state_dict() | {"crow": source.crow.long()}
    target.load_state_dict(state)
    assert target.values.dtype == torch.float32 and target.crow.dtype == torch.int64
    assert_close(target(torch.ones(INPUTS[kind])), source(torch.ones(INPUTS[kind]).double()), reduction=12)


def test_assign(kind):
    source, target = make(kind, seed=1), make(kind, sparsity=None, nnz=5)
    state = source.state_dict()
    target.load_state_dict(state, assign=True)
    assert target.values.data_ptr() == state["values"].data_ptr() and same_output(source, target, kind)


def corrupt(name):
    def edit(key, change):
        def apply(state):
            state[key] = change(state[key].clone())
        return apply

    def put(index, value):
        def change(tensor):
            tensor[index] = value
            return tensor
        return change
    return {
        "column too large": edit("col", put(4, 10**6)), "column negative": edit("col", put(0, -1)),
        "columns fall": edit("col", lambda t: t.flip(0)), "column twice": edit("col", lambda t: t * 0),
        "pointers fall": edit("crow", put(3, 10**6)), "pointers start late": edit("crow", put(0, 1)),
        "last pointer": edit("crow", put(-1, 7)), "pointers short": edit("crow", lambda t: t[:-1]), "no pointers": edit("crow", lambda t: t[:0]),
        "values short": edit("values", lambda t: t[1:]), "values of integers": edit("values", lambda t: t.int()),
        "values as a matrix": edit("values", lambda t: t[None]), "columns in floats": edit("col", lambda t: t.float()),
        "columns in int64": edit("col", lambda t: t.long()), "pointers as a matrix": edit("crow", lambda t: t[None]),
        "not a tensor": edit("col", lambda t: t.tolist()), "bias short": edit("bias", lambda t: t[1:]),
    }[name]


CORRUPTIONS = ["column too large", "column negative", "columns fall", "column twice", "pointers fall", "pointers start late", "last pointer",
               "pointers short", "no pointers", "values short", "values of integers", "values as a matrix", "columns in floats",
               "columns in int64", "pointers as a matrix", "not a tensor", "bias short"]


@pytest.mark.parametrize("fault", CORRUPTIONS)
def test_corrupt_state_changes_nothing(kind, fault):
    source, target = make(kind, seed=1), nn.Sequential(make(kind))
    state, before = source.state_dict(), bits(target)
    corrupt(fault)(state)
    with pytest.raises(ValueError, match=r"^0\.\*: (csr_validate: )?(crow|col|values|bias): expected"):
        target.load_state_dict({f"0.{key}": value for key, value in state.items()})
    assert_unchanged(target, before)
    target(torch.randn(INPUTS[kind]))


_ANY = st.integers(-2**31, 2**31 - 1)


@given(crow=st.lists(_ANY, max_size=6) | st.lists(st.integers(0, 3), min_size=4, max_size=4).map(lambda inner: [0, *sorted(inner)]),
       col=st.lists(_ANY | st.integers(0, 4), max_size=3),
       longer=st.integers(-1, 1) | st.just(0))
@settings(max_examples=150, deadline=None)
def test_any_integers_load_or_are_refused(crow, col, longer):
    layer = SparseLinear.from_shape(5, 4, nnz=7)
    before, count = bits(layer), max(0, len(col) + longer)
    state = {"crow": torch.tensor(crow, dtype=torch.int32), "col": torch.tensor(col, dtype=torch.int32), "values": torch.randn(count),
             "bias": torch.randn(4)}
    try:
        layer.load_state_dict(state)
    except ValueError:
        assert_unchanged(layer, before)
    else:
        ops.check_csr(layer.crow, layer.col, 4, 5)
        assert layer.nnz == len(col)
    layer(torch.randn(3, 5)).sum().backward()


def test_missing_keys(kind):
    target = make(kind)
    before = bits(target)
    with pytest.raises(RuntimeError, match='(?s)Missing key.*"values".*Unexpected key.*"weight"'):
        target.load_state_dict(target.to_dense().state_dict())
    state = make(kind, seed=1).state_dict()
    del state["col"]
    missing, unexpected = target.load_state_dict(state, strict=False)
    assert set(missing) == set() or set(missing) == set(TOPOLOGY)
    assert not unexpected and torch.equal(target.bias, state["bias"])
    assert all(torch.equal(target.state_dict()[key], before[key][1]) for key in TOPOLOGY)      # one of three is none of three


# ---- topology ----

def other_topology(kind, **options):
    other = make(kind, seed=7, **options)
    return other, (other.crow.clone(), other.col.clone(), other.values.detach().clone())


@pytest.mark.parametrize("backend", ["csr", "dense"])
def test_replace_topology_of_equal_size_is_in_place(kind, backend):
    layer = make(kind, backend=backend)
    other, tensors = other_topology(kind, backend=backend)
    parameter, addresses = layer.values, {name: buffer.data_ptr() for name, buffer in layer.named_buffers()} | {"values": layer.values.data_ptr()}
    layer.replace_topology(*tensors)
    layer.bias.data.copy_(other.bias)
    assert layer.values is parameter
    assert {name: buffer.data_ptr() for name, buffer in layer.named_buffers()} | {"values": layer.values.data_ptr()} == addresses
    assert same_output(layer, other, kind) and torch.equal(layer.to_dense().weight, other.to_dense().weight)


@pytest.mark.parametrize("nnz", [50, 2, 0])
def test_replace_topology_of_another_size_while_a_graph_lives(kind, nnz):
    layer = make(kind)
    optimizer, parameter = torch.optim.SGD(layer.parameters(), lr=0.1), layer.values
    loss = layer(torch.randn(INPUTS[kind])).sum()
    loss.backward()
    other, tensors = other_topology(kind, sparsity=None, nnz=nnz)
    layer.replace_topology(*tensors)
    assert layer.values is parameter and optimizer.param_groups[0]["params"][0] is parameter and layer.values.grad is None
    layer(torch.randn(INPUTS[kind])).sum().backward()       # `loss` still holds the graph of the old size
    assert layer.values.grad.shape == (nnz,)
    optimizer.step()
    assert loss.isfinite()


@pytest.mark.parametrize("fault", ["column too large", "columns fall", "pointers fall", "last pointer", "values short"])
def test_replace_topology_refuses_an_unsound_one(kind, fault):
    layer = make(kind)
    before, (_, tensors) = bits(layer), other_topology(kind)
    state = dict(zip(TOPOLOGY, tensors))
    corrupt(fault)(state)
    with pytest.raises(ValueError, match="crow|col|values"):
        layer.replace_topology(*[state[key] for key in TOPOLOGY])
    assert_unchanged(layer, before)


def test_backend_can_change(kind):
    layer = make(kind)
    x = torch.randn(INPUTS[kind])
    sparse = layer(x)
    layer.backend = "dense"
    assert_close(layer(x), sparse.double(), reduction=12)
    assert "crow_t" not in dict(layer.named_buffers())
    layer.backend = "csr"
    assert torch.equal(layer(x), sparse) and "flat" not in dict(layer.named_buffers())
    with pytest.raises(ValueError, match="backend"):
        layer.backend = None


def test_dense_product_has_a_gradient_of_nnz_entries(kind):
    layer = make(kind, backend="dense")
    weight = layer.dense_weight()
    assert weight.shape == (layer.rows, layer.cols)
    (grad,) = torch.autograd.grad(weight.square().sum(), layer.values)
    assert torch.equal(grad, 2 * layer.values)


# ---- a module among modules ----

def test_copies_are_independent(kind):
    layer = make(kind)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), _through_file(layer)):
        assert same_output(layer, twin, kind)
        _, tensors = other_topology(kind, sparsity=None, nnz=5)
        before = bits(layer)
        twin.replace_topology(*tensors)
        assert_unchanged(layer, before)


def _through_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("backend", ["csr", "dense"])
def test_other_types_and_train_mode(kind, backend):
    layer = make(kind, backend=backend)
    x = torch.randn(INPUTS[kind])
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        twin = copy.deepcopy(layer).to(dtype)
        assert twin.values.dtype == dtype and twin.crow.dtype == twin.col.dtype == torch.int32
        assert twin(x.to(dtype)).dtype == dtype
    assert layer.to("cpu") is layer and not layer.eval().training and layer.to_dense().training is False


@pytest.mark.parametrize("backend", ["csr", "dense"])
def test_autocast(kind, backend):
    layer = make(kind, backend=backend)
    x = torch.randn(INPUTS[kind], requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        dense = layer.to_dense()(x)
    assert y.dtype == torch.bfloat16 == dense.dtype
    assert_close(y, dense.double(), dtype=torch.bfloat16, reduction=12)
    y.sum().backward()
    assert layer.values.grad.dtype == x.grad.dtype == torch.float32


def test_autocast_in_a_compiled_model(kind):
    layer, x = make(kind), torch.randn(INPUTS[kind])
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        y = compiled(x)
        want = layer(x)
    assert y.dtype == torch.bfloat16
    assert_close(y, want.double(), reduction=12)
    y.sum().backward()
    assert layer.values.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", ["csr", "dense"])
def test_compile(backend):
    model = nn.Sequential(SparseConv2d.from_shape(3, 8, 3, sparsity=0.5, padding=1, backend=backend), nn.ReLU(), nn.Flatten(),
                          SparseLinear.from_shape(8 * 16, 10, sparsity=0.8, backend=backend))
    x, compiled = torch.randn(4, 3, 4, 4), torch.compile(model, fullgraph=True)
    assert_close(compiled(x), model(x).double(), reduction=128)
    F.cross_entropy(compiled(x), torch.arange(4)).backward()
    got = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    F.cross_entropy(model(x), torch.arange(4)).backward()
    for mine, parameter in zip(got, model.parameters()):
        assert_close(mine, parameter.grad.double(), reduction=128)
    # another topology, in place: the graph that was compiled goes on with it
    other = SparseLinear.from_shape(8 * 16, 10, sparsity=0.8, seed=3)
    model[-1].replace_topology(other.crow, other.col, other.values.detach())
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_close(compiled(x), model(x).double(), reduction=128)


def test_compiled_training_steps(kind):
    layer = make(kind)
    twin, x = copy.deepcopy(layer), torch.randn(INPUTS[kind])

    def loss_of(layer, x):
        return layer(x).square().mean()
    ours, theirs = (torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (layer, twin))
    compiled = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        got, want = compiled(layer, x), loss_of(twin, x)
        for loss, optimizer in ((got, ours), (want, theirs)):
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert_close(got, want.double(), reduction=64)
    assert_close(layer.values, twin.values.double(), reduction=64)


@pytest.mark.parametrize("backend", ["csr", "dense"])
def test_trains_with_every_optimizer(kind, backend):
    for make_optimizer in (lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), lambda p: torch.optim.Adam(p, lr=0.01)):
        layer, x = make(kind, backend=backend), torch.randn(INPUTS[kind])
        target = torch.randn_like(layer(x))
        pattern, optimizer = layer.col.clone(), make_optimizer(layer.parameters())
        losses = []
        for _ in range(20):
            loss = F.mse_loss(layer(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] and torch.equal(layer.col, pattern)


def test_fused_update(kind):
    layer, twin = make(kind), make(kind)
    x = torch.randn(INPUTS[kind])
    for each in (layer, twin):
        each(x).square().sum().backward()
    momentum = torch.zeros_like(layer.values)
    ops.packed_sgd_([layer.values], [layer.values.grad], [momentum], lr=0.1, momentum=0.9, weight_decay=1e-4)
    torch.optim.SGD([twin.values], lr=0.1, momentum=0.9, weight_decay=1e-4).step()
    assert_close(layer.values, twin.values.double(), reduction=1)

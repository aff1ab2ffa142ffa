"""SubnetBank: every kind of training in one file and back, and its sub-nets on a model."""
import copy
import gc
import random
import weakref

import channel_runs
import cocktail_runs
import pytest
import torch
from ast_gc_runs import train
from dynamic_runs import make
from torch import nn

import sparsekern
from sparsekern.deploy.bank import SubnetBank
from sparsekern.deploy.bank_file import BankError
from sparsekern.nn import SparseWeight
from sparsekern.testing import small_convnet, toy_batch

BUILDS = {
    "ast-gc": {"sparsity": (0.5, 0.8, 0.9)},
    "ast-gc nm": {"sparsity": None, "pattern": "nm", "nm": "2:4,1:4"},
    "ast-gc one norm": {"sparsity": (0.5, 0.8), "norm_banks": False},
    "ast-gc own first norm": {"sparsity": (0.0, 0.8), "share_first_norm": False},
    "magnitude": {},
    "iee": {},
    "iee nm": {"sparsity": None, "pattern": "nm", "nm": "2:4", "skip_first": True},
    "static": {}, "rigl": {}, "set": {}, "gse": {}, "gse masked": {"storage": "masked"},
    "static csr": {"storage": "csr"}, "set csr": {"storage": "csr"}, "gse csr": {"storage": "csr"},
    "dense": {"sparsity": None},
}


def trained(kind, tmp_path, net=None, steps=8):
    """(net, sparsifier) after a few steps."""
    if kind in ("halp", "iee channel"):
        net, _, sparsifier = channel_runs.make(tmp_path / "t.json", kind.split()[0])
        channel_runs.train(net, sparsifier, range(20))
        return net, sparsifier
    if kind == "sparse-cocktail":
        net, _, sparsifier = cocktail_runs.make()
        cocktail_runs.train(net, sparsifier, range(sparsifier.config.total_steps))
        sparsifier.finalize(cocktail_runs.judge(net, sparsifier), lambda: iter([toy_batch(1)[0]]))
        return net, sparsifier
    fields = dict(BUILDS[kind])
    if fields.get("sparsity", 0) is None:
        del fields["sparsity"]
        torch.manual_seed(1)
        net = net or small_convnet()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        sparsifier = sparsekern.algorithms.build(kind.split()[0], net, optimizer, total_steps=60, **fields)
    else:
        net, _, sparsifier = make(kind.split()[0], net=net, **fields)
    train(net, sparsifier, range(steps))
    return net, sparsifier


def outputs(net, sparsifier):
    """{sub-net: what it says to a batch}."""
    found, mode = {}, net.training
    for name in sparsifier.subnets:
        with sparsifier.subnet(name), torch.no_grad():
            found[name] = net.eval()(toy_batch(99)[0])
    net.train(mode)
    return found


def everything(net, sparsifier):
    state = sparsifier.state_dict()
    return ({key: value.clone() for key, value in net.state_dict().items()}, {key: value.clone() for key, value in state["tensors"].items()},
            copy.deepcopy(state["meta"]), sparsifier.active, [slot.mask for slots in sparsifier._attached.forwards for slot in slots])


def assert_same(one, other):
    for before, after in zip(one[:2], other[:2]):
        assert before.keys() == after.keys()
        for key in before:                                          # nothing measured yet is NaN
            torch.testing.assert_close(after[key], before[key], rtol=0, atol=0, equal_nan=True)
    assert one[2:4] == other[2:4] and all(a is b for a, b in zip(one[4], other[4]))


def fresh(kind):
    torch.manual_seed(7)
    return {"halp": channel_runs.Small, "iee channel": channel_runs.Small, "sparse-cocktail": cocktail_runs.Block}.get(kind, small_convnet)()


@pytest.mark.parametrize("kind", [*BUILDS, "halp", "iee channel", "sparse-cocktail"])
def test_every_training_becomes_a_bank_and_comes_back(tmp_path, kind):
    net, sparsifier = trained(kind, tmp_path)
    before = everything(net, sparsifier)
    bank = SubnetBank.from_sparsifier(sparsifier, accuracy={sparsifier.subnets[0]: 0.5}, data="toy", seed=3)
    assert_same(before, everything(net, sparsifier))
    loaded = SubnetBank.load(bank.save(tmp_path / "b.safetensors"))
    assert loaded.names() == bank.names() == sparsifier.subnets
    assert loaded.meta == bank.meta and loaded.meta["data"] == "toy" and loaded.meta["seed"] == 3 and loaded.size() == bank.size()
    content = (tmp_path / "b.safetensors").read_bytes()
    assert bank.size()["total"] == len(content) - 8 - int.from_bytes(content[:8], "little")
    wanted, model = outputs(net, sparsifier), fresh(kind).eval()
    for row, name in zip(sparsifier.summary(), bank.names()):
        subnet = loaded.subnet(name)
        assert (subnet.nnz, subnet.sparsity, subnet.target) == (row["nnz"], row["sparsity"], row["target_sparsity"])
        assert subnet.accuracy == (0.5 if name == sparsifier.subnets[0] else None)
        assert subnet.pattern == ("dense" if kind == "dense" or name == "0.0" else row["pattern"])
        with torch.no_grad():
            torch.testing.assert_close(loaded.plain(name, fresh(kind))(toy_batch(99)[0]), wanted[name], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(loaded.activate(model, name)(toy_batch(99)[0]), wanted[name], rtol=1e-5, atol=1e-5)
        for layer, mask in zip(sparsifier.masks.layers, sparsifier.masks.active(name)):
            if mask is not None:
                assert torch.equal(bank.bool_masks(name)[layer], mask) and torch.equal(loaded.bool_masks(name)[layer], mask)
    plain = loaded.release(model)
    assert set(plain.state_dict()) == set(fresh(kind).state_dict()) and not any("forward" in vars(m) for m in plain.modules())


@pytest.mark.parametrize("kind", ["static csr", "gse csr"])
def test_sparse_layers_stay_sparse(tmp_path, kind):
    net, sparsifier = trained(kind, tmp_path)
    bank = SubnetBank.from_sparsifier(sparsifier)
    loaded = SubnetBank.load(bank.save(tmp_path / "b.safetensors"))
    values = [name for name in loaded.weights if name.endswith("values")]
    assert values and all(loaded.weights[name].numel() < 400 for name in values) and not any(
        name.replace("values", "weight") in loaded.weights for name in values)
    model = fresh(kind)
    loaded.activate(model, loaded.names()[0])
    layers = [module for module in model.modules() if isinstance(module, SparseWeight)]
    assert len(layers) == len(values) and sum(module.nnz for module in layers) == loaded.subnet(loaded.names()[0]).nnz
    again = loaded.activate(copy.deepcopy(net), loaded.names()[0])          # a model that has sparse layers already keeps them
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values()))
    loaded.release(again)
    assert sum(isinstance(module, SparseWeight) for module in again.modules()) == len(values)
    dense = loaded.release(model)
    assert not any(isinstance(module, SparseWeight) for module in dense.modules())
    for name, mask in loaded.bool_masks(loaded.names()[0]).items():
        assert torch.equal(dense.get_parameter(name) != 0, mask)


def test_a_model_by_name(tmp_path):
    from sparsekern.support.models import build_model
    named = {"name": "small_cnn", "classes": 4, "shape": [3, 8, 8]}
    net, sparsifier = trained("ast-gc", tmp_path, build_model("small_cnn", classes=4, shape=(3, 8, 8)), 2)
    bank = SubnetBank.load(SubnetBank.from_sparsifier(sparsifier, model=named).save(tmp_path / "b.safetensors"))
    state = torch.get_rng_state()
    model = bank.model()
    assert torch.equal(torch.get_rng_state(), state) and all(torch.equal(a, bank.weights[n]) for n, a in model.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(bank.plain("0.9")(toy_batch(99)[0]), outputs(net, sparsifier)["0.9"], rtol=1e-5, atol=1e-5)
    nameless = SubnetBank.from_sparsifier(sparsifier)
    for wanting in (nameless.model, lambda: nameless.plain("0.9")):
        with pytest.raises(BankError, match="pass model="):
            wanting()
    wrong = SubnetBank.from_sparsifier(sparsifier, model=named | {"classes": 5})
    with pytest.raises(BankError, match=r"classifier.weight is float32 \[5, 128\] in the model, float32 \[4, 128\] in the bank"):
        wrong.model()
    text = repr(bank)
    assert "3 sub-nets of small_cnn" in text and "unstructured" in text and len(bank.describe().splitlines()) == 4


def test_a_hundred_random_switches_leave_the_weights_alone(tmp_path):
    net, sparsifier = trained("ast-gc", tmp_path)
    bank, model = SubnetBank.from_sparsifier(sparsifier), fresh("ast-gc").eval()
    wanted = outputs(net, sparsifier)
    bank.activate(model, bank.names()[0])
    tensors = dict(model.named_parameters())
    x, choose = toy_batch(99)[0], random.Random(0)
    for _ in range(100):
        name = choose.choice(bank.names())
        with torch.inference_mode():
            got = bank.activate(model, name)(x)
        torch.testing.assert_close(got, wanted[name], rtol=1e-5, atol=1e-5)
    norms = set(bank.subnet("0.9").norms)
    assert all(torch.equal(value, bank.weights[name]) for name, value in model.state_dict().items() if name not in norms)
    for name, value in model.named_parameters():
        assert value is tensors[name] or name in norms
    bank.release(model)
    assert all(torch.equal(value, bank.weights[name]) for name, value in model.state_dict().items())
    assert all(value is tensors[name] for name, value in model.named_parameters())


def test_masks_stay_packed_and_equal_ones_are_one(tmp_path):
    _, sparsifier = trained("ast-gc", tmp_path)
    sparsifier.set_masks("0.5", dict(zip(sparsifier.masks.layers, sparsifier.masks["0.8"])))
    bank, model = SubnetBank.from_sparsifier(sparsifier), fresh("ast-gc")
    bank.activate(model, "0.5")
    active = vars(model)["_sparsekern_bank"]
    assert all(mask.dtype == torch.int32 for masks in active.masks for mask in masks if mask is not None)
    assert all(a is b for a, b in zip(*active.masks[:2])) and active.masks[2][0] is not active.masks[0][0]
    norms = sum(value.nbytes for name in ("0.8", "0.9") for value in bank.subnet(name).norms.values())
    assert active.nbytes() == 2 * sum(4 * (-(-n // 32)) for n in sparsifier.masks.numels) + norms


def test_the_bank_goes_where_the_model_is(tmp_path, device):
    net, sparsifier = trained("ast-gc", tmp_path)
    bank, model, x = SubnetBank.from_sparsifier(sparsifier), fresh("ast-gc").to(device).eval(), toy_batch(99)[0].to(device)
    for name, wanted in outputs(net, sparsifier).items():
        with torch.no_grad():
            for found in (bank.activate(model, name), bank.plain(name, fresh("ast-gc").to(device))):
                torch.testing.assert_close(found(x).cpu(), wanted, rtol=1e-3, atol=1e-3)
    assert all(mask.device.type == device.type for masks in vars(model)["_sparsekern_bank"].masks for mask in masks if mask is not None)


@pytest.mark.parametrize("name", ["0.5", "0.9"])
def test_gradients_do_not_break(tmp_path, name):
    net, sparsifier = trained("ast-gc", tmp_path)
    bank, model = SubnetBank.from_sparsifier(sparsifier), fresh("ast-gc").to(memory_format=torch.channels_last)
    x, y = toy_batch(3)
    with sparsifier.subnet(name):
        nn.functional.cross_entropy(net.train()(x), y).backward()
    nn.functional.cross_entropy(bank.activate(model, name).train()(x), y).backward()
    own = dict(net.named_parameters())
    for layer in sparsifier.masks.layers:
        torch.testing.assert_close(dict(model.named_parameters())[layer].grad, own[layer].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["ast-gc", "iee channel", "gse csr"])
def test_a_bank_first_activated_in_inference_mode_can_take_gradients_later(tmp_path, kind):
    _, sparsifier = trained(kind, tmp_path)
    model = fresh(kind)
    with torch.inference_mode():
        bank = SubnetBank.load(SubnetBank.from_sparsifier(sparsifier).save(tmp_path / "b.safetensors"))
        bank.activate(model, bank.names()[-1])
    model(toy_batch(3)[0]).sum().backward()
    assert all(param.grad is not None and param.grad.isfinite().all() for param in model.parameters())


def test_equal_norms_are_stored_once(tmp_path):
    _, sparsifier = trained("ast-gc", tmp_path)
    banks = sparsifier.norms.banks
    with torch.no_grad():
        for name, value in banks[0].items():
            banks[2][name].copy_(banks[1][name])
            if name.endswith("bias"):
                banks[1][name].copy_(value)
    bank = SubnetBank.load(SubnetBank.from_sparsifier(sparsifier).save(tmp_path / "b.safetensors"))
    names = set(banks[0]) - {name for name in banks[0] if name.endswith(("bias", "tracked"))}
    assert set(bank.subnet("0.5").norms) == set() and set(bank.subnet("0.8").norms) >= names
    assert bank.size()["norms"] == sum(value.nbytes for name, value in banks[0].items() if not torch.equal(value, banks[2][name]))
    for name, value in bank.subnet("0.9").norms.items():
        assert torch.equal(value, banks[2][name])


def test_channel_masks_do_not_break_a_training_forward(tmp_path):
    _, sparsifier = trained("iee channel", tmp_path)
    bank, model = SubnetBank.from_sparsifier(sparsifier), fresh("halp").train()
    name = bank.names()[0]
    assert any(key.startswith("bn") for key in bank.subnet(name).masks)
    bank.activate(model, name)(toy_batch(3)[0]).sum().backward()
    hidden = ~bank.bool_masks(name)["bn1.weight"]
    assert hidden.any() and torch.equal(model.bn1.running_mean[hidden], bank.weights["bn1.running_mean"][hidden])


def test_channels_last_weights_keep_their_order(tmp_path):
    net, sparsifier = trained("ast-gc", tmp_path, small_convnet().to(memory_format=torch.channels_last))
    bank = SubnetBank.load(SubnetBank.from_sparsifier(sparsifier).save(tmp_path / "b.safetensors"))
    assert any(not value.is_contiguous() for value in bank.weights.values())
    assert all(bank.weights[name].is_contiguous() == value.is_contiguous() for name, value in net.state_dict().items())
    model = fresh("ast-gc").to(memory_format=torch.channels_last).eval()
    for name, wanted in outputs(net, sparsifier).items():
        with torch.no_grad():
            torch.testing.assert_close(bank.activate(model, name)(toy_batch(99)[0]), wanted, rtol=1e-5, atol=1e-5)


class Tied(nn.Module):
    """Two linear layers with one weight, and no norm at all."""

    def __init__(self):
        super().__init__()
        self.first, self.one, self.two, self.out = nn.Linear(192, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.out(self.two(torch.relu(self.one(torch.relu(self.first(x.flatten(1)))))))


def test_tied_weights_are_stored_once(tmp_path):
    net, sparsifier = trained("ast-gc", tmp_path, Tied())
    bank = SubnetBank.from_sparsifier(sparsifier)
    loaded = SubnetBank.load(bank.save(tmp_path / "b.safetensors"))
    assert loaded.weights["two.weight"] is loaded.weights["one.weight"]
    assert loaded.size()["weights"] == 4 * sum(param.numel() for param in net.parameters()) and loaded.size()["norms"] == 0
    model = Tied()
    for name, wanted in outputs(net, sparsifier).items():
        with torch.no_grad():
            torch.testing.assert_close(loaded.activate(model, name)(toy_batch(99)[0]), wanted)
            torch.testing.assert_close(loaded.plain(name, Tied())(toy_batch(99)[0]), wanted)


def test_one_bank_takes_the_place_of_another(tmp_path):
    one_net, one = trained("ast-gc", tmp_path)
    other_net, other = trained("gse csr", tmp_path)
    banks = [SubnetBank.from_sparsifier(one), SubnetBank.from_sparsifier(other)]
    model = fresh("ast-gc").eval()
    for _ in range(2):
        for bank, net, sparsifier in zip(banks, (one_net, other_net), (one, other)):
            name = bank.names()[-1]
            with torch.no_grad():
                torch.testing.assert_close(bank.activate(model, name)(toy_batch(99)[0]), outputs(net, sparsifier)[name], rtol=1e-5, atol=1e-5)
    assert banks[0].release(banks[0].release(model)) is model and not any("forward" in vars(m) for m in model.modules())


def test_a_copy_of_an_active_model_lives_by_itself(tmp_path):
    net, sparsifier = trained("ast-gc", tmp_path)
    bank, model, wanted = SubnetBank.from_sparsifier(sparsifier), fresh("ast-gc").eval(), outputs(net, sparsifier)
    twin = copy.deepcopy(bank.activate(model, "0.5"))
    bank.activate(twin, "0.9")
    with torch.no_grad():
        torch.testing.assert_close(twin(toy_batch(99)[0]), wanted["0.9"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(toy_batch(99)[0]), wanted["0.5"], rtol=1e-5, atol=1e-5)
    bank.release(twin)
    assert not any("forward" in vars(m) for m in twin.modules()) and any("forward" in vars(m) for m in model.modules())


def test_neither_the_bank_nor_the_model_keeps_the_other_alive(tmp_path):
    _, sparsifier = trained("ast-gc", tmp_path)
    bank, model = SubnetBank.from_sparsifier(sparsifier), fresh("ast-gc")
    seen = weakref.ref(bank.activate(model, "0.5"))
    del model
    gc.collect()
    assert seen() is None
    model = bank.activate(fresh("ast-gc"), "0.5")
    gone = weakref.ref(bank)
    second = SubnetBank.from_sparsifier(sparsifier)
    del bank
    gc.collect()
    assert gone() is None and second.activate(model, "0.8") is model


def test_misuse_is_refused_and_changes_nothing(tmp_path):
    net, sparsifier = trained("ast-gc", tmp_path)
    bank = SubnetBank.from_sparsifier(sparsifier)
    model = fresh("ast-gc")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for call in (lambda: bank.activate(model, "0.7"), lambda: bank.plain("0.7", model), lambda: bank.subnet("0.7")):
        with pytest.raises(BankError, match="unknown sub-net '0.7'; there are 0.5, 0.8, 0.9"):
            call()
    for build, words in ((channel_runs.Small, "the model has no "), (lambda: fresh("x").double(), "float64.*in the model, float32"),
                         (lambda: nn.Sequential(*fresh("x"), nn.Linear(4, 4)), r"it has no \d+\.weight")):
        with pytest.raises(BankError, match=f"another architecture.*{words}"):
            bank.activate(build(), "0.5")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for call in (lambda: bank.activate(net, "0.5"), lambda: bank.plain("0.5", net)):
        with pytest.raises(ValueError, match="has a sparsifier already"):
            call()
    bank.activate(model, "0.5")
    with pytest.raises(BankError, match="a bank is active on this model"):
        bank.plain("0.5", model)
    with pytest.raises(ValueError, match="has a sparsifier already"):
        sparsekern.AST_GC(model, torch.optim.SGD(model.parameters(), lr=0.1), sparsity=(0.5,), total_steps=10)
    for fields, words in (({"accuracy": {"0.7": 0.1}}, "accuracy: unknown sub-net '0.7'"), ({"accuracy": {"0.5": 95.0}}, "accuracy: expected"),
                          ({"layout": 1}, "facts: layout"), ({"model": {"name": "x"}}, "model: expected"), ({"data": 3}, "data: expected a text")):
        with pytest.raises(BankError, match=words):
            SubnetBank.from_sparsifier(sparsifier, **fields)
    sparsifier.remove()
    with pytest.raises(BankError, match="before remove"):
        SubnetBank.from_sparsifier(sparsifier)

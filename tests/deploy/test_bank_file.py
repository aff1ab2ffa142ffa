"""The file of a bank: its size to the byte, its masks to the bit, and everything that a hostile one may try."""
import copy
import json
import math
import struct

import pytest
import torch
from ast_gc_runs import make
from dynamic_runs import make as make_sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsekern import ops
from sparsekern.deploy.bank import SubnetBank
from sparsekern.deploy.bank_file import FORMAT, SCHEMA, BankError
from sparsekern.deploy.bank_masks import Chain, chains, elements, planes, popcount
from sparsekern.support.tensor_file import load_tensors, save_tensors


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Flatten(),
                         nn.Linear(6, 5))


@pytest.fixture(scope="module")
def bank():
    """Three nested sub-nets with norms of their own."""
    _, _, sparsifier = make(net=net())
    torch.manual_seed(2)
    scores = [torch.rand(weight.shape) for weight in sparsifier.weights]
    for name in sparsifier.subnets:
        sparsifier.set_masks(name, {layer: score > float(name) for layer, score in zip(sparsifier.masks.layers, scores)})
    with torch.no_grad():
        for number, norms in enumerate(sparsifier.norms.banks):
            for value in norms.values():
                value += number
    return SubnetBank.from_sparsifier(sparsifier, accuracy={"0.5": 0.75})


@pytest.fixture
def file(bank, tmp_path):
    return copy.copy(bank).save(tmp_path / "bank.safetensors")


@pytest.fixture(scope="module")
def saved(bank, tmp_path_factory):
    """(a path to write to, tensors and metadata of the bank's file)."""
    path = copy.copy(bank).save(tmp_path_factory.mktemp("saved") / "bank.safetensors")
    return path, *load_tensors(path, FORMAT, "a bank")


def body(path) -> int:
    """Bytes behind the header."""
    content = path.read_bytes()
    return len(content) - 8 - struct.unpack("<Q", content[:8])[0]


# Size.

def test_the_size_by_hand(bank, file):
    # Weights of 4*3*9, 6*4*9, 5*6 and the bias of 5; two norms with four tensors of 4 and of 6 and a counter of 8 bytes each.
    weights = 4 * (108 + 216 + 30 + 5) + 4 * 4 * (4 + 6) + 2 * 8
    # Three nested masks are four levels, two bits each: 216 weights in 7 words and 30 in one.
    masks = 4 * 2 * (7 + 1)
    # The second norm (the first is shared), for the two sub-nets whose norms are not the model's own.
    norms = 2 * (4 * 4 * 6 + 8)
    assert bank.size() == {"weights": weights, "masks": masks, "norms": norms, "total": weights + masks + norms}
    assert body(file) == weights + masks + norms


SHAPES = [(1,), (31,), (64,), (7, 5), (6, 3, 2), (1, 9), (33, 2), (5, 0), (3, 1, 1, 1)]


@st.composite
def families(draw):
    """A shape and masks over it: nested ones, rows, n:m-like strangers, empty, full and equal ones."""
    shape = draw(st.sampled_from(SHAPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    score, rows = torch.rand(shape, generator=generator), torch.rand(shape[0], generator=generator)
    masks = {}
    for place in draw(st.lists(st.integers(0, 30), max_size=12, unique=True)):
        kind, cut = draw(st.sampled_from(["nested", "rows", "any", "full", "empty"])), draw(st.integers(0, 8)) / 8
        masks[place] = {"nested": score > cut, "rows": (rows > cut).view(-1, *[1] * (len(shape) - 1)).expand(shape),
                        "any": torch.rand(shape, generator=generator) > cut, "full": torch.ones(shape, dtype=torch.bool),
                        "empty": torch.zeros(shape, dtype=torch.bool)}[kind]
    return shape, masks


@settings(deadline=None, max_examples=150)
@given(families())
def test_any_family_of_masks_comes_back(family):
    shape, masks = family
    found = chains({place: ops.pack_mask(mask) for place, mask in masks.items()}, shape)
    back = {}
    for chain in found:
        assert chain.fault(shape) is None
        assert chain.planes.numel() == math.ceil(math.log2(len(chain.members) + 1)) * -(-elements(shape, chain.rows) // 32)
        for position, members in enumerate(chain.members):
            for place in members:
                assert place not in back
                back[place] = chain.mask(position, shape)
                assert torch.equal(chain.packed(position, shape), ops.pack_mask(masks[place]))
    for place, mask in masks.items():
        assert torch.equal(back[place], mask) if place in back else bool(mask.all())
    assert all(chain.rows == all(bool((mask == mask.flatten(1)[:, :1].view(-1, *[1] * (mask.dim() - 1))).all()) for mask in map(
        back.get, [place for members in chain.members for place in members])) for chain in found if len(shape) > 1)


def test_levels_by_hand():
    masks = {0: [1, 1, 1, 0], 1: [1, 1, 0, 0], 2: [1, 0, 0, 0], 3: [1, 1, 1, 1], 4: [1, 1, 0, 0], 5: [0, 0, 0, 1]}
    found = chains({place: ops.pack_mask(torch.tensor(mask) > 0) for place, mask in masks.items()}, (4,))
    # levels 3, 2, 1, 0: low bits 1, 0, 1, 0 and high bits 1, 1, 0, 0; the stranger is alone in its chain
    assert [(chain.planes.tolist(), chain.members, chain.rows) for chain in found] == [
        ([[0b0101], [0b0011]], ((0,), (1, 4), (2,)), False), ([[0b1000]], ((5,),), False)]
    rows = chains({0: ops.pack_mask(torch.tensor([[True, True], [False, False], [True, True]]))}, (3, 2))
    assert [(chain.planes.tolist(), chain.rows) for chain in rows] == [([[0b101]], True)]


@pytest.mark.parametrize("masks, bits", [(1, 1), (2, 2), (3, 2), (7, 3), (8, 4), (10, 4), (15, 4), (16, 5)])
def test_ten_nested_masks_take_four_bits(masks, bits):
    assert planes(masks) == bits
    score = torch.rand(64, 32)
    family = chains({place: ops.pack_mask(score > place / 20 + 0.1) for place in range(masks)}, (64, 32))
    assert [chain.planes.shape for chain in family] == [(bits, 64)]


def test_faults_of_planes():
    good = chains({place: ops.pack_mask(torch.rand(5, 7) > 0.5) for place in range(1)}, (5, 7))[0]
    assert good.fault((5, 7)) is None and popcount(good.words(0)) > 0
    for chain, shape, words in ((good, (5, 13), "expected int32"), (Chain(good.planes.long(), good.members, False), (5, 7), "got torch.int64"),
                                (Chain(torch.tensor([[0, 8]], dtype=torch.int32), ((0,),), False), (5, 7), "bits past element 35"),
                                (Chain(good.planes, good.members, True), (35,), "rows of"),
                                (Chain(torch.full((2, 1), 1, dtype=torch.int32), ((0,), (1,)), True), (5, 7), "a level above 2")):
        assert words in chain.fault(shape)


# The header and the tensors of others.

def edited(path, change):
    """The file with its tensors and its JSON changed, the checksum made anew."""
    tensors, meta = load_tensors(path, FORMAT, "a bank")
    tensors = {name: value.clone() for name, value in tensors.items()}
    change(tensors, meta)
    return save_tensors(path, FORMAT, tensors, meta)


def put(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(tensors, meta):
        place = meta
        for key in keys:
            place = place[key]
        place[last] = value
    return change


def drop(*keys):
    def change(tensors, meta):
        place = meta
        for key in keys[:-1]:
            place = place[key]
        del place[keys[-1]]
    return change


def tensor(name, value):
    def change(tensors, meta):
        tensors.pop(name, None) if value is None else tensors.update({name: value})
    return change


HOSTILE = [
    (put("schema", SCHEMA + 1), f"schema {SCHEMA + 1}, written by sparsekern .*reads up to schema {SCHEMA}: update"),
    (put("schema", 0), "schema: expected"), (put("schema", "1"), "schema: expected"), (drop("schema"), "schema: expected"),
    (put("versions", []), "versions: expected"), (put("model", {"name": 3, "classes": 4, "shape": [3, 8, 8]}), "model: expected"),
    (put("model", {"name": "resnet20", "classes": -4, "shape": [3, 8, 8]}), "model: expected"),
    (put("model", {"name": "resnet20", "classes": 4, "shape": [3, 8, 2**70]}), "model: expected"),
    (put("algorithm", 5), "algorithm: expected a text"), (put("architecture", "0" * 64), "not those of the architecture"),
    (drop("layout"), "layout: expected"), (put("layout", []), "layout: expected"), (drop("layout", "masks"), "masks: expected"),
    (put("subnets", {}), "subnets: expected a list"), (put("subnets", []), "expected sub-nets below 0"),
    (put("subnets", 0, 3), "sub-net 0: expected"), (drop("subnets", 0, "nnz"), "sub-net 0: expected"),
    (put("subnets", 0, "name", "0.8"), "sub-net 1: name: '0.8'"), (put("subnets", 0, "name", ""), "sub-net 0: name"),
    (put("subnets", 0, "name", ["x"]), "sub-net 0: name"),
    (put("subnets", 0, "pattern", "curly"), "0.5: pattern: expected dense"), (put("subnets", 0, "pattern", "5:4"), "0.5: pattern"),
    (put("subnets", 0, "pattern", []), "0.5: pattern"),
    (put("subnets", 0, "nnz", -1), "0.5: nnz: says -1, its masks keep "), (put("subnets", 0, "nnz", 1.0), "0.5: nnz: expected an integer"),
    (put("subnets", 0, "nnz", True), "0.5: nnz: expected an integer"), (put("subnets", 0, "nnz", 10**400), "0.5: nnz: says 1000"),
    (put("subnets", 0, "sparsity", 0.25), "0.5: sparsity: says 0.25"), (put("subnets", 0, "accuracy", 75), "0.5: accuracy: expected"),
    (put("subnets", 0, "target", "half"), "0.5: target: expected"), (put("subnets", 0, "accuracy", -0.1), "0.5: accuracy: expected"),
    (put("layout", "prunable", ["2.weight", "2.weight"]), "prunable: expected distinct"), (put("layout", "prunable", [[]]), "prunable: expected"),
    (put("layout", "prunable", ["9.weight"]), "prunable: expected"), (put("layout", "prunable", ["2.weight"]), "nnz: says"),
    (put("layout", "tied", {"x": "y"}), "tied: 'x'"), (put("layout", "tied", {"0.weight": "2.weight"}), "tied: '0.weight'"),
    (put("layout", "tied", {"x": []}), "tied: 'x'"),
    (put("layout", "csr", {"2.weight": [6, 36]}), "csr: '2.weight' is no weight of a sparse layer"),
    (put("layout", "csr", {"9.weight": [2**40, 2**40]}), "csr: 9.weight: shape"),
    (put("layout", "csr", {"9.weight": "wide"}), "csr: 9.weight: shape"),
    (put("layout", "csr", {"9.weight": [6, 36]}), "values, crow, col missing"),
    (put("layout", "masks", "9.weight", []), "masks: '9.weight' is no parameter"), (put("layout", "masks", "2.weight", {}), "expected a list"),
    (put("layout", "masks", "2.weight", 0, []), "mask/2.weight/0: "), (put("layout", "masks", "2.weight", 0, "rows", 1), "mask/2.weight/0: "),
    (put("layout", "masks", "2.weight", 0, "members", [[0], [1], [1]]), "each once"),
    (put("layout", "masks", "2.weight", 0, "members", [[0], [1], [3]]), "below 3"),
    (put("layout", "masks", "2.weight", 0, "members", [[0], [1], [True]]), "each once"),
    (put("layout", "masks", "2.weight", 0, "members", [[0], [1], []]), "each once"),
    (put("layout", "masks", "2.weight", 0, "members", [[0], [1]]), "a level above 2"),
    (put("layout", "masks", "2.weight", 0, "members", [[0]]), r"expected int32 \[1, 7\]"),
    (put("layout", "masks", "2.weight", 0, "members", [[1], [0], [2]]), "nnz: says"),
    (put("layout", "masks", "2.weight", 0, "rows", True), r"expected int32 \[2, 1\]"),
    (put("layout", "masks", "2.weight", []), "belong to nothing: mask/2.weight/0"), (drop("layout", "masks", "2.weight"), "belong to nothing"),
    (put("layout", "norms", "9.bias", [[0]]), "norms: '9.bias' is no tensor"), (put("layout", "norms", "3.bias", [[1], [1]]), "each once"),
    (put("layout", "norms", "3.bias", [[1]]), r"norm/3.bias: expected torch.float32 \[1, 6\]"),
    (drop("layout", "norms", "3.bias"), "belong to nothing"),
    (tensor("mask/2.weight/0", None), "mask/2.weight/0 is missing"), (tensor("norm/3.bias", None), "norm/3.bias is missing"),
    (tensor("weight/2.weight", None), "masks: '2.weight' is no parameter"), (tensor("weight/0.weight", None), "not those of the architecture"),
    (tensor("evil", torch.zeros(3)), "belong to nothing: evil"), (tensor("weight/evil", torch.zeros(3)), "not those of the architecture"),
    (tensor("mask/2.weight/0", torch.zeros(2, 7)), "got torch.float32"),
    (tensor("mask/2.weight/0", torch.zeros(2, 7, dtype=torch.int32)), "nnz: says"),
    (tensor("mask/5.weight/0", torch.full((2, 1), -1, dtype=torch.int32)), "bits past element 30"),
    (tensor("norm/3.bias", torch.zeros(2, 6, dtype=torch.float64)), "norm/3.bias: expected torch.float32"),
    (tensor("weight/0.weight", torch.zeros(4, 3, 3, 3, dtype=torch.float16)), "not those of the architecture"),
]


@pytest.mark.parametrize("change, words", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_file_is_refused_with_the_reason(file, change, words):
    with pytest.raises(BankError, match=rf"^bank\.safetensors: .*{words}"):
        SubnetBank.load(edited(file, change))


def flipped(name, place, value):
    def change(tensors, meta):
        tensors[name][place] = value
    return change


@pytest.mark.parametrize("change, words", [
    (flipped("weight/2.col", 0, 99), r"csr: 2.weight: col: expected columns in \[0, 36\)"), (flipped("weight/2.crow", 1, -5), "csr: 2.weight: crow"),
    (flipped("weight/2.crow", 6, 2**30), "csr: 2.weight: crow"), (tensor("weight/2.crow", torch.zeros(6, dtype=torch.int32)), "csr: 2.weight: crow"),
    (tensor("weight/2.values", torch.zeros(3)), "csr: 2.weight: expected one number per column index"),
    (tensor("weight/2.values", None), "csr: 2.weight: values missing"),
    (tensor("weight/2.col", torch.zeros(3, dtype=torch.int64)), "csr: 2.weight: "),
    (put("layout", "csr", "2.weight", [6, 4, 3, 2]), "csr: 2.weight: col"), (put("layout", "csr", "2.weight", [7, 4, 3, 3]), "csr: 2.weight: crow"),
    (put("layout", "csr", "2.weight", [6, 36]), "not those of the architecture"), (put("layout", "csr", "2.weight", [6, 2**16, 2**16, 1]), "shape"),
    (put("layout", "csr", "2.weight", [6, 0]), "csr: 2.weight: shape"), (put("layout", "csr", "2.weight", [6.0, 36]), "csr: 2.weight: shape"),
    (drop("layout", "csr", "2.weight"), "prunable: expected"), (put("layout", "masks", "2.weight", []), "masks: '2.weight' is no parameter"),
    (put("subnets", 0, "nnz", 1), "nnz: says 1, its masks keep "),
])
def test_hostile_sparse_layers(tmp_path, change, words):
    _, _, sparsifier = make_sparse("static", net=net(), sparsity=0.5, storage="csr")
    file = SubnetBank.from_sparsifier(sparsifier).save(tmp_path / "bank.safetensors")
    assert SubnetBank.load(file).subnet("0.5").sparsity == 0.5
    with pytest.raises(BankError, match=rf"^bank\.safetensors: .*{words}"):
        SubnetBank.load(edited(file, change))


def raw(path, header: bytes, data: bytes = b"", length: int | None = None):
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


@pytest.mark.parametrize("header, length", [
    (b"", None), (b"{}", None), (b"{}", 2**63), (b"\xff\xfe{}", None), (b"[]", None), (b"not json", None),
    (b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}', None),
    (b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}}', None),
    (b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', None),
    (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', None),
    (b'{"__metadata__":{"format":"sparsekern-bank"}}', None),
    (b'{"__metadata__":{"format":"sparsekern-bank","meta":"' + b"[" * 100_000 + b'","sha256":"x"}}', None),
    (b'{"__metadata__":{"format":"sparsekern-checkpoint-1"}}', None),
])
def test_what_is_no_bank_is_refused(tmp_path, header, length):
    with pytest.raises(BankError, match=r"^x\.safetensors: "):
        SubnetBank.load(raw(tmp_path / "x.safetensors", header, length=length))


@pytest.mark.parametrize("meta", ["[1]", "{}", '{"strides": 3}', "nonsense", "[" * 100_000, '{"strides":{"a":[0]}}',
                                  '{"strides":{"a":[1099511627776]}}',
                                  '{"strides":{"b":[1]}}', '{"strides":{"a":[1,1]}}', '{"strides":{"a":"1"}}', '{"strides":{"a":[1]}, "schema": NaN}',
                                  '{"strides":{}, "schema": ' + "9" * 6000 + "}"])
def test_hostile_values_behind_a_right_checksum(tmp_path, meta):
    from safetensors.torch import save_file

    from sparsekern.support.tensor_file import digest_tensors
    tensors = {"a": torch.zeros(3)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": FORMAT, "meta": meta, "sha256": digest_tensors(tensors, tensors.get, meta)})
    with pytest.raises(BankError, match=r"^x\.safetensors: "):
        SubnetBank.load(tmp_path / "x.safetensors")


def test_there_has_to_be_a_file(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(BankError, match="truncated or damaged|cannot"):
            SubnetBank.load(path)


def test_a_truncated_file_is_refused_wherever_it_ends(file):
    content = file.read_bytes()
    for end in [*range(0, len(content), 37), len(content) - 1]:
        file.write_bytes(content[:end])
        with pytest.raises(BankError, match=r"^bank\.safetensors: "):
            SubnetBank.load(file)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_changed_bytes_never_pass(bank, saved, data):
    path, tensors, meta = saved
    content = bytearray(save_tensors(path, FORMAT, tensors, meta).read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    content[where] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        found = SubnetBank.load(path)
    except BankError as error:
        assert str(error).startswith("bank.safetensors: ")
    else:                                                           # e.g. a blank of the header that became another one
        assert found.meta == bank.meta and found.size() == bank.size()
        assert all(torch.equal(found.weights[name], value) for name, value in bank.weights.items())


_VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
                       lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5)


def places(value, path=()):
    """Every place in nested JSON."""
    found = [path] if path else []
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(entry, (*path, key))
    return found


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_any_json_in_any_place_is_refused_or_harmless(bank, saved, data):
    path, tensors, meta = saved
    where, value = data.draw(st.sampled_from(places(meta))), data.draw(_VALUES)
    made = copy.deepcopy(meta)
    put(*where, value)(tensors, made)
    save_tensors(path, FORMAT, tensors, made)
    try:
        found = SubnetBank.load(path)
    except BankError as error:
        assert str(error).startswith("bank.safetensors: ")
    else:
        for name in found.names():                                  # whatever it says now, it is consistent
            found.subnet(name)
            found.plain(name, net())
        assert json.dumps(found.meta) and found.size() == bank.size()


@pytest.mark.parametrize("named, words", [
    ({"name": "mlp:400000,400000"}, "of another architecture"), ({"classes": 2**31 - 1}, "of another architecture"),
    ({"name": "torchvision:resnet18", "classes": 2**30}, "no tensor has as many values"),
    ({"name": "mlp:" + ",".join("1" * 200)}, "at most 256 letters"),
])
def test_the_named_model_costs_nothing_before_it_is_checked(bank, file, named, words, monkeypatch):
    """Each would take gigabytes, or minutes."""
    edited(file, put("model", {"name": "resnet20", "classes": 5, "shape": [3, 8, 8]} | named))
    found = SubnetBank.load(file)
    monkeypatch.setattr("sparsekern.deploy.bank.build_model", None)             # is not reached
    with pytest.raises(ValueError, match=words):
        found.model()
    with pytest.raises(ValueError, match=words):
        found.deploy(found.names()[0])


@pytest.mark.parametrize("shape", [[3, 60000, 60000], [2**30] * 3, [10**8, 8, 8]])
def test_images_of_gigabytes_are_refused(file, shape):
    with pytest.raises(BankError, match=r"^bank\.safetensors: model: .* at most 16777216 values an image"):
        SubnetBank.load(edited(file, put("model", {"name": "resnet20", "classes": 5, "shape": shape})))


def test_a_mask_on_what_is_no_parameter(file):
    def change(tensors, meta):
        meta["layout"]["masks"]["1.running_mean"] = [{"members": [[0]], "rows": False}]
        tensors["mask/1.running_mean/0"] = torch.tensor([[3]], dtype=torch.int32)
    found = SubnetBank.load(edited(file, change))
    for use in (found.activate, lambda model, name: found.plain(name, model)):
        with pytest.raises(BankError, match=r"masks 1\.running_mean, which is no parameter"):
            use(net(), found.names()[0])


@pytest.mark.parametrize("where", [("subnets", 0, "name"), ("algorithm",), ("data",), ("model", "name")])
@pytest.mark.parametrize("text", ["\x1b[2J", "\ud800", "", "x" * 2001])
def test_texts_that_a_terminal_would_obey_are_refused(file, where, text):
    with pytest.raises(BankError, match=r"^bank\.safetensors: "):
        if where[0] == "model":
            edited(file, put("model", {"name": "mlp", "classes": 5, "shape": [3, 8, 8]}))
        SubnetBank.load(edited(file, put(*where, text)))


def test_a_file_that_says_nothing_of_its_model(file):
    found = SubnetBank.load(edited(file, drop("model")))
    assert "a model of its own" in repr(found)
    with pytest.raises(BankError, match="pass model="):
        found.plain(found.names()[0])

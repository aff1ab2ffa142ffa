"""Checkpoints: exact, atomic, and refused with a reason when they are not what they should be."""
import os

import pytest
import torch
from torch import nn

from sparsekern.nn import SparseLinear
from sparsekern.training import CheckpointError
from sparsekern.training.checkpoint import (
    check_model,
    checkpoint_files,
    load_checkpoint,
    load_newest,
    load_optimizer,
    optimizer_tensors,
    resizable,
    save_checkpoint,
)


def _tensors(seed):
    torch.manual_seed(seed)
    return {"model/w": torch.randn(5, 3, 4, 4).contiguous(memory_format=torch.channels_last), "model/n": torch.tensor(seed),
            "half": torch.randn(7).bfloat16(), "mask": torch.rand(9) > 0.5, "empty": torch.empty(0, 3),
            "words": torch.arange(4, dtype=torch.int32)}


def _nothing(tensors, meta):
    pass


def test_round_trip_is_exact_to_the_memory_order(tmp_path):
    tensors = _tensors(1)
    path = save_checkpoint(tmp_path, tensors, {"step": 12, "history": [{"loss": 0.1 + 0.2, "x": None}]})
    assert path.name == "step-000000012.safetensors" and [p.name for p in tmp_path.iterdir()] == [path.name]
    loaded, meta = load_checkpoint(path)
    assert meta == {"step": 12, "history": [{"loss": 0.1 + 0.2, "x": None}]}
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype and loaded[name].stride() == value.stride()


def test_tensors_that_share_memory(tmp_path):
    base = torch.arange(12.0)
    path = save_checkpoint(tmp_path, {"a": base, "b": base, "c": base[3:7], "d": base.view(3, 4).t()}, {"step": 1})
    loaded, _ = load_checkpoint(path)
    assert torch.equal(loaded["b"], base) and torch.equal(loaded["c"], base[3:7]) and torch.equal(loaded["d"], base.view(3, 4).t())


def test_keeps_the_newest_and_the_one_before(tmp_path):
    for step in (1, 2, 10, 30):
        save_checkpoint(tmp_path, _tensors(step), {"step": step})
    assert [p.name for p in checkpoint_files(tmp_path)] == ["step-000000030.safetensors", "step-000000010.safetensors"]


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _cut_header(path):
    path.write_bytes(path.read_bytes()[:50])


def _empty(path):
    path.write_bytes(b"")


def _flip_a_bit(path):
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 4
    path.write_bytes(raw)


def _edit_the_meta(path):
    path.write_bytes(path.read_bytes().replace(b"alpha", b"omega"))


def _swap(path):
    os.replace(checkpoint_files(path.parent)[1], path.with_name("kept"))
    os.replace(path, path.with_name("step-000000001.safetensors"))
    os.replace(path.with_name("kept"), path)


@pytest.mark.parametrize("damage, words", [(_truncate, "truncated or damaged"), (_cut_header, "truncated or damaged"),
                                           (_empty, "truncated or damaged"), (_flip_a_bit, "does not match its checksum"),
                                           (_edit_the_meta, "does not match its checksum")])
def test_a_damaged_file_is_refused_and_the_one_before_serves(tmp_path, damage, words):
    save_checkpoint(tmp_path, _tensors(1), {"step": 1, "note": "alpha"})
    newest = save_checkpoint(tmp_path, _tensors(2), {"step": 2, "note": "alpha"})
    damage(newest)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(newest)
    said = []
    tensors, meta = load_newest(tmp_path, _nothing, said.append)
    assert meta["step"] == 1 and torch.equal(tensors["model/w"], _tensors(1)["model/w"])
    assert words in said[0] and "step-000000001" in said[1]


def test_swapped_files_are_refused(tmp_path):
    save_checkpoint(tmp_path, _tensors(1), {"step": 1})
    newest = save_checkpoint(tmp_path, _tensors(2), {"step": 2})
    _swap(newest)
    with pytest.raises(CheckpointError, match=r"no usable checkpoint.*holds step 1; it was renamed or swapped.*holds step 2"):
        load_newest(tmp_path, _nothing)


def test_other_safetensors_files_are_refused(tmp_path):
    from safetensors.torch import save_file
    save_file({"a": torch.zeros(2)}, str(tmp_path / "step-000000003.safetensors"))
    with pytest.raises(CheckpointError, match="not a checkpoint of sparsekern"):
        load_newest(tmp_path, _nothing)


def test_no_checkpoint_is_not_an_error(tmp_path):
    assert load_newest(tmp_path / "nowhere", _nothing) is None


@pytest.mark.parametrize("moment", ["save_file", "replace"])
def test_a_crash_while_saving_leaves_the_last_one(tmp_path, monkeypatch, moment):
    save_checkpoint(tmp_path, _tensors(1), {"step": 1})

    def crash(*arguments, **named):
        raise KeyboardInterrupt
    if moment == "replace":
        monkeypatch.setattr("sparsekern.support.tensor_file.os.replace", crash)
    else:
        import safetensors.torch
        monkeypatch.setattr(safetensors.torch, "save_file", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, _tensors(2), {"step": 2})
    assert load_newest(tmp_path, _nothing)[1]["step"] == 1


def test_not_a_number_does_not_get_into_the_header(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        save_checkpoint(tmp_path, {}, {"step": 1, "loss": float("nan")})


@pytest.mark.parametrize("change, words", [
    (lambda s: s.pop("model/w"), "it lacks w"), (lambda s: s.update({"model/z": torch.zeros(1)}), "it has z, which this model does not"),
    (lambda s: s.update({"model/w": torch.zeros(5, 3)}), r"w is \[5, 3\] torch.float32, the model has \[5, 3, 4, 4\]"),
    (lambda s: s.update({"model/n": torch.tensor(1.0)}), "n is .* torch.float32, the model has .* torch.int64"),
])
def test_a_checkpoint_of_another_model(change, words):
    stored = _tensors(1)
    state = {"w": stored["model/w"], "n": stored["model/n"]}
    check_model(stored, state, "model/")
    change(stored)
    with pytest.raises(CheckpointError, match="another model: " + words):
        check_model(stored, state, "model/")


def test_values_of_sparse_layers_may_have_another_length():
    model = nn.Sequential(SparseLinear.from_shape(6, 4, nnz=5), nn.Linear(4, 2))
    assert resizable(model) == {"0.values", "0.col"}
    stored = {f"model/{name}": value for name, value in model.state_dict().items()}
    stored |= {"model/0.values": torch.zeros(7), "model/0.col": torch.zeros(7, dtype=torch.int32)}
    check_model(stored, model.state_dict(), "model/", resizable(model))
    for name, other in (("0.values", torch.zeros(7, dtype=torch.float64)), ("0.crow", torch.zeros(6, dtype=torch.int32)),
                        ("0.values", torch.zeros(7, 1))):
        with pytest.raises(CheckpointError, match=f"another model: {name}"):
            check_model(stored | {f"model/{name}": other}, model.state_dict(), "model/", resizable(model))


def test_optimizer_state_round_trip():
    def trained():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.5}], lr=0.1, momentum=0.9)
        return model, optimizer
    model, optimizer = trained()
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    tensors, numbers = optimizer_tensors(optimizer)
    assert set(tensors) == {"0/momentum_buffer", "1/momentum_buffer"}
    other_model, other = trained()
    load_optimizer(other, tensors, numbers)
    for mine, its in zip(model.parameters(), other_model.parameters()):
        assert torch.equal(optimizer.state[mine]["momentum_buffer"], other.state[its]["momentum_buffer"])
    with pytest.raises(CheckpointError, match="only 2 parameters"):
        load_optimizer(other, {"5/momentum_buffer": torch.zeros(1)}, {})

"""Stages: exact to the memory order, one tensor at a time, atomic on disk, and refused with a reason when they are not what they should be."""
import json
import os

import pytest
import torch

from sparsekern.sparsity.stage_store import FORMAT, StageStore
from sparsekern.support.tensor_file import digest_tensors


def tensors(seed=0):
    torch.manual_seed(seed)
    tied = torch.randn(4, 3)
    return {"conv": torch.randn(5, 3, 4, 4).contiguous(memory_format=torch.channels_last), "half": torch.randn(7).bfloat16(), "tied": tied,
            "tied too": tied, "turned": torch.randn(3, 4).t(), "gaps": torch.randn(6, 6)[::2, ::3], "mask": torch.rand(9) > 0.5,
            "empty": torch.empty(0, 3), "number": torch.tensor(seed), "leaf": torch.nn.Parameter(torch.randn(2, 2))}


@pytest.fixture(params=["disk", "memory"])
def store(request, tmp_path):
    return StageStore(tmp_path / "stages" if request.param == "disk" else None)


def test_round_trip_is_exact_to_the_memory_order(store):
    put = tensors()
    store.put("stage-1", put, {"alpha": 0.1 + 0.2, "masks": ["u1"]})
    reader = store.open("stage-1")
    assert reader.meta == {"alpha": 0.1 + 0.2, "masks": ["u1"], "stage": "stage-1"} and reader.names == tuple(sorted(put))
    for name, value in put.items():
        got = reader[name]
        assert torch.equal(got, value) and got.dtype == value.dtype and not got.requires_grad
        assert got.stride() == torch.empty_like(value).stride()            # of a view with gaps the order, not the gaps


def test_what_is_stored_is_a_copy(store):
    put = tensors()
    store.put("s", put)
    before = put["conv"].clone()
    put["conv"].zero_()
    store.open("s")["conv"].fill_(3)
    assert torch.equal(store.open("s")["conv"], before)


def test_the_digest_sees_every_change(store):
    digest = store.put("s", tensors(), {"k": 1})
    assert digest == store.digest("s") == store.put("s", tensors(), {"k": 1}) and len(digest) == 64
    changed = tensors()
    changed["half"][3] += 1
    renamed = {f"{name}_": value for name, value in tensors().items()}
    others = [store.put("s", put, meta) for put, meta in ((changed, {"k": 1}), (renamed, {"k": 1}), (tensors(), {"k": 2}), (tensors(), {}))]
    assert len({digest, *others}) == 5
    store.put("s", tensors(), {"k": 1})
    assert torch.equal(store.check("s", digest)["half"], tensors()["half"])
    with pytest.raises(ValueError, match="stages: .*s.*: a stage of another run"):
        store.check("s", others[0])


def test_a_tensor_that_is_not_there_is_named(store):
    store.put("s", tensors())
    with pytest.raises(ValueError, match=r"s.*holds no tensor 'fc.weight'"):
        store.open("s")["fc.weight"]


def test_a_stage_that_is_not_there_is_named(store):
    store.put("stage-1", tensors())
    with pytest.raises(ValueError, match="stages: .*stage-2.* is (missing; put back|not in memory .there is stage-1)"):
        store.check("stage-2", "0" * 64)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", None])
def test_a_name_that_is_no_file_name_is_refused(store, name):
    with pytest.raises(ValueError, match="stages: name: expected letters"):
        store.put(name, tensors())


def test_values_that_json_does_not_know_change_nothing(store):
    digest = store.put("s", tensors(), {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        store.put("s", tensors(1), {"loss": float("nan")})
    store.check("s", digest)
    assert store.open("s").meta["loss"] == 1.0


def test_the_directory_is_made_by_the_first_stage_and_holds_nothing_else(tmp_path):
    store = StageStore(tmp_path / "a" / "stages")
    assert not (tmp_path / "a").exists()
    store.put("one", tensors())
    store.put("one", tensors(1))
    assert [path.name for path in (tmp_path / "a" / "stages").iterdir()] == ["one.safetensors"]
    assert StageStore(tmp_path / "a" / "stages").digest("one") == store.digest("one")


def write(path, change):
    raw = path.read_bytes()
    path.write_bytes(change(raw))


def swap(path):
    os.replace(path, path.with_name("kept"))
    os.replace(path.with_name("other.safetensors"), path)
    os.replace(path.with_name("kept"), path.with_name("other.safetensors"))


def foreign(path):
    from safetensors.torch import save_file
    save_file({"a": torch.zeros(2)}, str(path))


@pytest.mark.parametrize("damage, words", [
    (lambda path: write(path, lambda raw: raw[:-100]), "truncated or damaged"),
    (lambda path: write(path, lambda raw: raw[:50]), "truncated or damaged"),
    (lambda path: write(path, lambda raw: b""), "truncated or damaged"),
    (lambda path: write(path, lambda raw: b"\xff" * 4096), "truncated or damaged"),
    (lambda path: write(path, lambda raw: raw[:-3] + bytes([raw[-3] ^ 4]) + raw[-2:]), "does not match its checksum"),
    (lambda path: write(path, lambda raw: raw.replace(b"alpha", b"omega")), "does not match its checksum"),
    (lambda path: path.unlink(), "is missing"), (foreign, "not a stage of sparsekern"), (swap, "holds stage 'other'; it was renamed or swapped"),
])
def test_a_file_that_is_not_what_it_should_be_is_refused(tmp_path, damage, words):
    store = StageStore(tmp_path)
    store.put("other", tensors(1))
    digest = store.put("stage-1", tensors(), {"note": "alpha"})
    damage(tmp_path / "stage-1.safetensors")
    for look in (store.open, store.digest, lambda name: store.check(name, digest)):
        with pytest.raises(ValueError, match=rf"stages: .*stage-1.safetensors.*{words}.*; put back the file that this run wrote"):
            look("stage-1")


@pytest.mark.parametrize("strides", [{"w": [1 << 50, 1]}, {"w": [0, 1]}, {"w": [1, 1]}, {"w": [1]}, {"w": [-2, 1]}, {"w": ["2", 1]}, {"v": [2, 1]},
                                     {"w": None}, [], None])
def test_strides_that_would_cost_more_than_the_file_are_refused(tmp_path, strides):
    from safetensors.torch import save_file
    text, held = json.dumps({"stage": "s", "strides": strides}), {"w": torch.randn(3, 2)}
    save_file(held, str(tmp_path / "s.safetensors"), metadata={"format": FORMAT, "meta": text, "sha256": digest_tensors(held, held.get, text)})
    with pytest.raises(ValueError, match="s.safetensors: its values cannot be read"):
        StageStore(tmp_path).open("s")


@pytest.mark.parametrize("change, words", [
    (lambda store, path: store.put("s", tensors(1)), "replaced or changed while it was read"),
    (lambda store, path: path.unlink(), "cannot be read any more"),
    (lambda store, path: write(path, lambda raw: raw[:-1]), "replaced or changed"),
])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, change, words):
    store = StageStore(tmp_path)
    store.put("s", tensors())
    reader = store.open("s")
    assert torch.equal(reader["half"], tensors()["half"])
    change(store, tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match=f"s.safetensors: it {'was ' * ('changed' in words)}{words}"):
        reader["half"]


def test_a_file_is_read_one_tensor_at_a_time(tmp_path):
    store = StageStore(tmp_path)
    store.put("s", {str(i): torch.randn(500 + i) for i in range(40)})
    reader = store.open("s")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        got = [reader[name].sum() for name in reader.names]
    pieces = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert len(got) == 40 and max(pieces) < 4 * 540 + 64


def test_a_crash_while_writing_leaves_the_former_stage(tmp_path, monkeypatch):
    store = StageStore(tmp_path)
    digest = store.put("s", tensors())

    def crash(*arguments):
        raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr("sparsekern.support.tensor_file.os.replace", crash)
        with pytest.raises(KeyboardInterrupt):
            store.put("s", tensors(1))
    store.check("s", digest)


def test_without_safetensors_a_directory_is_refused_and_memory_serves(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="stages: files in .* need safetensors: pip install safetensors"):
        StageStore(tmp_path)
    store = StageStore(None)
    store.check("s", store.put("s", tensors()))


def test_no_changed_byte_goes_unnoticed(tmp_path):
    put = {"w": torch.randn(3, 2), "m": torch.rand(5) > 0.5, "c": torch.randn(2, 2, 2, 2).contiguous(memory_format=torch.channels_last)}
    store = StageStore(tmp_path)
    digest = store.put("s", put, {"k": 1})
    path = tmp_path / "s.safetensors"
    raw, refused = path.read_bytes(), 0
    for place in range(len(raw)):
        for bit in (0, 1 + place % 7):
            path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1:])
            try:
                store.check("s", digest)
            except ValueError:
                refused += 1
            else:                                                           # white space between the header and the tensors
                assert all(torch.equal(store.open("s")[name], value) for name, value in put.items())
    assert refused > 1.9 * len(raw)

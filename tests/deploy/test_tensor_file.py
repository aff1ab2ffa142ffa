"""Tensors and JSON in one file: what is written, to the byte, and what is left of a write that fails."""
import pytest
import torch
from ast_gc_runs import make

from sparsekern.deploy import SubnetBank
from sparsekern.support.tensor_file import load_tensors, save_tensors


def test_equal_content_is_equal_bytes(tmp_path):
    """A report is valid for the bytes of its bank; saving the same again must not undo it."""
    _, _, sparsifier = make()
    one = SubnetBank.from_sparsifier(sparsifier).save(tmp_path / "bank").read_bytes()
    assert all(SubnetBank.load(tmp_path / "bank").save(tmp_path / f"{number}").read_bytes() == one for number in range(6))


def test_names_beyond_ascii_are_written_in_the_same_order(tmp_path):
    tensors = {"gewicht/grün \"\x01\x7f": torch.ones(2)}
    assert len({save_tensors(tmp_path / "t", "f-1", tensors, {"ä": 1}).read_bytes() for _ in range(6)}) == 1
    assert list(load_tensors(tmp_path / "t", "f-1", "a test")[0]) == list(tensors)


def test_a_disk_that_is_full_leaves_the_former_file_alone(tmp_path, monkeypatch):
    file = save_tensors(tmp_path / "t", "f-1", {"a": torch.ones(3)}, {})
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("sparsekern.support.tensor_file._flush", full)
        save_tensors(file, "f-1", {"a": torch.zeros(3)}, {})
    assert file.read_bytes() == before and [path.name for path in file.parent.iterdir()] == [file.name]


def test_safetensors_own_errors_are_an_oserror(tmp_path):
    with pytest.raises(OSError, match="bank cannot be written: .*No such file or directory"):
        save_tensors(tmp_path / "nowhere" / "bank", "f-1", {"a": torch.ones(3)}, {})


def test_views_with_gaps_are_written_row_by_row(tmp_path):
    tensors = {"last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), "turned": torch.randn(4, 6).t(),
               "gaps": torch.randn(4, 6)[:, ::2], "spread": torch.randn(3, 1).expand(3, 4), "none": torch.zeros(0, 3).t(), "one": torch.ones(())}
    found, _ = load_tensors(save_tensors(tmp_path / "t", "f-1", tensors, {}), "f-1", "a test")
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert found["last"].stride() == tensors["last"].stride() and found["turned"].stride() == tensors["turned"].stride()
    assert found["gaps"].is_contiguous() and found["spread"].is_contiguous()

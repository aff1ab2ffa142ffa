"""Data sets: layouts, damage, hostile files, and batches that depend on nothing but (seed, epoch, index)."""
import os
import pickle
import pickletools

import numpy as np
import pytest
import torch

from sparsekern.training import DataError, load_dataset
from sparsekern.training import cifar as cifar_module
from sparsekern.training.cifar import load_restricted
from sparsekern.training.data import Batches, crop_flip


@pytest.fixture
def small_records(monkeypatch):
    """CIFAR files of 50 training and 10 test images."""
    monkeypatch.setattr(cifar_module, "RECORDS", {"train": 50, "test": 10})


def _records(count, classes, seed):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (count, 3072), np.uint8), draw.integers(0, classes, count).astype(np.uint8)


def _write(root, name, layout, protocol=2):
    """A small data set in one layout; returns its training pixels and labels in file order."""
    binary = "bin" in layout
    classes = 10 if name == "cifar10" else 100
    per_file = 10 if name == "cifar10" else 50
    folder = root / layout
    folder.mkdir(parents=True)
    if name == "cifar10":
        files = [(f"data_batch_{i}", per_file) for i in range(1, 6)] + [("test_batch", 10)]
    else:
        files = [("train", 50), ("test", 10)]
    pixels, labels = [], []
    for seed, (file, count) in enumerate(files):
        data, targets = _records(count, classes, seed)
        if binary:
            coarse = [] if name == "cifar10" else [np.full((count, 1), 19, np.uint8)]
            np.concatenate([*coarse, targets[:, None], data], 1).tofile(folder / f"{file}.bin")
        else:
            key = b"labels" if name == "cifar10" else b"fine_labels"
            batch = {b"data": data, key: targets.tolist(), b"batch_label": b"x", b"filenames": [b"a.png"] * count}
            (folder / file).write_bytes(pickle.dumps(batch, protocol=protocol))
        pixels.append(data)
        labels.append(targets)
    return np.concatenate(pixels[:-1]), np.concatenate(labels[:-1])


@pytest.mark.parametrize("name, layout", [("cifar10", "cifar-10-batches-bin"), ("cifar10", "cifar-10-batches-py"),
                                          ("cifar100", "cifar-100-binary"), ("cifar100", "cifar-100-python")])
@pytest.mark.parametrize("inside", [False, True])
def test_reads_every_layout(tmp_path, small_records, name, layout, inside):
    pixels, labels = _write(tmp_path, name, layout)
    data = load_dataset(name, str(tmp_path / layout if inside else tmp_path))
    assert data.train_images.dtype == torch.uint8 and data.shape == (3, 32, 32) and len(data.test_labels) == 10
    assert np.array_equal(data.train_images.flatten(1).numpy(), pixels)
    assert np.array_equal(data.train_labels.numpy(), labels)
    assert data.classes == (10 if name == "cifar10" else 100)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_reads_pickles_of_every_protocol(tmp_path, small_records, protocol):
    pixels, _ = _write(tmp_path, "cifar10", "cifar-10-batches-py", protocol)
    assert np.array_equal(load_dataset("cifar10", str(tmp_path)).train_images.flatten(1).numpy(), pixels)


class _Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("payload", [_Hostile(os.system, "echo > {}"), _Hostile(eval, "open('{}', 'w')"), _Hostile(open, "{}", "w"),
                                     _Hostile(getattr, "x", "upper"), np.array([1.5]), np.array([object()], dtype=object)])
def test_a_hostile_pickle_runs_nothing(tmp_path, payload):
    victim = tmp_path / "victim"
    if isinstance(payload, _Hostile):
        payload = _Hostile(payload.call[0], *(a.format(victim) for a in payload.call[1]))
    try:
        raw = pickle.dumps({b"data": payload}, protocol=2)
    except TypeError:
        pytest.skip("this payload does not pickle")
    path = tmp_path / "data_batch_1"
    path.write_bytes(raw)
    with pytest.raises(DataError, match="refused or damaged"):
        load_restricted(path)
    assert not victim.exists()


def test_a_pickle_cannot_change_its_reader(tmp_path):
    # GLOBAL numpy.dtype, then BUILD with a slot state: would set attributes on whatever the name stands for.
    raw = b"\x80\x02cnumpy\ndtype\nN}X\x09\x00\x00\x00_functionN" + b"s\x86b."
    assert any(op.name == "BUILD" for op, *_ in pickletools.genops(raw))
    path = tmp_path / "data_batch_1"
    path.write_bytes(raw)
    with pytest.raises(DataError, match="refused or damaged"):
        load_restricted(path)


def test_missing_and_damaged_directories_say_what_to_do(tmp_path, small_records):
    with pytest.raises(DataError, match=r"add --data-dir.*cifar-10-batches-bin/data_batch_1.bin.*--download"):
        load_dataset("cifar10")
    with pytest.raises(DataError, match=r"nothing found in .*cifar-10-binary.tar.gz"):
        load_dataset("cifar10", str(tmp_path / "nowhere"))
    _write(tmp_path, "cifar10", "cifar-10-batches-bin")
    folder = tmp_path / "cifar-10-batches-bin"
    short = folder / "data_batch_3.bin"
    good = short.read_bytes()
    short.write_bytes(good[:-7])
    with pytest.raises(DataError, match=r"data_batch_3.bin: expected 30,730 bytes \(10 images\), got 30,723"):
        load_dataset("cifar10", str(tmp_path))
    short.write_bytes(b"\x0b" + good[1:])
    with pytest.raises(DataError, match="damaged: it has labels from . to 11, expected 0 to 9"):
        load_dataset("cifar10", str(tmp_path))
    short.unlink()
    with pytest.raises(DataError, match="data_batch_3.bin is missing beside the others"):
        load_dataset("cifar10", str(tmp_path))


@pytest.mark.parametrize("batch, words", [([1, 2], "expected a pickled dict, got list"), ({b"data": 3}, "data: expected a uint8 array"),
                                          ({b"data": np.zeros((10, 3072), np.uint8), b"labels": [1]}, "labels: expected a list of 10")])
def test_damaged_python_batches(tmp_path, small_records, batch, words):
    _write(tmp_path, "cifar10", "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py/data_batch_2").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match=words):
        load_dataset("cifar10", str(tmp_path))


def test_digits_are_a_fixed_stratified_split():
    data = load_dataset("digits")
    assert data.shape == (1, 8, 8) and len(data.train_labels) + len(data.test_labels) == 1797
    share = torch.bincount(data.test_labels) / (torch.bincount(data.test_labels) + torch.bincount(data.train_labels))
    assert (share - 0.2).abs().max() < 0.01
    again = load_dataset("digits", subset=100)
    assert torch.equal(again.train_images, data.train_images[:100]) and torch.equal(again.test_images, data.test_images)
    assert len(again.train_labels.unique()) == 10
    normal = data.normalise(data.train_images)
    assert abs(normal.mean()) < 1e-3 and abs(normal.std() - 1) < 1e-3


@pytest.mark.parametrize("subset", [0, -1, 100_000])
def test_subset_out_of_range(subset):
    with pytest.raises(ValueError, match=f"subset: expected 1 to 14.. training images of digits, got {subset}"):
        load_dataset("digits", subset=subset)


def test_crop_flip_against_a_loop():
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (13, 3, 7, 5), generator=draw, dtype=torch.uint8)
    top, left = torch.randint(0, 9, (2, 13), generator=draw)
    flipped = torch.randint(0, 2, (13,), generator=draw).bool()
    got = crop_flip(images, top, left, flipped, 4)
    for i in range(13):
        padded = torch.zeros(3, 15, 13, dtype=torch.uint8)
        padded[:, 4:11, 4:9] = images[i]
        window = padded[:, top[i]:top[i] + 7, left[i]:left[i] + 5]
        assert torch.equal(got[i], window.flip(2) if flipped[i] else window)


def test_padding_is_black_before_normalising(tmp_path, small_records):
    _write(tmp_path, "cifar10", "cifar-10-batches-bin")
    data = load_dataset("cifar10", str(tmp_path))
    corner = data.normalise(crop_flip(data.train_images[:1], torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long), None, 4))
    expected = torch.tensor([-m / s for m, s in zip(data.mean, data.std)])
    assert torch.allclose(corner[0, :, 0, 0], expected)


def test_batches_are_a_function_of_the_counters():
    data = load_dataset("digits")
    one, two = Batches(data, 64, seed=1), Batches(data, 64, seed=1)
    assert one.per_epoch == len(data.train_labels) // 64
    for epoch, index in ((3, 5), (0, 0), (3, 5), (2, one.per_epoch - 1)):             # any order of asking
        a, b = one.at(epoch, index), two.at(epoch, index)
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert not torch.equal(one.at(0, 0)[0], one.at(1, 0)[0])
    assert not torch.equal(one.at(0, 0)[0], Batches(data, 64, seed=2).at(0, 0)[0])


def test_an_epoch_visits_every_image_once():
    data = load_dataset("digits", subset=96)
    batches = Batches(data, 32, seed=0, augment=False)
    seen = torch.cat([batches.at(4, i)[0] for i in range(batches.per_epoch)]).flatten(1)
    wanted = data.normalise(data.train_images).flatten(1)
    assert torch.equal(torch.unique(seen, dim=0), torch.unique(wanted, dim=0))


def test_a_batch_larger_than_the_data():
    with pytest.raises(ValueError, match="batch_size: expected at most the 10 training images, got 64"):
        Batches(load_dataset("digits", subset=10), 64, seed=0)

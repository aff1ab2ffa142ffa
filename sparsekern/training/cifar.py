"""CIFAR-10 and CIFAR-100 from disk: the binary layout, or the python layout through a reader that cannot execute code."""
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PIXELS = 3 * 32 * 32


class DataError(Exception):
    """A data directory that is missing, short or damaged; the message says what to put where."""


@dataclass(frozen=True)
class Layout:
    """Where one layout keeps its records."""
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int                       # binary layout; 0: python layout
    url: str


_SITE = "https://www.cs.toronto.edu/~kriz/"
LAYOUTS = {
    "cifar10": (
        Layout("cifar-10-batches-bin", tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",), 1,
               _SITE + "cifar-10-binary.tar.gz"),
        Layout("cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",), 0, _SITE + "cifar-10-python.tar.gz"),
    ),
    "cifar100": (
        Layout("cifar-100-binary", ("train.bin",), ("test.bin",), 2, _SITE + "cifar-100-binary.tar.gz"),
        Layout("cifar-100-python", ("train",), ("test",), 0, _SITE + "cifar-100-python.tar.gz"),
    ),
}
RECORDS = {"train": 50_000, "test": 10_000}
CLASSES = {"cifar10": 10, "cifar100": 100}


def read_cifar(name: str, directory: str | None, download: bool = False):
    """((train images, labels), (test images, labels)) as uint8 [n, 3, 32, 32] and int64 [n]."""
    if directory is None:
        raise DataError(f"{name}: no data directory given; add --data-dir. {_how_to(name, 'DIR')}")
    root = Path(directory)
    found = _find(name, root)
    if found is None and download:
        _download(name, root)
        found = _find(name, root)
    if found is None:
        raise DataError(f"{name}: nothing found in {root}. {_how_to(name, root)}")
    layout, folder = found
    return tuple(_read_split(name, layout, folder, split) for split in ("train", "test"))


def _find(name: str, root: Path) -> tuple[Layout, Path] | None:
    """The first layout of which any file is there: in `root/<its folder>`, or in `root` itself."""
    for layout in LAYOUTS[name]:
        for folder in (root / layout.folder, root):
            if any((folder / file).exists() for file in layout.train + layout.test):
                return layout, folder
    return None


def _how_to(name: str, root: object) -> str:
    binary, python = LAYOUTS[name]
    return (f"Unpack {binary.url} so that {root}/{binary.folder}/{binary.train[0]} exists, or {python.url} so that "
            f"{root}/{python.folder}/{python.train[0]} exists, or add --download")


def _download(name: str, root: Path) -> None:
    try:
        from torchvision.datasets import CIFAR10, CIFAR100
    except ImportError as error:
        raise DataError(f"{name}: --download goes through torchvision, which is not installed. {_how_to(name, root)}") from error
    try:
        {"cifar10": CIFAR10, "cifar100": CIFAR100}[name](str(root), download=True)
    except (OSError, RuntimeError) as error:               # URLError is an OSError; a bad checksum a RuntimeError
        raise DataError(f"{name}: the download failed ({error}). {_how_to(name, root)}") from error


def _read_split(name: str, layout: Layout, folder: Path, split: str):
    files = layout.train if split == "train" else layout.test
    each = RECORDS[split] // len(files)
    parts = []
    for file in files:
        path = folder / file
        if not path.is_file():
            raise DataError(f"{name}: {path} is missing beside the others; unpack {layout.url} again")
        read = _read_binary if layout.label_bytes else _read_python
        images, labels = read(path, layout, each)
        if len(labels) and not 0 <= labels.min() <= labels.max() < CLASSES[name]:
            raise DataError(f"{name}: {path} is damaged: it has labels from {labels.min()} to {labels.max()}, expected 0 to "
                            f"{CLASSES[name] - 1}; unpack {layout.url} again")
        parts.append((images, labels))
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def _read_binary(path: Path, layout: Layout, records: int):
    size, expected = path.stat().st_size, records * (layout.label_bytes + PIXELS)
    if size != expected:
        raise DataError(f"{path}: expected {expected:,} bytes ({records:,} images), got {size:,}; unpack {layout.url} again")
    rows = np.fromfile(path, np.uint8).reshape(records, -1)
    # CIFAR-100 has the coarse label first; the fine one stands right before the pixels in both.
    return rows[:, layout.label_bytes:].reshape(-1, 3, 32, 32), rows[:, layout.label_bytes - 1].astype(np.int64)


def _read_python(path: Path, layout: Layout, records: int):
    batch = load_restricted(path)
    again = f"unpack {layout.url} again"
    if not isinstance(batch, dict):
        raise DataError(f"{path}: expected a pickled dict, got {type(batch).__name__}; {again}")
    entries = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    images, labels = entries.get("data"), entries.get("fine_labels", entries.get("labels"))
    if not isinstance(images, np.ndarray) or images.shape != (records, PIXELS):
        got = f"shape {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(f"{path}: data: expected a uint8 array of shape {[records, PIXELS]}, got {got}; {again}")
    if not isinstance(labels, list) or len(labels) != records or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: labels: expected a list of {records:,} integers; {again}")
    return images.reshape(-1, 3, 32, 32), np.asarray(labels, np.int64)


# The pickles of the python layout name numpy's own constructors. They are answered by the stand-ins below, which can hold one
# uint8 array and nothing else: no function named in a file is ever looked up, imported or called.

class _Type:
    """Stands for numpy.dtype("u1")."""
    __slots__ = ("code",)

    def __init__(self, code, *flags):
        self.code = code.decode("latin1") if isinstance(code, bytes) else code
        if self.code not in ("u1", "|u1", "uint8"):
            raise pickle.UnpicklingError(f"an array of type {self.code!r}, expected uint8")

    def __setstate__(self, state):                         # byte order and alignment, nothing that matters for bytes
        pass


class _Array:
    """Stands for numpy.ndarray: the bytes and the shape arrive through __setstate__."""
    __slots__ = ("value",)

    def __setstate__(self, state):
        _, shape, kind, fortran, raw = state
        if not isinstance(kind, _Type) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array without its bytes")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Call:
    """A callable that carries no state a pickle could change."""
    __slots__ = ("_function",)

    def __init__(self, function):
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name, value):
        raise pickle.UnpicklingError("a pickle may not change its reader")

    def __call__(self, *arguments):
        return self._function(*arguments)


def _encode(text, codec="latin1"):
    if not isinstance(text, str) or codec not in ("latin1", b"latin1", "latin-1", "iso-8859-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {codec!r}")
    return text.encode("latin1")


def _from_buffer(raw, kind, shape, order="C"):
    array = _Array()
    array.__setstate__((1, shape, kind, order in ("F", b"F"), bytes(raw)))
    return array


_ADMITTED = {
    ("numpy", "ndarray"): lambda *_: _Array(),
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch needs")
        return _Call(_ADMITTED[module, name])

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to objects outside the file")


def load_restricted(path: Path):
    """Unpickle numbers, strings, lists, dicts and uint8 arrays; refuse anything else.

    Raises:
        DataError: the file is truncated, damaged, or asks for something that a data batch does not need.
    """
    try:
        with open(path, "rb") as file:
            value = _Reader(file, encoding="bytes").load()
        if isinstance(value, dict):
            value = {key: entry.value if isinstance(entry, _Array) else entry for key, entry in value.items()}
        return value
    except Exception as error:                             # a damaged pickle can raise almost anything
        raise DataError(f"{path}: refused or damaged: {error}. Unpack the archive again from a source you trust") from error

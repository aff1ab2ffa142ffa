"""One safetensors file with JSON in its header: complete on disk before it gets its name, checked when it is read. No pickle."""
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor


class TensorFileError(ValueError):
    """A file that cannot be used; the message says which and why."""


def save_tensors(path: Path | str, format: str, tensors: Mapping[str, Tensor], meta: Mapping) -> Path:
    """Write tensors and json-able values so that one rename commits everything; a crash at any moment leaves the former file as it was.

    Args:
        format: name and version of what is written; `load_tensors` asks for the same.
        tensors: of any device and memory order, which is kept.
    """
    from safetensors.torch import save_file
    path = Path(path)
    host, strides, storages = {}, {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        if not tensor.is_contiguous():
            strides[name] = list(torch.empty_like(tensor, device="meta").stride())     # e.g. channels-last: the order of sums; no gaps
        own = tensor.cpu().contiguous()
        if own.untyped_storage().data_ptr() in storages:   # tied weights: safetensors wants every tensor to itself
            own = own.clone()
        storages.add(own.untyped_storage().data_ptr())
        host[name] = own
    text = json.dumps({**meta, "strides": strides}, allow_nan=False)
    partial = path.with_name(f".{path.name}.partial")
    save_file(host, str(partial), metadata={"format": format, "meta": text, "sha256": digest_tensors(host, host.__getitem__, text)})
    _flush(partial)
    os.replace(partial, path)                              # the commit point
    _flush(path.parent)
    return path


def load_tensors(path: Path | str, format: str, what: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors (on the host, in their former memory order) and values of a file that `save_tensors` wrote.

    Args:
        what: is expected, for the message: "a checkpoint of sparsekern".
    Raises:
        TensorFileError: missing, truncated, changed after it was written, or of another format.
    """
    path = Path(path)
    with _opened(path) as file:
        header = _header(file, path, format, what)
        tensors = {name: file.get_tensor(name) for name in file.keys()}   # noqa: SIM118  not a dict
    meta, strides = _checked(path, header, tensors, tensors.__getitem__)
    return {name: _laid_out(tensor, strides.get(name)) for name, tensor in tensors.items()}, meta


class TensorReader:
    """A file that `save_tensors` wrote, its tensors read one at a time when they are asked for: `reader[name]`.

    Args:
        what: is expected, for the message: "a stage of sparsekern".
    Attributes:
        names: of the tensors, sorted.
        meta: the values.
        digest: SHA-256 (hexadecimal) of all that is in it, checked here, tensor by tensor.
    Raises:
        TensorFileError: as `load_tensors`; later, for a tensor that is not there or a file that was replaced meanwhile.
    """

    def __init__(self, path: Path | str, format: str, what: str):
        self.path, self._format, self._what, self.digest = Path(path), format, what, None
        with _opened(self.path) as file:
            header = _header(file, self.path, format, what)
            self.names = tuple(sorted(file.keys()))                       # noqa: SIM118  not a dict
        self.meta, self._strides = _checked(self.path, header, self.names, self._read)
        self.digest = header["sha256"]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise TensorFileError(f"{self.path.name}: it holds no tensor {name!r}, but {', '.join(self.names[:3])}, ...")
        return _laid_out(self._read(name), self._strides.get(name))

    def _read(self, name: str) -> Tensor:
        with _opened(self.path) as file:                   # anew each time: a mapping keeps the pages of all that was read through it
            header = _header(file, self.path, self._format, self._what)
            if self.digest not in (None, header.get("sha256")):
                raise TensorFileError(f"{self.path.name}: it was replaced by another file while it was read")
            return file.get_tensor(name)


def digest_tensors(names: Iterable[str], read: Callable[[str], Tensor], text: str) -> str:
    """SHA-256 (hexadecimal) over a text and over name, dtype, shape and bytes of contiguous host tensors, read one at a time by sorted name."""
    digest = hashlib.sha256(text.encode())

    def add(name: str, tensor: Tensor) -> None:
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    for name in sorted(names):
        add(name, read(name))                              # gone before the next one is read
    return digest.hexdigest()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise TensorFileError(f"{path.name}: truncated or damaged ({error})") from error


def _header(file, path: Path, format: str, what: str) -> dict[str, str]:
    header = file.metadata() or {}
    if header.get("format") != format:
        raise TensorFileError(f"{path.name}: not {what} (format {header.get('format')!r}, expected {format!r})")
    return header


def _checked(path: Path, header: Mapping[str, str], names: Iterable[str], read: Callable[[str], Tensor]) -> tuple[dict, dict[str, list[int]]]:
    """The values, and the strides of tensors that are not row by row."""
    if digest_tensors(names, read, header.get("meta", "")) != header.get("sha256"):
        raise TensorFileError(f"{path.name}: its content does not match its checksum; it was changed or damaged after it was written")
    try:
        meta = json.loads(header["meta"])
        strides = meta.pop("strides")
        if not all(_dense(read(name).shape, stride) for name, stride in strides.items()):
            raise TypeError("strides that leave gaps or overlap")
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise TensorFileError(f"{path.name}: its values cannot be read ({type(error).__name__}: {error})") from error
    return meta, strides


def _dense(shape: torch.Size, stride: list[int]) -> bool:
    """Whether a tensor laid out like this takes no more memory than its elements do."""
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size > 1 and (type(step) is not int or step != expected):
            return False
        expected *= size
    return all(type(step) is int and 0 <= step < 2**62 for step in stride)


def _laid_out(tensor: Tensor, stride: list[int] | None) -> Tensor:
    return tensor if stride is None else torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

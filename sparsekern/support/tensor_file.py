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

    Equal content is equal bytes. OSError: a directory that is not there, a full disk.
    """
    from safetensors import SafetensorError
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
    try:
        save_file(host, str(partial), metadata={"format": format, "meta": text, "sha256": digest_tensors(host, host.__getitem__, text)})
        _sort_metadata(partial)
        return commit(partial, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)                    # nothing is left of a full disk or of Ctrl-C


def _sort_metadata(path: Path) -> None:
    """safetensors writes its metadata in an order drawn anew each time; a report knows its bank by the bytes of the file."""
    with path.open("r+b") as raw:
        size = int.from_bytes(raw.read(8), "little")
        header = json.loads(raw.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size)
        if len(text) == size:
            raw.seek(8)
            raw.write(text)


def commit(partial: Path, path: Path) -> Path:
    """Give a complete file its name, in the same directory, once all of it is on disk."""
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
        self.path = Path(path)
        with _opened(self.path) as file:                   # which refuses a header that is not true of the file
            header = _header(file, self.path, format, what)
            kinds = {name: (tensor.shape, tensor.dtype) for name in sorted(file.keys()) for tensor in [file.get_tensor(name)]}    # noqa: SIM118
            self._state = _state(os.stat(self.path))
            with open(self.path, "rb") as raw:
                begin = 8 + int.from_bytes(raw.read(8), "little")
                table = json.loads(raw.read(begin - 8))
        self._places = {name: (*kind, begin + table[name]["data_offsets"][0]) for name, kind in kinds.items()}
        self.names = tuple(kinds)
        self.meta, self._strides = _checked(self.path, header, self.names, self._read)
        self.digest = header["sha256"]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._places:
            raise TensorFileError(f"{self.path.name}: it holds no tensor {name!r}, but {', '.join(self.names[:3])}, ...")
        return _laid_out(self._read(name), self._strides.get(name))

    def _read(self, name: str) -> Tensor:
        shape, dtype, begin = self._places[name]
        tensor = torch.empty(shape, dtype=dtype)
        try:
            with open(self.path, "rb") as raw:             # not a mapping, which would keep the pages of all that was read through it
                raw.seek(begin)
                read = raw.readinto(tensor.view(-1).view(torch.uint8).numpy())
                same = _state(os.fstat(raw.fileno())) == self._state
        except OSError as error:
            raise TensorFileError(f"{self.path.name}: it cannot be read any more ({error})") from error
        if not same or read != tensor.nbytes:
            raise TensorFileError(f"{self.path.name}: it was replaced or changed while it was read")
        return tensor


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


def _state(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


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

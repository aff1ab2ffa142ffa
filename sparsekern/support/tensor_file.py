"""One safetensors file with JSON in its header: complete on disk before it gets its name, checked when it is read. No pickle."""
import hashlib
import json
import os
from collections.abc import Mapping
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
            strides[name] = list(tensor.stride())          # e.g. channels-last; the order in memory decides the order of sums
        own = tensor.cpu().contiguous()
        if own.untyped_storage().data_ptr() in storages:   # tied weights: safetensors wants every tensor to itself
            own = own.clone()
        storages.add(own.untyped_storage().data_ptr())
        host[name] = own
    text = json.dumps({**meta, "strides": strides}, allow_nan=False)
    partial = path.with_name(f".{path.name}.partial")
    save_file(host, str(partial), metadata={"format": format, "meta": text, "sha256": _digest(host, text)})
    return commit(partial, path)


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
    from safetensors import SafetensorError, safe_open
    path = Path(path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            if header.get("format") != format:
                raise TensorFileError(f"{path.name}: not {what} (format {header.get('format')!r}, expected {format!r})")
            tensors = {name: file.get_tensor(name) for name in file.keys()}   # noqa: SIM118  not a dict
    except (SafetensorError, OSError) as error:
        raise TensorFileError(f"{path.name}: truncated or damaged ({error})") from error
    if _digest(tensors, header.get("meta", "")) != header.get("sha256"):
        raise TensorFileError(f"{path.name}: its content does not match its checksum; it was changed or damaged after it was written")
    meta = json.loads(header["meta"])
    for name, stride in meta.pop("strides").items():
        tensors[name] = torch.empty_strided(tensors[name].shape, stride, dtype=tensors[name].dtype).copy_(tensors[name])
    return tensors, meta


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Weights of finished stages of a run, on disk or in memory, read back one tensor at a time."""
import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sparsekern.support.tensor_file import TensorFileError, TensorReader, digest_tensors, save_tensors

FORMAT = "sparsekern-stage-1"
_REMEDY = "put back the file that this run wrote, or train again into an empty directory"


class StageStore:
    """Named sets of tensors with json-able values; what is put under a name replaces what was there.

    Args:
        directory: one safetensors file a stage, complete on disk before it gets its name; made when the first stage is put. None: copies
            in the host's memory, which end with the process.
    Raises:
        ValueError: a directory, and safetensors is not installed.
    """

    def __init__(self, directory: Path | str | None = None):
        if directory is not None and importlib.util.find_spec("safetensors") is None:
            raise ValueError(f"stages: files in {directory} need safetensors: pip install safetensors, or leave the directory out and the stages "
                             f"stay in memory")
        self.directory = None if directory is None else Path(directory)
        self._kept: dict[str, KeptStage] = {}

    def put(self, name: str, tensors: Mapping[str, Tensor], meta: Mapping | None = None) -> str:
        """Store a stage and return its digest, by which `check` knows it again.

        Args:
            name: letters, digits, ".", "_" and "-".
            tensors: of any device and memory order, which is kept.
            meta: json-able values; the reader's `meta` has them, and "stage", the name.
        Raises:
            ValueError: a name or values that a file cannot have; what was stored before stays.
        """
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
            raise ValueError(f'stages: name: expected letters, digits, ".", "_" and "-", got {name!r}')
        meta = {**(meta or {}), "stage": name}
        if self.directory is None:
            self._kept[name] = KeptStage(tensors, meta)
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            save_tensors(self._path(name), FORMAT, tensors, meta)
        return self.digest(name)

    def open(self, name: str) -> "TensorReader | KeptStage":
        """The stage, whole and unchanged: `reader[key]` reads one tensor, to the host; `reader.names`, `.meta` and `.digest`.

        Raises:
            ValueError: missing, damaged, or another file under this name; says which, and what to do.
        """
        if self.directory is None:
            if name not in self._kept:
                raise ValueError(f"stages: {name!r} is not in memory (there is {', '.join(self._kept) or 'none'}); stages outlive a process "
                                 f"only in a directory")
            return self._kept[name]
        path = self._path(name)
        if not path.is_file():
            raise ValueError(f"stages: {path} is missing; {_REMEDY}")
        try:
            reader = TensorReader(path, FORMAT, "a stage of sparsekern")
        except TensorFileError as error:
            raise ValueError(f"stages: {self.directory}: {error}; {_REMEDY}") from error
        if reader.meta.get("stage") != name:
            raise ValueError(f"stages: {path}: it holds stage {reader.meta.get('stage')!r}; it was renamed or swapped with another file; {_REMEDY}")
        return reader

    def digest(self, name: str) -> str:
        """SHA-256 over all that is in the stage, in hexadecimal."""
        return self.open(name).digest

    def check(self, name: str, digest: str) -> "TensorReader | KeptStage":
        """The stage as `open` gives it; ValueError unless it is there, whole, and the one whose digest `put` returned."""
        reader = self.open(name)
        if reader.digest != digest:
            where = name if self.directory is None else self._path(name)
            raise ValueError(f"stages: {where}: a stage of another run (its digest is {reader.digest[:12]}, expected {str(digest)[:12]}); {_REMEDY}")
        return reader

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.safetensors"


class KeptStage:
    """A stage in memory, read like a file."""

    def __init__(self, tensors: Mapping[str, Tensor], meta: dict):
        text = json.dumps(meta, allow_nan=False)
        self._tensors = {name: tensors[name].detach().to("cpu", copy=True) for name in sorted(tensors)}
        self.names, self.meta = tuple(self._tensors), json.loads(text)
        self.digest = digest_tensors(self.names, lambda name: self._tensors[name].contiguous(), text)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise ValueError(f"stages: {self.meta['stage']}: it holds no tensor {name!r}, but {', '.join(self.names[:3])}, ...")
        return self._tensors[name].clone(memory_format=torch.preserve_format)

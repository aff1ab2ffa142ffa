"""A net for other runtimes: ONNX for nets of plain layers, torch.export for all. No file gets its name before it was run and compared."""
import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsekern.nn import NMWeight, PackedNM, PackedNMConv2d, SparseWeight
from sparsekern.support.tensor_file import commit

TOLERANCE = 1e-4                                            # of the largest output
_SPARSE = (SparseWeight, PackedNM, NMWeight)


class ExportError(ValueError):
    """A net that a format cannot hold, or a file that does not compute what the net computes."""


def sparse_layers(module: nn.Module) -> dict[str, nn.Module]:
    """{name: layer} of the layers that are sparse or packed; "" is the module itself."""
    return {name: layer for name, layer in module.named_modules(remove_duplicate=False) if isinstance(layer, _SPARSE)}


def densify(module: nn.Module) -> nn.Module:
    """A copy in which every sparse or packed layer is an nn.Linear or nn.Conv2d again, with zeros where it stored nothing."""
    if isinstance(module, _SPARSE):
        return module.to_dense()
    module = copy.deepcopy(module)
    for name, layer in sparse_layers(module).items():
        module.set_submodule(name, layer.to_dense())
    return module


def export_onnx(module: nn.Module, example: Tensor, path: Path | str) -> Path:
    """Write a net of plain layers as one ONNX file: input "images" with a free batch size, output "scores".

    Args:
        module: is left as it is; written as it computes in eval mode on the CPU.
        example: [N, ...] an input. onnxruntime runs the file on the first of these and on all (on it twice where N is 1), and has to give
            what the module gives, to 1e-4 of the largest output, before the file gets its name.
    Raises:
        ExportError: a sparse or packed layer (`densify` puts its zeros back), a net that ONNX or one file of 2 GiB cannot hold, other
            outputs, a missing package. There is no file then, or still the former one.
    """
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"export_onnx: {' and '.join(missing)} not found: pip install 'sparsekern[export]'")
    sparse = sparse_layers(module)
    if sparse:
        name, layer = next(iter(sparse.items()))
        raise ExportError(f"export_onnx: {name or 'the module'}: a {type(layer).__name__} has no ONNX form; densify(module) writes its zeros out, "
                          f'and a net that is deployed with backend="dense" has none')
    module = copy.deepcopy(module).cpu()

    def write(images: Tensor, sizes: tuple, partial: Path) -> Callable[[Tensor], Tensor]:
        import onnxruntime
        made = torch.onnx.export(module, (images,), dynamo=True, dynamic_shapes=sizes, input_names=["images"], output_names=["scores"],
                                 verbose=False)
        made.save(str(partial), external_data=False)
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        return lambda given: torch.from_numpy(session.run(None, {"images": given.numpy()})[0])
    return _written("export_onnx", module, example.cpu(), Path(path), write)


def export_program(module: nn.Module, example: Tensor, path: Path | str) -> Path:
    """Write a net as torch.export has it, with a free batch size; sparse and packed layers stay what they are.

    `torch.export.load` reads the file and `.module()` of that runs it; a net with sparse layers needs `import sparsekern` first, which
    registers the ops. torch.export.load unpickles: load only files that you trust. `save_deployed` writes one without pickle.

    Args:
        module, example: as in `export_onnx`; on any device, which the file is then for.
    Raises:
        ExportError: a net that torch.export cannot trace (a packed convolution with backend="packed" is one: its number of pieces depends on
            the batch), other outputs after loading. There is no file then, or still the former one.
    """
    for name, layer in sparse_layers(module).items():
        if isinstance(layer, PackedNMConv2d) and layer.backend == "packed":
            raise ExportError(f'export_program: {name or "the module"}: a PackedNMConv2d with backend="packed" works in pieces that depend on the '
                              f'batch, which torch.export cannot follow; set its backend to "dense" (or, on the CPU, "csr")')

    def write(images: Tensor, sizes: tuple, partial: Path) -> Callable[[Tensor], Tensor]:
        buffer = io.BytesIO()                               # torch.export.save has its own idea of file names
        torch.export.save(torch.export.export(module, (images,), dynamic_shapes=sizes), buffer)
        partial.write_bytes(buffer.getbuffer())
        buffer.seek(0)
        return torch.export.load(buffer).module()
    return _written("export_program", module, example, Path(path), write)


@torch.no_grad()
def _written(op: str, module: nn.Module, example: Tensor, path: Path, write: Callable[[Tensor, tuple, Path], Callable[[Tensor], Tensor]]) -> Path:
    """`write` the net beside `path` and get back what runs the file; compare; only then rename."""
    if not isinstance(example, Tensor) or example.dim() < 2 or not len(example):
        raise ExportError(f"{op}: example: expected a batch of inputs, got {list(example.shape) if isinstance(example, Tensor) else example!r}")
    images = example if len(example) > 1 else torch.cat([example, example])    # a batch of one would be taken for a constant
    training, partial = [part for part in module.modules() if part.training], path.with_name(f".{path.name}.partial")
    module.eval()
    try:
        with _quiet():
            try:
                run = write(images, ({0: torch.export.Dim("batch", min=1)},), partial)
            except Exception as error:                      # whatever a foreign exporter throws
                raise ExportError(f"{op}: the net cannot be written: {_reason(error)}") from error
            for given in (images[:1], images):
                wanted, got = module(given), run(given)
                if got.shape != wanted.shape:
                    raise ExportError(f"{op}: the file gives outputs of shape {list(got.shape)} where the net gives {list(wanted.shape)}")
                difference = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
                if not difference <= TOLERANCE:
                    raise ExportError(f"{op}: the file's outputs differ from the net's by {difference:.1e} of the largest one, expected at most "
                                      f"{TOLERANCE:g}")
        return commit(partial, path)
    finally:
        for part in training:
            part.training = True
        partial.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """The first line of what started it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print, warn and log about themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)

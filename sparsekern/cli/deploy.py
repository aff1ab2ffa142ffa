"""sparsekern deploy: one sub-net of a bank, as small and as fast as it gets on this machine, as a file."""
import math
from argparse import BooleanOptionalAction
from pathlib import Path

from sparsekern.cli.usage import Parser, UsageError, running

FORMATS = {".onnx": "onnx", ".pt2": "torch-export"}         # by the name of the file; any other is safetensors


def run(arguments: list[str]) -> int:
    parser = Parser("deploy", "Make one sub-net of a bank as small and as fast as it gets on this machine: every layer in the form that measures "
                              "best beside its dense one. Prints the table of layers, and writes the net.")
    parser.add_argument("bank", help="a bank of sub-nets, such as RUN_DIR/bank.safetensors")
    parser.add_argument("--list", action="store_true", help="list the sub-nets and leave")
    for name, kind, text in (("subnet", str, "the name of a sub-net"),
                             ("latency-ms", float, "the most accurate sub-net within so many milliseconds a batch, by the bank's report"),
                             ("memory-mb", float, "the most accurate sub-net within so many megabytes, by the bank's report"),
                             ("threads", int, "CPU threads; default: torch's"),
                             ("out", str, "the file to write; default: none, only the table is printed")):
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument("--format", choices=["safetensors", "onnx", "torch-export"], help="of the file; default: onnx for .onnx, torch-export for "
                        ".pt2, else safetensors")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images at a time, to measure at (default: %(default)s)")
    parser.add_argument("--prefer", choices=["speed", "memory"], default="speed", help="what a layer's form is chosen for (default: %(default)s)")
    parser.add_argument("--backend", choices=["auto", "dense", "csr", "packed", "sp24"], default="auto",
                        help="auto measures; another one is taken wherever a layer has it, slower or not (default: %(default)s)")
    parser.add_argument("--fold", action=BooleanOptionalAction, default=True, help="batch norm becomes part of the layer before it, the same to "
                        "1e-5 of the largest output (default: yes)")
    parser.add_argument("--memory-format", choices=["auto", "keep", "contiguous", "channels_last"], default="auto",
                        help="order of the convolutions' weights; auto measures (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file there is")
    try:
        given = parser.parse_args(arguments)
    except SystemExit as done:                             # --help prints and leaves
        return int(done.code or 0)
    with running("deploy", given.threads):
        return _deploy(given)


def _deploy(given) -> int:
    from sparsekern.deploy import SubnetBank
    from sparsekern.deploy.bank_report import fit
    limits = {name: getattr(given, name) for name in ("latency_ms", "memory_mb") if getattr(given, name) is not None}
    kind = given.format or FORMATS.get(Path(given.out or "").suffix, "safetensors")
    if not given.list and (given.subnet is None) == (not limits):
        raise UsageError("deploy: expected either --subnet NAME (--list lists them), or --latency-ms and --memory-mb or one of them")
    if given.batch < 1:
        raise ValueError(f"batch: expected at least 1, got {given.batch}")
    if kind == "onnx" and given.backend not in ("auto", "dense"):
        raise ValueError(f"backend: ONNX has dense layers only, got {given.backend}")
    if given.out is not None and not given.list:
        _check_out(Path(given.out), Path(given.bank), given.overwrite)
    if not Path(given.bank).is_file():
        raise ValueError(f"{given.bank} is no file; the bank of a run is RUN_DIR/bank.safetensors")
    bank = SubnetBank.load(given.bank)
    if given.list:
        print(bank.describe())
        return 0
    model = bank.meta.get("model")
    if model is None:
        raise ValueError(f"{given.bank} does not say which model it is of; from Python: SubnetBank.load(...).deploy(name, model=...)")
    setup = {"batch": given.batch, "fold": given.fold, "device": given.device.partition(":")[0]}
    name = fit(bank, **limits, setup=setup) if limits else given.subnet
    net = bank.deploy(name, given.device, given.batch, fold=given.fold, prefer=given.prefer, backend="dense" if kind == "onnx" else given.backend,
                      memory_format="keep" if kind == "onnx" else given.memory_format)
    subnet = bank.subnet(name)
    accuracy = "" if subnet.accuracy is None else f", accuracy {subnet.accuracy:.2%}"
    print(f"{name} of {model['name']}: {subnet.pattern}, {subnet.sparsity:.2%} zeros{accuracy}")
    print(net.deployment)
    if net.deployment.latency_ms > limits.get("latency_ms", math.inf):
        print(f"above the limit of {limits['latency_ms']:g} ms this time; the report's medians are within it")
    if given.out is not None:
        path = _write(net, bank, name, kind, Path(given.out))
        zeros = f"; {_zeros(net):.1%} of the weights in it are zeros" if kind == "onnx" else ""
        print(f"wrote {path}, {path.stat().st_size / 1e6:.3f} MB, {kind}{zeros}")
    return 0


def _check_out(path: Path, bank: Path, overwrite: bool) -> None:
    """Before minutes of measuring."""
    if path.exists() and bank.exists() and path.samefile(bank):
        raise ValueError(f"out: {path} is the bank itself, with all other sub-nets; choose another --out")
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"out: expected a file in a directory that exists, got {path}")
    if path.exists() and not overwrite:
        raise ValueError(f"out: {path} exists; add --overwrite to replace it, or choose another --out")


def _write(net, bank, name: str, kind: str, path: Path) -> Path:
    import torch

    from sparsekern.deploy import export_onnx, export_program, save_deployed
    if kind == "safetensors":
        return save_deployed(net, net.deployment, path, model=bank.meta["model"], subnet=name, architecture=bank.meta["architecture"])
    images = torch.rand(4, *bank.meta["model"]["shape"], generator=torch.Generator().manual_seed(0))
    like = next(tensor for tensor in net.state_dict().values() if tensor.is_floating_point())
    return (export_onnx if kind == "onnx" else export_program)(net, images.to(like.device, like.dtype), path)


def _zeros(net) -> float:
    """The share of zeros among the weights that the net holds."""
    weights = [parameter for parameter in net.parameters() if parameter.dim() > 1]
    return sum(int((weight == 0).sum()) for weight in weights) / max(1, sum(weight.numel() for weight in weights))

"""The command line: sparsekern train | report | latency-table | doctor. Mistakes come out as one line and exit code 2."""
import dataclasses
import inspect
import re
import sys
from collections.abc import Sequence

USAGE = """usage: sparsekern <command> ...

  train ALGORITHM   train sparse sub-nets; `sparsekern train ALGORITHM --help` lists all settings
  report RUN_DIR    render RUN_DIR/report.html again from its report.json
  latency-table     measure what every layer of a model costs on this machine; `sparsekern latency-table --help` lists the settings
  doctor            say which kernels are live and check every op against its reference

algorithms: {algorithms}
"""


class UsageError(Exception):
    """A command line that cannot be understood."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 the doctor found a fault, 2 a mistake, 130 or 143 interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {"train": _train, "report": _report, "latency-table": _latency_table, "doctor": _doctor}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from sparsekern import __version__
        print(__version__)
        return 0
    from sparsekern.training import CheckpointError, ConfigError, DataError, Interrupted, TrainingError
    try:
        if arguments[0] not in commands:
            raise UsageError(f"unknown command {arguments[0]!r}; expected one of {', '.join(commands)}")
        return commands[arguments[0]](arguments[1:])
    except Interrupted as stop:
        print(f"sparsekern: {stop}", file=sys.stderr)
        return stop.code
    except (UsageError, CheckpointError, ConfigError, DataError, TrainingError) as error:
        print(f"sparsekern: error: {error}", file=sys.stderr)
        return 2


def _usage() -> str:
    return USAGE.format(algorithms=", ".join(_algorithms()))


def _algorithms() -> list[str]:
    from sparsekern.algorithms import ALGORITHMS
    return list(ALGORITHMS)


# ---- train ----

def _train(arguments: list[str]) -> int:
    from sparsekern.deploy.channel_report import channel_report, describe
    from sparsekern.training import TrainConfig, train
    from sparsekern.training.progress import clock, left_dense, table
    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] in (["-h"], ["--help"]):
            print(_usage(), end="")
            return 0
        raise UsageError(f"train: expected an algorithm, one of {', '.join(_algorithms())}")
    algorithm = arguments[0]
    if algorithm not in _algorithms():
        raise UsageError(f"train: unknown algorithm {algorithm!r}; expected one of {', '.join(_algorithms())}")
    values = _parse_train(algorithm, arguments[1:])
    if values is None:                                     # --help or --print_config was answered
        return 0
    options = {name: values.pop(name) for name in _algorithm_fields(algorithm)}
    config = TrainConfig(**values, options={name: value for name, value in options.items() if value is not None})
    report = train(config, on_end=channel_report)
    print("\n".join([table(report["subnets"]), *left_dense(report["subnets"])]))
    if "slim" in report:
        print(describe(report["slim"]))
    share = report["training_flops"] / report["dense_training_flops"]
    print(f"{report['steps']} steps in {clock(report['wall_seconds'])} on {report['device']['name']}; training FLOPs "
          f"{report['training_flops']:.3g}, {share:.2f} of a dense run")
    print(f"wrote {config.out}/report.json and {config.out}/report.html")
    return 0


def _parse_train(algorithm: str, arguments: list[str]) -> dict | None:
    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise UsageError("the command line of train needs jsonargparse: pip install 'sparsekern[train]', or call "
                         "sparsekern.training.train(TrainConfig(...)) from Python") from error
    from sparsekern.training.config import TrainConfig, train_fields

    class Parser(ArgumentParser):
        def error(self, message, *_):                      # one line instead of the usage of sixty settings
            text = " ".join(line.strip() for line in str(message).splitlines())
            raise UsageError(f"train {algorithm}: {text} (sparsekern train {algorithm} --help lists all settings)")

    parser = Parser(prog=f"sparsekern train {algorithm}", description=f"Train with {algorithm}. Settings come from the command line and "
                    f"from YAML files (--config); later ones win.")
    parser.add_argument("--config", action="config", help="a YAML file with settings; may be given several times")
    described = field_help(TrainConfig)
    for name, field in train_fields().items():
        default = algorithm if name == "algorithm" else field.default
        _add(parser, name, _shares if name in ("sparsity", "milestones") else field.type, default, described.get(name, ""))
    described = field_help(_algorithm_class(algorithm))
    for name, field in _algorithm_fields(algorithm).items():
        _add(parser, name, _as_given if name == "nm" else field.type, _default(field), f"{algorithm}: {described.get(name, '')}")
    try:
        values = parser.parse_args(arguments)
    except SystemExit as done:                             # --help and --print_config print and leave
        if done.code:
            raise UsageError("see above") from done
        return None
    if values.algorithm != algorithm:
        raise UsageError(f"the settings are those of {values.algorithm!r}, not of {algorithm!r}")
    return {name: getattr(values, name) for name in [*train_fields(), *_algorithm_fields(algorithm)]}


def _add(parser, name: str, kind, default, text: str) -> None:
    """One setting as --a_b and --a-b; a switch may stand alone (--resume) or take true or false."""
    spellings = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
    alone = {"nargs": "?", "const": True} if kind is bool else {}
    parser.add_argument(*spellings, type=kind, default=default, help=text.replace("%", "%%"), **alone)


def _shares(value) -> tuple[float, ...]:
    """0.9,0.95 on the command line; a number, a list or such a text in YAML."""
    if isinstance(value, int | float):
        return (float(value),)
    parts = value.strip("[]() ").split(",") if isinstance(value, str) else value
    return tuple(float(part) for part in parts)


def _as_given(value):
    """2:4 stays a text on the command line; what YAML made of it is judged where it is used."""
    return value


def _algorithm_class(algorithm: str) -> type:
    """The dataclass with the settings of an algorithm."""
    from sparsekern.algorithms import ALGORITHMS
    return ALGORITHMS[algorithm].Config


def _algorithm_fields(algorithm: str) -> dict[str, dataclasses.Field]:
    """The settings of an algorithm beside those of every run (sparsity is one of those; total_steps follows from the epochs)."""
    from sparsekern.training.config import train_fields
    taken = {*train_fields(), "total_steps"}
    return {field.name: field for field in dataclasses.fields(_algorithm_class(algorithm)) if field.name not in taken}


def _default(field: dataclasses.Field):
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def field_help(cls: type) -> dict[str, str]:
    """Field name -> the comment behind it, in the class or the classes it extends."""
    found = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= dict(re.findall(r"^    (\w+): [^#\n]*# +(.*)$", inspect.getsource(base), re.MULTILINE))
    return found


# ---- latency-table ----

def _latency_table(arguments: list[str]) -> int:
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise UsageError(f"latency-table: {message} (sparsekern latency-table --help lists all settings)")

    parser = Parser(prog="sparsekern latency-table", description="Measure what every layer of a model costs on this machine at every width.")
    parser.add_argument("--model", required=True, help="as in train, e.g. resnet20, wrn-22-2 or torchvision:NAME")
    parser.add_argument("--out", required=True, help="the table, a JSON file")
    parser.add_argument("--data", help="take image shape and classes from digits, cifar10 or cifar100")
    parser.add_argument("--shape", default="3,32,32", help="channels,height,width of an image (default: %(default)s)")
    for name, kind, default, text in (
            ("classes", int, 10, "of the model"), ("batch", int, 128, "images at a time"), ("step", int, 8, "channels between measured widths"),
            ("points", int, 8, "at most so many widths of each group of channels"), ("repeats", int, 3, "inferences each time a net comes up"),
            ("rounds", int, 3, "at least so many rounds"), ("max-rounds", int, 12, "at most so many rounds"),
            ("spread", float, 0.02, "rounds are added until nets are known to this share of their latency"),
            ("threads", int, None, "CPU threads; default: torch's"), ("device", str, "cpu", "cpu, cuda or cuda:N"),
            ("backend", str, "own", "who follows coupled channels: own, or torch-pruning for models that own refuses"),
            ("progress", str, "auto", "auto, rich, plain or none")):
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: %(default)s)")
    for name, text in (("channels-last", "keep images and convolutions in channels-last memory order"),
                       ("resume", "go on with a measurement that was stopped"), ("overwrite", "replace the table there is")):
        parser.add_argument(f"--{name}", action="store_true", help=text)
    try:
        given = parser.parse_args(arguments)
    except SystemExit as done:                             # --help prints and leaves
        return int(done.code or 0)
    return _measure(given)


def _measure(given) -> int:
    import torch

    from sparsekern.deploy import measure_latency_table
    from sparsekern.support.models import build_model
    shapes = {"digits": ((1, 8, 8), 10), "cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100)}
    threads = torch.get_num_threads()
    try:
        if given.data is not None and given.data not in shapes:
            raise ValueError(f"data: expected one of {', '.join(shapes)}, got {given.data!r}")
        if given.threads is not None and given.threads < 1:
            raise ValueError(f"threads: expected at least 1, got {given.threads}")
        shape, classes = shapes[given.data] if given.data else (_shape(given.shape), given.classes)
        if given.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError("device: torch finds no CUDA device; use --device cpu")
        torch.set_num_threads(given.threads or threads)
        model = build_model(given.model, classes=classes, shape=shape)
        model.to(given.device, memory_format=torch.channels_last if given.channels_last else torch.contiguous_format)
        names = ("device", "step", "points", "repeats", "rounds", "max_rounds", "spread", "resume", "overwrite", "progress", "backend")
        table = measure_latency_table(model, shape, given.batch, given.out, **{name: getattr(given, name) for name in names})
    except (ValueError, RuntimeError, OSError) as error:
        raise UsageError(f"latency-table: {str(error).splitlines()[0]}") from error
    except KeyboardInterrupt:
        print("sparsekern: stopped; go on with the same command and --resume", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(threads)
    known = table.measured
    print(f"{given.model}, batch {given.batch}: {table.full_ms:.2f} ms, smallest net {table.smallest_ms:.2f} ms; {known['rounds']} rounds of "
          f"{known['nets']} nets" + ("" if known["spread"] is None else f", known to {known['spread']:.1%}"))
    print(f"wrote {given.out}")
    return 0


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"shape: expected channels,height,width such as 3,32,32, got {text!r}")
    return tuple(map(int, parts))


# ---- report and doctor ----

def _report(arguments: list[str]) -> int:
    from sparsekern.training.report import rerender
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UsageError("report: expected one argument, the directory of a run")
    try:
        print(f"wrote {rerender(arguments[0])}")
    except (OSError, ValueError) as error:
        raise UsageError(f"report: {error}") from error
    return 0


def _doctor(arguments: list[str]) -> int:
    from sparsekern.doctor import doctor
    if arguments:
        raise UsageError(f"doctor: takes no arguments, got {' '.join(arguments)}")
    return doctor()


if __name__ == "__main__":
    sys.exit(main())

"""sparsekern train ALGORITHM: every setting of the run and of the algorithm, from the command line and from YAML."""
import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Sequence

from sparsekern.cli.usage import UsageError, algorithms, usage


def run(arguments: list[str]) -> int:
    from sparsekern.deploy.bank_of_run import describe as describe_bank
    from sparsekern.deploy.channel_report import describe as describe_slim
    from sparsekern.training import TrainConfig, train
    from sparsekern.training.progress import clock, left_dense, table
    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] in (["-h"], ["--help"]):
            print(usage(), end="")
            return 0
        raise UsageError(f"train: expected an algorithm, one of {', '.join(algorithms())}")
    algorithm = arguments[0]
    if algorithm not in algorithms():
        raise UsageError(f"train: unknown algorithm {algorithm!r}; expected one of {', '.join(algorithms())}")
    values = _parse_train(algorithm, arguments[1:])
    if values is None:                                     # --help or --print_config was answered
        return 0
    options = {name: values.pop(name) for name in _algorithm_fields(algorithm)}
    config = TrainConfig(**values, options={name: value for name, value in options.items() if value is not None})
    report = train(config, on_end=_at_end)
    print("\n".join([table(report["subnets"]), *left_dense(report["subnets"])]))
    for part, described in (("slim", describe_slim), ("bank", describe_bank)):
        if part in report:
            print(described(report[part]))
    share = report["training_flops"] / report["dense_training_flops"]
    print(f"{report['steps']} steps in {clock(report['wall_seconds'])} on {report['device']['name']}; training FLOPs "
          f"{report['training_flops']:.3g}, {share:.2f} of a dense run")
    print(f"wrote {config.out}/report.json and {config.out}/report.html")
    return 0


def _at_end(run) -> dict:
    """The bank first: the channel report takes the sparsifier off."""
    from sparsekern.deploy import BankError, channel_report, write_bank
    try:
        bank = write_bank(run)
    except (BankError, OSError) as error:                  # the run's own report is worth more than its bank
        print(f"sparsekern: no bank was written: {error}", file=sys.stderr)
        bank = {}
    return bank | channel_report(run)


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
        _add(parser, name, _as_given if name == "nm" else _numbers(field.type), _default(field), f"{algorithm}: {described.get(name, '')}")
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


def _numbers(kind):
    """What reads 2,5,8 where a setting takes several numbers; other types as they are."""
    takes = typing.get_args(kind)
    if Sequence[int] in takes:
        return _counts
    return _share_or_shares if Sequence[float] in takes else kind


def _counts(value) -> tuple[int, ...]:
    """2,5,8 on the command line; a number, a list or such a text in YAML."""
    parts = value.strip("[]() ").split(",") if isinstance(value, str) else [value] if isinstance(value, int | float) else value
    if any(isinstance(part, float) and part != int(part) for part in parts):
        raise ValueError(f"expected whole numbers, got {value}")
    return tuple(int(part) for part in parts)


def _share_or_shares(value) -> float | tuple[float, ...]:
    """One number stays one."""
    found = _shares(value)
    return found if len(found) > 1 or isinstance(value, list | tuple) else found[0]


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

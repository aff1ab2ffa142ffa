"""The command line: sparsekern train | report | deploy | latency-table | doctor. Mistakes come out as one line and exit code 2."""
import sys
from collections.abc import Sequence

from sparsekern.cli import deploy, latency_table, report, train
from sparsekern.cli.usage import UsageError, usage


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 the doctor found a fault, 2 a mistake, 130 or 143 interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {"train": train.run, "report": report.run, "deploy": deploy.run, "latency-table": latency_table.run, "doctor": _doctor}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), end="")
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
    except KeyboardInterrupt:
        print("sparsekern: stopped", file=sys.stderr)
        return 130
    except (UsageError, CheckpointError, ConfigError, DataError, TrainingError) as error:
        print(f"sparsekern: error: {error}", file=sys.stderr)
        return 2


def _doctor(arguments: list[str]) -> int:
    from sparsekern.doctor import doctor
    if arguments:
        raise UsageError(f"doctor: takes no arguments, got {' '.join(arguments)}")
    return doctor()

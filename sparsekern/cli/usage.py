"""What all commands share: the usage text, and how a mistake is told."""
import argparse
import contextlib
from collections.abc import Iterator

USAGE = """usage: sparsekern <command> ...

  train ALGORITHM   train sparse sub-nets; `sparsekern train ALGORITHM --help` lists all settings
  report RUN_DIR    render RUN_DIR/report.html again from its report.json
  report BANK       measure every sub-net of a bank on this machine; `sparsekern report --help` lists the settings
  deploy BANK       make one sub-net as small and fast as it gets on this machine, as a file; `sparsekern deploy --help` lists the settings
  latency-table     measure what every layer of a model costs on this machine; `sparsekern latency-table --help` lists the settings
  doctor            say which kernels are live and check every op against its reference

algorithms: {algorithms}
"""


class UsageError(Exception):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """A mistake is one line instead of the usage of all settings."""

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"sparsekern {command}", description=description)
        self.command = command

    def error(self, message):
        raise UsageError(f"{self.command}: {message} (sparsekern {self.command} --help lists all settings)")


@contextlib.contextmanager
def running(command: str, threads: int | None = None) -> Iterator[None]:
    """With so many CPU threads (None: as torch has them); what goes wrong in it is one line."""
    import torch
    before = torch.get_num_threads()
    try:
        if threads is not None and threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        torch.set_num_threads(threads or before)
        yield
    except (ValueError, RuntimeError, OSError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(f"{command}: {first.removeprefix(f'{command}: ')}") from error
    finally:
        torch.set_num_threads(before)


def usage() -> str:
    return USAGE.format(algorithms=", ".join(algorithms()))


def algorithms() -> list[str]:
    from sparsekern.algorithms import ALGORITHMS
    return list(ALGORITHMS)

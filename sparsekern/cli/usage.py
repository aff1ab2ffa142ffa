"""What all commands share: the usage text, and how a mistake is told."""
import argparse

USAGE = """usage: sparsekern <command> ...

  train ALGORITHM   train sparse sub-nets; `sparsekern train ALGORITHM --help` lists all settings
  report RUN_DIR    render RUN_DIR/report.html again from its report.json
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


def usage() -> str:
    return USAGE.format(algorithms=", ".join(algorithms()))


def algorithms() -> list[str]:
    from sparsekern.algorithms import ALGORITHMS
    return list(ALGORITHMS)

"""sparsekern report: what a run came to, written again from what was measured then."""
from sparsekern.cli.usage import UsageError


def run(arguments: list[str]) -> int:
    from sparsekern.training.report import rerender
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UsageError("report: expected one argument, the directory of a run")
    try:
        print(f"wrote {rerender(arguments[0])}")
    except (OSError, ValueError) as error:
        raise UsageError(f"report: {error}") from error
    return 0

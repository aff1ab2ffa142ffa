"""sparsekern report: the page of a run, written again from what was measured then; or every sub-net of a bank, measured now."""
import sys
from argparse import BooleanOptionalAction
from pathlib import Path

from sparsekern.cli.usage import Parser, UsageError, running


def run(arguments: list[str]) -> int:
    parser = Parser("report", "Render RUN_DIR/report.html again from its report.json, or measure every sub-net of a bank on this machine and write "
                              "BANK.report.json and BANK.report.html beside it; the settings are those of a bank.")
    parser.add_argument("what", nargs="?", metavar="RUN_DIR|BANK", help="the directory of a run, or a bank of sub-nets such as "
                                                                        "RUN_DIR/bank.safetensors")
    for name, kind, default, text in (
            ("batch", int, 128, "samples at a time"), ("device", str, "cpu", "cpu, cuda or cuda:N"),
            ("threads", int, None, "CPU threads; default: torch's"), ("rounds", int, 15, "rounds of all sub-nets in turn; medians count"),
            ("only", str, None, "names of sub-nets, separated by commas; default: all"), ("out", str, None, "directory of the two files; default: "
                                                                                                             "that of the bank"),
            ("progress", str, "auto", "auto, rich, plain or none")):
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: %(default)s)" if default else text)
    parser.add_argument("--fold", action=BooleanOptionalAction, default=True, help="batch norm becomes part of the layer before it "
                        "(default: yes, as in deploy)")
    parser.add_argument("--resume", action="store_true", help="go on with a report that was stopped, or measure what it does not have yet")
    try:
        given = parser.parse_args(arguments)
    except SystemExit as done:                             # --help prints and leaves
        return int(done.code or 0)
    if given.what is None:
        raise UsageError("report: expected one argument, the directory of a run or a bank of sub-nets")
    if Path(given.what).is_file() or given.what.endswith(".safetensors"):
        return _bank(given)
    if len(arguments) > 1:
        raise UsageError(f"report: {given.what}: the settings are those of a bank, and this is no file")
    with running("report"):
        from sparsekern.training.report import rerender
        print(f"wrote {rerender(given.what)}")
    return 0


def _bank(given) -> int:
    from sparsekern.deploy.bank_report import report_bank, report_path, text_table
    only = None if given.only is None else [name.strip() for name in given.only.split(",")]
    try:
        with running("report", given.threads):
            if not Path(given.what).exists():
                raise ValueError(f"{given.what} does not exist")
            report = report_bank(given.what, given.out, only=only, **{name: getattr(given, name) for name in (
                "batch", "device", "threads", "rounds", "fold", "resume", "progress")})
    except KeyboardInterrupt:
        print("sparsekern: stopped; go on with the same command and --resume", file=sys.stderr)
        return 130
    path = report_path(given.what, given.out)
    print(text_table(report))
    print(f"wrote {path} and {path.with_suffix('.html')}")
    return 0

"""The subcommands `omniserve bench report` and `omniserve bench compare`."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve.errors import ConfigError, OmniServeError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_report_commands(subparsers: "Subparsers") -> None:
    """Register `report` and `compare`; their handlers return exit codes."""
    report = subparsers.add_parser(
        "report",
        help="sum up a recorded run",
        description="Prints the numbers of a run that was recorded, and writes them as "
        "summary.json and as the page report.html beside it.",
    )
    report.add_argument("run", type=Path, metavar="DIR", help="directory of a run (its --out)")
    report.add_argument("--json", action="store_true", help="print JSON; the tables go to stderr")
    report.set_defaults(handler=_report)
    compare = subparsers.add_parser(
        "compare",
        help="put recorded runs beside each other",
        description="Prints every number of two or more runs and its ratio to that of the first.",
    )
    compare.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]RUN",
        help="a summary.json or the directory of a run, after what to call it "
        "(default: the name of the directory)",
    )
    compare.add_argument(
        "--page", type=Path, metavar="FILE", help="also write the comparison as an HTML page"
    )
    compare.add_argument("--json", action="store_true", help="print JSON: the runs' summaries")
    compare.set_defaults(handler=_compare)


def _report(args: argparse.Namespace) -> int:
    from omniserve.bench.report.files import PAGE_FILE, write_report
    from omniserve.bench.report.table import render
    from omniserve.bench.run_files import load_run
    from omniserve.commands.json_output import text_aside
    from omniserve.terminal import make_console

    record = load_run(args.run)
    with _files_are_named():
        summary = write_report(record, args.run)
    with text_aside(args.json):
        console = make_console()
        console.print(render(summary))
        console.print(f"\nreport: {args.run / PAGE_FILE}", soft_wrap=True)
    if args.json:
        sys.stdout.write(summary.to_json())
    return 0


def _compare(args: argparse.Namespace) -> int:
    from omniserve.bench.report.compare import render_comparison, write_comparison
    from omniserve.bench.report.files import load_summary
    from omniserve.commands.json_output import print_json, text_aside
    from omniserve.terminal import make_console

    if len(args.runs) < 2:
        raise ConfigError("runs: a comparison needs two runs or more")
    summaries = {}
    for name, path in map(_named, args.runs):
        if name in summaries:
            raise ConfigError(f"runs: two are called {name!r}; call them NAME=RUN")
        summaries[name] = load_summary(path)
    with text_aside(args.json):
        console = make_console()
        console.print(render_comparison(summaries))
        if args.page is not None:
            with _files_are_named():
                write_comparison(summaries, args.page)
            console.print(f"\nreport: {args.page}", soft_wrap=True)
    if args.json:
        print_json({name: json.loads(each.to_json()) for name, each in summaries.items()})
    return 0


@contextmanager
def _files_are_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OmniServeError(f"{error.filename}: cannot be written: {error.strerror}") from None


def _named(text: str) -> tuple[str, Path]:
    """A run and what to call it."""
    name, equals, rest = text.partition("=")
    # A path that is there may hold an equals sign itself.
    if equals and not Path(text).exists():
        return name, Path(rest)
    path = Path(text).resolve()
    return (path.parent if path.name == "summary.json" else path).name, Path(text)

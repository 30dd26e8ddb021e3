"""The subcommand `omniserve bench` and what it holds."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_bench_commands(subparsers: "Subparsers") -> None:
    """Register `bench`; the handlers of its commands return exit codes."""
    from omniserve.bench.colocate.command import add_colocate_command
    from omniserve.bench.load.command import add_run_command
    from omniserve.bench.load.null_command import add_null_server_command
    from omniserve.bench.report.command import add_report_commands
    from omniserve.bench.trace.command import add_trace_commands

    parser = subparsers.add_parser(
        "bench",
        help="replay traces, measure, compare",
        description="Traces of requests, a load generator that replays them against a server, "
        "reports of what came of it, and comparisons.",
        epilog="`omniserve bench COMMAND --help` tells more about a command.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_trace_commands(commands)
    add_run_command(commands)
    add_null_server_command(commands)
    add_report_commands(commands)
    add_colocate_command(commands)

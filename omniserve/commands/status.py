"""The subcommand `omniserve status`."""

import argparse
from typing import TYPE_CHECKING

from omniserve.commands.connection import add_admin_argument, open_admin
from omniserve.commands.exit_status import EXIT_OK, EXIT_UNAVAILABLE

if TYPE_CHECKING:
    from omniserve.v1 import omniserve_pb2 as pb

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_status_command(subparsers: "Subparsers") -> None:
    """Register `status`; its handler returns an exit status."""
    parser = subparsers.add_parser(
        "status",
        help="tell how a running daemon is",
        description="Prints the state of a running daemon: its tiers and how they keep their "
        "objectives, its models and their memory, and what it refused of late. The exit status is "
        "0 where it is ready and 3 where it is not, or does not answer.",
    )
    add_admin_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, running requests included")
    parser.set_defaults(handler=_status)


def ask_status(args: argparse.Namespace) -> "pb.Status":
    """Of the daemon that `--admin` names; raises OmniServeError."""
    from omniserve.v1 import omniserve_pb2 as pb
    from omniserve.v1 import omniserve_pb2_grpc

    with open_admin(args) as connection:
        stub = omniserve_pb2_grpc.AdminStub(connection.channel)
        status: pb.Status = connection.ask(stub.GetStatus, pb.GetStatusRequest())
    return status


def _status(args: argparse.Namespace) -> int:
    from omniserve.commands.json_output import print_json
    from omniserve.message_fields import message_fields

    status = ask_status(args)
    if args.json:
        print_json(message_fields(status))
    else:
        _print(status)
    return EXIT_OK if status.state == "ready" else EXIT_UNAVAILABLE


def _print(status: "pb.Status") -> None:
    from omniserve.bench.report.table import draw
    from omniserve.commands.status_tables import head_lines, refusal_lines, status_tables
    from omniserve.terminal import make_console

    console = make_console()
    for line in head_lines(status):
        console.print(line, soft_wrap=True, markup=False)
    for table in status_tables(status):
        console.print(f"\n{table.title}", style="bold")
        console.print(draw(table))
    if status.refusals:
        console.print("\nRefused of late", style="bold")
    for line in refusal_lines(status):
        console.print(line, soft_wrap=True, markup=False)

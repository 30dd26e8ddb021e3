"""The subcommand `omniserve explain`."""

import argparse
from typing import TYPE_CHECKING

from omniserve.commands.connection import add_admin_argument, open_admin
from omniserve.commands.exit_status import EXIT_OK

if TYPE_CHECKING:
    from rich.table import Table

    from omniserve.v1 import omniserve_pb2 as pb

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_explain_command(subparsers: "Subparsers") -> None:
    """Register `explain`; its handler returns an exit status."""
    parser = subparsers.add_parser(
        "explain",
        help="tell what a daemon decided about a request, and why",
        description="Prints the timeline of a request: what a running daemon did with it, when, "
        "and why it waited, was refused or lost its place. Requests are known while they run "
        "and for some thousands that came after. The exit status is 1 where nothing is known of "
        "the request and 3 where the daemon does not answer.",
    )
    parser.add_argument(
        "request_id",
        metavar="ID",
        help="as the client chose it (request_id, x-request-id), or answers and the log tell "
        "it; of several that share it, the newest",
    )
    add_admin_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(handler=_explain)


def _explain(args: argparse.Namespace) -> int:
    """Raises OmniServeError where there is no answer."""
    from omniserve.commands.json_output import print_json
    from omniserve.message_fields import message_fields
    from omniserve.terminal import make_console

    _check_id(args.request_id)
    timeline = _ask(args)
    if args.json:
        entries = [message_fields(entry) for entry in timeline]
        print_json({"request_id": args.request_id, "timeline": entries})
    else:
        make_console().print(_table(timeline))
    return EXIT_OK


def _check_id(request_id: str) -> None:
    """Raises ConfigError for what cannot be asked."""
    from omniserve.errors import ConfigError

    if not request_id:
        raise ConfigError("ID: must not be empty; give the id of a request")
    try:
        request_id.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"ID {ascii(request_id[:128])}: not UTF-8 text") from None


def _ask(args: argparse.Namespace) -> "list[pb.TimelineEntry]":
    from omniserve.v1 import omniserve_pb2 as pb
    from omniserve.v1 import omniserve_pb2_grpc

    with open_admin(args) as connection:
        stub = omniserve_pb2_grpc.AdminStub(connection.channel)
        request = pb.ExplainRequest(request_id=args.request_id)
        answer: pb.ExplainResponse = connection.ask(stub.Explain, request)
    return list(answer.timeline)


def _table(timeline: "list[pb.TimelineEntry]") -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    has_sequences = any(entry.sequence > 0 for entry in timeline)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("after ms", justify="right", no_wrap=True)
    table.add_column("until ms", justify="right", no_wrap=True)
    table.add_column("times", justify="right", no_wrap=True)
    if has_sequences:
        table.add_column("sequence", justify="right", no_wrap=True)
    table.add_column("event", no_wrap=True)
    table.add_column("why", overflow="fold")
    for entry in timeline:
        cells = [
            f"{entry.at_s * 1e3:,.1f}",
            f"{entry.last_s * 1e3:,.1f}" if entry.last_s > entry.at_s else "",
            str(entry.times) if entry.times > 1 else "",
        ]
        if has_sequences:
            cells.append(str(entry.sequence) if entry.sequence >= 0 else "all")
        why = "; ".join(part for part in (entry.reason, entry.detail) if part)
        # Text, not markup: a detail may hold brackets.
        table.add_row(*cells, Text(entry.event), Text(why))
    return table

"""The subcommand `omniserve explain`."""

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from omniserve.v1 import omniserve_pb2 as pb

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULT_ADDRESS = "127.0.0.1:50051"
_ANSWER_TIMEOUT_S = 30.0


def add_explain_command(subparsers: "Subparsers") -> None:
    """Register `explain`; its handler returns an exit code."""
    parser = subparsers.add_parser(
        "explain",
        help="tell what a daemon decided about a request, and why",
        description="Prints the timeline of a request: what a running daemon did with it, when, "
        "and why it waited, was refused or lost its place. Requests are known while they run "
        "and for some thousands that came after. The exit status is 1 where nothing is known of "
        "the request or the daemon does not answer.",
    )
    parser.add_argument(
        "request_id",
        metavar="ID",
        help="as the client chose it (request_id, x-request-id), or answers and the log tell "
        "it; of several that share it, the newest",
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        default=_DEFAULT_ADDRESS,
        help="the daemon's gRPC address (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(handler=_explain)


def _explain(args: argparse.Namespace) -> int:
    """Raises OmniServeError where there is no answer."""
    from omniserve.terminal import make_console

    _check_arguments(args)
    timeline = _ask(args.address, args.request_id)
    console = make_console()
    if args.json:
        text = json.dumps({"request_id": args.request_id, "timeline": _as_json(timeline)}, indent=2)
        console.print(text, soft_wrap=True, markup=False)
    else:
        console.print(_table(timeline))
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    """Raises ConfigError for what cannot be asked."""
    from omniserve.errors import ConfigError

    if not args.request_id:
        raise ConfigError("ID: must not be empty; give the id of a request")
    for name, value in (("ID", args.request_id), ("--address", args.address)):
        try:
            value.encode()
        except UnicodeEncodeError:
            shown = ascii(value[:128])
            raise ConfigError(f"{name} {shown}: not UTF-8 text") from None


def _ask(address: str, request_id: str) -> "list[pb.TimelineEntry]":
    import grpc

    from omniserve.config_values import split_address
    from omniserve.errors import ConfigError, OmniServeError
    from omniserve.v1 import omniserve_pb2 as pb
    from omniserve.v1 import omniserve_pb2_grpc

    try:
        split_address(address)
    except ValueError as error:
        raise ConfigError(f"--address {address}: {error}; give host:port") from None
    with grpc.insecure_channel(address, (("grpc.enable_http_proxy", 0),)) as channel:
        stub = omniserve_pb2_grpc.AdminStub(channel)
        try:
            request = pb.ExplainRequest(request_id=request_id)
            return list(stub.Explain(request, timeout=_ANSWER_TIMEOUT_S).timeline)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            details = error.details() or ""
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise OmniServeError(details) from None
            raise OmniServeError(
                f"{address} does not answer: gRPC {error.code().name}: {details}"
            ) from None


def _as_json(timeline: "list[pb.TimelineEntry]") -> list[dict[str, object]]:
    fields = ("at_s", "last_s", "times", "sequence", "event", "reason", "detail")
    return [{name: getattr(entry, name) for name in fields} for entry in timeline]


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

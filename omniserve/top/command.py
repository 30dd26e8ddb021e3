"""The subcommand `omniserve top`."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from omniserve.argument_types import number
from omniserve.commands.connection import add_admin_argument, open_admin
from omniserve.commands.exit_status import EXIT_OK

if TYPE_CHECKING:
    from omniserve.v1 import omniserve_pb2 as pb

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_MIN_INTERVAL_S, _MAX_INTERVAL_S = 0.1, 60.0


def add_top_command(subparsers: "Subparsers") -> None:
    """Register `top`; its handler returns an exit status."""
    parser = subparsers.add_parser(
        "top",
        help="watch what a running daemon is doing",
        description="Shows tiers and how they keep their objectives, models and their memory, "
        "lanes by layer, running requests and what was refused of late, until q is pressed. Where "
        "the output is no terminal it is shown once.",
    )
    add_admin_argument(parser)
    parser.add_argument(
        "--interval-s",
        type=number("seconds", _MIN_INTERVAL_S, _MAX_INTERVAL_S),
        default=1.0,
        metavar="S",
        help="time between two looks (default: 1)",
    )
    parser.add_argument("--once", action="store_true", help="show it once, and end")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON, a line for each look: what `omniserve status --json` prints",
    )
    parser.set_defaults(handler=_top)


def _top(args: argparse.Namespace) -> int:
    from omniserve.terminal import make_console

    if args.json:
        _print_json(args)
    elif args.once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        from omniserve.top.view import View

        make_console().print(View().picture(_once(args)))
    else:
        from omniserve.top.screen import watch_screen
        from omniserve.top.watch import watching

        watch_screen(lambda: watching(args), make_console())
    return EXIT_OK


def _print_json(args: argparse.Namespace) -> None:
    from omniserve.commands.message_fields import message_fields
    from omniserve.top.watch import watching

    def show(status: "pb.Status") -> None:
        sys.stdout.write(json.dumps(message_fields(status)) + "\n")
        sys.stdout.flush()

    if args.once:
        show(_once(args))
        return
    with watching(args) as stream:
        for status in stream:
            show(status)


def _once(args: argparse.Namespace) -> "pb.Status":
    from omniserve.v1 import omniserve_pb2 as pb
    from omniserve.v1 import omniserve_pb2_grpc

    with open_admin(args) as connection:
        stub = omniserve_pb2_grpc.AdminStub(connection.channel)
        status: pb.Status = connection.ask(stub.GetStatus, pb.GetStatusRequest())
    return status

"""The subcommand `omniserve top`."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from omniserve.argument_types import number
from omniserve.commands.connection import add_admin_argument
from omniserve.commands.exit_status import EXIT_OK
from omniserve.commands.status import ask_status

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

        make_console().print(View().picture(ask_status(args)))
    else:
        from omniserve.top.screen import watch_screen
        from omniserve.top.watch import watching

        watch_screen(lambda: watching(args), make_console())
    return EXIT_OK


def _print_json(args: argparse.Namespace) -> None:
    from omniserve.message_fields import message_fields
    from omniserve.top.watch import watching

    def show(status: "pb.Status") -> None:
        sys.stdout.write(json.dumps(message_fields(status)) + "\n")
        sys.stdout.flush()

    if args.once:
        show(ask_status(args))
        return
    with watching(args) as stream:
        for status in stream:
            show(status)

"""`omniserve model sleep` and `wake`: which models of a daemon are in memory."""

import argparse
import sys
from typing import TYPE_CHECKING

from omniserve.commands.connection import add_admin_argument, open_admin
from omniserve.commands.exit_status import EXIT_OK

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_SLEEP_S = 60.0
"""What the engine takes to give the memory back."""
_WAKE_S = 3600.0
"""A wake goes on as long as the daemon lets it."""


def add_sleep_commands(commands: "Subparsers") -> None:
    """Register `sleep` and `wake`; each sets `handler`, which returns an exit status."""
    sleep = commands.add_parser(
        "sleep",
        help="have a running daemon give back the memory of a model until somebody asks for it",
        description="Has a running daemon put a model to sleep that has no requests, pinned or "
        "not: its memory is given back, and the next request for it wakes it.",
    )
    wake = commands.add_parser(
        "wake",
        help="have a running daemon wake a model that is asleep",
        description="Has a running daemon load a model again that is asleep, ahead of the next "
        "request for it. Returns once it is awake; goes on where this command is interrupted.",
    )
    for parser, handler in ((sleep, _sleep), (wake, _wake)):
        parser.add_argument("name", metavar="NAME", help="as `omniserve status` shows it")
        add_admin_argument(parser)
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.set_defaults(handler=handler)


def _sleep(args: argparse.Namespace) -> int:
    from omniserve.commands.json_output import print_json
    from omniserve.terminal import printable
    from omniserve.v1 import omniserve_pb2 as pb
    from omniserve.v1 import omniserve_pb2_grpc

    with open_admin(args) as connection:
        stub = omniserve_pb2_grpc.AdminStub(connection.channel)
        connection.ask(stub.SleepModel, pb.SleepModelRequest(name=args.name), _SLEEP_S)
    if args.json:
        print_json({"name": args.name, "state": "asleep"})
    else:
        sys.stdout.write(f"{printable(args.name)} is asleep\n")
    return EXIT_OK


def _wake(args: argparse.Namespace) -> int:
    from omniserve.commands.json_output import print_json
    from omniserve.terminal import printable
    from omniserve.v1 import omniserve_pb2 as pb
    from omniserve.v1 import omniserve_pb2_grpc

    with open_admin(args) as connection:
        stub = omniserve_pb2_grpc.AdminStub(connection.channel)
        answer: pb.WakeModelResponse = connection.ask(
            stub.WakeModel, pb.WakeModelRequest(name=args.name), _WAKE_S
        )
    if args.json:
        print_json({"name": args.name, "state": "serving", "wake_s": answer.wake_s})
    else:
        how = f"woke in {answer.wake_s:.1f} s" if answer.wake_s else "was awake"
        sys.stdout.write(f"{printable(args.name)} {how}\n")
    return EXIT_OK

"""The subcommand group `omniserve model`: checkpoints on disk, and the models of a daemon."""

import argparse
import sys
from typing import TYPE_CHECKING

from omniserve.commands.connection import ANSWER_TIMEOUT_S, add_admin_argument, open_admin
from omniserve.commands.exit_status import EXIT_OK
from omniserve.commands.model_sleep import add_sleep_commands
from omniserve.synthetic.commands import add_checkpoint_commands

if TYPE_CHECKING:
    from omniserve.commands.connection import Connection
    from omniserve.phase_display import PhaseDisplay
    from omniserve.v1 import omniserve_pb2 as pb

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_UNLOAD_S = 60.0
"""Beyond the time for requests: what the engine takes to give the memory back."""
_DEFAULT_DRAIN_S = 86_400.0
"""What the configuration of a daemon may say at most, where none is given here."""


def add_model_commands(subparsers: "Subparsers") -> None:
    """Register `model` with its subcommands; each sets `handler`, which returns an exit status."""
    model = subparsers.add_parser(
        "model",
        help="make or describe a checkpoint; load, unload, pin, sleep and wake models of a daemon",
        description="Makes and describes checkpoints on this machine (new, info), and changes "
        "which models a running daemon serves (load, unload, pin, unpin), and which of them are in "
        "memory (sleep, wake).",
    )
    commands = model.add_subparsers(dest="model_command", required=True, metavar="COMMAND")
    add_checkpoint_commands(commands)
    _add_load(commands)
    _add_unload(commands)
    _add_pin(commands, "pin", "keep a model of a daemon from being unloaded")
    _add_pin(commands, "unpin", "let a pinned model be unloaded again")
    add_sleep_commands(commands)


def _add_load(commands: "Subparsers") -> None:
    load = commands.add_parser(
        "load",
        help="have a running daemon serve a model besides",
        description="Has a running daemon load a model and serve it beside the others, which go "
        "on meanwhile. Returns once requests for it are answered. Ctrl-C cancels the load.",
    )
    wanted = load.add_mutually_exclusive_group(required=True)
    wanted.add_argument(
        "name", nargs="?", metavar="NAME", help="a model of the daemon's configuration file"
    )
    wanted.add_argument(
        "--entry",
        metavar="FILE",
        help="a file with one entry as the configuration's list of models has it, YAML or JSON; "
        "relative paths in it start at the directory of the daemon's configuration file",
    )
    load.add_argument("--watch", action="store_true", help="show on stderr how far it is")
    _add_common(load)
    load.set_defaults(handler=_load)


def _add_unload(commands: "Subparsers") -> None:
    unload = commands.add_parser(
        "unload",
        help="have a running daemon give a model's memory back",
        description="Has a running daemon take no new requests for a model, lets those that are "
        "here end, and gives its memory back. A model that is being loaded is given up. Goes on "
        "where this command is interrupted.",
    )
    unload.add_argument("name", metavar="NAME", help="as `omniserve status` shows it")
    unload.add_argument(
        "--drain-s",
        type=float,
        metavar="S",
        help="seconds that requests have to end before they are cut off, 0 to 86400 (default: "
        "daemon.shutdown_grace_s of the configuration)",
    )
    unload.add_argument("--force", action="store_true", help="also where it is pinned")
    _add_common(unload)
    unload.set_defaults(handler=_unload)


def _add_pin(commands: "Subparsers", verb: str, text: str) -> None:
    pin = commands.add_parser(
        verb,
        help=text,
        description="A pinned model is unloaded by force alone, and a reload of the configuration "
        "does not remove it. A pin lasts until the daemon ends; `pinned` in the configuration "
        "lasts longer.",
    )
    pin.add_argument("name", metavar="NAME", help="as `omniserve status` shows it")
    _add_common(pin)
    pin.set_defaults(handler=_pin, is_pin=verb == "pin")


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_admin_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _load(args: argparse.Namespace) -> int:
    from omniserve.commands.json_output import print_json
    from omniserve.message_fields import message_fields
    from omniserve.terminal import printable
    from omniserve.v1 import omniserve_pb2 as pb

    if args.entry is None:
        request = pb.LoadModelRequest(name=args.name)
    else:
        request = pb.LoadModelRequest(entry=_read_entry(args.entry))
    with open_admin(args) as connection:
        loaded = _follow_load(connection, request, watch=args.watch)
    if args.json:
        print_json(message_fields(loaded))
    else:
        size = f"{loaded.num_parameters:,} parameters, context {loaded.max_model_len:,}"
        sys.stdout.write(f"{printable(loaded.name)} is served: {size}\n")
    return EXIT_OK


def _follow_load(
    connection: "Connection", request: "pb.LoadModelRequest", *, watch: bool
) -> "pb.Model":
    """Waits as long as the daemon does; whatever ends the waiting here cancels the load."""
    import grpc
    from rich.console import Console

    from omniserve.commands.call_errors import error_of_call
    from omniserve.commands.call_thread import iterate_apart
    from omniserve.errors import OmniServeError
    from omniserve.phase_display import PhaseDisplay
    from omniserve.v1 import omniserve_pb2_grpc

    call = omniserve_pb2_grpc.AdminStub(connection.channel).LoadModel(request)
    try:
        with PhaseDisplay(Console(stderr=True)) as display:
            for event in iterate_apart(lambda: call):
                if event.WhichOneof("event") == "loaded":
                    loaded: pb.Model = event.loaded
                    return loaded
                if watch:
                    _show(display, event.progress)
    except grpc.RpcError as error:
        raise error_of_call(error, connection.address) from None
    finally:
        call.cancel()
    raise OmniServeError(f"{connection.address} ended without having loaded the model")


def _show(display: "PhaseDisplay", progress: "pb.ModelProgress") -> None:
    from omniserve.terminal import printable

    total = progress.total_bytes
    share = progress.done_bytes / total if total > 0 else 0.0
    display.show(printable(progress.phase.replace("_", " ")), min(1.0, max(0.0, share)))


def _read_entry(name: str) -> str:
    """Raises ConfigError; what the text says is the daemon's to judge."""
    from pathlib import Path

    from omniserve.config_file import read_text

    return read_text(Path(name))


def _unload(args: argparse.Namespace) -> int:
    from omniserve.commands.json_output import print_json
    from omniserve.message_fields import message_fields
    from omniserve.model_life.drain_time import check_drain_s
    from omniserve.terminal import printable
    from omniserve.v1 import omniserve_pb2 as pb
    from omniserve.v1 import omniserve_pb2_grpc

    if args.drain_s is not None:
        check_drain_s(args.drain_s)
    with open_admin(args) as connection:
        stub = omniserve_pb2_grpc.AdminStub(connection.channel)
        request = pb.UnloadModelRequest(name=args.name, drain_s=args.drain_s, force=args.force)
        drain_s = _DEFAULT_DRAIN_S if args.drain_s is None else args.drain_s
        answer: pb.UnloadModelResponse = connection.ask(
            stub.UnloadModel, request, drain_s + _UNLOAD_S
        )
    if args.json:
        print_json(message_fields(answer))
    else:
        sys.stdout.write(f"{printable(args.name)}: {_told(answer)}\n")
    return EXIT_OK


def _told(answer: "pb.UnloadModelResponse") -> str:
    if answer.state == "loading":
        return "its loading was given up"
    if answer.state == "failed":
        return "forgotten; it had failed"
    if answer.state == "asleep":
        return "unloaded; it was asleep"
    return f"unloaded; requests that ended: {answer.num_finished}, cut off: {answer.num_ended}"


def _pin(args: argparse.Namespace) -> int:
    from omniserve.commands.json_output import print_json
    from omniserve.terminal import printable
    from omniserve.v1 import omniserve_pb2 as pb
    from omniserve.v1 import omniserve_pb2_grpc

    with open_admin(args) as connection:
        stub = omniserve_pb2_grpc.AdminStub(connection.channel)
        request = pb.PinModelRequest(name=args.name, pinned=args.is_pin)
        connection.ask(stub.PinModel, request, ANSWER_TIMEOUT_S)
    if args.json:
        print_json({"name": args.name, "pinned": args.is_pin})
    else:
        sys.stdout.write(f"{printable(args.name)}: {'pinned' if args.is_pin else 'not pinned'}\n")
    return EXIT_OK

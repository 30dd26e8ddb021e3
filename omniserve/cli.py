"""The command line. Commands import what they need when they run, so that each starts quickly."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

from omniserve import __version__
from omniserve.command_parser import CommandParser
from omniserve.commands.exit_status import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, exit_status_of
from omniserve.errors import OmniServeError

Subparsers = argparse._SubParsersAction  # the type has no public name


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status."""
    _escape_what_cannot_be_shown()
    try:
        args = build_parser().parse_args(argv)
        handler: Callable[[argparse.Namespace], int] = args.handler
        status = handler(args)
        # Here, where a reader that has gone is met with more than a complaint of the interpreter.
        sys.stdout.flush()
        return status
    except OmniServeError as error:
        for line in str(error).splitlines():
            print(f"omniserve: {line}", file=sys.stderr)
        return exit_status_of(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # What is still buffered goes nowhere, and quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _escape_what_cannot_be_shown() -> None:
    """Characters outside the output's encoding become escapes, not errors."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def build_parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = CommandParser(
        prog="omniserve",
        description="Serves language models to latency-sensitive and best-effort tiers.",
        epilog="`omniserve COMMAND --help` tells more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"omniserve {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_daemon_commands(subparsers)
    _add_client_commands(subparsers)
    _add_workshop_commands(subparsers)
    _add_completion_command(subparsers, parser)
    return parser


def _add_daemon_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Running a daemon, and looking after one that runs."""
    from omniserve.access.token_command import add_token_command
    from omniserve.commands.config import add_config_commands
    from omniserve.commands.model import add_model_commands
    from omniserve.commands.serve import add_serve_command
    from omniserve.commands.status import add_status_command
    from omniserve.explain_command import add_explain_command
    from omniserve.reload.command import add_reload_command
    from omniserve.systemd.install_command import add_install_service_command
    from omniserve.top.command import add_top_command

    add_serve_command(subparsers)
    add_config_commands(subparsers)
    add_reload_command(subparsers)
    add_model_commands(subparsers)
    add_token_command(subparsers)
    add_status_command(subparsers)
    add_top_command(subparsers)
    add_explain_command(subparsers)
    add_install_service_command(subparsers)


def _add_client_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Using what a daemon serves."""
    from omniserve.commands.chat import add_chat_command
    from omniserve.commands.complete import add_complete_command
    from omniserve.commands.served import add_models_command, add_tiers_command

    add_chat_command(subparsers)
    add_complete_command(subparsers)
    add_models_command(subparsers)
    add_tiers_command(subparsers)


def _add_workshop_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Making, measuring and simulating, without a daemon that anybody depends on."""
    from omniserve.bench.command import add_bench_commands
    from omniserve.demo.command import add_demo_command
    from omniserve.kernels_command import add_kernels_command
    from omniserve.profile_command import add_profile_command
    from omniserve.simulate.command import add_simulate_commands

    add_kernels_command(subparsers)
    add_profile_command(subparsers)
    add_demo_command(subparsers)
    add_bench_commands(subparsers)
    add_simulate_commands(subparsers)


def _add_completion_command(
    subparsers: "Subparsers[argparse.ArgumentParser]", parser: argparse.ArgumentParser
) -> None:
    from omniserve.commands.shell_completion import add_completion_command

    add_completion_command(subparsers, parser)

"""The subcommand `omniserve bench null-server`."""

import argparse
from typing import TYPE_CHECKING

from omniserve.argument_types import number

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULT_ADDRESS = "127.0.0.1:8123"
_MAX_MS = 3_600_000


def add_null_server_command(subparsers: "Subparsers") -> None:
    """Register `null-server`; its handler returns an exit code."""
    parser = subparsers.add_parser(
        "null-server",
        help="answer completions without a model, to measure the load generator",
        description="Serves OpenAI's /v1/completions without a model: tokens come at once or at a "
        "fixed pace. What `omniserve bench run` measures against it is its own share.",
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default=_DEFAULT_ADDRESS,
        help="port 0 takes a free one (default: %(default)s)",
    )
    for option, text in (
        ("--ttft-ms", "from a request to its first token"),
        ("--tpot-ms", "between tokens; 0 sends all after the first together with it"),
    ):
        parser.add_argument(
            option,
            type=number("ms", 0, _MAX_MS),
            metavar="MS",
            default=0.0,
            help=f"{text} (default: %(default)g)",
        )
    parser.set_defaults(handler=_null_server)


def _null_server(args: argparse.Namespace) -> int:
    import asyncio

    from omniserve.bench.load.null_server import Pace, serve_null
    from omniserve.config_values import split_address
    from omniserve.errors import ConfigError
    from omniserve.terminal import make_console

    try:
        host, port = split_address(args.listen)
    except ValueError as error:
        raise ConfigError(f"--listen {args.listen}: {error}; give host:port") from None

    console = make_console()

    def announce(line: str) -> None:
        console.print(line, soft_wrap=True)

    try:
        asyncio.run(serve_null(host, port, Pace(args.ttft_ms, args.tpot_ms), announce))
    except OSError as error:
        raise ConfigError(f"--listen {args.listen}: {error.strerror}") from None
    return 0

"""The subcommand `omniserve bench run`."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve.argument_types import whole_number
from omniserve.bench.load.addresses import Addresses
from omniserve.commands.connection import add_token_argument

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_OUT = Path("out/run")
_DEFAULT_ADDRESSES = Addresses("127.0.0.1:50051", "http://127.0.0.1:8000")
_EXIT_FAILED = 1
_EXIT_TERMINATED = 143


def add_run_command(subparsers: "Subparsers") -> None:
    """Register `run`; its handler returns an exit code."""
    from omniserve.bench.load.options import LoadOptions
    from omniserve.bench.load.stream_arguments import add_stream_arguments
    from omniserve.bench.load.window_arguments import add_window_arguments

    defaults = LoadOptions()
    parser = subparsers.add_parser(
        "run",
        help="send load to a server and report",
        description="Sends streams of requests to a running server: traces at their own times, "
        "never slowed by the server, beside backlogs of a constant depth. Records the time of "
        "every token, prints a table and writes run, summary and page into a directory. The exit "
        "status is 1 where requests failed; rejected ones are a result like others.",
        epilog="For example: omniserve bench run --http http://127.0.0.1:8000 --duration-s 120 "
        "--stream name=chat,trace=my-trace.jsonl,speed=2,ttft_ms=500,tpot_ms=100 "
        "--backlog name=batch,requests=32,prompt=512,output=128-256. A run that is interrupted "
        "is written as far as it went.",
    )
    _add_target_arguments(parser)
    add_stream_arguments(parser)
    add_window_arguments(parser, defaults, duration_s=defaults.duration_s)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=DEFAULT_OUT,
        help="where run, summary and page go, in place of those there (default: %(default)s)",
    )
    parser.add_argument("--title", default="", help="what the report calls the run")
    parser.add_argument(
        "--no-live", action="store_true", help="plain lines in place of the live display"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the summary as JSON; all else goes to stderr"
    )
    parser.set_defaults(handler=_run)


def _add_target_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--grpc",
        metavar="HOST:PORT",
        help="an OmniServe server (default, where --http is not given either: "
        f"{_DEFAULT_ADDRESSES.grpc} with {_DEFAULT_ADDRESSES.http})",
    )
    parser.add_argument(
        "--http",
        metavar="URL",
        help="a server with OpenAI's /v1/completions, such as vLLM; with --grpc the same server's "
        "HTTP address, where its metrics are read",
    )
    parser.add_argument(
        "--over",
        choices=("grpc", "http"),
        help="what requests are sent over where both are given (default: grpc)",
    )
    parser.add_argument(
        "--vocab-size",
        type=whole_number(2, 1 << 31),
        metavar="N",
        help="prompts are token ids below this (default: the model's own over gRPC, else 1000)",
    )
    add_token_argument(parser)


def _run(args: argparse.Namespace) -> int:
    import asyncio

    from omniserve.bench.load.session import Session
    from omniserve.bench.load.stream_arguments import streams_of
    from omniserve.bench.load.window_arguments import window_of
    from omniserve.bench.report.files import SUMMARY_FILE
    from omniserve.commands.json_output import print_json_file, text_aside

    options = window_of(args, args.duration_s, args.title or args.out.resolve().name)
    total_s = options.warm_up_s + options.duration_s
    streams = streams_of(args.stream, args.backlog, total_s=total_s, seed=options.seed)
    addresses = _addresses(args)
    try:
        with text_aside(args.json):
            session = Session(addresses, streams, options, args.out, is_live=not args.no_live)
            is_good = asyncio.run(session.run())
    except asyncio.CancelledError:
        return _EXIT_TERMINATED
    summary = args.out / SUMMARY_FILE
    # A run that ended while it warmed up has none.
    if args.json and summary.exists():
        print_json_file(summary)
    return 0 if is_good else _EXIT_FAILED


def _addresses(args: argparse.Namespace) -> Addresses:
    """Raises ConfigError."""
    from omniserve.commands.credentials import read_token, warn_of_open_token

    if args.grpc is None and args.http is None:
        given = _DEFAULT_ADDRESSES
    else:
        given = Addresses(args.grpc, args.http)
    token = read_token(args.token_file)
    addresses = replace(given, over=args.over, vocab_size=args.vocab_size, token=token).checked()
    for receiver in addresses.receivers() if token is not None else ():
        warn_of_open_token(receiver)
    return addresses

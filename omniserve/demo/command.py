"""The subcommand `omniserve demo`."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve.argument_types import number, whole_number
from omniserve.demo.options import Addresses, DemoOptions

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULTS = DemoOptions()
_EXIT_FAILED = 1
_EXIT_TERMINATED = 143


def add_demo_command(subparsers: "Subparsers") -> None:
    """Register `demo`; its handler returns an exit code."""
    parser = subparsers.add_parser(
        "demo",
        help="serve two tiers under load for a minute and report",
        description="Starts a daemon on free ports, sends it chats of a latency-sensitive tier and "
        "a backlog of best-effort completions at the same time, and sums up both. The exit status "
        "is 0 where every request succeeded.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=_DEFAULTS.config,
        help="what to serve, its addresses apart (default: %(default)s); "
        "a model that does not exist is made",
    )
    parser.add_argument(
        "--duration-s",
        type=number("seconds", 1, 86_400),
        metavar="S",
        default=_DEFAULTS.duration_s,
        help="how long new requests are sent (default: %(default)g)",
    )
    parser.add_argument(
        "--ls-rate",
        type=number("requests per second", 0.01, 1000),
        metavar="N",
        default=_DEFAULTS.ls_rate,
        help="latency-sensitive requests per second (default: %(default)g)",
    )
    parser.add_argument(
        "--be-concurrency",
        type=whole_number(0, 1024),
        metavar="N",
        default=_DEFAULTS.be_concurrency,
        help="best-effort requests at a time (default: %(default)s)",
    )
    _add_run_arguments(parser)
    parser.set_defaults(handler=_demo)


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        default=_DEFAULTS.report,
        help="HTML page to write (default: %(default)s); the daemon's log goes beside it",
    )
    parser.add_argument("--model", metavar="NAME", help="model to ask (default: the first one)")
    parser.add_argument(
        "--seed",
        type=whole_number(0, 1 << 31),
        metavar="N",
        default=_DEFAULTS.seed,
        help="same seed, same requests (default: %(default)s)",
    )
    parser.add_argument(
        "--attach",
        nargs=2,
        metavar=("GRPC", "HTTP"),
        help="use the daemon that listens on these two host:port instead of starting one",
    )
    parser.add_argument(
        "--no-live", action="store_true", help="plain lines in place of the live display"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as JSON; all else goes to stderr"
    )


def _demo(args: argparse.Namespace) -> int:
    import asyncio

    from omniserve.commands.json_output import print_json, text_aside
    from omniserve.demo.session import run_demo

    options = DemoOptions(
        config=args.config,
        report=args.report,
        duration_s=args.duration_s,
        ls_rate=args.ls_rate,
        be_concurrency=args.be_concurrency,
        seed=args.seed,
        model=args.model,
        attach=Addresses(*args.attach) if args.attach else None,
        is_live=not args.no_live,
    )
    try:
        with text_aside(args.json):
            result = run_demo(options)
    except asyncio.CancelledError:
        return _EXIT_TERMINATED
    if args.json:
        tiers = [asdict(summary) for summary in result.summaries]
        print_json({"report": str(args.report), "tiers": tiers, "errors": result.errors()})
    return 0 if result.num_failed == 0 else _EXIT_FAILED

"""The subcommand `omniserve simulate validate`."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve.argument_types import whole_number

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_EXIT_FAILED = 1


def add_validate_command(subparsers: "Subparsers") -> None:
    """Register `validate`; its handler returns an exit code."""
    from omniserve.bench.load.options import LoadOptions
    from omniserve.bench.load.stream_arguments import add_stream_arguments
    from omniserve.bench.load.window_arguments import add_window_arguments
    from omniserve.simulate.patience_argument import add_patience_argument

    parser = subparsers.add_parser(
        "validate",
        help="hold the simulator to a real run",
        description="Starts a daemon, sends it streams of requests as `omniserve bench run` does, "
        "simulates the same, and prints both with the simulation's error. The exit status is 1 "
        "where an error is above its bar.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=Path("examples/demo.yaml"),
        help="what to serve, its addresses apart (default: %(default)s)",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="from `omniserve simulate calibrate` on this machine; one for each model",
    )
    add_stream_arguments(parser)
    defaults = LoadOptions(duration_s=30.0, warm_up_s=5.0)
    add_window_arguments(parser, defaults, duration_s=defaults.duration_s)
    parser.add_argument(
        "--rounds",
        type=whole_number(1, 100),
        metavar="N",
        default=1,
        help="real runs, each of a daemon of its own, whose medians count (default: %(default)s)",
    )
    add_patience_argument(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("out/validation"),
        help="where runs, reports and the comparison go (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the comparison as JSON; all else goes to stderr"
    )
    parser.set_defaults(handler=_validate)


def _validate(args: argparse.Namespace) -> int:
    # Daemons are forked beside open channels; gRPC would say so each time.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from omniserve.bench.load.stream_arguments import streams_of
    from omniserve.bench.load.window_arguments import window_of
    from omniserve.commands.json_output import print_json_file, text_aside
    from omniserve.config import load_config
    from omniserve.profiling.profile import load_profile
    from omniserve.simulate.validation.session import COMPARISON_FILE, Validation, run_validation

    options = window_of(args, args.duration_s, "validation")
    total_s = options.warm_up_s + options.duration_s
    validation = Validation(
        config=load_config(args.config),
        profiles=[load_profile(path) for path in args.profile],
        streams=streams_of(args.stream, args.backlog, total_s=total_s, seed=options.seed),
        options=options,
        num_rounds=args.rounds,
        patience_s=args.patience_s,
        out=args.out,
    )
    with text_aside(args.json):
        comparisons = run_validation(validation)
    if args.json:
        print_json_file(args.out / COMPARISON_FILE)
    return _EXIT_FAILED if any(each.is_met is False for each in comparisons) else 0

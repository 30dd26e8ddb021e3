"""The subcommand `omniserve simulate validate`."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve.argument_types import number, whole_number

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_EXIT_FAILED = 1
_MAX_S = 86_400
_DURATION_S, _WARM_UP_S, _DRAIN_S = 30.0, 5.0, 30.0


def add_validate_command(subparsers: "Subparsers") -> None:
    """Register `validate`; its handler returns an exit code."""
    from omniserve.bench.load.stream_arguments import add_stream_arguments

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
    for option, default, least, text in (
        ("--duration-s", _DURATION_S, 1, "length of the measured part"),
        ("--warm-up-s", _WARM_UP_S, 0, "load before it"),
        ("--drain-s", _DRAIN_S, 0, "how long requests of traces may go on after it"),
    ):
        parser.add_argument(
            option,
            type=number("seconds", least, _MAX_S),
            metavar="S",
            default=default,
            help=f"{text} (default: %(default)g)",
        )
    parser.add_argument(
        "--rounds",
        type=whole_number(1, 100),
        metavar="N",
        default=1,
        help="real runs, each of a daemon of its own, whose medians count (default: %(default)s)",
    )
    parser.add_argument(
        "--patience-s",
        type=number("seconds", 0, 3600),
        metavar="S",
        default=0.5,
        help="longest wait, before each of them, for other processes to leave the cores alone "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0, 1 << 31),
        metavar="N",
        default=0,
        help="same seed, same requests (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("out/validation"),
        help="where runs, reports and the comparison go (default: %(default)s)",
    )
    parser.set_defaults(handler=_validate)


def _validate(args: argparse.Namespace) -> int:
    # Daemons are forked beside open channels; gRPC would say so each time.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from omniserve.bench.load.options import LoadOptions
    from omniserve.bench.load.stream_arguments import streams_of
    from omniserve.config import load_config
    from omniserve.simulate.profile import load_profile
    from omniserve.simulate.validate_session import Validation, run_validation

    options = LoadOptions(
        duration_s=args.duration_s,
        warm_up_s=args.warm_up_s,
        drain_s=args.drain_s,
        seed=args.seed,
        title="validation",
    )
    total_s = options.warm_up_s + options.duration_s
    comparisons = run_validation(
        Validation(
            config=load_config(args.config),
            profiles=[load_profile(path) for path in args.profile],
            streams=streams_of(args.stream, args.backlog, total_s=total_s, seed=options.seed),
            options=options,
            num_rounds=args.rounds,
            patience_s=args.patience_s,
            out=args.out,
        )
    )
    return 0 if all(each.is_met for each in comparisons) else _EXIT_FAILED

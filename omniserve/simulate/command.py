"""The subcommand `omniserve simulate` and what it holds."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve.argument_types import number, whole_number

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULT_OUT = Path("out/simulation")


def add_simulate_commands(subparsers: "Subparsers") -> None:
    """Register `simulate`; the handlers of its commands return exit codes."""
    from omniserve.simulate.calibration.command import add_calibrate_command
    from omniserve.simulate.roofline_command import add_roofline_command
    from omniserve.simulate.validation.command import add_validate_command

    parser = subparsers.add_parser(
        "simulate",
        help="replay traces against a simulated engine",
        description="Runs the scheduler that serves on a clock of its own, with step times from a "
        "profile: hours of a trace in minutes, on machines that are not there.",
        epilog="`omniserve simulate COMMAND --help` tells more about a command.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run_command(commands)
    add_calibrate_command(commands)
    add_validate_command(commands)
    add_roofline_command(commands)


def _add_run_command(subparsers: "Subparsers") -> None:
    from omniserve.bench.load.options import LoadOptions
    from omniserve.bench.load.stream_arguments import add_stream_arguments
    from omniserve.bench.load.window_arguments import add_window_arguments

    parser = subparsers.add_parser(
        "run",
        help="simulate a run and report",
        description="Simulates what a daemon of a configuration would do under streams of "
        "requests, given as for `omniserve bench run`, and writes run, summary and page into a "
        "directory, as that does. Equal arguments give equal results.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=Path("examples/demo.yaml"),
        help="the daemon's configuration; its models need not be there (default: %(default)s)",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="step times of a model, from `omniserve simulate calibrate` or `roofline`; several "
        "models may have one each, a single one stands for all",
    )
    add_stream_arguments(parser)
    parser.add_argument(
        "--rate",
        type=number("times the load", 0.001, 1000),
        metavar="N",
        default=1.0,
        help="requests of traces come N times as fast (default: %(default)g)",
    )
    parser.add_argument(
        "--engines",
        type=whole_number(1, 1024),
        metavar="N",
        default=1,
        help="engines, each with all models; requests go to the one with the fewest "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--shared-layers",
        action="append",
        default=[],
        metavar="MODEL,MODEL=N",
        help="these models have their first N layers in common, as fine-tunes of one base do, so "
        "that rows of all of them go in one batch there; may be repeated; `checkpoints`: whatever "
        "has equal bytes, for which checkpoints are read (default: models share nothing)",
    )
    add_window_arguments(
        parser, LoadOptions(), duration_s=None, duration_default="to the end of the longest trace"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=_DEFAULT_OUT,
        help="where run, summary and page go, in place of those there (default: %(default)s)",
    )
    parser.add_argument("--title", default="", help="what the report calls the run")
    parser.add_argument(
        "--summary-only",
        action="store_true",
        help="do not write the run itself, which holds every token's time",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the summary as JSON; all else goes to stderr"
    )
    parser.set_defaults(handler=_run)


def _run(args: argparse.Namespace) -> int:
    from omniserve.bench.report.files import SUMMARY_FILE
    from omniserve.commands.json_output import print_json_file, text_aside
    from omniserve.simulate.session import SimulationRequest, run_session

    request = SimulationRequest(
        config=args.config,
        profiles=args.profile,
        streams=args.stream,
        backlogs=args.backlog,
        rate=args.rate,
        num_engines=args.engines,
        shared_layers=args.shared_layers,
        duration_s=args.duration_s,
        warm_up_s=args.warm_up_s,
        drain_s=args.drain_s,
        seed=args.seed,
        out=args.out,
        title=args.title or args.out.resolve().name,
        is_summary_only=args.summary_only,
    )
    with text_aside(args.json):
        run_session(request)
    if args.json:
        print_json_file(args.out / SUMMARY_FILE)
    return 0

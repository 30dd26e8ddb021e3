"""The subcommand `omniserve simulate calibrate`."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve.argument_types import whole_number
from omniserve.simulate.patience_argument import add_patience_argument

if TYPE_CHECKING:
    from omniserve.profiling.fit import StepFit
    from omniserve.simulate.calibration.calibrate import Calibration

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_GOOD_ACCURACY = 0.85
_WARNING = "warning: "


def add_calibrate_command(subparsers: "Subparsers") -> None:
    """Register `calibrate`; its handler returns an exit code."""
    parser = subparsers.add_parser(
        "calibrate",
        help="measure a model on this machine for the simulator",
        description="Measures what steps of a configured model take on this machine, with host "
        "attention where it is on, and what clients and front add, and writes a profile for "
        "`omniserve simulate run`. Takes two to three minutes with a small model on a quiet "
        "machine, and longer where others disturb it.",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=Path("examples/demo.yaml"),
        help="the daemon's configuration (default: %(default)s)",
    )
    parser.add_argument("--model", metavar="NAME", help="which model (default: the first one)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        default=Path("out/profile.json"),
        help="the profile to write (default: %(default)s)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer kinds of steps, in a minute or two"
    )
    parser.add_argument(
        "--no-front",
        action="store_true",
        help="steps only: simulated clients then sit inside the engine",
    )
    add_patience_argument(parser)
    parser.add_argument(
        "--seed",
        type=whole_number(0, 1 << 31),
        metavar="N",
        default=0,
        help="of the prompts' tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the profile; all else goes to stderr"
    )
    parser.set_defaults(handler=_calibrate)


def _calibrate(args: argparse.Namespace) -> int:
    from omniserve.commands.json_output import print_json_file, text_aside

    with text_aside(args.json):
        _run(args)
    if args.json:
        print_json_file(args.out)
    return 0


def _run(args: argparse.Namespace) -> None:
    """Measures, prints and writes the profile. Raises OmniServeError."""
    # Daemons are forked beside open channels; gRPC would say so each time.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from omniserve.config import load_config, without_step_times
    from omniserve.errors import ConfigError
    from omniserve.phase_display import PhaseDisplay
    from omniserve.profiling.profile import save_profile
    from omniserve.profiling.profiler import display_listener
    from omniserve.simulate.calibration.calibrate import QUICK, THOROUGH, Calibrator
    from omniserve.terminal import make_console

    console = make_console()

    def say(text: str) -> None:
        console.print(text, soft_wrap=not console.is_terminal, markup=False, highlight=False)

    # Measured without control: it would keep steps from what is to be measured.
    config = without_step_times(load_config(args.config))
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {args.out}: cannot be written: {error.strerror}") from None
    model = args.model or config.models[0].name
    effort = QUICK if args.quick else THOROUGH
    with PhaseDisplay(console) as display:
        calibrator = Calibrator(
            config,
            model,
            effort,
            say,
            seed=args.seed,
            patience_s=args.patience_s,
            listener=display_listener(display),
        )
        calibration = calibrator.run(with_front=not args.no_front)
    lines = _lines(calibration)
    warnings = [line.removeprefix(_WARNING) for line in lines if line.startswith(_WARNING)]
    save_profile(replace(calibration.profile, warnings=tuple(warnings)), args.out)
    for line in lines:
        say(line)
    say(f"profile: {args.out}")


def _lines(calibration: "Calibration") -> list[str]:
    from omniserve.others_meter import QUIET_CORES

    lines = _fit_lines("steps", calibration.alone)
    if calibration.beside_host is not None:
        lines += _fit_lines("steps beside host attention", calibration.beside_host)
    host = calibration.profile.host
    if host is not None:
        lines.append(
            f"host attention: {host.kv_bytes_per_s / 1e9:.2f} GB/s of KV, "
            f"{host.task_overhead_s * 1e6:.1f} us a row, {host.result_delay_s * 1e6:.0f} us delay"
        )
    front = calibration.front
    if front is not None:
        way = front.latency
        ways_ms = (way.way_in_s + way.way_out_s) * 1e3
        lines.append(
            f"front: {ways_ms:.2f} ms to the first token; takes from the engine "
            f"{way.stolen_s_per_step * 1e6:.0f} us a step, {way.stolen_s_per_token * 1e6:.0f} us a "
            f"token, {way.stolen_s_per_request * 1e6:.0f} us a request"
        )
        if front.others_cores > QUIET_CORES:
            lines.append(
                f"{_WARNING}others used {front.others_cores:.2f} cores while the front was measured"
            )
    return lines


def _fit_lines(what: str, fit: "StepFit") -> list[str]:
    lines = [f"{what}: {fit.num_observations} kinds, {fit.quiet_share:.0%} undisturbed"]
    if fit.held_out is not None:
        lines[0] += (
            f"; modelled times of those not fitted to are right to {fit.held_out.mean:.1%} on "
            f"average, nine of ten to {fit.held_out.p90:.1%} or better"
        )
    if fit.quiet_share < 0.5:
        lines.append(
            f"{_WARNING}others used the cores while {what} were measured; repeat on a quiet machine"
        )
    elif fit.held_out is not None and fit.held_out.mean < _GOOD_ACCURACY:
        lines.append(f"{_WARNING}{what} of this model are told badly")
    return lines

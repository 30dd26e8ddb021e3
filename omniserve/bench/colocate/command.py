"""The subcommand `omniserve bench colocate`."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniserve.argument_types import number, whole_number
from omniserve.bench.colocate.control.contenders import CONTROL_CHOICES
from omniserve.bench.colocate.control.loads import LOADS
from omniserve.bench.colocate.options import (
    ColocateOptions,
    choose_control_scenes,
    choose_loads,
    choose_scenes,
    control_only,
    quick,
)
from omniserve.errors import ConfigError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_DEFAULTS = ColocateOptions()
_EXIT_TERMINATED = 143
_REPLACEABLE = (
    *("be_requests", "be_prompt_tokens", "be_output_tokens", "be_tokens_beside_ls", "step_times"),
    *("rounds", "warm_up_s", "duration_s"),
)
_REPLACEABLE_OF_CONTROL = (
    *("capacity", "ttft_factor", "tpot_factor", "rounds", "warm_up_s", "duration_s"),
)


def add_colocate_command(subparsers: "Subparsers") -> None:
    """Register `colocate`; its handler returns an exit code."""
    parser = subparsers.add_parser(
        "colocate",
        help="compare ways to serve best-effort work beside latency-sensitive work",
        description="Serves latency-sensitive (LS) requests of a trace beside a best-effort (BE) "
        "backlog in several ways, OmniServe's and vLLM's, with the same models, requests, "
        "objectives and memory, and compares what both streams got. Scenes of control compare "
        "OmniServe with itself without control, under loads that move. Windows are saved as they "
        "are measured: the same command goes on where it was stopped. All of it takes an hour and "
        "three quarters or so.",
        epilog="For example: omniserve bench colocate --quick; scenes of control alone, in "
        "about 20 minutes: omniserve bench colocate --control-only --out out/control; or, for "
        "another curve: omniserve bench colocate --load none --frame emulated --shape one "
        "--kv 1 2 8 --ls-rate 1.5 --out out/curve",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="under 10 minutes on two cores: one frame, one budget, no scenes of control "
        "(with --control-only: these alone, shorter)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=_DEFAULTS.out,
        help="for windows, table and page (default: %(default)s)",
    )
    parser.add_argument(
        "--vllm-python",
        type=Path,
        metavar="FILE",
        default=_DEFAULTS.vllm_python,
        help="interpreter of an environment with vLLM (default: %(default)s)",
    )
    parser.add_argument("--no-vllm", action="store_true", help="measure OmniServe alone")
    parser.add_argument(
        "--json", action="store_true", help="print the results as JSON; tables go to stderr"
    )
    _add_control_arguments(parser)
    _add_scene_arguments(parser)
    _add_load_arguments(parser)
    parser.set_defaults(handler=_colocate)


def _add_control_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scenes of control")
    defaults = _DEFAULTS.control
    group.add_argument("--control-only", action="store_true", help="leave everything else out")
    group.add_argument(
        "--load",
        choices=(*LOADS, "all", "none"),
        help="rates of LS: steady, drawn every 5 s (bursty), more than can be answered (overload; "
        "default: all; with --quick and without --control-only: none)",
    )
    group.add_argument(
        "--control",
        choices=CONTROL_CHOICES,
        default=defaults.choice,
        help="measure OmniServe with it, without, or both (default: %(default)s)",
    )
    group.add_argument(
        "--capacity",
        type=number("requests per second", 0.01, 1000),
        metavar="R",
        help="default: searched for, where LS alone just holds its objectives",
    )
    for option, default, text in (
        ("--ttft-factor", defaults.ttft_factor, "objective over TTFT of a request alone"),
        ("--tpot-factor", defaults.tpot_factor, "the same of TPOT"),
    ):
        group.add_argument(
            option,
            type=number("times", 1, 1000),
            metavar="X",
            help=f"{text} (default: {default:g})",
        )
    group.add_argument(
        "--step-times",
        metavar="auto|FILE",
        help="what steps take, for all with control: auto measures it at a daemon's first start "
        "(default: auto)",
    )


def _add_scene_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is compared (default: a choice of all)")
    group.add_argument("--model", type=Path, metavar="DIR", help="default: one of 100m is made")
    group.add_argument(
        "--be-model", type=Path, metavar="DIR", help="of BE in shape two (default: --model again)"
    )
    group.add_argument(
        "--frame",
        choices=("emulated", "whole"),
        nargs="+",
        help="emulated: some cores play the accelerator; whole: all cores are everyone's",
    )
    group.add_argument(
        "--shape", choices=("one", "two"), nargs="+", help="one model for LS and BE, or two"
    )
    group.add_argument(
        "--kv",
        type=whole_number(0, 4096),
        nargs="+",
        metavar="N",
        help="BE requests that the device's KV holds beside LS; load and objectives are found "
        "with the first (of control: with each)",
    )


def _add_load_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    group.add_argument(
        "--trace",
        metavar="NAME|FILE",
        default=_DEFAULTS.trace,
        help="arrivals and lengths of LS (default: %(default)s, which ships)",
    )
    group.add_argument(
        "--ls-rate",
        type=number("requests per second", 0.01, 1000),
        metavar="R",
        help="default: searched for, where vLLM holds 60 to 70 %% of the objectives",
    )
    for option, most, text in (
        ("--be-requests", 1024, "BE requests that are always unfinished"),
        ("--be-prompt-tokens", 100_000, "mean BE prompt"),
        ("--be-output-tokens", 100_000, "mean BE output"),
        ("--be-tokens-beside-ls", 100_000, "OmniServe: most BE tokens in a step with LS"),
        ("--rounds", 100, "windows of each contender"),
    ):
        group.add_argument(
            option, type=whole_number(1, most), metavar="N", help=_said(option, text)
        )
    for option, text in (
        ("--warm-up-s", "load before a window"),
        ("--duration-s", "length of a window"),
    ):
        kind = number("seconds", 1, 86_400)
        group.add_argument(option, type=kind, metavar="S", help=_said(option, text))
    group.add_argument(
        "--seed",
        type=whole_number(0, 1 << 31),
        metavar="N",
        default=_DEFAULTS.seed,
        help="same seed, same requests (default: %(default)s)",
    )


def _said(option: str, text: str) -> str:
    name = option.removeprefix("--").replace("-", "_")
    default, short = getattr(_DEFAULTS, name), getattr(quick(_DEFAULTS), name)
    shorter = f", quick {short:g}" if short != default else ""
    held = getattr(_DEFAULTS.control, name, default)
    of_control = f", of control {held:g}" if held != default else ""
    return f"{text} (default: {default:g}{shorter}{of_control})"


def _colocate(args: argparse.Namespace) -> int:
    import asyncio
    import os

    # gRPC's handlers would say at every server's start that they are skipped; it reads this once.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from omniserve.bench.colocate.publish import JSON_FILE
    from omniserve.bench.colocate.session import run_colocate
    from omniserve.commands.json_output import print_json_file, text_aside

    try:
        with text_aside(args.json):
            run_colocate(options_of(args))
    except asyncio.CancelledError:
        return _EXIT_TERMINATED
    if args.json:
        print_json_file(args.out / JSON_FILE)
    return 0


def options_of(args: argparse.Namespace) -> ColocateOptions:
    """What the arguments ask for."""
    options = ColocateOptions(
        out=args.out,
        vllm_python=None if args.no_vllm else args.vllm_python,
        model=args.model,
        be_model=args.be_model,
        trace=args.trace,
        ls_rate=args.ls_rate,
        seed=args.seed,
    )
    if args.quick:
        options = quick(options)
    options = choose_scenes(options, args.frame, args.shape, args.kv)
    options = choose_control_scenes(options, args.frame, args.shape, args.kv)
    if args.control_only:
        options = control_only(options)
    options = choose_loads(options, args.load, args.control)
    control = replace(options.control, **_given(args, _REPLACEABLE_OF_CONTROL))
    options = replace(options, control=control, **_given(args, _REPLACEABLE))
    if not options.scenes and not options.control.loads:
        raise ConfigError(
            f"--load {args.load} --control {args.control}: nothing is left to measure; "
            "allowed with --control-only: a load, and overload not without control"
        )
    return options


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}

"""The subcommands of `omniserve bench trace`."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omniserve.argument_types import number, whole_number
from omniserve.bench.trace.formats.read_write import FORMATS, NATIVE, lost_fields, write_trace
from omniserve.bench.trace.formats.rows import TraceError
from omniserve.commands.json_output import print_json

if TYPE_CHECKING:
    from omniserve.bench.trace.trace import Trace

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_SOURCE = "a file, sample:NAME or synth:RECIPE; `describe --list` shows the names"
_MAX_TRACES = 8
_SECONDS = number("seconds", 0, 1e9)
_FACTOR = number("times", 1e-6, 1e6)
_COUNT = whole_number(1, 1 << 31)


def add_trace_commands(subparsers: "Subparsers") -> None:
    """Register `trace` with its subcommands; each sets `handler`, which returns an exit code."""
    trace = subparsers.add_parser(
        "trace",
        help="describe, change and make traces of requests",
        description="Describes, changes and makes traces: who asked for how many tokens, and when. "
        f"Reads the formats {', '.join(FORMATS)}, compressed ones (.gz) too.",
    )
    commands = trace.add_subparsers(metavar="COMMAND", required=True)
    _add_describe(commands)
    _add_slice(commands)
    _add_scale(commands)
    _add_synth(commands)
    _add_convert(commands)


def _add_describe(commands: "Subparsers") -> None:
    parser = commands.add_parser(
        "describe",
        help="print what a trace is like",
        description="Prints rate, burstiness, lengths and prefix reuse of one trace, or of several "
        "side by side.",
    )
    parser.add_argument("traces", nargs="*", metavar="TRACE", help=_SOURCE)
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="also write an HTML page of plots"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument(
        "--list", action="store_true", help="list the samples, recipes and formats there are"
    )
    _add_reading(parser)
    parser.set_defaults(handler=_describe)


def _add_slice(commands: "Subparsers") -> None:
    parser = commands.add_parser(
        "slice",
        help="cut a part out of a trace",
        description="Keeps the requests that arrive from one time to another, and of them those of "
        "one tier or tenant. What arrives at the start of the part arrives at 0 afterwards.",
    )
    _add_input_and_output(parser)
    parser.add_argument("--start-s", type=_SECONDS, default=0.0, metavar="S", help="default: 0")
    parser.add_argument("--end-s", type=_SECONDS, metavar="S", help="default: the end")
    parser.add_argument("--tier", metavar="NAME", help="keep the requests of one tier")
    parser.add_argument("--tenant", metavar="NAME", help="keep the requests of one tenant")
    parser.add_argument(
        "--without-failed", action="store_true", help="leave out requests that failed"
    )
    parser.set_defaults(handler=_slice)


def _add_scale(commands: "Subparsers") -> None:
    parser = commands.add_parser(
        "scale",
        help="speed a trace up, shorten its requests",
        description="Changes the rate of a trace by scaling its time, so that it stays as bursty "
        "as it was; no request is left out or added. Lengths are multiplied first, then clipped.",
    )
    _add_input_and_output(parser)
    parser.add_argument(
        "--rate", type=_FACTOR, default=1.0, metavar="N", help="N times as many requests a second"
    )
    parser.add_argument(
        "--lengths", type=_FACTOR, default=1.0, metavar="N", help="N times as many tokens"
    )
    parser.add_argument("--max-prompt-tokens", type=_COUNT, metavar="N", help="clip longer prompts")
    parser.add_argument("--max-output-tokens", type=_COUNT, metavar="N", help="clip longer outputs")
    parser.add_argument(
        "--spread-ticks",
        action="store_true",
        help="spread requests with equal times evenly, where times are coarse (Mooncake)",
    )
    parser.set_defaults(handler=_scale)


def _add_synth(commands: "Subparsers") -> None:
    parser = commands.add_parser(
        "synth",
        help="make a trace by a recipe, or more of one's own",
        description="Makes a trace: minutes of changing rate, Gamma arrivals within them, lengths "
        "drawn in pairs, sessions with growing prefixes. The same seed makes the same file. "
        "Of rate, duration and number of requests, two make the third.",
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        help="a name (`describe --list` shows them), or like:TRACE to imitate a trace",
    )
    _add_output(parser)
    parser.add_argument(
        "--rate",
        type=number("requests a second", 1e-6, 1e6),
        metavar="N",
        help="requests a second, on average",
    )
    parser.add_argument(
        "--duration-s", type=number("seconds", 0.001, 1e8), metavar="S", help="length of the trace"
    )
    parser.add_argument(
        "--num-requests", type=whole_number(1, 10_000_000), metavar="N", help="number of requests"
    )
    parser.add_argument(
        "--seed", type=whole_number(0, 1 << 63), default=0, metavar="N", help="default: 0"
    )
    parser.add_argument(
        "--failed-share", type=number("", 0, 1), metavar="X", help="share that fails, 0 to 1"
    )
    parser.add_argument(
        "--tenants", type=whole_number(1, 1_000_000), metavar="N", help="tenants of Zipf-like size"
    )
    parser.add_argument("--tier", default="", metavar="NAME", help="tier of all requests")
    parser.set_defaults(handler=_synth)


def _add_convert(commands: "Subparsers") -> None:
    parser = commands.add_parser(
        "convert",
        help="write a trace in another format",
        description="Writes a trace in another format, and says what that has no place for.",
    )
    _add_input_and_output(parser)
    parser.add_argument("--tier", metavar="NAME", help="tier of all requests")
    parser.set_defaults(handler=_convert)


def _add_input_and_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="TRACE", help=_SOURCE)
    _add_output(parser)
    _add_reading(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="file to write")
    parser.add_argument(
        "--to", choices=tuple(FORMATS), default=NATIVE, help="its format (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: what was written")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        help="format of files that are read (default: found out)",
    )


def _describe(args: argparse.Namespace) -> int:
    from omniserve.bench.trace.describe import describe
    from omniserve.bench.trace.facts import as_text
    from omniserve.bench.trace.page import write_page
    from omniserve.bench.trace.sources import known_names, open_trace

    if args.list:
        sys.stdout.write(known_names())
        return 0
    if not 1 <= len(args.traces) <= _MAX_TRACES:
        raise TraceError(f"bench trace describe: give 1 to {_MAX_TRACES} traces, or --list")
    traces = [open_trace(source, args.format) for source in args.traces]
    if len(traces) > 1:
        # A sample and the recipe that imitates it have the same name.
        traces = [
            replace(trace, name=source) for trace, source in zip(traces, args.traces, strict=True)
        ]
    descriptions = [describe(trace) for trace in traces]
    if args.json:
        found = [each.to_json() for each in descriptions]
        sys.stdout.write(json.dumps(found[0] if len(found) == 1 else found, indent=2) + "\n")
    else:
        sys.stdout.write(as_text(descriptions))
    if args.plot is not None:
        write_page(traces, args.plot)
        sys.stderr.write(f"wrote {args.plot}\n")
    return 0


def _slice(args: argparse.Namespace) -> int:
    from omniserve.bench.trace.sources import open_trace
    from omniserve.bench.trace.transform import only, slice_trace, without_failed

    trace = open_trace(args.trace, args.format)
    end_s = float("inf") if args.end_s is None else args.end_s
    trace = slice_trace(trace, args.start_s, end_s)
    if args.tier is not None or args.tenant is not None:
        trace = only(trace, tier=args.tier, tenant=args.tenant)
    return _write(without_failed(trace) if args.without_failed else trace, args)


def _scale(args: argparse.Namespace) -> int:
    from omniserve.bench.trace.sources import open_trace
    from omniserve.bench.trace.transform import scale, spread_ticks

    trace = open_trace(args.trace, args.format)
    scaled = scale(
        spread_ticks(trace) if args.spread_ticks else trace,
        rate=args.rate,
        lengths=args.lengths,
        max_prompt_tokens=args.max_prompt_tokens,
        max_output_tokens=args.max_output_tokens,
    )
    return _write(scaled, args)


def _synth(args: argparse.Namespace) -> int:
    from omniserve.bench.trace.sources import open_recipe
    from omniserve.bench.trace.synth.recipes import Tenants
    from omniserve.bench.trace.synth.synthesise import synthesise

    recipe = open_recipe(args.recipe)
    recipe = replace(recipe, tier=args.tier)
    if args.failed_share is not None:
        recipe = replace(recipe, failed_share=args.failed_share)
    if args.tenants is not None:
        recipe = replace(recipe, tenants=Tenants(args.tenants))
    trace = synthesise(
        recipe,
        args.seed,
        rate_per_s=args.rate,
        duration_s=args.duration_s,
        num_requests=args.num_requests,
    )
    return _write(trace, args)


def _convert(args: argparse.Namespace) -> int:
    from omniserve.bench.trace.sources import open_trace
    from omniserve.bench.trace.transform import with_tier

    trace = open_trace(args.trace, args.format)
    return _write(trace if args.tier is None else with_tier(trace, args.tier), args)


def _write(trace: "Trace", args: argparse.Namespace) -> int:
    write_trace(trace, args.output, args.to)
    lost = lost_fields(trace, args.to)
    if args.json:
        written = {"path": str(args.output), "num_requests": len(trace)}
        print_json(written | {"duration_s": trace.duration_s, "lost_fields": list(lost)})
    else:
        sys.stdout.write(
            f"wrote {args.output}: {len(trace):,} requests, {trace.duration_s:,.1f} s\n"
        )
    if lost:
        sys.stderr.write(f"omniserve: {args.to} has no place for {', '.join(lost)}\n")
    return 0

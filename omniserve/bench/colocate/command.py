"""The subcommand `omniserve bench colocate`."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omniserve.bench.colocate.options import ColocateOptions

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_EXIT_TERMINATED = 143


def add_colocate_command(subparsers: "Subparsers") -> None:
    """Register `colocate`; its handler returns an exit code."""
    from omniserve.bench.colocate.options import DEFAULT_OUT, DEFAULT_VLLM_PYTHON

    parser = subparsers.add_parser(
        "colocate",
        help="compare ways to serve best-effort work beside latency-sensitive work, vLLM too",
        description="Serves latency-sensitive requests of a trace beside a best-effort backlog in "
        "several ways, OmniServe's and vLLM's, with the same models, requests, objectives and "
        "memory, and compares what both streams got. Windows are saved as they are measured: the "
        "same command goes on where it was stopped.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="under 8 minutes on two cores: one frame, one budget"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=DEFAULT_OUT,
        help="for windows, table and page (default: %(default)s)",
    )
    parser.add_argument(
        "--vllm-python",
        type=Path,
        metavar="FILE",
        default=DEFAULT_VLLM_PYTHON,
        help="interpreter of an environment with vLLM (default: %(default)s)",
    )
    parser.add_argument("--no-vllm", action="store_true", help="measure OmniServe alone")
    _add_load_arguments(parser)
    parser.set_defaults(handler=_colocate)


def _add_load_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="checkpoint (default: one of 100m is made)"
    )
    parser.add_argument("--be-model", type=Path, metavar="DIR", help="the second of two models")
    parser.add_argument("--trace", default="azure-conv", help="of LS (default: %(default)s)")
    parser.add_argument("--ls-rate", type=float, metavar="R", help="LS requests per second")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--duration-s", type=float, metavar="S")
    parser.add_argument("--be-requests", type=int, metavar="N")


def _colocate(args: argparse.Namespace) -> int:
    import asyncio

    from omniserve.bench.colocate.session import run_colocate

    try:
        run_colocate(options_of(args))
    except asyncio.CancelledError:
        return _EXIT_TERMINATED
    return 0


def options_of(args: argparse.Namespace) -> "ColocateOptions":
    """What the arguments ask for."""
    from omniserve.bench.colocate.options import ColocateOptions, quick

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
    given = {
        name: getattr(args, name)
        for name in ("rounds", "duration_s", "be_requests")
        if getattr(args, name) is not None
    }
    return replace(options, **given)

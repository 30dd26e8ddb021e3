"""Arguments of benchmarks/piggyback.py, and what follows from them."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from engine import CACHE, ROOT, positive
from piggyback_cases import Cell, Frame, Load

from omniserve.synthetic.presets import shape_of

PARTS = ("emulated", "whole", "frontier", "scaling", "overhead", "slow-host", "binding")
CPU_LS_LIMIT, ACCELERATOR_LS_LIMIT = 1.4, 1.05
"""How many times that of LS alone the p99 TPOT may be."""
GOALS = {2: 3.5, 1: 7.0}
"""Times device only at context 1k on the emulated accelerator, by device KV."""


def parse_arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    _add_model_arguments(parser)
    _add_load_arguments(parser)
    _add_lane_arguments(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=positive, default=2, help="windows of each contender")
    parser.add_argument("--goal-rounds", type=int, default=2, help="more of them where goals are")
    parser.add_argument("--periods", type=positive, default=2, help="length of a window, x 0.3 s")
    parser.add_argument("--quick", action="store_true", help="see that it works: a minute or so")
    parser.add_argument("--no-second-engine", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "out/bench", help="for piggyback.*")
    options = parser.parse_args()
    if options.quick:
        _cut_short(options)
    if options.device != "cpu":
        options.parts = [part for part in options.parts if part != "whole"]
    _check_cores(parser, options)
    return options


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", default="qwen3")
    parser.add_argument("--preset", default="100m")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--vocab", type=positive, help="default: the preset's own")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "npu"])
    parser.add_argument(
        "--device-cores", type=positive, default=1, help="of the emulated accelerator"
    )
    parser.add_argument("--host-threads", type=positive, default=1, help="cores of host attention")
    parser.add_argument("--cache-dir", type=Path, default=CACHE, help="where checkpoints are made")


def _add_load_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--context", type=positive, nargs="+", default=[1024, 4096])
    parser.add_argument(
        "--kv",
        type=_kv_left,
        nargs="+",
        default=[0, 1, 2, 4, None],
        metavar="N|all",
        help="best-effort requests whose KV the device has room for",
    )
    parser.add_argument(
        "--whole-kv",
        type=_kv_left,
        nargs="+",
        default=[1, 4, None],
        metavar="N|all",
        help="the same where everyone may use the whole machine",
    )
    parser.add_argument(
        "--longer-kv",
        type=_kv_left,
        nargs="+",
        default=[1, 4],
        metavar="N|all",
        help="instead of --kv at contexts after the first",
    )
    parser.add_argument(
        "--duty", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="LS part of the time"
    )
    parser.add_argument("--ls-requests", type=positive, default=4)
    parser.add_argument("--ls-context", type=positive, default=192)
    parser.add_argument("--ls-output", type=positive, default=128)
    parser.add_argument("--be-requests", type=positive, default=64)
    parser.add_argument("--be-output", type=positive, default=256)


def _add_lane_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host-kv-gib", type=float, default=8.0)
    parser.add_argument("--lane-rows", type=positive, default=8, help="most of them beside LS")
    parser.add_argument(
        "--frontier-rows", type=positive, nargs="+", default=[4, 16], help="others to try"
    )
    parser.add_argument("--offloaded", type=positive, nargs="+", default=[16, 64, 256])
    parser.add_argument("--overhead-rows", type=int, nargs="+", default=[0, 16, 64])
    parser.add_argument("--binding", type=positive, nargs="+", default=[1, 4])


def _cut_short(options: argparse.Namespace) -> None:
    options.context, options.duty = options.context[:1], [0.0, 1.0]
    options.kv = options.whole_kv = options.longer_kv = [1]
    options.rounds, options.goal_rounds = 1, 0
    options.offloaded, options.frontier_rows = options.offloaded[:2], options.frontier_rows[:1]
    options.overhead_rows = options.overhead_rows[:2]


def _kv_left(text: str) -> int | None:
    if text == "all":
        return None
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 0 on nor 'all'")
    return number


def _check_cores(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    cores = len(os.sched_getaffinity(0))
    needed = options.host_threads + (options.device_cores if options.device == "cpu" else 1)
    if cores < needed:
        parser.error(
            f"--device-cores {options.device_cores}, --host-threads {options.host_threads}: "
            f"{needed} cores are needed, this process may use {cores}"
        )


def vocab_size_of(options: argparse.Namespace) -> int:
    vocab_size: int | None = options.vocab
    return vocab_size or shape_of(options.preset, options.arch).vocab_size


def load_of(options: argparse.Namespace) -> Load:
    return Load(
        options.ls_requests,
        options.ls_context,
        options.ls_output,
        options.be_requests,
        options.be_output,
    )


def cells_of(
    contexts: Sequence[int], kv_left: Sequence[int | None], longer_kv: Sequence[int | None]
) -> tuple[Cell, ...]:
    """Every device KV at the first context, those of `longer_kv` at the others, which take long."""
    first, *longer = contexts
    cells = [Cell(first, number) for number in kv_left]
    cells += [Cell(context, number) for context in longer for number in longer_kv]
    return tuple(cells)


def split_frame(options: argparse.Namespace) -> Frame:
    """The device apart from the host: an accelerator, or a core that plays one."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    host_cores = cores[-options.host_threads :]
    if options.device != "cpu":
        overflow = () if options.no_second_engine else host_cores
        return Frame(
            "accelerator", options.device, cores, None, options.host_threads, cores, overflow
        )
    device_cores = cores[: options.device_cores]
    return Frame(
        "emulated accelerator",
        "cpu",
        device_cores + host_cores,
        options.device_cores,
        options.host_threads,
        device_cores,
        () if options.no_second_engine else host_cores,
    )


def whole_frame(options: argparse.Namespace) -> Frame:
    """Every contender may use all cores."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return Frame("whole machine", "cpu", cores, len(cores), options.host_threads, cores, ())

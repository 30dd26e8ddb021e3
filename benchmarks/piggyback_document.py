"""The whole report of benchmarks/piggyback.py."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from piggyback_cases import Load
from piggyback_contenders import PERIOD_S
from piggyback_lane_report import (
    base_text,
    binding_table,
    frontier_table,
    overhead_table,
    scaling_table,
)
from piggyback_lanes import LaneCase, LaneOverhead
from piggyback_report import (
    FrameResult,
    goals_table,
    never_below,
    preemption_note,
    sweep_table,
    table,
)
from piggyback_slow_host import SlowHost, slow_host_table


@dataclass(slots=True)
class RunResult:
    """All that one run measured; what was left out is empty."""

    load: Load
    split: FrameResult | None = None
    """The device apart from the host."""
    whole: FrameResult | None = None
    frontier: list[LaneCase] = field(default_factory=list)
    frontier_kv: list[str] = field(default_factory=list)
    """Device KV of each of `frontier`."""
    scaling: list[LaneCase] = field(default_factory=list)
    overhead: LaneOverhead | None = None
    binding: list[LaneCase] = field(default_factory=list)
    slow_host: SlowHost | None = None


def document(facts: Mapping[str, str], result: RunResult, goals: Mapping[int, float]) -> str:
    """Markdown; `goals`: times device only, by device KV."""
    lines = ["# Piggybacking benchmark", "", *(f"- {name}: {text}" for name, text in facts.items())]
    lines += ["", *_method(result.load), ""]
    if result.split is not None:
        lines += _split_part(result.split, goals)
    if result.whole is not None:
        lines += _whole_part(result.whole)
    lines += _lane_parts(result)
    return "\n".join(lines)


def _method(load: Load) -> Iterator[str]:
    yield (
        f"Load: {load.ls_requests} latency-sensitive requests (LS) of context {load.ls_context} "
        f"and {load.ls_output} tokens of output for the duty's part of every {PERIOD_S} s; "
        f"{load.be_requests} best-effort requests (BE) of {load.be_output} tokens of output. "
        "Whoever ends is replaced at once. With device KV for n, device only decodes n BE requests "
        "and no more than n stay on the device with piggybacking."
    )
    yield ""
    yield (
        "**Prompts are put into place, not computed**: a request is admitted as though the prefix "
        "cache held its prompt (noise, in blocks of its own that nobody shares). From there on all "
        'is real: copies to the host, every byte of KV that is read. "With prefill" adds what it '
        "takes to compute the prompt of every request, measured apart, as if nothing else ran "
        "meanwhile."
    )
    yield ""
    yield (
        "Contenders take turns in windows; figures are medians over them with lowest..highest; x "
        "device only is the median of ratios within a round. TPOT is every gap between two tokens "
        "of an LS request. The bound is min(host bandwidth / KV bytes a token reads, dense rows "
        "that fit within the allowed LS step, offloaded / (layers x hop delay)), all from this "
        "run, for the tokens that came out of the lanes."
    )


def _split_part(result: FrameResult, goals: Mapping[int, float]) -> list[str]:
    frame = result.frame
    lines = [f"## {frame.name.capitalize()}", ""]
    if frame.device == "cpu":
        lines += [
            f"Core(s) {_cores(frame.device_cores)} are the accelerator of every contender, "
            f"{frame.host_threads} of the others the host's. A CPU device has no memory of its "
            "own: how much KV it has left to BE is set, not met. The second engine's core is as "
            "fast as the accelerator here; a real host's are slower at dense layers by far.",
            "",
        ]
    if result.cells:
        lines += [sweep_table(result), "", preemption_note(result), ""]
        lines += ["### Goals, LS all the time", "", goals_table(result, goals), ""]
    lines += ["### What bounds and prefill are computed from", ""]
    if result.base is not None:
        lines += [base_text(result.base), ""]
    return [*lines, prefill_table(result), ""]


def _whole_part(result: FrameResult) -> list[str]:
    return [
        "## Whole machine",
        "",
        f"Every contender may use cores {_cores(result.frame.cores)}; while it piggybacks, "
        f"{result.frame.host_threads} of them are the host's.",
        "",
        sweep_table(result),
        "",
        preemption_note(result),
        "",
        never_below(result),
        "",
        prefill_table(result),
        "",
    ]


def _lane_parts(result: RunResult) -> list[str]:
    base = result.split.base if result.split is not None else None
    if base is None:
        return []
    lines = []
    if result.frontier:
        lines += ["## Lane rows beside LS, LS all the time", ""]
        lines += [frontier_table(result.frontier, result.frontier_kv), ""]
    if result.scaling:
        lines += ["## Offloaded requests", "", "Nobody stays on the device.", ""]
        lines += [scaling_table(base, result.load, result.scaling), ""]
    if result.overhead is not None:
        lines += ["## What lane rows add to a step", "", "LS all the time.", ""]
        lines += [overhead_table(base, result.load, result.overhead), ""]
    if result.slow_host is not None:
        lines += ["## A slow host", "", "LS all the time; nobody stays on the device.", ""]
        lines += [slow_host_table(result.slow_host), ""]
    if result.binding:
        lines += ["## Binding points", "", binding_table(result.binding), ""]
    return lines


def prefill_table(result: FrameResult) -> str:
    """Seconds of one prompt."""
    return table(
        ["prompt", "computed on an idle device, s", "beside LS, s", "LS TPOT p99 meanwhile, ms"],
        [
            [
                f"{context:,}",
                f"{prefill.alone_s:.2f}",
                f"{prefill.beside_ls_s:.2f}",
                f"{prefill.ls_tpot_s * 1e3:.1f}",
            ]
            for context, prefill in result.prefill.items()
        ],
    )


def _cores(cores: tuple[int, ...]) -> str:
    return ", ".join(map(str, cores))

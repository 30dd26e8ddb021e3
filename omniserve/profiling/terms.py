"""A profile as tables of texts, the same for the terminal and the page."""

from collections.abc import Sequence
from statistics import median

from omniserve.bench.report.rows import TextTable
from omniserve.charts.text import NOTHING
from omniserve.profiling.accuracy import Accuracy, accuracy_of
from omniserve.profiling.judged_steps import JudgedStep
from omniserve.profiling.profile import Profile
from scheduler.step_time import COST_NAMES, StepCosts

_US, _NS = ("us", 1e6), ("ns", 1e9)
_TERMS: dict[str, tuple[str, tuple[str, float]]] = {
    "overhead_s": ("planning, laying out and completing, a step", _US),
    "decode_row_s": ("decode attention, a row", _US),
    "decode_context_token_s": ("decode attention, a token of context", _NS),
    "prefill_step_s": ("prefill, a step with a chunk", _US),
    "prefill_chunk_s": ("prefill, a chunk", _US),
    "prefill_token_s": ("prefill, a token", _US),
    "prefill_pair_s": ("prefill attention, a pair of tokens", _NS),
    "prefill_context_token_s": ("prefill attention, a token of context", _NS),
    "sampled_row_s": ("LM head and sampler, a row", _US),
    "cold_step_s": ("caches that large steps filled, a step", _US),
    "lane_row_s": ("lane overhead, a row", _US),
}


def terms_table(profile: Profile) -> TextTable:
    """What a step takes, by what it computes."""
    alone, beside = profile.step_time.alone, profile.step_time.beside_host
    both = [alone] if beside is None else [alone, beside]
    headings = ("term", "unit", "all cores", "host active")[: 2 + len(both)]
    rows = [_term(name, both) for name in COST_NAMES]
    knots = [rung[0] for rung in alone.dense_ladder]
    rows += [
        [
            f"dense layers, {knot} {'row' if knot == 1 else 'rows'}",
            "ms",
            *(f"{costs.dense_s(knot) * 1e3:.3g}" for costs in both),
        ]
        for knot in knots
    ]
    return TextTable("What a step takes", headings, rows)


def host_lines(profile: Profile) -> list[str]:
    """Of the host and its copies, and of what it costs the device."""
    host = profile.host
    if host is None:
        return []
    lines = [
        f"host attention: {host.kv_bytes_per_s / 1e9:.2f} GB/s of KV, "
        f"{host.task_overhead_s * 1e6:.1f} us a row, {host.result_delay_s * 1e6:.0f} us delay",
        f"copies of KV to the host and back: {host.copy_bytes_per_s / 1e9:.2f} GB/s",
    ]
    slowdown = slowdown_of(profile)
    if slowdown is not None:
        lines.append(f"steps take {slowdown:.2f} times as long while the host is active (median)")
    return lines


def slowdown_of(profile: Profile) -> float | None:
    """By which factor steps of the measured shapes take longer while the host has its cores."""
    alone, beside = profile.step_time.alone, profile.step_time.beside_host
    shapes = [step.shape for step in (*profile.judged.alone, *profile.judged.beside_host)]
    if beside is None or not shapes:
        return None
    return median(beside.step_s(shape) / alone.step_s(shape) for shape in shapes)


def accuracy_table(profile: Profile) -> TextTable:
    """Of steps that the fit did not see and nobody disturbed."""
    judged = profile.judged
    kinds: tuple[tuple[str, Sequence[JudgedStep]], ...] = (
        ("host idle", judged.alone),
        ("host active, its cores left", judged.beside_host),
        ("host active, with its rows", judged.with_lanes),
    )
    rows = [
        [name, *_accuracy(accuracy)]
        for name, steps in kinds
        if (accuracy := accuracy_of(steps)) is not None
    ]
    headings = ("steps", "judged", "accuracy, average", "accuracy, p90")
    return TextTable("1 - |error| / real of steps that were not fitted to", headings, rows)


def facts(profile: Profile) -> dict[str, str]:
    """What it was measured on."""
    on = profile.measured_on
    if on is None:
        return {"device": profile.device}
    return {
        "model": profile.model,
        "device": on.device,
        "processor": f"{on.cpu}, {on.num_cores} cores, {on.vector_path}",
        "number format": on.dtype,
        "host attention": f"{on.host_attention_threads or 'no'} threads",
        "block": f"{on.block_size} tokens",
        "most in a step": f"{on.max_step_tokens} tokens, {on.max_running_requests} requests",
        "versions": f"omniserve {on.omniserve}, torch {on.torch}",
        "measured": f"{profile.measured_at or NOTHING} ({profile.effort or 'by hand'})",
    }


def _term(name: str, both: Sequence[StepCosts]) -> list[str]:
    words, (unit, factor) = _TERMS.get(name, (name.removesuffix("_s").replace("_", " "), _US))
    return [words, unit, *(f"{getattr(costs, name) * factor:.3g}" for costs in both)]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def _accuracy(accuracy: Accuracy) -> list[str]:
    return [str(accuracy.num_steps), f"{accuracy.mean:.1%}", f"{accuracy.p90:.1%}"]

"""A profile as one HTML page: what was predicted and what was measured, and the terms."""

from collections.abc import Sequence
from pathlib import Path

from omniserve.atomic_file import write_text
from omniserve.bench.report.rows import TextTable
from omniserve.charts.axes import Axis, linear_axis, log_axis
from omniserve.charts.page import (
    PALETTE,
    Card,
    cards,
    figure,
    figures,
    header,
    legend,
    page,
    paragraphs,
    section,
    table,
)
from omniserve.charts.svg import Point, Series, line_chart
from omniserve.profiling.accuracy import accuracy_of
from omniserve.profiling.judged_steps import JudgedStep
from omniserve.profiling.profile import Profile
from omniserve.profiling.terms import accuracy_table, facts, host_lines, slowdown_of, terms_table
from scheduler.step_time import StepCosts

_KINDS = ("decodes", "prompts", "both", "with rows from the host")
_METHOD = (
    "Every fourth kind of load was kept from the fit; its steps are the ones that are shown, where "
    "others left the cores alone: each is the median of its undisturbed runs. Steps with rows "
    "from the host are single ones. Accuracy is 1 - |predicted - measured| / measured, its p90 "
    "what nine steps of ten reach."
)


def write_profile_page(profile: Profile, path: Path) -> None:
    """Replaces the file at once; raises OSError."""
    write_text(path, render_profile_page(profile))


def render_profile_page(profile: Profile) -> str:
    """The whole page, well-formed XML that needs nothing else."""
    title = f"Step times of {profile.model}"
    known = facts(profile)
    body = [
        header(title, [profile.device, profile.measured_at][: 2 if profile.measured_at else 1]),
        cards(_cards(profile)),
        _predictions(profile),
        _staircases(profile),
        _table(accuracy_table(profile)),
        _table(terms_table(profile)),
        section("The host", paragraphs(host_lines(profile))) if profile.host else "",
        section("Warnings", paragraphs(profile.warnings)) if profile.warnings else "",
        section(
            "How it was measured",
            paragraphs([_METHOD]) + table(("fact", "value"), [[*each] for each in known.items()]),
        ),
    ]
    return page(title, "\n".join(body))


def _cards(profile: Profile) -> list[Card]:
    judged = profile.judged
    shown = []
    for name, steps in (
        ("host idle", judged.alone),
        ("host active", (*judged.beside_host, *judged.with_lanes)),
    ):
        accuracy = accuracy_of(steps)
        if accuracy is not None:
            note = f"p90 {accuracy.p90:.1%}, of {accuracy.num_steps} steps"
            shown.append(Card(f"accuracy, {name}", f"{accuracy.mean:.1%}", note))
    slowdown = slowdown_of(profile)
    if slowdown is not None:
        shown.append(Card("steps while the host is active", f"{slowdown:.2f}x", "median"))
    return shown


def _table(shown: TextTable) -> str:
    return section(shown.title, table(shown.headings, shown.rows)) if shown.rows else ""


def _predictions(profile: Profile) -> str:
    judged = profile.judged
    parts = [
        figure(title, "milliseconds a step; on the line, both are the same", chart)
        for title, steps in (
            ("Host idle", judged.alone),
            ("Host active", (*judged.beside_host, *judged.with_lanes)),
        )
        if (chart := _scatter(title, steps))
    ]
    if not parts:
        return ""
    keys = list(zip(_KINDS, PALETTE, strict=False))
    return section("Predicted and measured", legend(keys) + figures(parts))


def _scatter(title: str, steps: Sequence[JudgedStep]) -> str:
    if not steps:
        return ""
    times_ms = [1e3 * each for step in steps for each in (step.seconds, step.predicted_s)]
    x, y = log_axis("measured, ms", times_ms), log_axis("predicted, ms", times_ms)
    same = Series("the same", "var(--faint)", [(x.low, x.low), (x.high, x.high)], "dashed line")
    series = [
        Series(kind, colour, _points(steps, kind), "dots")
        for kind, colour in zip(_KINDS, PALETTE, strict=False)
    ]
    return line_chart(title, x, y, [same, *series])


def _points(steps: Sequence[JudgedStep], kind: str) -> list[Point]:
    mine = (step for step in steps if _kind(step) == kind)
    return sorted((1e3 * step.seconds, 1e3 * step.predicted_s) for step in mine)


def _kind(step: JudgedStep) -> str:
    shape = step.shape
    if shape.num_lane_rows:
        return _KINDS[3]
    if not shape.num_prefill_tokens:
        return _KINDS[0]
    return _KINDS[2] if shape.num_decode_rows else _KINDS[1]


def _staircases(profile: Profile) -> str:
    step_time, judged = profile.step_time, profile.judged
    parts = [_staircase("All cores", step_time.alone, judged.alone)]
    if step_time.beside_host is not None:
        parts.append(
            _staircase("Host active", step_time.beside_host, judged.beside_host),
        )
    return section("Dense layers", figures(parts))


def _staircase(title: str, costs: StepCosts, steps: Sequence[JudgedStep]) -> str:
    ladder = [(float(rows), 1e3 * seconds) for rows, seconds in costs.dense_ladder]
    measured = sorted((_num_rows(step), 1e3 * _dense_s(step, costs)) for step in steps)
    x = log_axis("rows of the step", [rows for rows, _ in (*ladder, *measured)])
    y = linear_axis("ms", max(each for _, each in (*ladder, *measured)))
    series = [
        Series("the staircase", PALETTE[0], _drawn(costs, x), "line"),
        Series("measured", PALETTE[1], measured, "dots"),
    ]
    caption = "milliseconds by rows of the step; dots: measured steps less their other terms"
    return figure(title, caption, line_chart(title, x, y, series))


def _drawn(costs: StepCosts, x: Axis) -> list[Point]:
    """On an axis of logarithms the lines between its steps are bent."""
    most = costs.dense_ladder[-1][0]
    num_points = 120
    rows = [x.low * (most / x.low) ** (at / num_points) for at in range(num_points + 1)]
    return [(each, 1e3 * costs.dense_s(each)) for each in rows]


def _num_rows(step: JudgedStep) -> float:
    shape = step.shape
    return shape.num_decode_rows + shape.num_prefill_tokens + shape.num_lane_rows


def _dense_s(step: JudgedStep, costs: StepCosts) -> float:
    """What was measured, less what the other terms say."""
    return max(0.0, step.seconds - costs.step_s(step.shape) + costs.dense_s(_num_rows(step)))

"""Attainment of each contender, and what every slice of a window did to latencies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omniserve.bench.colocate.contenders import CONTROL, LS_ALONE, NO_ADMISSION, NO_CONTROL, TITLES
from omniserve.bench.colocate.control.comparison import ControlResult
from omniserve.bench.colocate.control.figures import (
    SLICE_PERCENT,
    ControlCell,
    Share,
    SliceFigures,
    Weight,
    pooled,
)
from omniserve.bench.colocate.figures import Cell
from omniserve.charts.axes import Axis, linear_axis, log_axis, time_axis
from omniserve.charts.page import PALETTE
from omniserve.charts.picture import Panel, picture
from omniserve.charts.svg import Level, Mark, Point, Series, line_chart, steps

_COLOURS = dict(zip((LS_ALONE, CONTROL, NO_CONTROL, NO_ADMISSION), PALETTE, strict=False))
_RATE_COLOUR = PALETTE[7]
_TIME = "s of measured time, round after round"
Value = Callable[[SliceFigures], float | None]
Attainment = tuple[Share, Weight]
_JOINT: Attainment = (lambda each: each.ls_joint, lambda each: each.num_ls)
_TTFT: Attainment = (lambda each: each.ls_ttft_share, lambda each: each.num_ls)
_TTFT_OF_TAKEN: Attainment = (
    lambda each: each.ls_ttft_share_of_taken,
    lambda each: each.num_taken,
)


def control_colour_keys(results: Sequence[ControlResult]) -> list[tuple[str, str]]:
    """Titles and colours of the contenders that were measured."""
    keys = dict.fromkeys(each.cell.contender for result in results for each in result.cells)
    return [(TITLES[key], _COLOURS[key]) for key in keys]


@dataclass(frozen=True, slots=True)
class Chart:
    """Markup of a chart, and what is to be said of it."""

    title: str
    caption: str
    chart: str


def control_picture(results: Sequence[ControlResult]) -> str:
    """Of all loads: attainment, and latencies by slice where the rate moves."""
    panels = [
        Panel(f"{each.title} ({result.load.name})", each.chart)
        for result in results
        for each in [*_totals(result), *(_by_slice(result) if _moves(result) else [])]
    ]
    return picture(control_colour_keys(results), panels)


def control_charts(result: ControlResult) -> list[Chart]:
    """Of one load, all there are."""
    return [*_totals(result), *_by_slice(result)]


def _totals(result: ControlResult) -> list[Chart]:
    charts = [_attainment_chart(result, "LS requests within both objectives, of all sent", _JOINT)]
    if result.load.name != "overload":
        return [*charts, _best_effort_chart(result)]
    return [
        *charts,
        _attainment_chart(result, "First tokens in time, of the requests taken", _TTFT_OF_TAKEN),
        _attainment_chart(result, "First tokens in time, of all sent", _TTFT),
    ]


def _by_slice(result: ControlResult) -> list[Chart]:
    objectives, which = result.conditions.objectives, f"p{SLICE_PERCENT} of a slice's requests"
    return [
        *([_rate_chart(result)] if _moves(result) else []),
        _latency_chart(result, f"TTFT, {which}", lambda each: each.ttft_p90_ms, objectives.ttft_ms),
        _latency_chart(result, f"TPOT, {which}", lambda each: each.tpot_p90_ms, objectives.tpot_ms),
    ]


def _moves(result: ControlResult) -> bool:
    return result.load.low != result.load.high


def _attainment_chart(result: ControlResult, title: str, attainment: Attainment) -> Chart:
    """A dot a contender, with the lowest and the highest round."""
    share, weight = attainment

    def percent(cell: Cell) -> tuple[float, float, float] | None:
        value, spread = pooled(cell, share, weight), cell.spread(share)
        if value is None or spread is None:
            return None
        return 100 * value, 100 * spread.low, 100 * spread.high

    caption = "All rounds together, with the lowest and the highest round."
    return _side_by_side(result, title, caption, linear_axis("%", 100.0), percent)


def _best_effort_chart(result: ControlResult) -> Chart:
    """A dot a contender that serves it."""

    def tokens(cell: Cell) -> tuple[float, float, float] | None:
        spread = cell.spread(lambda each: each.be_tokens_per_s)
        if spread is None or cell.contender == LS_ALONE:
            return None
        return spread.median, spread.low, spread.high

    most = max((found[2] for each in result.cells if (found := tokens(each.cell))), default=1.0)
    return _side_by_side(
        result,
        "Best-effort tokens per second",
        "Medians over rounds, with the lowest and the highest.",
        linear_axis("tokens/s", most),
        tokens,
    )


def _rate_chart(result: ControlResult) -> Chart:
    """The rate that was drawn for each slice, the same for every contender."""
    slices = _laid_out(result.cells[0])
    end_s = slices[-1][1]
    line = Series(
        "rate", _RATE_COLOUR, steps([(start_s, each.rate) for start_s, _, each in slices], end_s)
    )
    base = result.conditions.base_rate(result.load)
    chart = line_chart(
        "LS requests per second",
        time_axis(_TIME, end_s),
        linear_axis("requests/s", max(base, *(each.rate for _, _, each in slices))),
        [line],
        _round_marks(result),
        [Level(base, f"{result.load.base} {base:g}/s")],
    )
    return Chart("LS requests per second", "As drawn for each slice; the same for all.", chart)


def _latency_chart(result: ControlResult, title: str, value: Value, objective_ms: float) -> Chart:
    drawn = []
    for each in result.cells:
        points: list[Point] = [
            ((start_s + end_s) / 2, found)
            for start_s, end_s, part in _laid_out(each)
            if (found := value(part)) is not None
        ]
        key = each.cell.contender
        drawn.append(Series(TITLES[key], _COLOURS[key], points, "line with dots"))
    chart = line_chart(
        title,
        time_axis(_TIME, _laid_out(result.cells[0])[-1][1]),
        log_axis("ms", [objective_ms, *(at_ms for each in drawn for _, at_ms in each.points)]),
        drawn,
        _round_marks(result),
        [Level(objective_ms, f"objective {objective_ms:.4g} ms")],
    )
    return Chart(title, "Milliseconds, on a logarithmic scale; refused requests have none.", chart)


def _side_by_side(
    result: ControlResult,
    title: str,
    caption: str,
    y: Axis,
    of: Callable[[Cell], tuple[float, float, float] | None],
) -> Chart:
    """Value, lowest and highest of each contender, in the order of the legend."""
    drawn = []
    for place, each in enumerate(result.cells, start=1):
        found = of(each.cell)
        if found is not None:
            value, low, high = found
            key = each.cell.contender
            drawn.append(
                Series(
                    TITLES[key],
                    _COLOURS[key],
                    [(place, value)],
                    "line with dots",
                    [(place, low, high)],
                )
            )
    num = len(result.cells)
    x = Axis("contender, in the order above", 0.0, num + 1.0, tuple(range(1, num + 1)))
    return Chart(title, caption, line_chart(title, x, y, drawn))


def _laid_out(cell: ControlCell) -> list[tuple[float, float, SliceFigures]]:
    """Begin, end and figures of every slice, all rounds one after the other."""
    placed, begin_s = [], 0.0
    for window in cell.slices:
        placed += [(begin_s + each.start_s, begin_s + each.end_s, each) for each in window]
        begin_s = placed[-1][1]
    return placed


def _round_marks(result: ControlResult) -> list[Mark]:
    begin_s, marks = 0.0, []
    for index, window in enumerate(result.cells[0].slices, start=1):
        marks.append(Mark(begin_s, f"round {index}"))
        begin_s += window[-1].end_s
    return marks

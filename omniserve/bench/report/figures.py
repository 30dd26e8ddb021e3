"""Kinds of figures that reports of one run and of several are made of. A figure that would show
nothing is an empty string."""

from collections.abc import Iterable, Sequence

from omniserve.bench.report.run_summary import Point
from omniserve.charts.axes import linear_axis, log_axis, time_axis
from omniserve.charts.page import figure
from omniserve.charts.svg import Level, Mark, Series, line_chart, stacked_chart

_TIME = "s since the start"


def by_bin(values: Sequence[float | None], bin_s: float, duration_s: float) -> list[Point]:
    """Each value in the middle of its bin; bins without one are left out."""
    points = []
    for place, value in enumerate(values):
        if value is not None:
            points.append(((place * bin_s + min((place + 1) * bin_s, duration_s)) / 2, value))
    return points


def distribution_figure(
    title: str, label: str, series: Iterable[Series], objectives_ms: Iterable[float | None] = ()
) -> str:
    """Shares at or below x, of curves whose shares are 0 to 1."""
    drawn = [
        Series(each.name, each.colour, [(at, 100 * share) for at, share in each.points])
        for each in series
        if each.points
    ]
    if not drawn:
        return ""
    goals = sorted({goal for goal in objectives_ms if goal is not None})
    x = log_axis(label, [*_x_values(drawn), *goals])
    marks = [Mark(goal, f"objective {goal:.4g} ms") for goal in goals]
    chart = line_chart(title, x, linear_axis("%", 100), drawn, marks)
    return figure(title, "share that needed at most x, in %", chart)


def latency_figure(
    title: str,
    caption: str,
    series: Iterable[Series],
    duration_s: float,
    objectives_ms: Iterable[float | None] = (),
) -> str:
    """Milliseconds over the seconds of the run, on a logarithmic scale."""
    drawn = [each for each in series if each.points]
    if not drawn:
        return ""
    goals = sorted({goal for goal in objectives_ms if goal is not None})
    y = log_axis("ms", [*_y_values(drawn), *goals])
    levels = [Level(goal, f"objective {goal:.4g} ms") for goal in goals]
    chart = line_chart(title, time_axis(_TIME, duration_s), y, drawn, levels=levels)
    return figure(title, caption, chart)


def amount_figure(
    title: str, caption: str, series: Iterable[Series], duration_s: float, least_top: float = 0.0
) -> str:
    """Amounts over the seconds of the run; the scale begins at 0 and reaches `least_top`."""
    drawn = [each for each in series if each.points]
    if not drawn:
        return ""
    y = linear_axis("", max(least_top, *_y_values(drawn), 0.0))
    return figure(title, caption, line_chart(title, time_axis(_TIME, duration_s), y, drawn))


def stacked_figure(title: str, caption: str, series: Sequence[Series], duration_s: float) -> str:
    """As `amount_figure`, one amount on the other; the series share their times."""
    if not any(each.points for each in series):
        return ""
    # A bin stands for its whole width, so the picture has to reach from edge to edge.
    wide = [
        Series(
            each.name,
            each.colour,
            [(0.0, each.points[0][1]), *each.points, (duration_s, each.points[-1][1])],
        )
        for each in series
    ]
    columns = zip(*(each.points for each in wide), strict=True)
    top = max(sum(value for _, value in column) for column in columns)
    chart = stacked_chart(title, time_axis(_TIME, duration_s), linear_axis("", top), wide)
    return figure(title, caption, chart)


def _x_values(series: Iterable[Series]) -> list[float]:
    return [at for each in series for at, _ in each.points]


def _y_values(series: Iterable[Series]) -> list[float]:
    return [value for each in series for _, value in each.points]

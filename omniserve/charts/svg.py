"""Small charts as SVG text. Colours are CSS variables of the page that holds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from omniserve.charts.axes import Axis

WIDTH, HEIGHT = 560, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 22, 24, 40

Point = tuple[float, float]
Look = Literal["line", "dashed line", "dots", "line with dots"]


@dataclass(frozen=True, slots=True)
class Series:
    """Points in order of x; `colour` is a CSS colour."""

    name: str
    colour: str
    points: Sequence[Point]
    look: Look = "line"
    spreads: Sequence[tuple[float, float, float]] = ()
    """Upright bars (x, low, high), such as the least and the most of several runs."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line, such as an objective."""

    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line, such as an objective."""

    y: float
    label: str


def line_chart(
    title: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    marks: Sequence[Mark] = (),
    levels: Sequence[Level] = (),
) -> str:
    """Each series in its look, the later ones above the earlier; marks and levels on top."""
    drawn = [part for each in series for part in _series(x, y, each)]
    return _frame(title, x, y, [*drawn, *_marks(x, marks), *_levels(y, levels)])


def stacked_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """Areas on top of each other, the first one lowest; all series share their x values."""
    areas = []
    base: list[Point] = [(at, 0.0) for at, _ in series[0].points] if series else []
    for each in series:
        top = [(at, low + value) for (at, low), (_, value) in zip(base, each.points, strict=True)]
        outline = _path(x, y, [*top, *reversed(base)])
        areas.append(f'<polygon class="area" style="fill:{each.colour}" points="{outline}"/>')
        base = top
    return _frame(title, x, y, areas)


def steps(points: Sequence[Point], until: float) -> list[Point]:
    """Corners of a line that keeps each value until the next point."""
    corners: list[Point] = []
    for at, value in points:
        if corners:
            corners.append((at, corners[-1][1]))
        corners.append((at, value))
    if corners and corners[-1][0] < until:
        corners.append((until, corners[-1][1]))
    return corners


def _frame(title: str, x: Axis, y: Axis, content: Sequence[str]) -> str:
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f"aria-label={quoteattr(title)}>"
    ]
    for tick in y.ticks:
        at = _y(y, tick)
        parts.append(_line("grid", _LEFT, at, WIDTH - _RIGHT, at))
        parts.append(_text("end", _LEFT - 7, at + 4, _number(tick)))
    for tick in x.ticks:
        at = _x(x, tick)
        parts.append(_line("tick", at, HEIGHT - _BOTTOM, at, HEIGHT - _BOTTOM + 4))
        parts.append(_text("middle", at, HEIGHT - _BOTTOM + 17, _number(tick)))
    parts += content
    parts.append(_line("axis", _LEFT, HEIGHT - _BOTTOM, WIDTH - _RIGHT, HEIGHT - _BOTTOM))
    parts.append(_text("middle", (_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, x.label))
    parts.append("</svg>")
    return "\n".join(parts)


def _series(x: Axis, y: Axis, series: Series) -> list[str]:
    if not series.points:
        return []
    colour = f'style="stroke:{series.colour}"'
    parts = [
        _line("spread", _x(x, at), _y(y, low), _x(x, at), _y(y, high), colour)
        for at, low, high in series.spreads
    ]
    if series.look != "dots":
        kind = "line dashed" if series.look == "dashed line" else "line"
        parts.append(f'<polyline class="{kind}" {colour} points="{_path(x, y, series.points)}"/>')
    if series.look in ("dots", "line with dots"):
        # One path of strokes without length, drawn with round ends, is far shorter than circles.
        dots = "".join(f"M{_x(x, at):.1f},{_y(y, value):.1f}h0" for at, value in series.points)
        kind = "dots" if series.look == "dots" else "dots large"
        parts.append(f'<path class="{kind}" {colour} d="{dots}"/>')
    return parts


def _marks(x: Axis, marks: Sequence[Mark]) -> list[str]:
    parts = []
    for mark in marks:
        at = _x(x, mark.x)
        parts.append(_line("mark", at, _TOP - 4, at, HEIGHT - _BOTTOM))
        # Above the plot no line can run through it; near an edge it leans inwards.
        anchor = "end" if at > 0.8 * WIDTH else "start" if at < 0.2 * WIDTH else "middle"
        parts.append(_text(anchor, at, _TOP - 9, mark.label, "mark-label"))
    return parts


def _levels(y: Axis, levels: Sequence[Level]) -> list[str]:
    parts = []
    for level in levels:
        at = _y(y, level.y)
        parts.append(_line("mark", _LEFT, at, WIDTH - _RIGHT, at))
        parts.append(_text("end", WIDTH - _RIGHT - 4, at - 5, level.label, "mark-label"))
    return parts


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - _BOTTOM - axis.place(value) * (HEIGHT - _TOP - _BOTTOM)


def _path(x: Axis, y: Axis, points: Sequence[Point]) -> str:
    return " ".join(f"{_x(x, at):.1f},{_y(y, value):.1f}" for at, value in points)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float, more: str = "") -> str:
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line class="{kind}" {place} {more}/>'


def _text(anchor: str, x: float, y: float, text: str, kind: str = "label") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.6g}"

"""Small charts as SVG text. Colours are CSS variables of the page that holds them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

WIDTH, HEIGHT = 560, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 22, 24, 40
_MAX_TICKS = 8

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """Points in order of x; `colour` is a CSS colour."""

    name: str
    colour: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line, such as an objective."""

    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values and where to write them."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where a value stands, 0 at the low end and 1 at the high end."""
        if self.is_log:
            low, high = math.log10(self.low), math.log10(self.high)
            return (math.log10(max(value, self.low)) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)


def linear_axis(label: str, high: float, low: float = 0.0) -> Axis:
    """Up to the first round number at or above `high`."""
    high = max(high, low + 1e-9)
    step = _round_step((high - low) / (_MAX_TICKS - 2))
    num_steps = math.ceil((high - low) / step - 1e-9)
    ticks = tuple(low + step * index for index in range(num_steps + 1))
    return Axis(label, low, ticks[-1], ticks)


def time_axis(label: str, high: float) -> Axis:
    """Ends exactly at `high`, with ticks at round numbers below it."""
    rounded = linear_axis(label, high)
    return Axis(label, 0.0, high, tuple(tick for tick in rounded.ticks if tick <= high))


def log_axis(label: str, values: Sequence[float]) -> Axis:
    """From the first number of 1, 2, 5, 10 … at or below all values to the first one above."""
    positive = [value for value in values if value > 0] or [1.0, 10.0]
    # A decade more than needed: the logarithm of a number just below a power of ten may be whole.
    first = math.floor(math.log10(min(positive))) - 1
    last = math.ceil(math.log10(max(positive))) + 1
    steps = [digit * 10.0**power for power in range(first, last) for digit in (1, 2, 5)]
    low = max(step for step in steps if step <= min(positive))
    high = min(step for step in [*steps, 10.0**last] if step > max(positive))
    ticks = tuple(step for step in steps if low <= step <= high)
    if len(ticks) > _MAX_TICKS:
        ticks = tuple(tick for tick in ticks if tick in steps[::3])
    return Axis(label, low, high, ticks, is_log=True)


def line_chart(
    title: str, x: Axis, y: Axis, series: Sequence[Series], marks: Sequence[Mark] = ()
) -> str:
    """One line per series."""
    lines = [
        f'<polyline class="line" style="stroke:{each.colour}" points="{_path(x, y, each.points)}"/>'
        for each in series
        if each.points
    ]
    return _frame(title, x, y, [*lines, *_marks(x, marks)])


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


def _marks(x: Axis, marks: Sequence[Mark]) -> list[str]:
    parts = []
    for mark in marks:
        at = _x(x, mark.x)
        parts.append(_line("mark", at, _TOP - 4, at, HEIGHT - _BOTTOM))
        # Above the plot no line can run through it; near an edge it leans inwards.
        anchor = "end" if at > 0.8 * WIDTH else "start" if at < 0.2 * WIDTH else "middle"
        parts.append(_text(anchor, at, _TOP - 9, mark.label, "mark-label"))
    return parts


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - _BOTTOM - axis.place(value) * (HEIGHT - _TOP - _BOTTOM)


def _path(x: Axis, y: Axis, points: Sequence[Point]) -> str:
    return " ".join(f"{_x(x, at):.1f},{_y(y, value):.1f}" for at, value in points)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(anchor: str, x: float, y: float, text: str, kind: str = "label") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.6g}"


def _round_step(step: float) -> float:
    """The first of 1, 2, 5, 10 … times a power of ten at or above `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * 0.9999)

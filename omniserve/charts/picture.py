"""Charts as a picture of their own, for documents that can show no page."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from omniserve.charts.style import STYLE
from omniserve.charts.svg import HEIGHT, WIDTH

_COLUMNS, _GAP, _HEAD, _TITLE = 2, 20, 44, 26
_KEY_WIDTH = 22
_LETTER = 7.6
"""Width of a letter of the legend, about."""
_RULES = """.chart text{font-size:12px;fill:var(--faint)}.chart .mark-label{fill:var(--ink)}
.grid{stroke:var(--rule)}.axis,.tick{stroke:var(--faint)}
.mark{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:4 4}
.line{fill:none;stroke-width:2.2;stroke-linejoin:round}
.dashed{stroke-width:1.6;stroke-dasharray:5 4}
.dots{fill:none;stroke-width:3;stroke-linecap:round;opacity:.45}
.dots.large{stroke-width:7.5;opacity:1}.spread{stroke-width:1.6}.area{opacity:.88}"""


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart with what stands above it."""

    title: str
    chart: str
    """Markup of `omniserve.charts.svg`."""


def picture(keys: Sequence[tuple[str, str]], panels: Sequence[Panel]) -> str:
    """A document; two panels a row under a legend of names and CSS colours, on white."""
    num_rows = -(-len(panels) // _COLUMNS)
    width = _COLUMNS * WIDTH + (_COLUMNS + 1) * _GAP
    height = _HEAD + num_rows * (HEIGHT + _TITLE + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f"<style>{_RULES}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *_legend(keys),
        *(part for place, panel in enumerate(panels) for part in _placed(place, panel)),
        "</svg>",
    ]
    return _with_colours("\n".join(parts)) + "\n"


def _legend(keys: Sequence[tuple[str, str]]) -> list[str]:
    parts, at = [], float(_GAP)
    for name, colour in keys:
        parts.append(f'<rect x="{at:.0f}" y="14" width="12" height="12" rx="3" fill="{colour}"/>')
        parts.append(f'<text x="{at + 18:.0f}" y="25" font-size="14">{escape(name)}</text>')
        at += 18 + _KEY_WIDTH + _LETTER * len(name)
    return parts


def _placed(place: int, panel: Panel) -> list[str]:
    x = _GAP + place % _COLUMNS * (WIDTH + _GAP)
    y = _HEAD + place // _COLUMNS * (HEIGHT + _TITLE + _GAP)
    return [
        f'<text x="{x}" y="{y + 14}" font-size="15" font-weight="600" fill="var(--ink)">'
        f"{escape(panel.title)}</text>",
        f'<svg x="{x}" y="{y + _TITLE}" width="{WIDTH}" height="{HEIGHT}">',
        panel.chart,
        "</svg>",
    ]


def _with_colours(text: str) -> str:
    """Variables replaced by their values in light surroundings: not every viewer knows them."""
    light = STYLE.split("@media", 1)[0]
    values = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", light))
    return re.sub(r"var\(--([\w-]+)\)", lambda found: values[found[1]], text)

"""The frame of a page and its building blocks; all texts are escaped unless said otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from omniserve.charts.style import STYLE

COLOURS = {
    "latency_sensitive": "var(--fast)",
    "best_effort": "var(--slow)",
    "kv": "var(--kv)",
}
"""By service class; the page defines them for light and for dark surroundings."""

PALETTE = tuple(f"var(--s{place})" for place in range(1, 9))
"""For things that are of no service class, such as systems that are compared."""

Verdict = Literal["", "good", "bad"]


@dataclass(frozen=True, slots=True)
class Card:
    """One number that is to be seen first."""

    title: str
    value: str
    note: str = ""
    verdict: Verdict = ""


def page(title: str, body: str) -> str:
    """A whole document; `body` is markup. It is HTML and well-formed XML at once."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def header(title: str, facts: Sequence[str]) -> str:
    """The head of the page, with a line of facts under it."""
    line = " · ".join(escape(fact) for fact in facts)
    return f'<header><h1>{escape(title)}</h1><p class="facts">{line}</p></header>'


def cards(shown: Sequence[Card]) -> str:
    parts = [
        f'<div class="{f"card {card.verdict}".strip()}"><h3>{escape(card.title)}</h3>'
        f'<p class="value">{escape(card.value)}</p><p class="note">{escape(card.note)}</p></div>'
        for card in shown
    ]
    return f'<div class="cards">{"".join(parts)}</div>'


def paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"<p>{escape(text)}</p>" for text in texts)


def legend(keys: Sequence[tuple[str, str]]) -> str:
    """Names, each with its CSS colour."""
    parts = [
        f'<span class="key" style="--key:{colour}">{escape(name)}</span>' for name, colour in keys
    ]
    return f'<p class="legend">{"".join(parts)}</p>'


def section(title: str, content: str) -> str:
    """`content` is markup."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def figures(parts: Sequence[str]) -> str:
    """What `figure` made, side by side where the page is wide enough."""
    return f'<div class="figures">{"".join(parts)}</div>'


def figure(title: str, caption: str, chart: str) -> str:
    """`chart` is markup."""
    return (
        f"<figure><h3>{escape(title)}</h3><figcaption>{escape(caption)}</figcaption>"
        f"{chart}</figure>"
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of numbers and placeholders stand to the right, all others to the left."""
    columns = list(zip(*rows, strict=True)) or [()] * len(headings)
    kinds = ["" if all(map(_is_number, column)) else ' class="text"' for column in columns]
    head = _cells("th", headings, kinds)
    body = "".join(f"<tr>{_cells('td', row, kinds)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cells(tag: str, texts: Sequence[str], kinds: Sequence[str]) -> str:
    return "".join(
        f"<{tag}{kind}>{escape(text)}</{tag}>" for text, kind in zip(texts, kinds, strict=True)
    )


def _is_number(text: str) -> bool:
    return text.lstrip("+-")[:1].isdigit() or text == "-"

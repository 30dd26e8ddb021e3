"""The frame of the report page: its style, light and dark, and its building blocks."""

from collections.abc import Sequence
from html import escape

COLOURS = {
    "latency_sensitive": "var(--fast)",
    "best_effort": "var(--slow)",
    "kv": "var(--kv)",
}
"""By service class; the page defines them for light and for dark surroundings."""

_STYLE = """
:root { color-scheme: light dark; --paper: #f6f7f9; --panel: #ffffff; --ink: #1b2430;
  --faint: #5d6878; --rule: #dfe3e9; --fast: #1769d2; --slow: #d9820f; --kv: #7a52c7;
  --good: #177a45; --bad: #c0322b; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #11151b; --panel: #1a2029; --ink: #e6eaf0; --faint: #97a3b4;
    --rule: #2e3744; --fast: #62a8ff; --slow: #f0a63c; --kv: #b493f2; --good: #4cc585;
    --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 32px 24px 64px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 28px; margin: 0; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 36px 0 12px; }
h3 { font-size: 14px; margin: 0; font-weight: 600; }
.facts, .note, figcaption { color: var(--faint); margin: 4px 0 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 14px;
  margin-top: 24px; }
.card, figure, .scroll, pre { background: var(--panel); border: 1px solid var(--rule);
  border-radius: 10px; }
.card { padding: 14px 16px; }
.card h3 { color: var(--faint); font-weight: 500; }
.card .note { font-size: 13px; }
.value { font-size: 28px; font-weight: 650; margin: 2px 0 0; letter-spacing: -0.01em; }
.good .value { color: var(--good); }
.bad .value { color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 12px; text-align: right; white-space: nowrap; }
th { color: var(--faint); font-weight: 500; font-size: 13px; white-space: normal;
  vertical-align: bottom; }
tr + tr td { border-top: 1px solid var(--rule); }
thead th { border-bottom: 1px solid var(--rule); }
.text { text-align: left; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr));
  gap: 14px; }
figure { margin: 0; padding: 14px 16px 8px; }
figcaption { font-size: 13px; margin-top: 0; }
.legend { margin: 0 0 10px; }
.key { margin-right: 20px; }
.key::before { content: ""; display: inline-block; width: 12px; height: 12px; border-radius: 3px;
  background: var(--key); margin-right: 7px; vertical-align: -1px; }
.chart { display: block; width: 100%; height: auto; margin-top: 6px; }
.chart text { font-size: 12px; fill: var(--faint); font-variant-numeric: tabular-nums; }
.chart .mark-label { fill: var(--ink); }
.grid { stroke: var(--rule); stroke-width: 1; }
.axis, .tick { stroke: var(--faint); stroke-width: 1; }
.mark { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 4 4; }
.line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
.area { opacity: 0.88; }
pre { padding: 12px 14px; margin: 6px 0 18px; white-space: pre-wrap;
  overflow-wrap: anywhere;
  font: 13px/1.5 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
"""


def page(title: str, body: str) -> str:
    """A whole document; `body` is markup. It is HTML and well-formed XML at once."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def figure(title: str, caption: str, chart: str) -> str:
    return (
        f"<figure><h3>{escape(title)}</h3><figcaption>{escape(caption)}</figcaption>"
        f"{chart}</figure>"
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of numbers and placeholders stand to the right, all others to the left."""
    kinds = ["" if all(map(_is_number, column)) else ' class="text"' for column in _columns(rows)]
    head = _cells("th", headings, kinds)
    body = "".join(f"<tr>{_cells('td', row, kinds)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _columns(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return list(zip(*rows, strict=True))


def _cells(tag: str, texts: Sequence[str], kinds: Sequence[str]) -> str:
    return "".join(
        f"<{tag}{kind}>{escape(text)}</{tag}>" for text, kind in zip(texts, kinds, strict=True)
    )


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text == "-"

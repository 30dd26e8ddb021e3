"""Where commands print what people read."""

from rich.console import Console

PLAIN_WIDTH = 100

_KEPT = "\n\t"
_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(0x20), *range(0x7F, 0xA0))
    if chr(code) not in _KEPT
}


def make_console() -> Console:
    """Of stdout. A file or a pipe has no width of its own; its lines are not cut at a default."""
    console = Console(highlight=False)
    if not console.is_terminal:
        return Console(highlight=False, width=PLAIN_WIDTH)
    return console


def printable(text: str) -> str:
    """Text of others, for a terminal: without characters that would move its cursor or worse."""
    return text.translate(_CONTROLS)

"""Where commands print what people read."""

from rich.console import Console

PLAIN_WIDTH = 100


def make_console() -> Console:
    """Of stdout. A file or a pipe has no width of its own; its lines are not cut at a default."""
    console = Console(highlight=False)
    if not console.is_terminal:
        return Console(highlight=False, width=PLAIN_WIDTH)
    return console

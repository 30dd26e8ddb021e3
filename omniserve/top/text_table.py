"""Tables that fit a terminal as well as they can."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

Cell = str | Text


def text_table(headings: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """Columns without anything in them are left out.

    A heading that ends in > stands to the right with its column; where one ends in ~, the table
    is as wide as the terminal, and that column alone is cut.
    """
    table = Table(
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        header_style="dim",
        expand=any(heading.endswith("~") for heading in headings),
    )
    kept = [
        place for place in range(len(headings)) if not rows or any(str(row[place]) for row in rows)
    ]
    for place in kept:
        heading = headings[place]
        table.add_column(
            heading.rstrip(">~"),
            justify="right" if heading.endswith(">") else "left",
            ratio=1 if heading.endswith("~") else None,
            no_wrap=True,
        )
    for row in rows:
        table.add_row(*(row[place] for place in kept))
    return table

"""A summary in the terminal."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from omniserve.bench.report.rows import (
    TextTable,
    clock_table,
    generator_lines,
    latency_table,
    notes,
    objectives_table,
    outcome_table,
    server_lines,
)
from omniserve.bench.report.run_summary import RunSummary

_MAX_ERRORS = 5


def render(summary: RunSummary) -> RenderableType:
    """What `omniserve bench report` prints; 100 columns are enough."""
    parts: list[RenderableType] = [
        Text(f"{summary.title}: {summary.duration_s:g} s, {summary.target}", style="bold"),
        Text(),
    ]
    for table in (outcome_table(summary), objectives_table(summary), latency_table(summary)):
        parts += [draw(table), Text()] if table.rows else []
    parts += [Text(f"note: {note}", style="yellow") for note in notes(summary)]
    parts += [Text(line) for line in generator_lines(summary)]
    if summary.server is not None:
        parts += [Text(f"server: {line}") for line in server_lines(summary.server)]
    clocks = clock_table(summary)
    if clocks.rows:
        parts += [Text(), draw(clocks)]
    parts += _errors(summary)
    return Group(*parts)


def draw(table: TextTable) -> Table:
    """Words to the left and numbers to the right, headings in as many lines as they have words."""
    drawn = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, title=None
    )
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.headings)
    for heading, column in zip(table.headings, columns, strict=True):
        is_number = all(text[:1].isdigit() or text == "-" for text in column)
        drawn.add_column(
            heading.replace(" ", "\n"),
            justify="right" if is_number else "left",
            vertical="bottom",
            no_wrap=True,
        )
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    return drawn


def _errors(summary: RunSummary) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for stream in summary.streams:
        errors = list(stream.errors.items())
        lines += [
            Text(f"{stream.info.name}: {count}x: {error}", style="red")
            for error, count in errors[:_MAX_ERRORS]
        ]
        if len(errors) > _MAX_ERRORS:
            lines.append(Text(f"{stream.info.name}: {len(errors) - _MAX_ERRORS} other errors"))
    return lines

"""How far a command has come that does one thing after the other: bars, or lines in a file."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_LINE_EVERY = 0.25


class PhaseDisplay:
    """Redrawn where the console is a terminal; the context ends the drawing."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self._bars = Progress(*columns, console=console)
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, phase: str, done: float) -> None:
        """Of the phase, 0 to 1; a new one begins below the others."""
        if self._bars is not None:
            self._show_bar(self._bars, phase, done)
        elif done >= min(1.0, self._said.get(phase, -1.0) + _LINE_EVERY) and (
            self._said.get(phase, 0.0) < 1.0
        ):
            self._said[phase] = done
            self._console.print(f"{phase}: {done:.0%}", soft_wrap=True)

    def _show_bar(self, bars: Progress, phase: str, done: float) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = bars.add_task(phase, total=1.0)
        bars.update(self._tasks[phase], completed=done)

"""Generated text on its way to stdout."""

import sys

from omniserve.terminal import printable


class AnswerWriter:
    """Writes pieces at once. A pipe gets the text as it is, a terminal what is safe to show."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._is_line_open = False

    def write(self, piece: str) -> None:
        # First, as Ctrl-C may come while it is written.
        self._is_line_open = not piece.endswith("\n")
        sys.stdout.write(printable(piece) if self._is_terminal else piece)
        sys.stdout.flush()

    def end_line(self) -> None:
        """So that what comes next begins a line."""
        if self._is_line_open:
            self.write("\n")

"""Lines that somebody types into a chat, with those of earlier times at the arrow keys."""

import contextlib
import os
import readline
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

MAX_KEPT_LINES = 1000
_CONTINUED = "\\"


def history_path(environment: Mapping[str, str] = os.environ) -> Path | None:
    """In the user's own state; None for a user without a home directory."""
    place = environment.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(place) / "omniserve" / "chat_history" if os.path.isabs(place) else None


@contextmanager
def line_editing(words: Sequence[str], history: Path | None) -> Iterator[None]:
    """While it lasts, Tab completes `words`, and arrow keys show `history`, which grows."""

    def complete(text: str, place: int) -> str | None:
        found = [word for word in words if text and word.startswith(text)]
        return found[place] if place < len(found) else None

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")
    readline.clear_history()
    readline.set_history_length(MAX_KEPT_LINES)
    # A chat goes on without history where the file cannot be had.
    with contextlib.suppress(OSError):
        if history is not None:
            readline.read_history_file(history)
    num_old = readline.get_current_history_length()
    try:
        yield
    finally:
        readline.set_completer(None)
        num_new = readline.get_current_history_length() - num_old
        if history is not None and num_new > 0:
            with contextlib.suppress(OSError):
                _append(history, num_new)


def _append(history: Path, num_new: int) -> None:
    """To what others that ran at the same time have written."""
    history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What is typed may be confidential.
    history.touch(mode=0o600)
    readline.append_history_file(num_new, history)


def read_message(prompt: str) -> str:
    """A line, and further ones while each ends in a backslash. Raises EOFError."""
    lines = [input(prompt)]
    while lines[-1].endswith(_CONTINUED):
        lines[-1] = lines[-1].removesuffix(_CONTINUED)
        lines.append(input("." * (len(prompt) - 1) + " "))
    return "\n".join(lines)

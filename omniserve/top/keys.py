"""Keys that are pressed while something is shown."""

import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def watching_keys(keys: str, on_key: Callable[[], None]) -> Iterator[None]:
    """Calls `on_key` from another thread whenever one of these keys is pressed on the terminal.

    Nothing of what is typed meanwhile is shown.
    """
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    stop_reading, stop = os.pipe()
    reader = threading.Thread(
        target=_read, args=(terminal, stop_reading, keys, on_key), name="keys", daemon=True
    )
    try:
        tty.setcbreak(terminal)
        reader.start()
        yield
    finally:
        os.write(stop, b"\n")
        reader.join()
        for end in (stop_reading, stop):
            os.close(end)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _read(terminal: int, stop: int, keys: str, on_key: Callable[[], None]) -> None:
    while True:
        ready, _, _ = select.select([terminal, stop], [], [])
        if stop in ready:
            return
        typed = os.read(terminal, 64)
        if not typed:
            # The terminal is gone.
            on_key()
            return
        if any(key.encode() in typed for key in keys):
            on_key()

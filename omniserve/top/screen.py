"""The whole terminal, redrawn with every status."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from rich.console import Console
from rich.live import Live

from omniserve.errors import ConfigError, EngineUnavailable
from omniserve.top.keys import watching_keys
from omniserve.top.view import View
from omniserve.top.watch import StatusStream

QUIT_KEYS = "qQ"
_HINT = "q quits"
_RETRY_S = 1.0


class _Quit:
    """Whether the user has seen enough; ends the stream that is read."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._stream: StatusStream | None = None

    def ask(self) -> None:
        self._asked.set()
        if self._stream is not None:
            self._stream.end()

    def follow(self, stream: StatusStream) -> None:
        self._stream = stream
        if self._asked.is_set():
            stream.end()

    def is_asked(self, within_s: float = 0.0) -> bool:
        return self._asked.wait(within_s)


def watch_screen(
    connect: Callable[[], AbstractContextManager[StatusStream]], console: Console
) -> None:
    """Until q is pressed. A daemon that goes away is waited for.

    Raises OmniServeError where it does not answer at first, or answers something else.
    """
    view, stop = View(_HINT), _Quit()
    with watching_keys(QUIT_KEYS, stop.ask):
        # The first comes before the screen is taken: what is wrong with it stays readable.
        with connect() as stream:
            stop.follow(stream)
            first = next(iter(stream), None)
        if first is None:
            return
        with Live(console=console, screen=True, auto_refresh=False) as live:
            live.update(view.picture(first, console.height), refresh=True)
            while not stop.is_asked():
                try:
                    with connect() as stream:
                        stop.follow(stream)
                        for status in stream:
                            live.update(view.picture(status, console.height), refresh=True)
                except (EngineUnavailable, ConfigError) as error:
                    live.update(view.lost(str(error), console.height), refresh=True)
                    stop.is_asked(_RETRY_S)

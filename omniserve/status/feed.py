"""The newest status for everybody who watches, written once however many they are."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MAX_WATCHERS = 32


class TooManyWatchers(Exception):
    """No more can be taken on."""


class StatusFeed:
    """Nothing waits for a watcher: one that is slow misses what came meanwhile."""

    def __init__(self, write: Callable[[], bytes]) -> None:
        """`write` gives the status of now; it is called for somebody who watches only."""
        self._write = write
        self._written: bytes | None = None
        self._changed = asyncio.Event()
        self._num_watchers = 0
        self.is_closed = False

    def publish(self) -> None:
        """There is a new status."""
        self._written = None
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def close(self) -> None:
        """There will be no other; whoever watches is told so."""
        self.is_closed = True
        self.publish()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Counts one who watches; raises TooManyWatchers."""
        if self._num_watchers >= MAX_WATCHERS:
            raise TooManyWatchers
        self._num_watchers += 1
        try:
            yield
        finally:
            self._num_watchers -= 1

    @property
    def newest(self) -> bytes:
        if self._written is None:
            self._written = self._write()
        return self._written

    async def change(self) -> None:
        """Waits for the next one, or for the end."""
        if not self.is_closed:
            await self._changed.wait()

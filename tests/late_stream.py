"""A device stream on this CPU that does its work as late as a real one may."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class LateMark:
    is_reached: bool = False

    def query(self) -> bool:
        return self.is_reached


class LateStream:
    """Nothing is done before `advance` or `drain`."""

    def __init__(self) -> None:
        self._queued: deque[tuple[Callable[[], object], LateMark]] = deque()

    def enqueue(self, work: Callable[[], object]) -> LateMark:
        self._queued.append((work, LateMark()))
        return self._queued[-1][1]

    def advance(self) -> None:
        """Does the oldest work."""
        work, mark = self._queued.popleft()
        work()
        mark.is_reached = True

    def drain(self) -> None:
        while self._queued:
            self.advance()

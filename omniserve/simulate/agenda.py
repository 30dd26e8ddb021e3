"""What is to happen when: the heart of a discrete-event simulation."""

import heapq
from collections.abc import Callable

from omniserve.simulate.clock import Clock

_Act = Callable[[], None]


class Agenda:
    """Events in order of time; those of the same time in the order in which they were entered."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._events: list[tuple[float, int, _Act]] = []
        self._num_entered = 0

    def at(self, time_s: float, act: _Act) -> None:
        """Calls `act` when the clock has come to `time_s`."""
        heapq.heappush(self._events, (time_s, self._num_entered, act))
        self._num_entered += 1

    @property
    def next_s(self) -> float | None:
        """None where nothing is to happen any more."""
        return self._events[0][0] if self._events else None

    def pass_to(self, time_s: float) -> bool:
        """Sets the clock to `time_s` where nothing else is to happen before or then."""
        if self._events and self._events[0][0] <= time_s:
            return False
        self._clock.now_s = time_s
        return True

    def do_next(self) -> None:
        """Sets the clock to the next event, and lets it happen."""
        self._clock.now_s, _, act = heapq.heappop(self._events)
        act()

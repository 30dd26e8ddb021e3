"""Until when a simulated engine waits, and whether what arrives ends that."""

from collections.abc import Iterator
from math import inf

from omniserve.simulate.clock import Clock


class Waiting:
    """`until` waits as a generator does: it yields once where the time has not come yet."""

    def __init__(self, clock: Clock) -> None:
        self.wake_s = inf
        """When the engine wants to go on, unless something arrives before."""
        self.is_dozing = True
        """Whether whatever arrives wakes it."""
        self._clock = clock

    def until(self, time_s: float, *, dozing: bool = False) -> Iterator[None]:
        if time_s > self._clock.now_s:
            self.wake_s, self.is_dozing = time_s, dozing
            yield
            self.wake_s, self.is_dozing = inf, False

    def wake_by(self, time_s: float) -> None:
        """It goes on at this time at the latest."""
        self.wake_s = min(self.wake_s, time_s)

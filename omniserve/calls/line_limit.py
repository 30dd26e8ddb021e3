"""How many lines of one kind a log takes."""

import time
from collections.abc import Callable


class LineLimit:
    """Lets a burst of lines through, and then some each second; counts those that it leaves out."""

    def __init__(
        self, burst: int, per_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Times are on a clock that does not go back."""
        self._burst = burst
        self._per_s = per_s
        self._clock = clock
        self._left = float(burst)
        self._at_s = clock()
        self._num_left_out = 0

    def take(self) -> int | None:
        """None where the line is to be left out; else how many were since the last that was not."""
        now_s = self._clock()
        self._left = min(float(self._burst), self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        if self._left < 1:
            self._num_left_out += 1
            return None
        self._left -= 1
        num_left_out, self._num_left_out = self._num_left_out, 0
        return num_left_out

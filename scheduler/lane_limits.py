"""How many lane rows may join at each layer, in the time that a step has left for them."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Of one step."""

    max_rows: int
    """That may join at any one layer."""
    seconds: tuple[float, ...] = ()
    """What 0, 1, 2 ... `max_rows` rows at every layer add to the step; empty where nothing limits
    its time."""
    budget_s: float = inf
    """That all lane rows together may add."""

    @property
    def max_entries(self) -> int:
        """Requests that may enter: as many as could then pass every layer of a step like it."""
        if self.budget_s == inf:
            return self.max_rows
        return min(self.max_rows, max(1, bisect_right(self.seconds, self.budget_s) - 1))

    def most_s(self, num_rows: int) -> float:
        """What so many rows at every layer can add to the step; 0 where times are not known."""
        if not self.seconds:
            return 0.0
        return min(self.budget_s, self.seconds[min(num_rows, len(self.seconds) - 1)])


NO_LANES = LaneLimits(0)


class LaneAllowance:
    """Gives out a step's time for lane rows, from the lowest layer upward (OmniServe, 3.3.5).

    Rows at a layer take their part of what as many at every layer would take. Higher layers get
    what lower ones leave: rows move upward, so that nobody stays below for long.
    """

    def __init__(self, limits: LaneLimits, num_layers: int) -> None:
        self._limits = limits
        self._left_s = limits.budget_s * num_layers

    def grant(self, num_ready: Sequence[int]) -> list[int]:
        """Rows that may join at layers with so many ready ones; what they take is spent."""
        return [self._grant_at(ready) if ready else 0 for ready in num_ready]

    def _grant_at(self, num_ready: int) -> int:
        num_rows = min(num_ready, self._limits.max_rows)
        if self._left_s == inf:
            return num_rows
        seconds = self._limits.seconds
        num_rows = max(0, min(num_rows, bisect_right(seconds, self._left_s) - 1))
        self._left_s -= seconds[num_rows]
        return num_rows

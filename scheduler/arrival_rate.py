"""How much work arrives."""

from math import exp

_MEMORY_S = 2.0
"""Arrivals of about so long tell how many more there will be."""
_LATELY_S = 60.0
_MEAN_WEIGHT = 0.05
"""Of the newest arrival in the mean over arrivals."""


class ArrivalRate:
    """Seconds of work that arrive in a second: an average that forgets exponentially."""

    def __init__(self) -> None:
        self._work_s = 0.0
        self._noted_s = 0.0
        self.mean_work_s = 0.0
        """Of one arrival."""

    def note(self, work_s: float, now_s: float) -> None:
        """So much work arrived."""
        self._work_s = self._left_s(now_s) + work_s
        # One that was long on its way makes the others no older.
        self._noted_s = max(self._noted_s, now_s)
        weight = _MEAN_WEIGHT if self.mean_work_s else 1.0
        self.mean_work_s += weight * (work_s - self.mean_work_s)

    def of(self, now_s: float) -> float:
        return self._left_s(now_s) / _MEMORY_S

    def came_lately(self, now_s: float) -> bool:
        return now_s - self._noted_s < _LATELY_S

    def _left_s(self, now_s: float) -> float:
        return self._work_s * exp(min(0.0, self._noted_s - now_s) / _MEMORY_S)

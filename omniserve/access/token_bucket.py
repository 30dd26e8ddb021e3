"""So many tokens a minute, of which a minute's worth may be used at once."""

_ROUNDING = 1e-6
"""Of a token: who waits as long as it was told finds what it waited for."""


class TokenBucket:
    """Fills steadily up to a minute's worth. What is taken may be more than it holds: then it has
    to fill up from below nothing."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        """Full at the start. Times are on any clock that does not go back."""
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at_s = now_s

    def wait_s(self, num_tokens: int, now_s: float) -> float:
        """Until it holds so many, no more than a minute's worth; 0 where it does."""
        self._fill(now_s)
        missing = num_tokens - self._level
        return 0.0 if missing <= _ROUNDING else missing * 60 / self.per_minute

    def take(self, num_tokens: int, now_s: float) -> None:
        self._fill(now_s)
        self._level -= num_tokens

    def give_back(self, num_tokens: int, now_s: float) -> None:
        self.take(-num_tokens, now_s)
        self._level = min(self._level, float(self.per_minute))

    def resize(self, per_minute: int, now_s: float) -> None:
        """What was used of the old size counts against the new one."""
        self._fill(now_s)
        self._level += per_minute - self.per_minute
        self.per_minute = per_minute

    def used_share(self, now_s: float) -> float:
        """Part of a minute's worth that is used up, 0 to 1."""
        self._fill(now_s)
        return min(1.0, max(0.0, 1 - self._level / self.per_minute))

    def _fill(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._at_s)
        self._at_s += passed_s
        self._level = min(float(self.per_minute), self._level + passed_s * self.per_minute / 60)

"""Models that there was no room to wake, and when requests may have that tried again."""

from omniserve.backoff import Backoff


class WakePauses:
    """Of one daemon: the pause after a refused wake, longer after each one that follows soon."""

    def __init__(self) -> None:
        self._backoffs: dict[str, Backoff] = {}
        self._until_s: dict[str, float] = {}

    def begin(self, model: str, now_s: float) -> float:
        """Its wake was refused; returns the seconds to wait."""
        since_s = max(0.0, now_s - self._until_s.get(model, now_s))
        pause_s = self._backoffs.setdefault(model, Backoff()).next_delay_s(since_s)
        self._until_s[model] = now_s + pause_s
        return pause_s

    def left_s(self, model: str, now_s: float) -> float:
        """0 where it may be tried now."""
        return max(0.0, self._until_s.get(model, 0.0) - now_s)

    def end(self, model: str) -> None:
        """It is awake: the next refusal is a first one."""
        self._backoffs.pop(model, None)
        self._until_s.pop(model, None)

"""How long to wait before a failed process is started again."""

INITIAL_DELAY_S = 0.5
MAX_DELAY_S = 30.0
HEALTHY_S = 60.0


class Backoff:
    """Doubles the delay at each failure and starts afresh after a long healthy run."""

    def __init__(self) -> None:
        self._delay_s = INITIAL_DELAY_S

    def next_delay_s(self, healthy_s: float) -> float:
        """The delay after a failure that followed `healthy_s` seconds of service."""
        if healthy_s >= HEALTHY_S:
            self._delay_s = INITIAL_DELAY_S
        delay_s = self._delay_s
        self._delay_s = min(self._delay_s * 2, MAX_DELAY_S)
        return delay_s

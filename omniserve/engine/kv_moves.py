"""What moved between models, how often and how fast."""

from bisect import bisect_left
from collections import deque

from omniserve.settings import KV_WAIT_BOUNDS_S, KvShareStats

_LATE_S = 10.0


class KvMoveBook:
    """Writes them down, for one model."""

    def __init__(self) -> None:
        self._num_in = self._num_out = 0
        self._in_bytes = self._out_bytes = 0
        self._late: deque[float] = deque()
        self._lacking_since_s: float | None = None
        self._wait_counts = [0] * (len(KV_WAIT_BOUNDS_S) + 1)
        self._wait_s = 0.0

    def note_in(self, num_bytes: int, now_s: float) -> None:
        self._num_in += 1
        self._in_bytes += num_bytes
        self._note(now_s)

    def note_out(self, num_bytes: int, now_s: float) -> None:
        self._num_out += 1
        self._out_bytes += num_bytes
        self._note(now_s)

    def note_lack(self, now_s: float) -> None:
        """It is to have more than it has."""
        if self._lacking_since_s is None:
            self._lacking_since_s = now_s

    def note_plenty(self, now_s: float) -> None:
        """It has all that it is to have."""
        if self._lacking_since_s is not None:
            waited_s = now_s - self._lacking_since_s
            self._lacking_since_s = None
            self._wait_counts[bisect_left(KV_WAIT_BOUNDS_S, waited_s)] += 1
            self._wait_s += waited_s

    def stats(self, floor_bytes: int, now_s: float) -> KvShareStats:
        self._forget(now_s)
        return KvShareStats(
            floor_bytes=floor_bytes,
            num_moves_in=self._num_in,
            num_moves_out=self._num_out,
            in_bytes=self._in_bytes,
            out_bytes=self._out_bytes,
            moves_per_s=len(self._late) / _LATE_S,
            wait_counts=tuple(self._wait_counts),
            wait_s=self._wait_s,
        )

    def _note(self, now_s: float) -> None:
        self._late.append(now_s)
        self._forget(now_s)

    def _forget(self, now_s: float) -> None:
        while self._late and self._late[0] < now_s - _LATE_S:
            self._late.popleft()

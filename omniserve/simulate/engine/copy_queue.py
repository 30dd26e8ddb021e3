"""Copies of KV between device and host: one after the other, at a fixed rate."""

from collections import deque


class CopyQueue:
    """Copies under way, by the id of their request."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0
        self._under_way: deque[tuple[float, str]] = deque()

    def __len__(self) -> int:
        return len(self._under_way)

    def begin(self, request_id: str, num_bytes: int, now_s: float) -> None:
        """Nothing to copy lands as well, in its turn."""
        self._free_s = max(self._free_s, now_s) + num_bytes / self._bytes_per_s
        self._under_way.append((self._free_s, request_id))

    @property
    def next_landing_s(self) -> float | None:
        """None where no copy is under way."""
        return self._under_way[0][0] if self._under_way else None

    def take_landed(self, now_s: float) -> list[str]:
        """Those that have landed by now, in the order in which they began."""
        landed = []
        while self._under_way and self._under_way[0][0] <= now_s:
            landed.append(self._under_way.popleft()[1])
        return landed

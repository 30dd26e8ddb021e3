"""How long models take to wake, from what their loads and wakes took before."""

from collections import deque

from omniserve.model_life.standing import LoadProgress

_NUM_WAKES = 4
_LEAST_SHARE = 0.1
"""Of the bytes: before, the pace of a wake tells nothing yet; and what is left of the time once all
are read, for what comes then."""


class WakeForecast:
    """Of one daemon."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = {}

    def note(self, digest: str, wake_s: float) -> None:
        """`digest` is the model's, for another one of its name may take another time."""
        self._seconds.setdefault(digest, deque(maxlen=_NUM_WAKES)).append(wake_s)

    def whole_s(self, digest: str, load_s: float) -> float:
        """A wake from its begin; `load_s` is what the model's load took."""
        seconds = self._seconds.get(digest)
        return sum(seconds) / len(seconds) if seconds else load_s


def left_s(whole_s: float, elapsed_s: float, progress: LoadProgress | None) -> float:
    """Of a wake that is expected to take `whole_s`, and is under way since `elapsed_s`.

    Once it has read enough of its weights, its own pace counts: pages of its files that the kernel
    took have to be read from the disk.
    """
    share = 0.0
    if progress is not None and progress.total_bytes > 0:
        share = min(1.0, progress.done_bytes / progress.total_bytes)
    if share < _LEAST_SHARE:
        return max(whole_s - elapsed_s, _LEAST_SHARE * whole_s)
    return max(elapsed_s * (1.0 / share - 1.0), _LEAST_SHARE * whole_s)

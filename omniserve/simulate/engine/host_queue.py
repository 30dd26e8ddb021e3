"""Host attention as a queue: rows are served one after the other, in the order in which they came.

All threads together serve as one server at their common rate.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(slots=True)
class _Batch:
    """Rows that were sent together, in order; the first `num_taken` have been collected."""

    model: int
    lanes: _Ints
    layers: _Ints
    done_s: _Floats
    num_taken: int = 0


@dataclass(frozen=True, slots=True)
class AttendedRows:
    """Results of one model, in the order in which they came."""

    model: int
    lanes: _Ints
    layers: _Ints


class HostQueue:
    """The one host attention process of an engine; for all its models."""

    def __init__(self) -> None:
        self._free_s = 0.0
        self._batches: deque[_Batch] = deque()
        self.num_waiting = 0
        """Rows that were sent and not collected."""

    def send(
        self, model: int, lanes: _Ints, layers: _Ints, sent_s: _Floats, service_s: _Floats
    ) -> None:
        """Rows arrive at `sent_s`, which ascend, none before those of an earlier call."""
        if not len(lanes):
            return
        # Lindley's recursion, done_i = max(done_(i-1), sent_i) + service_i, without a loop.
        worked_s = np.cumsum(service_s)
        idle_until_s = np.maximum(sent_s, self._free_s) - (worked_s - service_s)
        done_s = np.maximum.accumulate(idle_until_s) + worked_s
        self._free_s = float(done_s[-1])
        self._batches.append(_Batch(model, lanes, layers, done_s))
        self.num_waiting += len(lanes)

    @property
    def next_result_s(self) -> float | None:
        """When the next row will be done; None where none is waiting."""
        if not self._batches:
            return None
        batch = self._batches[0]
        return float(batch.done_s[batch.num_taken])

    def collect(self, now_s: float) -> list[AttendedRows]:
        """What has been done by now, and was not collected before."""
        results = []
        while self._batches:
            batch = self._batches[0]
            stop = int(np.searchsorted(batch.done_s, now_s, side="right"))
            if stop > batch.num_taken:
                part = slice(batch.num_taken, stop)
                results.append(AttendedRows(batch.model, batch.lanes[part], batch.layers[part]))
                self.num_waiting -= stop - batch.num_taken
                batch.num_taken = stop
            if stop < len(batch.lanes):
                break
            self._batches.popleft()
        return results

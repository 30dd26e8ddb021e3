"""Where each lane stands. Arrays only: nothing here is Python per row."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from omniserve.piggyback.lane_table import LaneTable
from scheduler import LaneAllowance

_Ints = NDArray[np.int64]

HOP_BUCKETS = (0, 1, 2, 3, 4, 8, 16)
"""Lower ends of the buckets in which steps between leaving and joining are counted."""


class LaneState(IntEnum):
    IDLE = 0
    """Nothing of it is in flight: nobody's, or at a token boundary."""
    IN_STEP = 1
    """Its row takes part in a step."""
    ON_HOST = 2
    """Its attention is queued or being computed."""
    READY = 3
    """Its attention is done; the row waits to join."""
    FAILED = 4
    """Its attention will never be done."""


class LaneIntegrityError(AssertionError):
    """Two numbers of the lanes that must agree do not. Raised also under `python -O`."""


class LaneBook:
    """State, layer and length of every lane of one model; changed by the engine's thread only."""

    def __init__(self, num_lanes: int, num_layers: int) -> None:
        self.num_lanes = num_lanes
        self.num_layers = num_layers
        self.num_rows_joined = 0
        self.hop_counts: _Ints = np.zeros(len(HOP_BUCKETS), dtype=np.int64)
        self.hop_steps_sum = 0
        self.num_tokens_attended = 0
        """Context tokens, summed over all tasks."""
        self._state: _Ints = np.zeros(num_lanes, dtype=np.int64)
        self._layer: _Ints = np.zeros(num_lanes, dtype=np.int64)
        self._context: _Ints = np.zeros(num_lanes, dtype=np.int64)
        self._order: _Ints = np.zeros(num_lanes, dtype=np.int64)
        self._left_step: _Ints = np.zeros(num_lanes, dtype=np.int64)
        self._num_results = 0

    def reset_counters(self) -> None:
        """As if nothing had ever joined."""
        self.num_rows_joined = self.hop_steps_sum = self.num_tokens_attended = 0
        self.hop_counts[:] = 0

    def count(self, state: LaneState) -> int:
        return int(np.count_nonzero(self._state == state))

    def count_by_layer(self, state: LaneState) -> tuple[int, ...]:
        """Of lanes on the host or ready: how many are at each layer."""
        layers = self._layer[self._state == state]
        return tuple(np.bincount(layers, minlength=self.num_layers).tolist())

    def states(self, lanes: _Ints) -> _Ints:
        return self._state[lanes]

    def enter(self, rows: LaneTable, lanes: _Ints, contexts: _Ints) -> None:
        """Tokens enter a step at segment 0."""
        self._move(lanes, LaneState.IDLE, LaneState.IN_STEP)
        self._context[lanes] = contexts
        rows.fill(np.zeros(len(lanes), dtype=np.int64), lanes, contexts)

    def bind(self, rows: LaneTable, segments: range, allowance: LaneAllowance, step: int) -> int:
        """Lets ready rows join a step at these segments, oldest results first; returns how many."""
        ready = np.flatnonzero(self._state == LaneState.READY)
        segment = self._layer[ready] + 1
        wanted = (segment >= segments.start) & (segment < segments.stop)
        ready, segment = ready[wanted], segment[wanted]
        by_segment = np.lexsort((self._order[ready], segment))
        ready, segment = ready[by_segment], segment[by_segment]
        if not len(segment):
            return 0
        place = np.arange(len(segment)) - np.searchsorted(segment, segment)
        num_ready = np.bincount(segment - segments.start, minlength=len(segments))
        caps = np.array(allowance.grant(num_ready.tolist()))
        first = place < caps[segment - segments.start]
        lanes, segment = ready[first], segment[first]
        if len(lanes):
            self._state[lanes] = LaneState.IN_STEP
            rows.fill(segment, lanes, self._context[lanes])
            self._count_hops(step - self._left_step[lanes])
        return len(lanes)

    def leave(self, rows: LaneTable, layers: range, step: int) -> None:
        """Rows have left a step behind `pre` of these layers."""
        bound = slice(layers.start, layers.stop)
        counts = rows.counts[bound]
        lanes = rows.lanes[bound][np.arange(rows.width) < counts[:, None]]
        if len(lanes):
            self._move(lanes, LaneState.IN_STEP, LaneState.ON_HOST)
            self._layer[lanes] = np.repeat(np.arange(layers.start, layers.stop), counts)
            self._left_step[lanes] = step
            self.num_tokens_attended += int(self._context[lanes].sum())

    def attended(self, lanes: _Ints, layers: _Ints) -> None:
        """Results that came, in their order."""
        self._move(lanes, LaneState.ON_HOST, LaneState.READY)
        if (self._layer[lanes] != layers).any():
            raise LaneIntegrityError(f"results of layers {layers}, not {self._layer[lanes]}")
        self._order[lanes] = np.arange(self._num_results, self._num_results + len(lanes))
        self._num_results += len(lanes)

    def fail(self, lanes: _Ints) -> None:
        """Attention of these lanes will never be done."""
        self._move(lanes, LaneState.ON_HOST, LaneState.FAILED)

    def failed(self) -> _Ints:
        return np.flatnonzero(self._state == LaneState.FAILED)

    def exit(self, lanes: _Ints) -> None:
        """Rows left the last layer: their requests are at a token boundary."""
        self._move(lanes, LaneState.IN_STEP, LaneState.IDLE)

    def stop(self, lanes: _Ints) -> _Ints:
        """Stops those of `lanes` of which nothing is in flight, and returns them."""
        in_flight = (LaneState.IN_STEP, LaneState.ON_HOST)
        quiet = lanes[~np.isin(self._state[lanes], in_flight)]
        self._state[quiet] = LaneState.IDLE
        return quiet

    def check_integrity(self, num_in_flight: int) -> None:
        """Raises LaneIntegrityError unless the host has exactly the rows that left."""
        if (on_host := self.count(LaneState.ON_HOST)) != num_in_flight:
            raise LaneIntegrityError(f"{on_host} rows left, the host has {num_in_flight}")

    def _move(self, lanes: _Ints, source: LaneState, target: LaneState) -> None:
        states = self._state[lanes]
        if (states != source).any():
            raise LaneIntegrityError(f"lanes {lanes} in states {states}, not {source.name}")
        self._state[lanes] = target

    def _count_hops(self, hops: _Ints) -> None:
        self.num_rows_joined += len(hops)
        self.hop_steps_sum += int(hops.sum())
        bucket = np.searchsorted(HOP_BUCKETS, hops, side="right") - 1
        self.hop_counts += np.bincount(bucket, minlength=len(HOP_BUCKETS))

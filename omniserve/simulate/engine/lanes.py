"""Piggybacking of one simulated model: the engine's book and rules, with a queue as the host."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from omniserve.piggyback.governor import Governor
from omniserve.piggyback.lane_book import LaneBook, LaneState
from omniserve.piggyback.lane_table import LaneTable, binding_layers
from omniserve.profiling.profile import Profile
from omniserve.settings import PiggybackSettings
from omniserve.simulate.clock import Clock
from omniserve.simulate.engine.copy_queue import CopyQueue
from omniserve.simulate.engine.host_queue import AttendedRows, HostQueue
from scheduler import NO_LANES, LaneAllowance, Offload, Scheduler, StepPlan


class SimulatedLanes:
    """What `omniserve.piggyback.runtime.Piggyback` is to a real model."""

    def __init__(
        self,
        model: int,
        scheduler: Scheduler,
        settings: PiggybackSettings,
        profile: Profile,
        queue: HostQueue,
        clock: Clock,
    ) -> None:
        """`model` is its index in `queue`, which it shares with the engine's other models."""
        assert profile.host is not None
        self._model = model
        self._scheduler = scheduler
        self._host = profile.host
        self._num_layers = profile.num_layers
        self._kv_bytes_per_token = profile.kv_bytes_per_token
        self._block_bytes = profile.kv_bytes_per_token * scheduler.settings.block_size
        self._queue = queue
        self._clock = clock
        self._copies = CopyQueue(profile.host.copy_bytes_per_s)
        self._book = LaneBook(settings.max_offloaded_requests, profile.num_layers)
        points = binding_layers(profile.num_layers, settings.binding_points).tolist()
        self.binding_stops = dict(zip(points, [*points[1:], profile.num_layers], strict=True))
        """Layer before which results are bound, and the layer at which that ends to hold."""
        self._request_ids = [""] * settings.max_offloaded_requests
        self._stopping: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._num_steps = 0
        self._allowance = LaneAllowance(NO_LANES, profile.num_layers)
        self.num_tokens = 0
        self._governor: Governor | None = None
        if settings.when == "auto" and self._host.speed is not None:
            self._governor = Governor(
                scheduler,
                self._host.speed,
                settings,
                profile.num_layers,
                profile.kv_bytes_per_token,
                clock,
            )

    @property
    def num_ready_rows(self) -> int:
        return self._book.count(LaneState.READY)

    @property
    def num_on_host(self) -> int:
        """Rows whose attention is queued or being computed."""
        return self._book.count(LaneState.ON_HOST)

    @property
    def num_rows_joined(self) -> int:
        return self._book.num_rows_joined

    @property
    def is_settling(self) -> bool:
        """Whether requests that are gone still hold something on the host."""
        return len(self._stopping) > 0 or len(self._copies) > 0

    @property
    def next_landing_s(self) -> float | None:
        return self._copies.next_landing_s

    def attended(self, rows: AttendedRows) -> None:
        self._book.attended(rows.lanes, rows.layers)

    def poll(self) -> None:
        self.note_landed_copies()
        self.stop_released()
        self._scheduler.offload_allowed = not self._scheduler.host_rests and (
            self._governor is None or self._governor.allows()
        )

    def note_landed_copies(self) -> None:
        for request_id in self._copies.take_landed(self._clock.now_s):
            self._scheduler.copy_landed(request_id)

    def begin_copies(self) -> None:
        for copy in self._scheduler.take_copies():
            blocks: Sequence[int] = (
                copy.device_block_ids if isinstance(copy, Offload) else copy.host_block_ids
            )
            self._copies.begin(copy.request_id, len(blocks) * self._block_bytes, self._clock.now_s)

    def begin_step(self, plan: StepPlan) -> LaneTable | None:
        """Lets the plan's tokens enter; None where nobody can join the step."""
        if not plan.max_lane_rows:
            return None
        self._num_steps += 1
        book = self._book
        self._allowance = LaneAllowance(plan.lane_limits, book.num_layers)
        rows = LaneTable.without_rows(book.num_layers, plan.max_lane_rows, book.num_lanes)
        if plan.lane_entries:
            for entry in plan.lane_entries:
                self._request_ids[entry.lane] = entry.request_id
            lanes = np.array([entry.lane for entry in plan.lane_entries], dtype=np.int64)
            contexts = np.array([each.position + 1 for each in plan.lane_entries], dtype=np.int64)
            book.enter(rows, lanes, contexts)
        return rows

    def bind(self, rows: LaneTable, layer: int) -> None:
        """Lets results that have come join, up to where the next ones are bound."""
        segments = range(layer + 1, self.binding_stops[layer] + 1)
        self._book.bind(rows, segments, self._allowance, self._num_steps)

    def leave(self, rows: LaneTable, layers: range, started_s: float, layer_s: float) -> None:
        """Rows left at these layers, the first of which began at `started_s`."""
        counts = rows.counts[layers.start : layers.stop]
        num_rows = int(counts.sum())
        if not num_rows:
            return
        self._book.leave(rows, layers, self._num_steps)
        mine = np.arange(rows.width) < counts[:, None]
        part = slice(layers.start, layers.stop)
        left_at = np.repeat(np.arange(layers.start, layers.stop), counts)
        contexts = rows.positions[part][mine] + 1
        layer_bytes = self._kv_bytes_per_token / self._num_layers
        service_s = self._host.task_overhead_s + contexts * (
            layer_bytes / self._host.kv_bytes_per_s
        )
        after_s = self._host.result_delay_s + (left_at - layers.start) * layer_s
        self._queue.send(
            self._model,
            rows.lanes[part][mine],
            left_at,
            (started_s + after_s).astype(np.float64),
            service_s.astype(np.float64),
        )

    def end_step(self, rows: LaneTable) -> list[str]:
        """Requests whose rows left the last layer, and so yield a token."""
        lanes = rows.of(self._num_layers)
        self._book.exit(lanes)
        self.num_tokens += len(lanes)
        return [self._request_ids[lane] for lane in lanes.tolist()]

    def stop_released(self) -> None:
        """Frees what requests that are gone held on the host, as soon as nothing uses it."""
        released = self._scheduler.take_released_lanes()
        if not released and not len(self._stopping):
            return
        for lane in released:
            self._request_ids[lane] = ""
        stopping = np.concatenate([self._stopping, np.array(released, dtype=np.int64)])
        quiet = self._book.stop(stopping)
        self._stopping = np.setdiff1d(stopping, quiet)
        for lane in quiet.tolist():
            self._scheduler.lane_is_quiet(lane)

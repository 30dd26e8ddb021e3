"""Piggybacking of one model: what the step loop calls before, in and after a step."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from omniserve.piggyback.governor import Governor
from omniserve.piggyback.host_link import HostLink
from omniserve.piggyback.host_side import HostSide
from omniserve.piggyback.kv_swapper import KvSwapper
from omniserve.piggyback.lane_book import LaneBook, LaneState
from omniserve.piggyback.lane_exchange import LaneExchange
from omniserve.piggyback.lane_rows import LaneRows
from omniserve.piggyback.lane_run import LaneRun
from omniserve.piggyback.lane_table import binding_layers
from omniserve.settings import PiggybackStats
from scheduler import LaneAllowance, Offload, Scheduler, StepPlan
from scheduler.offload_rule import HostSpeed


class Piggyback:
    """Joins the scheduler's decisions, the lanes, the copies and the host process."""

    def __init__(
        self,
        model: int,
        scheduler: Scheduler,
        book: LaneBook,
        exchange: LaneExchange,
        swapper: KvSwapper,
        side: HostSide,
        link: HostLink,
        set_block_table: Callable[[int, Sequence[int]], None],
        device: torch.device,
        num_binding_points: int,
        governor: Governor | None,
    ) -> None:
        """`model` is its index in `link`; `set_block_table` takes a device slot and its blocks.

        Without a governor requests are offloaded whenever they find no room on the device.
        """
        self._model = model
        self._scheduler = scheduler
        self._book = book
        self.exchange = exchange
        self.swapper = swapper
        self._pool = side.pool
        self.host_blocks = side.blocks
        """As a scheduler is told of them."""
        self._link = link
        self._set_block_table = set_block_table
        self._device = device
        self._governor = governor
        self.may_offload: bool | None = None
        """None: the governor decides, where there is one."""
        self._points = binding_layers(book.num_layers, num_binding_points)
        self._request_ids = [""] * book.num_lanes
        self._stopping: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._num_steps = 0
        self._num_tokens = 0

    @property
    def has_host_cores(self) -> bool:
        """Whether host attention has cores now that the device would use otherwise."""
        return self._link.has_cores

    @property
    def host_speed(self) -> HostSpeed | None:
        """What the governor goes by; None where there is none."""
        return None if self._governor is None else self._governor.speed

    def follow(self, scheduler: Scheduler) -> None:
        """From now on this one decides; nothing of the one before is unfinished."""
        self._scheduler = scheduler
        if self._governor is not None:
            self._governor.follow(scheduler)

    @property
    def num_ready_rows(self) -> int:
        return self._book.count(LaneState.READY)

    def poll(self) -> None:
        """Takes note of what the host and the copies have got done; never waits."""
        self.exchange.pump()
        self.note_landed_copies()
        self.stop_released()
        failed = self._book.failed()
        if len(failed):
            for lane in failed.tolist():
                self._scheduler.recompute(self._request_ids[lane])
            self.stop_released()
        is_ready = self._link.is_model_ready(self._model)
        self._scheduler.lanes_open = is_ready
        rests = self._scheduler.host_rests = self._link.rests
        self._scheduler.offload_allowed = is_ready and not rests and self._may_offload()
        if self._governor is not None:
            self._governor.learn()

    def _may_offload(self) -> bool:
        if self.may_offload is not None:
            return self.may_offload
        return self._governor is None or self._governor.allows()

    def note_landed_copies(self) -> None:
        """Tells the scheduler of copies that are done; never waits."""
        for request_id in self.swapper.poll():
            self._scheduler.copy_landed(request_id)

    def pump(self) -> None:
        """Gives the host what has arrived there; to be called while a step is waited for."""
        self.exchange.pump()

    def reset_counters(self) -> None:
        """What was done so far was a trial."""
        self._book.reset_counters()
        self.swapper.reset_counters()
        self._num_tokens = 0

    def begin_copies(self) -> None:
        """Starts what the scheduler decided to move; asked for after each of its plans."""
        for copy in self._scheduler.take_copies():
            if isinstance(copy, Offload):
                self.swapper.begin_out(copy.request_id, copy.device_block_ids, copy.host_block_ids)
            else:
                self._set_block_table(copy.slot, copy.block_table)
                self.swapper.begin_in(copy.request_id, copy.host_block_ids, copy.device_block_ids)

    def begin_step(self, plan: StepPlan) -> LaneRun | None:
        """Lets the plan's tokens enter; None where nobody can join the step."""
        if not plan.max_lane_rows:
            return None
        self._num_steps += 1
        book, entries = self._book, plan.lane_entries
        rows = LaneRows.empty(book.num_layers, plan.max_lane_rows, book.num_lanes, self._device)
        for entry in entries:
            self._request_ids[entry.lane] = entry.request_id
            if entry.new_block_ids:
                self._link.host.set_block_table(
                    self._model, entry.lane, entry.new_block_ids, entry.first_new_block
                )
        if entries:
            lanes = np.array([entry.lane for entry in entries], dtype=np.int64)
            contexts = np.array([entry.position + 1 for entry in entries], dtype=np.int64)
            book.enter(rows, lanes, contexts)
            self.exchange.bring(rows, range(1))
        return LaneRun(
            book,
            self.exchange,
            rows,
            self._points,
            LaneAllowance(plan.lane_limits, book.num_layers),
            self._num_steps,
            self._link.collect,
        )

    def end_step(self, run: LaneRun) -> list[tuple[str, int]]:
        """The rows that left the last layer: request id, and position of the token they yield."""
        lanes = run.rows.of(self._book.num_layers)
        self._book.exit(lanes)
        self._num_tokens += len(lanes)
        positions = run.rows.positions[self._book.num_layers, : len(lanes)] + 1
        return [
            (self._request_ids[lane], position)
            for lane, position in zip(lanes.tolist(), positions.tolist(), strict=True)
        ]

    @property
    def is_settling(self) -> bool:
        """Whether requests that are gone still hold something on the host."""
        return len(self._stopping) > 0 or self.swapper.num_in_flight > 0

    def stop_released(self) -> None:
        """Frees what requests that are gone held on the host, as soon as nothing uses it."""
        released = self._scheduler.take_released_lanes()
        if not released and not len(self._stopping):
            return
        for lane in released:
            # Its row may still be in a step; what comes of it is nobody's.
            self._request_ids[lane] = ""
        stopping = np.concatenate([self._stopping, np.array(released, dtype=np.int64)])
        quiet = self._book.stop(stopping)
        self._stopping = np.setdiff1d(stopping, quiet)
        if len(quiet):
            self._link.host.release(self._model, quiet)
            for lane in quiet.tolist():
                self._scheduler.lane_is_quiet(lane)

    def stats(self) -> PiggybackStats:
        book, host, swaps = self._book, self._link.host, self.swapper
        num_between = book.count(LaneState.ON_HOST) + book.count(LaneState.READY)
        blocks = self.host_blocks
        used_blocks = blocks.num_granted_blocks - blocks.num_free_blocks
        layout = self._pool.layout
        token_bytes = layout.layer_bytes // layout.block_size
        return PiggybackStats(
            active=self._scheduler.offload_allowed,
            host_state=host.state,
            num_offloaded=self._scheduler.num_offloaded,
            num_ready_rows=self.num_ready_rows,
            num_on_host=book.count(LaneState.ON_HOST),
            num_rows_joined=book.num_rows_joined,
            hop_steps_counts=tuple(book.hop_counts.tolist()),
            hop_steps_sum=book.hop_steps_sum,
            num_tokens=self._num_tokens,
            residual_bytes=num_between * self.exchange.residual_row_bytes,
            num_swaps_out=swaps.num_swaps_out,
            num_swaps_in=swaps.num_swaps_in,
            swap_out_bytes=swaps.swap_out_bytes,
            swap_in_bytes=swaps.swap_in_bytes,
            host_kv_read_bytes=book.num_tokens_attended * token_bytes,
            host_kv_used_bytes=used_blocks * layout.block_bytes,
            host_kv_total_bytes=self._pool.num_blocks * layout.block_bytes,
            host_kv_granted_bytes=blocks.num_granted_blocks * layout.block_bytes,
            host_kv_cached_bytes=blocks.num_cached_blocks * layout.block_bytes,
            num_host_restarts=host.counters.num_restarts,
            num_tasks_redone=host.counters.num_redone,
            rows_on_host_by_layer=book.count_by_layer(LaneState.ON_HOST),
            rows_ready_by_layer=book.count_by_layer(LaneState.READY),
            num_host_cores=self._link.num_cores,
            has_host_cores=self._link.owns_cores,
        )

    def check_integrity(self) -> None:
        """Raises an AssertionError where lanes, host and copies disagree."""
        in_flight = int(np.count_nonzero(self._link.host.in_flight(self._model)))
        self._book.check_integrity(in_flight + self.exchange.num_leaving)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing of the model is on the host, nor on its way: it may leave."""
        is_busy = self._link.host.in_flight(self._model).any()
        return not (self.is_settling or is_busy or self.exchange.num_leaving)

    def leave(self) -> None:
        """Takes the model from the host process, which goes on; `take_apart` comes next.

        Does not wait for the process. Raises ValueError, and changes nothing, unless it `is_quiet`:
        requests must have been aborted, and `poll` been called until then.
        """
        if not self.is_quiet:
            raise ValueError(f"model {self._model}: requests still hold something on the host")
        self._link.remove(self._model)

    def take_apart(self) -> Iterator[None]:
        """Gives the memory of a model that has left back, piece by piece: gigabytes take seconds.

        In any thread: the one of the steps has no part in it any more.
        """
        # First: on an accelerator the pool is page-locked until then.
        self.swapper.close()
        yield
        # Closing does not do: the process may be compiling, and unmaps the pool only after that.
        yield from self._pool.discard_in_pieces()
        self._pool.close()

    def close(self) -> None:
        """Waits for copies under way, then gives the pool's memory back; the host has stopped."""
        self.swapper.close()
        self._pool.close()

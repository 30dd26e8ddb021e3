"""The one host attention process of an engine, and what comes back from it."""

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cpu_attn.host import HostAttention, HostModel, HostResults, HostSettings, HostStatus
from cpu_attn.host.descriptor import MAX_MODELS
from omniserve.logs import get_logger, log_event
from omniserve.piggyback.core_split import CoreSplit
from omniserve.piggyback.known_speeds import KnownSpeeds
from omniserve.piggyback.lane_book import LaneBook
from scheduler import HostCoresRule

_LOG = get_logger(__name__)
_RETRY_S = 60.0
_POLL_S = 0.002
_END_GRACE_S = 0.5
_LANE_LOST = (HostStatus.CRASHED, HostStatus.NO_MEMORY)


class HostLink:
    """Models by their index; must be driven by the thread that made it, which outlives it."""

    def __init__(
        self,
        cores: Sequence[int],
        num_lanes: int,
        core_split: CoreSplit | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Maps shared memory; models may be added before `start` and after it.

        num_lanes: the most that a model may have. core_split: None where the device has no part in
        the host's cores. Raises OSError where there is too little memory.
        """
        self.host = HostAttention([], HostSettings(tuple(cores), num_slots=num_lanes))
        self.cores = tuple(cores)
        self.num_lanes = num_lanes
        self.core_split = core_split
        self.speeds = KnownSpeeds()
        self._books: dict[int, LaneBook] = {}
        self._rule = HostCoresRule()
        self._are_cores_held = False
        self._clock = clock
        self._failed_s: float | None = None
        self._logged_state = ""

    def start(self) -> None:
        """Starts the process, without waiting for it: those that are there are its first models."""
        self.host.begin_start()

    @property
    def has_room(self) -> bool:
        """Whether one more model may be added."""
        return len(self.host.models) < MAX_MODELS

    def add(self, model: HostModel, book: LaneBook) -> int:
        """The index of a model, whose results go to this book; never waits.

        Raises ValueError where there are too many models or the pool is closed, OSError where
        there is too little memory.
        """
        index = self.host.add_model(model)
        self._books[index] = book
        return index

    def remove(self, model: int) -> None:
        """Forgets a model; its index may be another's next. Raises ValueError while it has tasks
        in flight."""
        self.host.remove_model(model)
        del self._books[model]

    def await_ready(self) -> None:
        """Returns when the process takes tasks, or has failed to: it is started anew as always."""
        while self.host.supervise() == "starting":
            time.sleep(_POLL_S)

    @property
    def is_ready(self) -> bool:
        """Whether new tasks are welcome: not while a process that was lost is replaced."""
        state = self.host.state
        # Of the first start nothing speaks for trouble; tasks wait for it.
        return state == "ready" or (state == "starting" and not self.host.counters.num_restarts)

    def is_model_ready(self, model: int) -> bool:
        """Whether new tasks of the model are welcome: not while its kernel is being compiled beside
        others that work, nor where the process cannot serve it."""
        is_starting = self.host.state == "starting"
        return self.is_ready and (is_starting or self.host.is_model_ready(model))

    def collect(self) -> None:
        """Passes results on to the books; never waits."""
        results = self.host.collect()
        if len(results):
            for model, book in self._books.items():
                self._pass_on(book, results.model == model, results)
        self._log_changes()
        if self.host.state == "failed":
            self._start_anew()

    def _log_changes(self) -> None:
        """A host that is gone slows best-effort work; who runs it must be able to find out why."""
        state, num_restarts = self.host.state, self.host.counters.num_restarts
        if state == self._logged_state:
            return
        if state in ("ending", "waiting", "failed"):
            level = logging.ERROR if state == "failed" else logging.WARNING
            reason = self.host.reason
            log_event(_LOG, "host_attention_lost", level=level, state=state, reason=reason)
        elif state == "ready" and self._logged_state != "":
            log_event(_LOG, "host_attention_ready", restarts=num_restarts)
        self._logged_state = state

    def share_cores(self, num_offloaded: int, pressure: float) -> None:
        """Gives the device the host's cores while nobody is offloaded, and while the pressure of
        latency-sensitive requests is high; to be asked once a step."""
        split = self.core_split
        if split is None or not split.costs_device_threads:
            return
        if self._are_cores_held:
            num_offloaded, pressure = max(1, num_offloaded), 0.0
        split.update(
            is_split=self._rule.update(
                self._clock(),
                num_offloaded=num_offloaded,
                pressure=pressure,
            )
        )

    @property
    def num_cores(self) -> int:
        return len(self.cores)

    @property
    def costs_device_threads(self) -> bool:
        """Whether host attention takes cores that the device would use."""
        return self.core_split is not None and self.core_split.costs_device_threads

    def hold_cores(self, are_held: bool) -> None:
        """Gives the host its cores until told otherwise, whoever is offloaded."""
        self._are_cores_held = are_held

    @property
    def has_cores(self) -> bool:
        """Whether it has cores now that the device would use otherwise."""
        return self.core_split is not None and self.core_split.is_split

    @property
    def owns_cores(self) -> bool:
        """Whether its cores are its own now; always where the device has no part in them."""
        return self.core_split is None or self.core_split.is_split

    @property
    def rests(self) -> bool:
        """Whether it is to get no new work for now."""
        return self._rule.is_resting

    def _pass_on(self, book: LaneBook, mine: NDArray[np.bool_], results: HostResults) -> None:
        done = mine & (results.status == HostStatus.OK)
        book.attended(results.slot[done], results.layer[done])
        lost = mine & ~done
        if lost.any():
            unexpected = ~np.isin(results.status[lost], _LANE_LOST)
            assert not unexpected.any(), f"host attention refused tasks: {results}"
            book.fail(results.slot[lost])

    def _start_anew(self) -> None:
        """Given up by its supervisor, the process gets another chance now and then."""
        now_s = self._clock()
        if self._failed_s is None:
            self._failed_s = now_s
        elif now_s - self._failed_s >= _RETRY_S and not self.host.num_in_flight:
            self._failed_s = None
            self.host.stop(0.0)
            self.host.begin_start()

    def close(self) -> None:
        """Ends the process and gives its memory and its cores back."""
        # It has nothing to save; one that is stuck must not hold up who waits for the engine's end.
        self.host.stop(_END_GRACE_S)
        self.host.close()
        if self.core_split is not None:
            self.core_split.unite()

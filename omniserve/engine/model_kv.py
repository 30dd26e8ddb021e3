"""The KV memory of a loaded model, for whoever moves memory between models."""

import logging
import time
from collections.abc import Callable, Sequence

from omniserve.engine.kv_pool import DeviceKvPool
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.logs import get_logger, log_event
from scheduler.kv_memory import KvMemory

_LOG = get_logger(__name__)


class ModelKv:
    """Its scheduler's books and its pool's pages; a `KvHolder`."""

    def __init__(
        self,
        runtime: ModelRuntime,
        pool: DeviceKvPool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runtime = runtime
        self._pool = pool
        self._clock = clock
        self._is_refused = False

    @property
    def memory(self) -> KvMemory:
        # Asked for anew each time: measuring step times replaces the scheduler.
        return self._runtime.scheduler.memory

    def give_way(self, num_extents: int) -> None:
        """Lets requests let go of so many extents; copies to the host that this takes begin."""
        scheduler = self._runtime.scheduler
        scheduler.journal.advance(self._clock())
        scheduler.memory.give_way(num_extents)
        if self._runtime.piggyback is not None:
            self._runtime.piggyback.begin_copies()

    def reserve_extents(self, extents: Sequence[int]) -> None:
        """Where the device has no memory for them, they are not granted any more."""
        try:
            self._pool.reserve(extents)
        except OSError as error:
            self.memory.revoke(extents)
            if not self._is_refused:
                # Once: it is tried before every step.
                name, reason = self._runtime.info.name, str(error)
                log_event(_LOG, "kv_not_granted", level=logging.WARNING, model=name, reason=reason)
            self._is_refused = True
        else:
            self._is_refused = False

    def give_back_extents(self, extents: Sequence[int]) -> None:
        self._pool.give_back(extents)

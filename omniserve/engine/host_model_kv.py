"""The host KV memory of a loaded model, for whoever moves memory between models."""

import time
from collections.abc import Callable, Sequence

from cpu_attn.host import HostKvPool
from cpu_attn.host.kv_arena import consecutive_runs
from omniserve.engine.model_runtime import ModelRuntime
from scheduler.host_kv_memory import HostKvMemory


class HostModelKv:
    """Its scheduler's books and its pool's pages; a `KvHolder`."""

    def __init__(
        self,
        runtime: ModelRuntime,
        pool: HostKvPool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The model shares the host's memory with others."""
        self._runtime = runtime
        self._pool = pool
        self._clock = clock

    @property
    def memory(self) -> HostKvMemory:
        # Asked for anew each time: measuring step times replaces the scheduler.
        memory = self._runtime.scheduler.host_memory
        assert memory is not None
        return memory

    def give_way(self, num_extents: int) -> None:
        """Lets offloaded requests let go of so many extents; copies to the device that this takes
        begin."""
        self._runtime.scheduler.journal.advance(self._clock())
        self.memory.give_way(num_extents)
        piggyback = self._runtime.piggyback
        if piggyback is not None:
            piggyback.begin_copies()
            piggyback.stop_released()

    def reserve_extents(self, extents: Sequence[int]) -> None:
        """Nothing to do: pages come by themselves."""

    def give_back_extents(self, extents: Sequence[int]) -> None:
        """In every process that maps them: no task of the host's reads or writes there any more."""
        at_once, ordered = self.memory.blocks_per_extent, sorted(extents)
        for start, stop in consecutive_runs(ordered):
            self._pool.give_back(ordered[start] * at_once, (ordered[stop - 1] + 1) * at_once)

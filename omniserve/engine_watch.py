"""Notices that an engine process has stalled, has ended, or never gets ready."""

import asyncio
from collections.abc import Callable

from omniserve.engine_process_handle import EngineProcessHandle
from omniserve.engine_supervision import EngineSupervision
from omniserve.errors import EngineError

_TICKS_PER_HEARTBEAT = 4
_LAST_WORDS_S = 0.2


class EngineWatch:
    """Of one engine process after another."""

    def __init__(self, supervision: EngineSupervision, is_ready: Callable[[], bool]) -> None:
        """Silence counts while `is_ready`; before, the time since the start does."""
        self._supervision = supervision
        self._is_ready = is_ready
        self._num_silent_ticks = 0

    def heard(self) -> None:
        """The process has said something."""
        self._num_silent_ticks = 0

    async def run(self) -> EngineError:
        """Watches a process that was just started, and says why it has to be ended."""
        heartbeat_s, load_s = self._supervision.heartbeat_s, self._supervision.load_s
        loop = asyncio.get_running_loop()
        spawned_s = loop.time()
        self._num_silent_ticks = 0
        # Ticks, not a clock: a front that was held up itself must not blame the engine.
        while self._num_silent_ticks <= _TICKS_PER_HEARTBEAT:
            await asyncio.sleep(heartbeat_s / _TICKS_PER_HEARTBEAT)
            if self._is_ready():
                self._num_silent_ticks += 1
            elif loop.time() - spawned_s > load_s:
                return EngineError(f"the engine process was not ready after {load_s:g} s")
        return EngineError(f"the engine process said nothing for {heartbeat_s:g} s")

    async def await_exit(self, process: EngineProcessHandle) -> EngineError:
        """Says how the process ended, once what it said before has had time to arrive."""
        how = await process.wait()
        if not self._is_ready():
            await asyncio.sleep(_LAST_WORDS_S)
        return EngineError(how)

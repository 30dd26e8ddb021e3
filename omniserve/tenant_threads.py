"""Threads for work that takes long, on which tenants take turns."""

import asyncio
import os
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

MOST_THREADS = 4
_CORES_PER_THREAD = 4


class TenantThreads:
    """Runs what tenants hand over, one after the other of each, and of all tenants in turn.

    So a tenant waits for at most one piece of each other one, however much those have waiting.
    Used from one event loop.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        """As many as this machine can spare beside the engine, where no number is given."""
        num_cores = len(os.sched_getaffinity(0))
        self._num_free = num_threads or max(1, min(MOST_THREADS, num_cores // _CORES_PER_THREAD))
        self._threads = ThreadPoolExecutor(self._num_free, "omniserve-long-text")
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """Of tenants that have any, the one whose turn is next first."""
        self._num_running: Counter[str] = Counter()

    async def run(self, tenant: str, work: Callable[[], T]) -> T:
        """What `work` returns or raises, once it was the tenant's turn."""
        await self._turn(tenant)
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        # The thread is free when the work has ended, not when its client has gone.
        running.add_done_callback(lambda _: self._leave(tenant))
        return await asyncio.shield(running)

    async def _turn(self, tenant: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        self._give_turns()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave(tenant)
            raise

    def _leave(self, tenant: str) -> None:
        self._num_free += 1
        self._num_running[tenant] -= 1
        if not self._num_running[tenant]:
            del self._num_running[tenant]
        if tenant in self._waiting:
            # It has just had its turn.
            self._waiting[tenant] = self._waiting.pop(tenant)
        self._give_turns()

    def _give_turns(self) -> None:
        while self._num_free and self._waiting:
            # Who runs least, and of those who has waited longest: the order is that of the turns.
            tenant = min(self._waiting, key=lambda name: self._num_running[name])
            turns = self._waiting.pop(tenant)
            turn = turns.popleft()
            if turns:
                self._waiting[tenant] = turns
            if not turn.cancelled():
                self._num_free -= 1
                self._num_running[tenant] += 1
                turn.set_result(None)

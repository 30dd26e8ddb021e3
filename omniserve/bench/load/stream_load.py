"""Who sends what when: an open loop by the clock, a backlog by its depth."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from omniserve.bench.load.plan import PlannedRequest, Supply
from omniserve.bench.load.precise_timer import PreciseTimer
from omniserve.bench.load.request_runner import RequestRunner

RETRY_PAUSE_S = 0.5
"""Before a backlog replaces a request that failed."""


class StreamLoad(Protocol):
    """One stream under way."""

    @property
    def runner(self) -> RequestRunner: ...

    def start(self) -> None:
        """Begins to send; returns at once."""

    async def drain(self, timeout_s: float) -> None:
        """After the measured part: lets requests end that may, for `timeout_s` at most."""

    async def stop(self) -> None:
        """Cancels whatever runs and waits for it."""


class OpenLoop:
    """Sends every request when it is due, whatever became of those before it."""

    def __init__(self, runner: RequestRunner, requests: Sequence[PlannedRequest]) -> None:
        """`requests` are in the order in which they are due."""
        self.runner = runner
        self._requests = requests
        self._next = 0
        self._timer: PreciseTimer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._timer = PreciseTimer(self._send_due)
        self._send_due()

    async def drain(self, timeout_s: float) -> None:
        # All were due by now, though the timer may not have had its turn.
        self._send_due()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def stop(self) -> None:
        if self._timer is not None:
            self._timer.close()
        await _cancel(self._tasks)

    def _send_due(self) -> None:
        loop = asyncio.get_running_loop()
        while self._next < len(self._requests):
            planned = self._requests[self._next]
            delay_s = planned.record.scheduled_s - self.runner.now_s()
            if delay_s > 0:
                assert self._timer is not None
                self._timer.arm(time.monotonic() + delay_s)
                return
            self._next += 1
            task = loop.create_task(self.runner.run(planned), name="load-request")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


class Backlog:
    """Keeps a number of requests with the server."""

    def __init__(self, runner: RequestRunner, supply: Supply, concurrency: int) -> None:
        self.runner = runner
        self._supply = supply
        self._concurrency = concurrency
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._work_off(), name="load-backlog")
            for _ in range(self._concurrency)
        ]

    async def drain(self, timeout_s: float) -> None:
        """A backlog has no end that could be waited for."""
        await self.stop()

    async def stop(self) -> None:
        await _cancel(self._tasks)

    async def _work_off(self) -> None:
        while True:
            planned = self._supply.take(self.runner.now_s())
            await self.runner.run(planned)
            if planned.record.outcome != "done":
                await asyncio.sleep(RETRY_PAUSE_S)


async def _cancel(tasks: Sequence[asyncio.Task[None]] | set[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""Background tasks that cannot die unseen."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class TaskGuard:
    """Runs named background tasks, and tells when one of them ended that was to run on.

    A task may only end by being cancelled; an exception or a plain return is a failure.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def failure(self) -> BaseException:
        """Waits for the first failure of a task and returns its cause."""
        return await asyncio.shield(self._failure)

    async def cancel(self) -> None:
        """Cancels every task and waits until all have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or self._failure.done():
            return
        cause = task.exception()
        self._failure.set_result(cause or RuntimeError(f"the task {task.get_name()!r} ended"))

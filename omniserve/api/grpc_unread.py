"""Messages to a client that may not read them."""

import asyncio
from types import TracebackType
from typing import Any, Self

from omniserve.api.grpc_handlers import Context
from omniserve.errors import ClientTooSlow


class WatchedWriter:
    """Writes a call's messages, and ends the block once the client has taken none for `limit_s`.

    What is written and not read waits in HTTP/2's window; once that is full, a write waits.
    The client finds the error behind what it had not read.
    """

    __slots__ = ("_context", "_has_fired", "_limit_s", "_loop", "_since_s", "_task", "_timer")

    def __init__(self, context: Context, limit_s: float) -> None:
        self._context = context
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._since_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._has_fired = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = self._loop.call_later(self._limit_s, self._check)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        is_ours = self._has_fired and self._task.uncancel() == 0
        if is_ours and isinstance(error, asyncio.CancelledError):
            raise ClientTooSlow("the client did not read what was generated for it") from None

    async def write(self, message: Any) -> None:
        """Returns once there is room for it on the way to the client."""
        self._since_s = self._loop.time()
        await self._context.write(message)
        self._since_s = None

    def _check(self) -> None:
        """One timer for many writes: setting one for each would cost more than the write."""
        waited_s = 0.0 if self._since_s is None else self._loop.time() - self._since_s
        if waited_s >= self._limit_s:
            self._timer = None
            self._has_fired = True
            self._task.cancel()
        else:
            self._timer = self._loop.call_later(self._limit_s - waited_s, self._check)

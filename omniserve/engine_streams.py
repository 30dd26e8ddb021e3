"""The requests in flight and where their outputs go."""

import asyncio
from collections.abc import Iterable

from omniserve.errors import EngineUnavailable, InvalidRequest
from omniserve.requests import RequestOutput

OutputQueue = asyncio.Queue[RequestOutput | EngineUnavailable]


class RequestStreams:
    """One queue per request in flight."""

    def __init__(self) -> None:
        self._queues: dict[str, OutputQueue] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._queues)

    def open(self, request_id: str) -> OutputQueue:
        if request_id in self._queues:
            raise InvalidRequest(f"request_id {request_id!r} is in use already", "request_id")
        self._idle.clear()
        queue: OutputQueue = asyncio.Queue()
        self._queues[request_id] = queue
        return queue

    def close(self, request_id: str) -> None:
        del self._queues[request_id]
        if not self._queues:
            self._idle.set()

    def deliver(self, outputs: Iterable[RequestOutput]) -> None:
        """Hands outputs out; those of requests that were closed meanwhile are dropped."""
        for output in outputs:
            queue = self._queues.get(output.request_id)
            if queue is not None:
                queue.put_nowait(output)

    def fail_all(self, message: str) -> None:
        """Ends every open stream with EngineUnavailable, after what was delivered before."""
        for queue in self._queues.values():
            queue.put_nowait(EngineUnavailable(message))

    async def wait_idle(self) -> None:
        """Returns once no request is in flight."""
        await self._idle.wait()

"""The requests in flight and who is told what the engine gives for them."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from omniserve.errors import EngineUnavailable, InvalidRequest
from omniserve.requests import RequestOutput

_OUTPUTS_PER_TURN = 32


class OutputSink(Protocol):
    """Waits for one request's outputs. It is called from the event loop, and raises nothing."""

    def put(self, output: RequestOutput) -> None:
        """An output came; after one with a finish reason nothing else does."""

    def fail(self, error: Exception) -> None:
        """The request ended without a last output."""


class RequestStreams:
    """One sink per request in flight."""

    def __init__(self) -> None:
        self._sinks: dict[str, OutputSink] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._sinks)

    def open(self, request_id: str, sink: OutputSink) -> None:
        """From now on the sink gets what comes; raises InvalidRequest for an id that is in use."""
        if request_id in self._sinks:
            raise InvalidRequest(f"request_id {request_id!r} is in use already", "request_id")
        self._sinks[request_id] = sink
        self._idle.clear()

    def close(self, request_id: str) -> bool:
        """Its sink hears no more; whether there was one."""
        was_open = self._sinks.pop(request_id, None) is not None
        if not self._sinks:
            self._idle.set()
        return was_open

    async def deliver_in_turns(self, outputs: Sequence[RequestOutput]) -> None:
        """Hands a batch out piece by piece: the first are on their way to clients before the last
        are looked at."""
        for begin in range(0, len(outputs), _OUTPUTS_PER_TURN):
            if begin:
                await asyncio.sleep(0)
            self.deliver(outputs[begin : begin + _OUTPUTS_PER_TURN])

    def deliver(self, outputs: Iterable[RequestOutput]) -> None:
        """Hands outputs out; those of requests that were closed meanwhile are dropped."""
        for output in outputs:
            sink = self._sinks.get(output.request_id)
            if sink is None:
                continue
            if output.finish_reason is not None:
                self.close(output.request_id)
            sink.put(output)

    def fail_all(self, message: str) -> None:
        """Ends every open stream with EngineUnavailable, after what was delivered before."""
        sinks, self._sinks = self._sinks, {}
        self._idle.set()
        for sink in sinks.values():
            sink.fail(EngineUnavailable(message))

    async def wait_idle(self) -> None:
        """Returns once no request is in flight."""
        await self._idle.wait()

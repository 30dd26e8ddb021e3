"""Answers to generation requests over HTTP: one body, or a stream of server-sent events."""

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive, Scope, Send

from omniserve.api.http_errors import error_body
from omniserve.api.openai_responses import (
    STREAM_END,
    ChatFormat,
    CompletionFormat,
    ResponseFormat,
)
from omniserve.api.usage_events import UsageEvents
from omniserve.generation import Chunk, GenerationRequest
from omniserve.generation_stream import GenerationStream
from omniserve.service import GenerationService

Headers = list[tuple[bytes, bytes]]


class GenerationResponse:
    """An ASGI response that generates while it is sent, and stops where the client goes away."""

    def __init__(
        self,
        service: GenerationService,
        request: GenerationRequest,
        make_format: type[CompletionFormat] | type[ChatFormat],
        *,
        is_stream: bool,
        usage_events: UsageEvents,
    ) -> None:
        self._service = service
        self._request = request
        self._make_format = make_format
        self._is_stream = is_stream
        self._usage_events = usage_events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what ends the request before the response began."""
        async with _UntilDisconnect(receive), await self._service.start(self._request) as stream:
            response_format = self._make_format(stream, self._usage_events)
            if self._is_stream:
                await self._send_events(stream, response_format, send)
            else:
                body = response_format.body(await stream.result())
                length = (b"content-length", b"%d" % len(body))
                await _start(send, b"application/json", stream.request_id, length)
                await _send(send, body, has_more=False)

    async def _send_events(
        self, stream: GenerationStream, response_format: ResponseFormat, send: Send
    ) -> None:
        # Failing before the first chunk is still an error status.
        chunk = await anext(stream)
        await _start(send, b"text/event-stream; charset=utf-8", stream.request_id)
        try:
            await self._send_chunk(chunk, response_format, send)
            async for chunk in stream:
                await self._send_chunk(chunk, response_format, send)
            end = STREAM_END
            if self._usage_events is not UsageEvents.NONE and chunk.usage is not None:
                end = response_format.usage_event(chunk.usage) + end
        except Exception as error:
            _, body = error_body(error)
            await _send(send, b"data: " + body + b"\n\n", has_more=False)
            raise _ResponseFailed from error
        await _send(send, end, has_more=False)

    @staticmethod
    async def _send_chunk(chunk: Chunk, response_format: ResponseFormat, send: Send) -> None:
        events = response_format.event(chunk)
        if events:
            await _send(send, events, has_more=True)


class _ResponseFailed(Exception):
    """The client was told already, inside the stream."""


async def _start(
    send: Send, media_type: bytes, request_id: str, *others: tuple[bytes, bytes]
) -> None:
    headers: Headers = [
        (b"content-type", media_type),
        (b"cache-control", b"no-store"),
        (b"x-request-id", request_id.encode("latin-1", "replace")),
        *others,
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _send(send: Send, body: bytes, *, has_more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": has_more})


class _UntilDisconnect:
    """Cancels the block when the client closes the connection, and ends quietly then."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_disconnected = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher = asyncio.create_task(self._watch(), name="http-disconnect")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._watcher.cancel()
        if isinstance(error, _ResponseFailed):
            return True
        # A cancellation from elsewhere, such as the server's shutdown, has to go on.
        is_ours = self._is_disconnected and self._task.uncancel() == 0
        return is_ours and isinstance(error, asyncio.CancelledError)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._is_disconnected = True
        self._task.cancel()

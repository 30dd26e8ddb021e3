"""One HTTP/1.1 connection of a load generator: a request at a time, bytes told as they come.

Lean on purpose: what the generator burns is taken from the server that it measures.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import httptools

from omniserve.bench.load.target import RequestFailed

OK = 200
MAX_KEPT_BYTES = 4 << 20
"""Of a body that nobody reads as it comes."""

OnBody = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A response; its body is empty where it was told as it came."""

    status: int
    body: bytes


class HttpConnection(asyncio.Protocol):
    """Given to `loop.create_connection`; `exchange` sends a request and reads its response."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._answer: asyncio.Future[HttpAnswer] | None = None
        self._on_body: OnBody | None = None
        self._status = 0
        self._body = bytearray()
        self.is_reusable = False
        """Whether another request may follow."""
        self.idle_since_s = 0.0

    async def exchange(self, payload: bytes, on_body: OnBody | None) -> HttpAnswer:
        """Sends a whole request; with `on_body` a 200's body goes there instead of the answer.

        Raises RequestFailed where the connection breaks. A cancelled exchange closes it.
        """
        assert self._answer is None
        transport = self._transport
        if transport is None or transport.is_closing():
            raise RequestFailed("HTTP: the connection is closed")
        self._parser = httptools.HttpResponseParser(self)
        self._answer = asyncio.get_running_loop().create_future()
        self._on_body, self._status = on_body, 0
        self._body.clear()
        self.is_reusable = False
        transport.write(payload)
        try:
            return await self._answer
        finally:
            self._answer = None
            if not self.is_reusable:
                transport.abort()

    def close(self) -> None:
        self.is_reusable = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            # Whatever reads the body has refused it.
            self._fail(error.__context__ or error)
        except httptools.HttpParserError as error:
            self._fail(RequestFailed(f"HTTP: the answer cannot be read: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_reusable = False
        said = f": {exc}" if exc else ""
        self._fail(RequestFailed(f"HTTP: the connection was closed before the answer's end{said}"))

    # httptools

    def on_status(self, status: bytes) -> None:
        assert self._parser is not None
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self._on_body is not None and self._status_code() == OK:
            self._on_body(body)
        elif len(self._body) < MAX_KEPT_BYTES:
            self._body += body

    def on_message_complete(self) -> None:
        assert self._parser is not None
        self.is_reusable = self._parser.should_keep_alive()
        answer = HttpAnswer(self._status_code(), bytes(self._body))
        self._parser = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def _status_code(self) -> int:
        # A status line without a reason brings no on_status.
        if not self._status and self._parser is not None:
            self._status = self._parser.get_status_code()
        return self._status

    def _fail(self, error: BaseException) -> None:
        self._parser = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

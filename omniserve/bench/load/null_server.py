"""A server without a model: answers completions at once or at a fixed pace.

What a load generator measures against it is the generator's own share. It uses as little of the
machine as it can: events are encoded once, and a request costs one timer at a time.
"""

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import httptools
import msgspec

MODEL = "null"
MAX_MODEL_LEN = 1 << 20
VOCAB_SIZE = 1000

_OK = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n"
_JSON_HEAD = _OK % b"application/json" + b"content-length: %d\r\n\r\n"
_STREAM_HEAD = _OK % b"text/event-stream" + b"transfer-encoding: chunked\r\n\r\n"
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Pace:
    """When tokens are sent."""

    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    """0 sends all tokens after the first together with it."""


class _Body(msgspec.Struct):
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 16


_read_body = msgspec.json.Decoder(_Body).decode


async def serve_null(host: str, port: int, pace: Pace, announce: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; tells the address once it listens. Raises OSError."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    server = await loop.create_server(lambda: NullConnection(pace), host, port)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        bound_host, bound_port = server.sockets[0].getsockname()[:2]
        announce(f"omniserve null server ready: http http://{bound_host}:{bound_port}")
        await stopped.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        server.close()


class NullConnection(asyncio.Protocol):
    """One client's connection; requests on it follow each other."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._write(_BAD_REQUEST)
            if self._transport is not None:
                self._transport.close()

    # httptools

    def on_url(self, url: bytes) -> None:
        self._url = url
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._url == b"/v1/completions":
            self._complete()
        elif self._url == b"/v1/models":
            model = {"id": MODEL, "owned_by": "omniserve-null", "max_model_len": MAX_MODEL_LEN}
            body = msgspec.json.encode({"object": "list", "data": [model]})
            self._write(_JSON_HEAD % len(body) + body)
        else:
            self._write(_NOT_FOUND)

    def _complete(self) -> None:
        try:
            num_tokens = _read_body(self._body).max_tokens
        except msgspec.DecodeError:
            self._write(_BAD_REQUEST)
            return
        self._write(_STREAM_HEAD)
        first_s = self._pace.ttft_ms / 1000
        if first_s > 0:
            due_s = asyncio.get_running_loop().time() + first_s
            self._timer = asyncio.get_running_loop().call_at(
                due_s, self._send_tokens, 1, num_tokens, due_s
            )
        else:
            self._send_tokens(1, num_tokens, asyncio.get_running_loop().time())

    def _send_tokens(self, token: int, num_tokens: int, due_s: float) -> None:
        """Sends token number `token` of `num_tokens`, due now, and sees to those after it."""
        interval_s = self._pace.tpot_ms / 1000
        if interval_s <= 0:
            self._write(b"".join(map(_event, range(token, num_tokens + 1))) + _end(num_tokens))
            return
        if token == num_tokens:
            self._write(_event(token) + _end(num_tokens))
            return
        self._write(_event(token))
        due_s += interval_s
        self._timer = asyncio.get_running_loop().call_at(
            due_s, self._send_tokens, token + 1, num_tokens, due_s
        )

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _event(token: int) -> bytes:
    choice = b'{"index":0,"text":" null","logprobs":null,"finish_reason":null}'
    return _chunk(b'{"choices":[%s],"usage":{"completion_tokens":%d}}' % (choice, token))


def _end(num_tokens: int) -> bytes:
    usage = _chunk(b'{"choices":[],"usage":{"completion_tokens":%d}}' % num_tokens)
    return usage + _chunk(b"[DONE]") + _LAST_CHUNK


def _chunk(data: bytes) -> bytes:
    event = b"data: %s\n\n" % data
    return b"%x\r\n%s\r\n" % (len(event), event)

"""A load generator on plain sockets: streams, and the age of every token that comes on them.

It costs a few microseconds for each token, so that one core drives a server that has another.
"""

import os
import re
import selectors
import socket
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec
from api_http2 import Http2Error, Http2Reader, call, opening
from api_null_engine import COUNT
from api_stamps import STAMP_CHARS, delays_us, now_us

from omniserve.v1 import omniserve_pb2 as pb

Wire = Literal["grpc", "http"]
MODEL = "null"
MAX_READ_BYTES = 1 << 18
CONNECT_TIMEOUT_S = 10.0
SILENCE_S = 60.0
_TEXT_TAG = 0x0A
_TEXT = re.compile(rb'"text":"(\d*)"')
_LAST_CHUNK = b"\r\n0\r\n\r\n"
"""What follows the last event: its chunk's end, and an empty chunk."""


class LoadFailed(Exception):
    """The server did not do what was asked of it."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What every request asks for."""

    max_tokens: int
    interval_us: int
    """Between its tokens; 0: as fast as it goes."""


class Connection(Protocol):
    """One connection; `read` tells a text for each message, and None where a request has ended."""

    link: socket.socket

    def begin(self) -> None:
        """Sends one more request."""

    def read(self, data: bytes) -> Iterator[bytes | None]: ...


class GrpcConnection:
    """Carries any number of requests at a time."""

    def __init__(self, address: tuple[str, int], shape: Shape) -> None:
        self.link = _connect(address)
        self._authority = f"{address[0]}:{address[1]}"
        sampling = pb.Sampling(max_tokens=shape.max_tokens, seed=shape.interval_us)
        prompt = pb.TokenIds(ids=(1, 2, 3))
        message = pb.GenerateRequest(model=MODEL, token_ids=prompt, sampling=sampling)
        self._message = message.SerializeToString()
        self._next_stream = 1
        self._reader = Http2Reader()
        self.link.sendall(opening())

    def begin(self) -> None:
        self.link.sendall(call(self._next_stream, self._authority, self._message))
        self._next_stream += 2

    def read(self, data: bytes) -> Iterator[bytes | None]:
        try:
            for _, message in self._reader.feed(data):
                yield None if message is None else _text_of(message)
        except Http2Error as error:
            raise LoadFailed(str(error)) from None
        if self._reader.answer:
            self.link.sendall(self._reader.answer)
            self._reader.answer = b""


def _text_of(message: bytes) -> bytes:
    """The text of a GenerateChunk, which is its first field."""
    if not message or message[0] != _TEXT_TAG:
        return b""
    size, shift, at = 0, 0, 1
    while True:
        size |= (message[at] & 0x7F) << shift
        at += 1
        if message[at - 1] < 0x80:
            return message[at : at + size]
        shift += 7


class HttpConnection:
    """Carries one request at a time, answered with server-sent events."""

    def __init__(self, address: tuple[str, int], shape: Shape) -> None:
        self.link = _connect(address)
        body = msgspec.json.encode(
            {
                "model": MODEL,
                "prompt": [1, 2, 3],
                "max_tokens": shape.max_tokens,
                "seed": shape.interval_us,
                "stream": True,
            }
        )
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {address[0]}:{address[1]}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        self._rest = b""
        self._is_answered = False

    def begin(self) -> None:
        self._rest, self._is_answered = b"", False
        self.link.sendall(self._request)

    def read(self, data: bytes) -> Iterator[bytes | None]:
        data = self._rest + data
        if not self._is_answered:
            if len(data) < 12:
                self._rest = data
                return
            if data[9:12] != b"200":
                raise LoadFailed(f"the server said: {data[:200]!r}")
            self._is_answered = True
        end = data.rfind(b"\n\n") + 2
        if end >= 2:
            for found in _TEXT.finditer(data, 0, end):
                yield found[1]
            data = data[end:]
        self._rest = data
        if data == _LAST_CHUNK:
            yield None


def _connect(address: tuple[str, int]) -> socket.socket:
    connected = socket.create_connection(address, timeout=CONNECT_TIMEOUT_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


@dataclass(slots=True)
class Received:
    """What came within one window of time."""

    delays_us: "array[int]" = field(default_factory=lambda: array("q"))
    """Of every token."""
    num_messages: int = 0
    num_ended: int = 0
    """Requests, since the beginning."""


class LoadGenerator:
    """Requests on a number of streams at a time. A context manager: leaving it hangs up."""

    def __init__(
        self,
        wire: Wire,
        address: tuple[str, int],
        shape: Shape,
        num_streams: int,
        num_connections: int = 8,
        feedback: int | None = None,
    ) -> None:
        """`feedback` is told how many tokens there are; HTTP has a connection for each stream."""
        self.received = Received()
        self._feedback = feedback
        self._num_tokens = 0
        self._shape = shape
        self._selector = selectors.DefaultSelector()
        kind = GrpcConnection if wire == "grpc" else HttpConnection
        if wire == "http":
            num_connections = num_streams
        connections = [kind(address, shape) for _ in range(min(num_connections, num_streams))]
        self._streams: list[Connection] = [
            connections[number % len(connections)] for number in range(num_streams)
        ]
        for connection in connections:
            self._selector.register(connection.link, selectors.EVENT_READ, connection)

    def __enter__(self) -> "LoadGenerator":
        return self

    def __exit__(self, *_: object) -> None:
        for key in list(self._selector.get_map().values()):
            key.data.link.close()
        self._selector.close()

    def begin(self) -> None:
        """One request on every stream."""
        for connection in self._streams:
            connection.begin()

    def forget(self) -> None:
        """What came until now was warm-up."""
        num_ended = self.received.num_ended
        self.received = Received(num_ended=num_ended)

    def run(self, seconds: float) -> None:
        """Receives for so long. No request may end: their streams are to be there all the time."""
        end_us = now_us() + round(1e6 * seconds)
        while (left_us := end_us - now_us()) > 0:
            self._receive(left_us / 1e6, _refuse_end)

    def complete(self, num_requests: int) -> None:
        """Sends so many requests, a new one wherever one has ended, and waits for the last."""
        self.begin()
        num_to_send = num_requests - len(self._streams)

        def go_on(connection: Connection) -> None:
            nonlocal num_to_send
            if num_to_send > 0:
                num_to_send -= 1
                connection.begin()

        while self.received.num_ended < num_requests:
            if not self._receive(SILENCE_S, go_on):
                raise LoadFailed(f"the server said nothing for {SILENCE_S:g} s")
        expected = num_requests * self._shape.max_tokens
        if self._num_tokens != expected:
            raise LoadFailed(f"{self._num_tokens} tokens came of the {expected} asked for")

    def _receive(self, timeout_s: float, on_end: Callable[[Connection], None]) -> bool:
        """Takes what is there; whether anything was."""
        received, delays = self.received, self.received.delays_us
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            connection: Connection = key.data
            data = connection.link.recv(MAX_READ_BYTES)
            if not data:
                raise LoadFailed("the server closed a connection")
            at_us = now_us()
            for text in connection.read(data):
                if text is None:
                    received.num_ended += 1
                    on_end(connection)
                elif text:
                    received.num_messages += 1
                    self._num_tokens += len(text) // STAMP_CHARS
                    delays.extend(delays_us(text, at_us))
        if ready and self._feedback is not None:
            os.write(self._feedback, COUNT.pack(self._num_tokens))
        return bool(ready)


def _refuse_end(connection: Connection) -> None:
    raise LoadFailed("a request ended that was to go on")

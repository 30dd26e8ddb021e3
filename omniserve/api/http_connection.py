"""One HTTP connection, held to its limits whatever its client does, or does not do."""

import asyncio
import contextlib
import fcntl
import struct
import termios
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from omniserve.config_listen import LimitsConfig
from omniserve.config_values import join_address
from omniserve.logs import get_logger, log_event

MAX_HEAD_BYTES = 64 << 10
"""Of a request's line and headers; also of what comes in place of its body, such as trailers."""
WRITE_BUFFER_BYTES = 64 << 10
"""What may wait for a client before writers have to wait too."""
MAX_HEADERS = 256
"""Of a request: each costs more than the bytes it came in."""
MAX_PIPELINED = 8
"""Requests that may wait for the answer to one before them; then the connection takes no more."""
LINGER_S = 1.0
"""A refused client is listened to for so long: closed at once, its answer would be lost with it."""
_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-length: 0\r\nconnection: close\r\n\r\n"
)

_COUNT = struct.Struct("i")

_logger = get_logger(__name__)


class _Refused(Exception):
    """Raised to the parser, which then leaves the rest of what has arrived."""


class LimitedConnection(HttpToolsProtocol):
    """While no request is being answered, a timer runs that ends the connection."""

    def __init__(
        self, limits: LimitsConfig, config: uvicorn.Config, state: ServerState, app_state: Any
    ) -> None:
        super().__init__(config=config, server_state=state, app_state=app_state)
        self._limits = limits
        self._is_in_head = False
        self._is_in_message = False
        self._has_brought_body = False
        self._is_refused = False
        self._num_head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._age_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None
        self._num_unread_bytes = 0
        """When the timer was set."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._expect_head()
        if self._limits.age_s is not None:
            self._age_timer = self._later(self._limits.age_s, self._on_age)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._is_in_head = False
        timers = (self._head_timer, self._age_timer, self._linger_timer, self._reader_timer)
        for timer in timers:
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._has_brought_body = False
        super().data_received(data)
        if self.transport.is_closing():
            self._watch_reader()
            return
        if self._is_refused:
            return
        if self._is_in_head or (self._is_in_message and not self._has_brought_body):
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES:
                self._refuse()
                return
        if self._is_idle:
            # The end of idleness was cancelled by the data, whatever it was.
            self._expect_head()

    def send_400_response(self, msg: str) -> None:
        # Also called where the parser was told to stop.
        if not self._is_refused:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = self._is_in_message = True
        self._num_head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers are none: nothing was decided by them, and there may be any number.
        if not self._is_in_head:
            return
        if len(self.headers) >= MAX_HEADERS:
            self._refuse()
            raise _Refused
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        # By now reading is paused, but what was read at once may hold thousands.
        if len(self.pipeline) >= MAX_PIPELINED:
            self._refuse()
            raise _Refused
        self._is_in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_brought_body = True
        self._num_head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_message = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching_reader()
        if self.transport.is_closing():
            self._watch_reader()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def shutdown(self) -> None:
        # A TLS transport that is closed twice forgets its connection, and fails whoever asks it.
        if not self.transport.is_closing():
            super().shutdown()

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self.loop.call_later(delay_s, callback)

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self._later(self._limits.handshake_s, self._close)

    def _refuse(self) -> None:
        self._is_refused = True
        if self._is_idle:
            self.transport.write(_HEAD_TOO_LARGE)
            self._linger_timer = self._later(LINGER_S, self._close)
        else:
            # The last answer to those before it says that there are no more.
            self.shutdown()

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
        self._watch_reader()

    def _on_age(self) -> None:
        """An answer that is on its way ends first."""
        self.shutdown()
        if self.transport.is_closing():
            self._watch_reader()

    def _watch_reader(self) -> None:
        """What waits for the client has to become less, or the connection is ended without it."""
        if self._reader_timer is None:
            self._num_unread_bytes = self._count_unread()
            self._reader_timer = self._later(self._limits.unread_s, self._check_reader)

    def _stop_watching_reader(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _check_reader(self) -> None:
        self._reader_timer = None
        num_bytes = self._count_unread()
        if num_bytes and num_bytes >= self._num_unread_bytes:
            peer = None if self.client is None else join_address(*self.client)
            log_event(_logger, "reader_too_slow", unread_bytes=num_bytes, peer=peer)
            self.transport.abort()
        elif num_bytes:
            self._watch_reader()

    def _count_unread(self) -> int:
        """Bytes that the client has not acknowledged; 0 where none wait here."""
        num_here = self.transport.get_write_buffer_size()
        if not num_here:
            return 0
        sent = self.transport.get_extra_info("socket")
        answer = bytearray(_COUNT.size)
        # The kernel takes more only once a good part of what it has is gone.
        with contextlib.suppress(OSError):
            fcntl.ioctl(sent.fileno(), termios.TIOCOUTQ, answer)
        (num_in_kernel,) = _COUNT.unpack(answer)
        return num_here + int(num_in_kernel)

"""Just enough HTTP/2 to stream from a gRPC server at little cost; windows are as good as endless.

Answers are read by frame: what their headers say is skipped, so whoever reads them has to count.
"""

import struct
from collections.abc import Iterator

PATH = "/omniserve.v1.Inference/Generate"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_MAX_WINDOW = (1 << 31) - 1
_DEFAULT_WINDOW = (1 << 16) - 1
_INITIAL_WINDOW_SIZE = 4
_FRAME_HEAD_BYTES = 9
_MESSAGE_HEAD_BYTES = 5
_RENEW_BYTES = 1 << 29


class Http2Error(Exception):
    """The server ended a connection or a stream otherwise than with its last message."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return struct.pack(">BHBBI", size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def opening() -> bytes:
    """What a client sends first of all."""
    settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _MAX_WINDOW)
    window = struct.pack(">I", _MAX_WINDOW - _DEFAULT_WINDOW)
    return _PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW_UPDATE, 0, 0, window)


def call(stream: int, authority: str, message: bytes) -> bytes:
    """Headers and the one message of a call; `stream` is odd, and higher than all before it."""
    headers = b"".join(
        (
            # Of HPACK's static table: POST, http, and names whose values follow as they are.
            b"\x83\x86",
            b"\x04" + _string(PATH),
            b"\x01" + _string(authority),
            b"\x0f\x10" + _string("application/grpc"),
            b"\x00" + _string("te") + _string("trailers"),
        )
    )
    body = struct.pack(">BI", 0, len(message)) + message
    return frame(_HEADERS, _END_HEADERS, stream, headers) + frame(_DATA, _END_STREAM, stream, body)


def _string(text: str) -> bytes:
    assert len(text) < 127
    return bytes([len(text)]) + text.encode()


class Http2Reader:
    """Frames of one connection as they come in; `answer` is what has to be sent back."""

    def __init__(self) -> None:
        self.answer = b""
        self._rest = b""
        self._partial: dict[int, bytes] = {}
        self._num_data_bytes = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes | None]]:
        """(stream, gRPC message) for every message, and (stream, None) where a stream has ended.

        Raises Http2Error.
        """
        if self._rest:
            data = self._rest + data
        at, num_bytes = 0, len(data)
        while num_bytes - at >= _FRAME_HEAD_BYTES:
            end = at + _FRAME_HEAD_BYTES + (data[at] << 16 | data[at + 1] << 8 | data[at + 2])
            if end > num_bytes:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9])
            payload = data[at + _FRAME_HEAD_BYTES : end]
            at = end
            if kind == _DATA:
                for message in self._messages(stream, payload):
                    yield stream, message
            else:
                self._control(kind, flags, payload)
            if flags & _END_STREAM and kind in (_DATA, _HEADERS):
                yield stream, None
        self._rest = data[at:]

    def _messages(self, stream: int, payload: bytes) -> Iterator[bytes]:
        self._num_data_bytes += len(payload)
        if self._num_data_bytes > _RENEW_BYTES:
            window = struct.pack(">I", self._num_data_bytes)
            self.answer += frame(_WINDOW_UPDATE, 0, 0, window)
            self._num_data_bytes = 0
        before = self._partial.pop(stream, None)
        if before:
            payload = before + payload
        at = 0
        while len(payload) - at >= _MESSAGE_HEAD_BYTES:
            begin = at + _MESSAGE_HEAD_BYTES
            end = begin + int.from_bytes(payload[at + 1 : begin])
            if end > len(payload):
                break
            yield payload[begin:end]
            at = end
        if at < len(payload):
            self._partial[stream] = payload[at:]

    def _control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self.answer += frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self.answer += frame(_PING, _ACK, 0, payload)
        elif kind in (_RST_STREAM, _GOAWAY):
            name = "a stream" if kind == _RST_STREAM else "the connection"
            raise Http2Error(f"the server ended {name}: {payload[-64:]!r}")

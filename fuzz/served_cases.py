"""Cases for a real daemon's sockets: strange HTTP, strange bodies, strange gRPC."""

import socket
from typing import Any

import grpc
import httpx
from hypothesis import strategies as st

from fuzz.byte_source import ByteSource
from fuzz.defects import PLANTED_TOKEN, check, check_message
from fuzz.grpc_target import INFERENCE, built_message
from fuzz.http_target import BASES, body_of, check_answer
from fuzz.served_front import ServedFront

PATIENCE_S = 30.0
GOOD_CODES = frozenset(
    {
        *("INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"),
        *("UNAUTHENTICATED", "PERMISSION_DENIED"),
    }
)
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
BEARER = f"Bearer {PLANTED_TOKEN}"

_TOKENS = st.sampled_from(
    [
        *(b"GET", b"POST", b"PUT", b"OPTIONS *", b"CONNECT", b"get", b"G\x00T", b"\x16\x03\x01"),
        *(b"/", b"/health", b"/v1/models", b"*", b"http://x/health", b"//", b"/%00", b"/%zz"),
        *(b"/v1/completions", b"/" + b"a" * 9000, b"HTTP/1.1", b"HTTP/1.0", b"HTTP/9.9", b"HTTP/2"),
    ]
)
_HEADERS = st.sampled_from(
    [
        *(
            b"Host: x",
            b"Host: localhost",
            b"Host: x\r\nHost: y",
            b"Connection: close",
            b"Connection: upgrade",
        ),
        *(b"Upgrade: websocket", b"Upgrade: h2c", b"Content-Length: 5", b"Content-Length: -1"),
        *(b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 9999999999999999999999"),
        *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Expect: 100-continue"),
        *(b"Expect: x", b": x", b"no colon", b"X:" + b"y" * 70_000, b"\x00: \x00", b" folded"),
        *(b"Authorization: " + BEARER.encode(), b"Content-Type: application/json"),
        *(b"x-request-id: \xff\xfe", b"x-omniserve-tenant: \xe9", b"Cookie: " + b"a=b;" * 500),
    ]
)
_BODIES = st.sampled_from(
    [b"", b"{}", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b"0\r\n"]
)


def _request(line: list[bytes], headers: list[bytes], body: bytes) -> bytes:
    return b"\r\n".join([b" ".join(line), *headers, b"", body])


raw_http = st.one_of(
    st.builds(
        _request,
        st.tuples(_TOKENS, _TOKENS, _TOKENS).map(list),
        st.lists(_HEADERS | st.binary(max_size=40), max_size=6),
        _BODIES | st.binary(max_size=60),
    ),
    st.binary(max_size=200),
)
"""What a socket may be sent that is hardly HTTP."""

_header_values = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=80
)
http_calls = st.tuples(
    st.sampled_from(sorted(BASES)),
    st.binary(max_size=300),
    st.dictionaries(
        st.sampled_from(["x-omniserve-tier", "x-omniserve-tenant", "x-request-id", "accept"]),
        _header_values.map(str.strip),
        max_size=2,
    ),
)
"""Route, what its body is made from, and headers."""

grpc_calls = st.tuples(
    st.sampled_from(INFERENCE),
    st.binary(max_size=400),
    st.dictionaries(
        st.sampled_from(["x-omniserve-tier", "x-omniserve-tenant", "traceparent"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80),
        max_size=2,
    ),
)
raw_http2 = st.tuples(st.booleans(), st.binary(max_size=200)).map(
    lambda case: (HTTP2_PREFACE if case[0] else b"") + case[1]
)


def try_raw_http(front: ServedFront, data: bytes) -> None:
    answer = _sent(front.http_address, data)
    if answer:
        check(answer.startswith(b"HTTP/1.1 "), f"not an answer: {answer[:200]!r}")
        check(answer[9:10] in b"1234", f"answered {answer[:200]!r}")


def try_raw_http2(front: ServedFront, data: bytes) -> None:
    host, _, port = front.grpc_address.rpartition(":")
    _sent((host, int(port)), data)


def try_http_call(client: httpx.Client, case: Any) -> None:
    path, data, headers = case
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    raw += [(b"authorization", BEARER.encode()), (b"content-type", b"application/json")]
    answer = client.post(path, content=body_of(path, ByteSource(data)), headers=raw)
    check_answer(answer.status_code, dict(answer.headers), answer.content)


def try_grpc_call(channel: grpc.Channel, case: Any) -> None:
    (method, kind), data, metadata = case
    message = built_message(kind, ByteSource(data))
    metadata = (("authorization", BEARER), *metadata.items())
    call: Any = channel.unary_stream(f"/omniserve.v1.{method}")
    try:
        for _ in call(message, metadata=metadata, timeout=PATIENCE_S):
            pass
    except grpc.RpcError as error:
        code, details = error.code().name, error.details() or ""
        check(code in GOOD_CODES, f"{code}: {details}")
        check_message(details)


def _sent(address: tuple[str, int], data: bytes) -> bytes:
    """All that comes back before the connection is closed."""
    received = b""
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                received += part
        except TimeoutError:
            raise
        except OSError:
            # The other side was done with it before this one.
            pass
    return received

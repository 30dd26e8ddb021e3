"""Connections that say nothing, little, too slowly or nonsense, and very many of them."""

import asyncio
import contextlib
import queue
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from api_servers import serving
from daemon_process import PATIENCE_S
from fault_daemon import (
    RESET,
    FaultDaemon,
    connect,
    fault_daemon,
    http_post,
    is_closed,
    split,
    write_config,
)
from service_builders import make_service

from omniserve.api import http_app

HANDSHAKE_S = 3.0
"""Long enough for clients that do all as they should on a slow machine."""
NUM_CONNECTS = 10_000
BATCH = 100
"""Fewer than a server lets wait: a connection beyond that waits for a second."""
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GET_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
UNENDED = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-A: "
SLACK = 8
"""Descriptors that may come and go for reasons of their own."""


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Iterator[FaultDaemon]:
    limits = {"handshake_s": HANDSHAKE_S, "idle_s": 3.0}
    config = write_config(tmp_path_factory.mktemp("f"), tiny_checkpoint, limits=limits)
    with fault_daemon(config) as running:
        running.check_well()
        yield running
        running.check_well()


@pytest.mark.parametrize("data", [b"", b"P", UNENDED])
def test_an_http_connection_that_says_too_little_is_closed(
    daemon: FaultDaemon, data: bytes
) -> None:
    connections = [connect(daemon.http_address, data) for _ in range(30)]
    assert all(map(is_closed, connections))


def test_a_second_request_that_does_not_come_whole_closes_the_connection(
    daemon: FaultDaemon,
) -> None:
    with connect(daemon.http_address, GET_HEALTH) as connection:
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /health HT")
        assert is_closed(connection)


def test_a_head_that_comes_byte_by_byte_is_not_waited_for(daemon: FaultDaemon) -> None:
    with connect(daemon.http_address, b"GET /health HTTP/1.1\r\n") as connection:
        connection.settimeout(0.05)
        deadline_s = time.monotonic() + PATIENCE_S
        is_open = True
        while is_open:
            assert time.monotonic() < deadline_s
            try:
                connection.sendall(b"X")
                is_open = bool(connection.recv(1000))
            except TimeoutError:
                continue
            except ConnectionError:
                is_open = False


@pytest.mark.parametrize("data", [b"", HTTP2_PREFACE[:10]])
def test_a_grpc_connection_that_says_too_little_is_closed(daemon: FaultDaemon, data: bytes) -> None:
    connections = [connect(split(daemon.grpc_address), data) for _ in range(30)]
    assert all(map(is_closed, connections))


def test_a_connection_without_calls_is_closed(daemon: FaultDaemon) -> None:
    with connect(daemon.http_address, GET_HEALTH) as connection:
        assert is_closed(connection)
    states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        channel.subscribe(states.put, try_to_connect=True)
        while states.get(timeout=PATIENCE_S) is not grpc.ChannelConnectivity.READY:
            pass
        # From here on it is the server that ends it.
        assert states.get(timeout=PATIENCE_S) is grpc.ChannelConnectivity.IDLE


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 600,
        b"GET / HTTP/1.1\r\nX: " + b"y" * (1 << 20),
        b"\0" * 5000,
        http_post(b"{}", headers="Transfer-Encoding: chunked\r\n"),
    ],
)
def test_another_protocol_is_answered_or_closed(daemon: FaultDaemon, data: bytes) -> None:
    for address in (daemon.http_address, split(daemon.grpc_address)):
        with contextlib.suppress(ConnectionError), connect(address) as connection:
            connection.sendall(data)
            assert is_closed(connection)
    daemon.check_well()


@pytest.mark.asyncio
async def test_a_body_that_does_not_come_is_not_waited_for(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_app, "BODY_TIMEOUT_S", 0.2)
    async with serving(make_service(tiny_checkpoint)) as servers:
        reader, writer = await asyncio.open_connection(*split(servers.http.address))
        writer.write(http_post(b"x" * 100)[:-50])
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        writer.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_ten_thousand_connects_leave_nothing_behind(
    daemon: FaultDaemon, protocol: str
) -> None:
    """Some close, some reset, some send nonsense, some a request whose answer they do not take."""
    before = daemon.front.num_fds()
    address = daemon.http_address if protocol == "http" else split(daemon.grpc_address)
    words = (b"", b"", b"nonsense\r\n\r\n", HTTP2_PREFACE, http_post(b'{"model":"echo"}'))
    for first in range(0, NUM_CONNECTS, BATCH):
        numbers = range(first, first + BATCH)
        await asyncio.gather(
            *(_connect_and_leave(address, words[number % 5], number % 2 == 0) for number in numbers)
        )
    daemon.check_well()
    daemon.wait_descriptors(before + SLACK)


async def _connect_and_leave(address: tuple[str, int], data: bytes, is_reset: bool) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, address)
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(connection, data)
        if is_reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

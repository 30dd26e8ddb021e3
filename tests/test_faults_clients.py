"""Clients that cancel, vanish or stop reading, in crowds."""

import asyncio
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc.aio
import httpx
import pytest
from fault_daemon import (
    FaultDaemon,
    completion,
    connect,
    fault_daemon,
    http_post,
    make_body,
    make_request,
    reset,
    wait_for,
    write_config,
)

from omniserve.v1 import omniserve_pb2_grpc

SLACK = 8
NUM_STREAMS = 40
LONG = 2000
UNREAD_TOKENS = 2048
HARDLY_READS = 4096
"""Bytes of a slow reader's receive buffer."""
MAX_GROWTH_BYTES = 96 << 20

VANISHING_CLIENT = """
import sys, threading
import grpc
from fault_daemon import make_request
from omniserve.v1 import omniserve_pb2_grpc
channel = grpc.insecure_channel(sys.argv[1])
stub = omniserve_pb2_grpc.InferenceStub(channel)
streams = [stub.Generate(make_request({tokens})) for _ in range({streams})]
for stream in streams:
    next(stream)
print("all have begun", flush=True)
threading.Event().wait()
"""


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Iterator[FaultDaemon]:
    """Its engine gives a token every millisecond or so."""
    limits = {"unread_tokens": UNREAD_TOKENS, "unread_s": 2.0}
    config = write_config(tmp_path_factory.mktemp("f"), tiny_checkpoint, limits=limits)
    with fault_daemon(config) as running:
        running.check_well()
        yield running


@pytest.mark.asyncio
async def test_a_storm_of_cancellations_leaves_nothing_running(daemon: FaultDaemon) -> None:
    """Before the first token, after some, and in the very moment of the last."""
    before = daemon.front.num_fds()
    chance = random.Random(7)

    async def one(stub: omniserve_pb2_grpc.InferenceStub) -> None:
        call = stub.Generate(make_request(chance.choice((1, 3, 50, LONG))))
        for _ in range(chance.choice((0, 0, 1, 2, 5))):
            if await call.read() is grpc.aio.EOF:
                break
        call.cancel()

    async with grpc.aio.insecure_channel(daemon.grpc_address) as channel:
        stub = omniserve_pb2_grpc.InferenceStub(channel)
        for _ in range(10):
            await asyncio.gather(*(one(stub) for _ in range(100)))
    daemon.check_well()
    daemon.wait_descriptors(before + SLACK)


def test_a_storm_of_resets_leaves_nothing_running(daemon: FaultDaemon) -> None:
    before = daemon.front.num_fds()
    body = httpx.Request("POST", "http://x", json=make_body(LONG, stream=True)).content
    for round_ in range(10):
        connections = [connect(daemon.http_address, http_post(body)) for _ in range(30)]
        for number, connection in enumerate(connections):
            if (round_ + number) % 3:
                connection.recv(200)
            reset(connection)
    daemon.check_well()
    daemon.wait_descriptors(before + SLACK)


def test_a_killed_client_frees_the_engine(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> None:
    config = write_config(tmp_path_factory.mktemp("f"), tiny_checkpoint)
    # So slow that nothing ends, nor is cut off as nobody reads it, before the client is killed.
    with fault_daemon(config, "--token-s", "0.1") as daemon:
        daemon.check_well()
        kill_a_client(daemon)


def kill_a_client(daemon: FaultDaemon) -> None:
    before = daemon.front.num_fds()
    script = VANISHING_CLIENT.format(tokens=20 * LONG, streams=NUM_STREAMS)
    client = subprocess.Popen(
        [sys.executable, "-c", script, daemon.grpc_address],
        env={"PYTHONPATH": ":".join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with client:
        assert client.stdout is not None
        assert client.stdout.readline() == "all have begun\n"
        wait_for(lambda: daemon.num_running == NUM_STREAMS)
        client.send_signal(signal.SIGKILL)
        client.wait()
    daemon.check_well()
    daemon.wait_descriptors(before + SLACK)


def test_readers_that_stop_are_cut_off_and_cost_little(daemon: FaultDaemon) -> None:
    """Their requests would be far more than sockets hold; who reads gets all of its own."""
    num_tokens = 32_000
    body = httpx.Request("POST", "http://x", json=make_body(num_tokens, stream=True)).content
    memory_before = daemon.front.memory_info().rss
    with ExitStack() as stack:
        for _ in range(8):
            connection = stack.enter_context(connect(daemon.http_address))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, HARDLY_READS)
            connection.sendall(http_post(body))
            assert connection.recv(13) == b"HTTP/1.1 200 "
        answer = completion(daemon.url, 200)
        assert answer.json()["usage"]["completion_tokens"] == 200
        theirs = f" prompt_tokens={num_tokens} "
        daemon.process.wait_log(theirs, 8)
        wait_for(lambda: daemon.num_running == 0)
    ended = [line for line in daemon.process.log.splitlines() if theirs in line]
    assert not any("outcome=ok" in line for line in ended)
    assert daemon.front.memory_info().rss - memory_before < MAX_GROWTH_BYTES
    daemon.check_well()

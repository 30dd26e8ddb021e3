"""Clients that stop reading: what waits for them is bounded, and their requests end."""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import httpx2
import pytest
from api_servers import serving
from http_client import COMPLETIONS, make_body, make_client
from listen_builders import limited_service
from service_builders import ScriptedEngine, counting, make_output, until

from omniserve.requests import EngineRequest, RequestOutput
from omniserve.v1 import omniserve_pb2 as pb

PATIENCE_S = 60.0
UNREAD_S = 0.4
LARGE = "x" * 20_000
"""Text of one token: whatever sockets hold is full soon."""


async def endless(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
    for place in range(10**9):
        await asyncio.sleep(0.005)
        yield make_output(request, place, 10**9, text=LARGE)


class PausingEngine(ScriptedEngine):
    """Its second token waits until it is let through."""

    def __init__(self) -> None:
        super().__init__(self._pausing)
        self.goes_on = asyncio.Event()

    async def _pausing(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        yield make_output(request, 0, 2)
        await self.goes_on.wait()
        yield make_output(request, 1, 2)


@dataclass
class StandingClock:
    """Of an event loop: goes on where a test says so, however long anything takes."""

    now_s: float

    async def advance(self, seconds: float) -> None:
        """In small steps, each seen by all that wait for a time."""
        for _ in range(20):
            self.now_s += seconds / 20
            for _ in range(3):
                await asyncio.sleep(0)


@contextmanager
def standing_clock() -> Iterator[StandingClock]:
    loop = asyncio.get_running_loop()
    clock = StandingClock(loop.time())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", lambda: clock.now_s)
        yield clock


def request_of(num_tokens: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(model="demo", text="x", sampling={"max_tokens": num_tokens})


def raw_request(**fields: object) -> bytes:
    body = json.dumps(make_body(COMPLETIONS, **fields)).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def connect(address: str, receive_bytes: int = 4096) -> socket.socket:
    host, _, port = address.rpartition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.connect((host, int(port)))
    return client


@pytest.mark.asyncio
@pytest.mark.parametrize("unread_tokens", [1000, 1 << 20])
async def test_a_grpc_call_that_nobody_reads_is_ended(
    tiny_checkpoint: Path, unread_tokens: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where its request ended before: then the error waits behind what is not read."""
    engine = ScriptedEngine(endless, max_model_len=1 << 20)
    service = limited_service(
        tiny_checkpoint, engine, unread_s=UNREAD_S, unread_tokens=unread_tokens
    )
    caplog.set_level(logging.INFO, "omniserve")
    async with serving(service) as servers:
        call = servers.inference.Generate(request_of(100_000))
        await call.read()
        await until(lambda: not engine.running)
        await until(lambda: any(each.message == "request" for each in caplog.records))
        # What it had been sent is still there to be read, and then it is over.
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            while await call.read() is not grpc.aio.EOF:
                pass
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Others on the same connection are served as ever.
        engine.script = counting
        other = servers.inference.Generate(request_of(2), timeout=PATIENCE_S)
        assert [token async for chunk in other for token in chunk.token_ids] == [0, 1]


@pytest.mark.asyncio
async def test_an_http_connection_that_nobody_reads_is_ended(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine(endless, max_model_len=1 << 20)
    service = limited_service(tiny_checkpoint, engine, unread_s=UNREAD_S)
    async with serving(service) as servers:
        with (
            caplog.at_level(logging.INFO, "omniserve"),
            connect(servers.http.address) as client,
        ):
            client.sendall(raw_request(max_tokens=100_000, stream=True))
            await until(lambda: bool(engine.started) and not engine.running)
            await until(lambda: any(each.message == "reader_too_slow" for each in caplog.records))
            client.settimeout(PATIENCE_S)
            with pytest.raises(ConnectionError):
                while await asyncio.to_thread(client.recv, 1 << 20):
                    pass
                raise ConnectionResetError
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.asyncio
async def test_a_whole_answer_that_nobody_reads_does_not_stay(tiny_checkpoint: Path) -> None:
    async def huge(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        yield make_output(request, 0, 1, text="x" * (8 << 20))

    engine = ScriptedEngine(huge)
    service = limited_service(tiny_checkpoint, engine, unread_s=UNREAD_S, unread_tokens=1 << 20)
    async with serving(service) as servers:
        with connect(servers.http.address) as client:
            client.sendall(raw_request(max_tokens=1))
            connections = servers.http._server.server_state.connections
            await until(lambda: bool(connections))
            await until(lambda: not connections)
            client.settimeout(PATIENCE_S)
            received = bytearray()
            # What had been sent is there, and then it is over: without an end, or reset.
            with contextlib.suppress(ConnectionError):
                while part := await asyncio.to_thread(client.recv, 1 << 20):
                    received += part
    assert len(received) < 8 << 20


@pytest.mark.asyncio
async def test_who_reads_slowly_and_steadily_is_not_cut_off(tiny_checkpoint: Path) -> None:
    async def flood(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        for place in range(80):
            yield make_output(request, place, 80, text=LARGE)

    engine = ScriptedEngine(flood, max_model_len=1 << 20)
    service = limited_service(tiny_checkpoint, engine, unread_s=UNREAD_S, unread_tokens=1 << 20)
    async with serving(service) as servers:
        with connect(servers.http.address, 32 << 10) as client, standing_clock() as clock:
            client.settimeout(PATIENCE_S)
            client.sendall(raw_request(max_tokens=80, stream=True))
            received, began_s = bytearray(), clock.now_s
            while not received.endswith(b"0\r\n\r\n"):
                part = await asyncio.to_thread(client.recv, 128 << 10)
                assert part
                received += part
                await clock.advance(UNREAD_S / 10)
            assert clock.now_s - began_s > 3 * UNREAD_S, "too soon over to be slow"
        assert received.count(LARGE.encode()) >= 1 and b"[DONE]" in received


@pytest.mark.asyncio
async def test_an_engine_that_pauses_is_not_the_clients_fault(tiny_checkpoint: Path) -> None:
    engine = PausingEngine()
    service = limited_service(tiny_checkpoint, engine, unread_s=UNREAD_S)
    async with serving(service) as servers:
        with standing_clock() as clock:
            chunks = aiter(servers.inference.Generate(request_of(2)))
            assert (await anext(chunks)).token_ids == [0]
            await clock.advance(3 * UNREAD_S)
            engine.goes_on.set()
            assert [token async for chunk in chunks for token in chunk.token_ids] == [1]
        engine.goes_on.clear()
        body = make_body(COMPLETIONS, max_tokens=2, stream=True)
        async with make_client(servers.url) as http:
            with standing_clock() as clock:
                async with http.stream("POST", COMPLETIONS, json=body) as answer:
                    parts = answer.aiter_text()
                    text = await anext(parts)
                    await clock.advance(3 * UNREAD_S)
                    engine.goes_on.set()
                    text += "".join([part async for part in parts])
        assert text.endswith("data: [DONE]\n\n")


@pytest.mark.asyncio
async def test_more_unread_than_is_allowed_ends_with_a_word(tiny_checkpoint: Path) -> None:
    async def flood(request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        for place in range(50_000):
            if place % 200 == 0:
                await asyncio.sleep(0)
            yield make_output(request, place, 50_000, text=LARGE[:2000])

    engine = ScriptedEngine(flood, max_model_len=1 << 20)
    service = limited_service(tiny_checkpoint, engine, unread_tokens=1000)
    async with (
        serving(service) as servers,
        httpx2.AsyncClient(base_url=servers.url, timeout=PATIENCE_S) as http,
    ):
        body = make_body(COMPLETIONS, stream=True, max_tokens=50_000)
        async with http.stream("POST", COMPLETIONS, json=body) as answer:
            await until(lambda: bool(engine.started) and not engine.running)
            text = "".join([part async for part in answer.aiter_text()])
    last = json.loads(text.rstrip("\n").rpartition("data: ")[2])
    assert "unread" in last["error"]["message"]

"""What one connection may take up: time without a request, age, heads, and its number."""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
import trustme
from api_servers import Servers, serving
from http_client import COMPLETIONS, make_body, make_client
from listen_builders import CertificateFiles, TlsClient, limited_service
from service_builders import ScriptedEngine, make_output, silent, until
from tenant_builders import bearer, make_tenant, make_tenanted_service

from omniserve.api import http_connection, http_strangers
from omniserve.api.http_connection import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED
from omniserve.requests import EngineRequest, RequestOutput
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

PATIENCE_S = 60.0
AGE_S = 2.0
"""Within which a connection that was just made is used."""
AUTHORITY = trustme.CA()
GET = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
BODY = b'{"state":"ready"}'


class Gate:
    """An engine whose second token waits until it is let through."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()

    async def script(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        yield make_output(request, 0, 2)
        await self.is_open.wait()
        yield make_output(request, 1, 2)


async def connect(servers: Servers) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = servers.http.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(len(BODY))
    return head


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


@pytest.mark.asyncio
async def test_an_idle_http_connection_is_closed(tiny_checkpoint: Path) -> None:
    # Whole seconds are what is told to HTTP clients and servers alike.
    async with serving(limited_service(tiny_checkpoint, idle_s=1.0)) as servers:
        reader, writer = await connect(servers)
        for _ in range(2):
            writer.write(GET)
            assert (await read_answer(reader)).startswith(OK)
        assert await read_to_end(reader) == b""
        writer.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("words", [b"", b"GET / HT", GET + b"GET / HTTP/1.1\r\nX: ", GET + b"\r\n"])
async def test_a_request_that_does_not_come_closes_the_connection(
    tiny_checkpoint: Path, words: bytes
) -> None:
    # A request that comes whole has to be in time, also on a busy machine.
    handshake_s = 2.0 if words.startswith(GET) else 0.3
    service = limited_service(tiny_checkpoint, handshake_s=handshake_s, idle_s=1.0)
    async with serving(service) as servers:
        reader, writer = await connect(servers)
        writer.write(words)
        answer = await read_to_end(reader)
        assert answer.startswith(OK) if words.startswith(GET) else not answer
        writer.close()


@pytest.mark.asyncio
async def test_bytes_after_an_answer_do_not_keep_a_connection(tiny_checkpoint: Path) -> None:
    """A body that is announced and trickles in although its request is answered."""
    async with serving(limited_service(tiny_checkpoint, handshake_s=2.0)) as servers:
        reader, writer = await connect(servers)
        writer.write(b"POST /gone HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n")

        async def trickle() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        assert b" 404 " in (await read_to_end(reader))[:20]
        trickling.cancel()
        writer.close()


@pytest.mark.asyncio
async def test_a_head_without_end_is_refused(tiny_checkpoint: Path) -> None:
    async with serving(limited_service(tiny_checkpoint)) as servers:
        for start in (b"GET /health HTTP/1.1\r\nx: ", b"GET /"):
            reader, writer = await connect(servers)
            writer.write(start + b"y" * (MAX_HEAD_BYTES + 1))
            assert (await read_to_end(reader)).startswith(b"HTTP/1.1 431 ")
            writer.close()
        # An answer that is on its way comes first, and is the last.
        reader, writer = await connect(servers)
        writer.write(GET + b"GET /" + b"y" * (MAX_HEAD_BYTES + 1))
        answer = await read_to_end(reader)
        assert answer.startswith(OK) and answer.endswith(BODY) and b"connection: close" in answer
        writer.close()
        reader, writer = await connect(servers)
        start = b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: "
        writer.write(start + b"y" * 30_000 + b"\r\n\r\n")
        assert (await read_answer(reader)).startswith(OK)
        writer.close()


@pytest.mark.asyncio
async def test_what_follows_a_body_is_no_header_and_has_an_end(tiny_checkpoint: Path) -> None:
    service = make_tenanted_service(tiny_checkpoint, make_tenant("acme"))
    token = bearer("acme")["authorization"].encode()
    async with serving(service) as servers:
        start = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n"
        trailer = b"authorization: " + token + b"\r\n"
        for request, status in (
            (start + trailer + b"\r\n0\r\n\r\n", b"200"),
            (start + b"\r\n0\r\n" + trailer + b"\r\n", b"401"),
        ):
            reader, writer = await connect(servers)
            writer.write(request)
            assert (await reader.readline()).split()[1] == status
            writer.close()
    async with serving(limited_service(tiny_checkpoint)) as servers:
        for endless in (b"x: y\r\n", b"y"):
            reader, writer = await connect(servers)
            writer.write(start + b"\r\n0\r\n")
            assert b" 200 " in await reader.readline()
            writer.write(b"x: " + endless * MAX_HEAD_BYTES)
            assert b"HTTP/1.1 431 " in await read_to_end(reader)
            writer.close()


@pytest.mark.asyncio
async def test_a_body_of_many_small_pieces_is_read(tiny_checkpoint: Path) -> None:
    async with serving(limited_service(tiny_checkpoint)) as servers:
        reader, writer = await connect(servers)
        writer.write(
            f"POST {COMPLETIONS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            "transfer-encoding: chunked\r\nconnection: close\r\n\r\n".encode()
        )
        text = json.dumps(make_body(COMPLETIONS)) + " " * MAX_HEAD_BYTES
        writer.write("".join(f"1\r\n{each}\r\n" for each in text).encode() + b"0\r\n\r\n")
        assert (await read_to_end(reader)).startswith(OK)
        writer.close()


@pytest.mark.asyncio
async def test_an_old_http_connection_ends_after_its_answer(tiny_checkpoint: Path) -> None:
    gate = Gate()
    service = limited_service(tiny_checkpoint, ScriptedEngine(gate.script), age_s=AGE_S)
    async with serving(service) as servers:
        idle, idle_writer = await connect(servers)
        idle_writer.write(GET)
        await read_answer(idle)
        async with make_client(servers.url) as http:
            body = make_body(COMPLETIONS, max_tokens=2, stream=True)
            async with http.stream("POST", COMPLETIONS, json=body) as answer:
                assert await read_to_end(idle) == b""
                gate.is_open.set()
                assert (await answer.aread()).endswith(b"data: [DONE]\n\n")
            await until(lambda: not servers.http._server.server_state.connections)
        idle_writer.close()


@pytest.mark.asyncio
async def test_an_old_grpc_connection_ends_after_its_streams(tiny_checkpoint: Path) -> None:
    gate = Gate()
    service = limited_service(tiny_checkpoint, ScriptedEngine(gate.script), age_s=AGE_S)
    request = pb.GenerateRequest(model="demo", text="x", sampling={"max_tokens": 2})
    async with serving(service) as servers:
        states: list[grpc.ChannelConnectivity] = []

        async def follow(channel: grpc.aio.Channel) -> None:
            while True:
                states.append(channel.get_state())
                await channel.wait_for_state_change(states[-1])

        following = asyncio.create_task(follow(servers.channel))
        call = servers.inference.Generate(request)
        await call.read()
        # The server has told the client to go elsewhere, and the stream goes on.
        await until(lambda: states[-1] is grpc.ChannelConnectivity.IDLE)
        gate.is_open.set()
        assert (await call.read()).token_ids == [1]
        assert await call.read() is grpc.aio.EOF
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


@pytest.mark.asyncio
async def test_an_idle_grpc_connection_is_closed(tiny_checkpoint: Path) -> None:
    async with serving(limited_service(tiny_checkpoint, idle_s=0.3)) as servers:
        await servers.inference.ListModels(pb.ListModelsRequest())
        # It was connected, or there would be no answer.
        await until(lambda: servers.channel.get_state() is grpc.ChannelConnectivity.IDLE)
        # Which no client needs to notice.
        await servers.inference.ListModels(pb.ListModelsRequest())


@pytest.mark.asyncio
async def test_no_more_grpc_connections_than_allowed(tiny_checkpoint: Path) -> None:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with serving(limited_service(tiny_checkpoint, max_connections=2)) as servers:
        channels = [grpc.aio.insecure_channel(servers.grpc.address, options) for _ in range(4)]
        codes = []
        for number, channel in enumerate(channels):
            stub = omniserve_pb2_grpc.InferenceStub(channel)
            timeout_s = PATIENCE_S if number < 2 else 2.0
            try:
                await stub.ListModels(pb.ListModelsRequest(), timeout=timeout_s)
                codes.append("OK")
            except grpc.aio.AioRpcError as error:
                codes.append(error.code().name)
        for channel in channels:
            await channel.close()
        assert codes[:2] == ["OK", "OK"] and "OK" not in codes[2:]


@pytest.mark.asyncio
async def test_no_more_http_requests_than_allowed_and_health_still_answers(
    tiny_checkpoint: Path,
) -> None:
    engine = ScriptedEngine(silent)
    service = limited_service(tiny_checkpoint, engine, max_requests=2)
    async with serving(service) as servers, make_client(servers.url) as http:
        body = make_body(COMPLETIONS)
        asking = [asyncio.create_task(http.post(COMPLETIONS, json=body)) for _ in range(2)]
        await until(lambda: len(engine.running) == 2)
        refused = await http.post(COMPLETIONS, json=body)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert (await http.get("/health")).status_code == 200
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await until(lambda: not engine.running)
        engine.script = ScriptedEngine().script
        assert (await http.post(COMPLETIONS, json=body)).status_code == 200


@pytest.mark.asyncio
async def test_connections_far_beyond_the_limit_are_not_even_answered(
    tiny_checkpoint: Path,
) -> None:
    async with serving(limited_service(tiny_checkpoint, max_connections=2)) as servers:
        connections = [await connect(servers) for _ in range(4)]
        await until(lambda: len(servers.http._server.server_state.connections) == 4)
        reader, writer = await connect(servers)
        assert await read_to_end(reader) == b""
        for _, each in (*connections, (reader, writer)):
            each.close()


@pytest.mark.asyncio
async def test_requests_that_wait_on_one_connection_have_an_end(tiny_checkpoint: Path) -> None:
    async with serving(limited_service(tiny_checkpoint)) as servers:
        for num_requests in (MAX_PIPELINED, 1000):
            reader, writer = await connect(servers)
            writer.write(GET * num_requests)
            if num_requests == MAX_PIPELINED:
                answers = [await read_answer(reader) for _ in range(num_requests)]
                assert not any(b"connection: close" in each for each in answers)
            else:
                answer = await read_to_end(reader)
                # Those that were taken are answered, and the last answer says that it is the last.
                assert answer.count(OK) == answer.count(BODY) == 1 + MAX_PIPELINED
                assert b"connection: close" in answer.rpartition(OK)[2]
                assert answer.count(b"connection: close") == 1
            writer.close()
        # Not one more has come as far as the application.
        server = servers.http._server
        await until(lambda: not server.server_state.connections)
        assert server.server_state.total_requests == 2 * MAX_PIPELINED + 1


@pytest.mark.asyncio
async def test_a_request_of_very_many_headers_is_refused(tiny_checkpoint: Path) -> None:
    async with serving(limited_service(tiny_checkpoint)) as servers:
        for num_headers, status in ((MAX_HEADERS - 1, b"200"), (MAX_HEADERS, b"431")):
            reader, writer = await connect(servers)
            writer.write(GET[:-2] + b"x:\r\n" * num_headers + b"\r\n")
            assert (await reader.readline()).split()[1] == status
            writer.close()


@pytest.mark.asyncio
@pytest.mark.parametrize("path", ["/v1/models", "/health"])
async def test_a_stranger_does_not_keep_a_connection(tiny_checkpoint: Path, path: str) -> None:
    service = make_tenanted_service(tiny_checkpoint, make_tenant("acme"))
    async with serving(service) as servers:
        reader, writer = await connect(servers)
        request = f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
        writer.write(2 * request)
        answer = await read_to_end(reader)
        assert answer.count(b"HTTP/1.1 ") == answer.count(b"connection: close") == 1
        writer.close()
        reader, writer = await connect(servers)
        for _ in range(2):
            header = f"authorization: {bearer('acme')['authorization']}\r\n".encode()
            writer.write(b"GET /v1/models/demo HTTP/1.1\r\nhost: localhost\r\n" + header + b"\r\n")
            assert (await reader.readline()).split()[1] == b"200"
            assert b"connection: close" not in await reader.readuntil(b"}")
        writer.close()


@pytest.mark.asyncio
async def test_a_stranger_who_is_still_sending_gets_its_answer(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_strangers, "LINGER_S", PATIENCE_S)
    service = make_tenanted_service(tiny_checkpoint, make_tenant("acme"))
    async with serving(service) as servers:
        reader, writer = await connect(servers)
        body = b"x" * (4 << 20)
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}"
        writer.write(head.encode() + b"\r\n\r\n" + body)
        # Were the connection reset, writing would fail.
        await writer.drain()
        assert (await read_to_end(reader)).startswith(b"HTTP/1.1 401 ")
        writer.close()


@asynccontextmanager
async def secured(checkpoint: Path, directory: Path, **limits: float) -> AsyncIterator[Servers]:
    """With a certificate that `connect_secured` trusts."""
    files = CertificateFiles(directory)
    files.write(AUTHORITY)
    async with serving(limited_service(checkpoint, None, **limits), tls=files.load()) as servers:
        yield servers


async def connect_secured(servers: Servers) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = servers.http.address.rpartition(":")
    return await asyncio.open_connection(host, int(port), ssl=TlsClient(AUTHORITY).context)


@pytest.mark.asyncio
async def test_tls_handshakes_have_places_among_the_connections(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    limits = {"max_connections": 2, "handshake_s": PATIENCE_S}
    async with secured(tiny_checkpoint, tmp_path, **limits) as servers:
        silent = [await connect(servers) for _ in range(4)]
        reader, writer = await connect(servers)
        assert await read_to_end(reader) == b""
        writer.close()
        _, leaving = silent.pop()
        leaving.close()
        # As soon as its end is noticed.
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(OSError):
                    reader, writer = await connect_secured(servers)
                    break
        writer.write(GET)
        assert (await read_answer(reader)).startswith(OK)
        for _, each in (*silent, (reader, writer)):
            each.close()


@pytest.mark.asyncio
async def test_who_hangs_up_on_its_refusal_leaves_no_traceback(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(http_connection, "LINGER_S", 0.3)
    async with secured(tiny_checkpoint, tmp_path) as servers:
        reader, writer = await connect_secured(servers)
        writer.write(b"GET /" + b"y" * (MAX_HEAD_BYTES + 1))
        assert (await reader.readline()).startswith(b"HTTP/1.1 431 ")
        writer.close()
        await until(lambda: not servers.http._server.server_state.connections)
        await asyncio.sleep(0.5)
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


@pytest.mark.asyncio
async def test_an_old_connection_that_is_closing_already_leaves_no_traceback(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It takes its time, as the client never says that it has heard of the end."""
    limits = {"handshake_s": 2.5, "unread_s": 0.1, "age_s": 2.8}
    async with secured(tiny_checkpoint, tmp_path, **limits) as servers:
        host, _, port = servers.http.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as plain:
            context = TlsClient(AUTHORITY).context
            with await asyncio.to_thread(context.wrap_socket, plain, server_hostname=host):
                connections = servers.http._server.server_state.connections
                await until(lambda: bool(connections))
                await until(lambda: not connections)
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]

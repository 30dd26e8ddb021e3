"""Both servers for clients with TLS, on real sockets: who gets in, and what a rotation does."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import httpx2
import pytest
import trustme
from api_servers import Servers, serving
from http_client import COMPLETIONS, make_body
from listen_builders import CertificateFiles, TlsClient, limited_service
from service_builders import ScriptedEngine, make_output

from omniserve.requests import EngineRequest, RequestOutput
from omniserve.tls import Tls
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

AUTHORITY, OTHER = trustme.CA(), trustme.CA()
PATIENCE_S = 60.0


@asynccontextmanager
async def grpc_client(
    address: str, client: TlsClient
) -> AsyncIterator[omniserve_pb2_grpc.InferenceStub]:
    credentials = grpc.ssl_channel_credentials(*client.grpc_parts)
    # Of its own: channels with equal options share their connections.
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(address, credentials, options) as channel:
        yield omniserve_pb2_grpc.InferenceStub(channel)


async def grpc_code(address: str, client: TlsClient) -> str:
    async with grpc_client(address, client) as stub:
        try:
            await stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
    return "OK"


def http_client(url: str, client: TlsClient) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=url, verify=client.context, timeout=PATIENCE_S)


async def http_status(url: str, client: TlsClient) -> int | None:
    """None where there was no connection."""
    try:
        async with http_client(url, client) as http:
            return (await http.get("/v1/models")).status_code
    except (httpx2.TransportError, OSError):
        return None


class Gate:
    """An engine whose second token waits until it is let through."""

    def __init__(self) -> None:
        self.is_open = asyncio.Event()

    async def script(self, request: EngineRequest) -> AsyncGenerator[RequestOutput, None]:
        yield make_output(request, 0, 3)
        await self.is_open.wait()
        for place in (1, 2):
            yield make_output(request, place, 3)


@asynccontextmanager
async def secured(
    checkpoint: Path, tls: Tls, engine: ScriptedEngine | None = None
) -> AsyncIterator[Servers]:
    async with serving(limited_service(checkpoint, engine), tls=tls) as servers:
        yield servers


@pytest.mark.asyncio
async def test_both_servers_are_encrypted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    files = CertificateFiles(tmp_path)
    files.write(AUTHORITY)
    async with secured(tiny_checkpoint, files.load()) as servers:
        assert servers.url.startswith("https://")
        known, stranger = TlsClient(AUTHORITY), TlsClient(OTHER)
        assert await grpc_code(servers.grpc.address, known) == "OK"
        assert await http_status(servers.url, known) == 200
        assert await grpc_code(servers.grpc.address, stranger) == "UNAVAILABLE"
        assert await http_status(servers.url, stranger) is None
        # In clear there is no answer at all.
        assert await http_status(servers.url.replace("https:", "http:"), known) is None
        with pytest.raises(grpc.aio.AioRpcError):
            await servers.inference.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S)


@pytest.mark.asyncio
async def test_mutual_tls_asks_for_a_certificate_of_the_right_authority(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    files = CertificateFiles(tmp_path, with_clients=True)
    files.write(AUTHORITY)
    async with secured(tiny_checkpoint, files.load()) as servers:
        for own, is_let_in in (
            (AUTHORITY.issue_cert("someone@example.org"), True),
            (None, False),
            (OTHER.issue_cert("someone@example.org"), False),
        ):
            client = TlsClient(AUTHORITY, own)
            code = await grpc_code(servers.grpc.address, client)
            assert code == ("OK" if is_let_in else "UNAVAILABLE")
            assert await http_status(servers.url, client) == (200 if is_let_in else None)


@pytest.mark.asyncio
async def test_a_rotation_changes_new_connections_and_no_stream(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    files, gate = CertificateFiles(tmp_path, with_clients=True), Gate()
    first = files.write(AUTHORITY)
    tls = files.load()
    old = TlsClient(AUTHORITY, AUTHORITY.issue_cert("someone@example.org"))
    new = TlsClient(OTHER, OTHER.issue_cert("someone@example.org"))
    request = pb.GenerateRequest(model="demo", text="x", sampling={"max_tokens": 3})
    engine = ScriptedEngine(gate.script)
    async with secured(tiny_checkpoint, tls, engine) as servers:
        addresses = (servers.grpc.address, servers.http.address)
        async with (
            grpc_client(servers.grpc.address, old) as stub,
            http_client(servers.url, old) as http,
            http.stream("POST", COMPLETIONS, json=make_body(COMPLETIONS, stream=True)) as answer,
        ):
            call = stub.Generate(request)
            assert (await call.read()).token_ids == [0]
            for address in addresses:
                assert await asyncio.to_thread(old.shown_certificate, address) == first
            second = files.write(OTHER)
            # Written is not taken over.
            for address in addresses:
                assert await asyncio.to_thread(old.shown_certificate, address) == first
            tls.put(tls.read())
            for address in addresses:
                for _ in range(3):
                    assert await asyncio.to_thread(new.shown_certificate, address) == second
            stranger = TlsClient(OTHER, old.own)
            assert await grpc_code(servers.grpc.address, stranger) == "UNAVAILABLE"
            assert await http_status(servers.url, stranger) is None
            assert await grpc_code(servers.grpc.address, new) == "OK"
            assert await http_status(servers.url, new) == 200
            gate.is_open.set()
            token_ids: list[int] = []
            while (chunk := await call.read()) is not grpc.aio.EOF:
                token_ids.extend(chunk.token_ids)
            assert token_ids == [1, 2]
            assert (await answer.aread()).endswith(b"data: [DONE]\n\n")


@pytest.mark.asyncio
async def test_a_handshake_that_stops_half_way_is_ended(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    files = CertificateFiles(tmp_path)
    files.write(AUTHORITY)
    service = limited_service(tiny_checkpoint, handshake_s=0.3)
    async with serving(service, tls=files.load()) as servers:
        for address in (servers.grpc.address, servers.http.address):
            host, _, port = address.rpartition(":")
            for words in (b"", b"\x16\x03\x01"):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(words)
                async with asyncio.timeout(PATIENCE_S):
                    assert await reader.read() == b""
                writer.close()
        # Who goes on is served, once this machine is fast enough for the limit.
        async with asyncio.timeout(PATIENCE_S):
            while await http_status(servers.url, TlsClient(AUTHORITY)) != 200:
                pass

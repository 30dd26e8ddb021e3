"""Both servers on real sockets in this process, over any service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from grpc.aio import Channel
from service_builders import ScriptedEngine

from omniserve.api.grpc_server import GrpcServer
from omniserve.api.http_server import HttpServer
from omniserve.reload.reloader import Reloader
from omniserve.service import GenerationService
from omniserve.v1 import omniserve_pb2_grpc


@dataclass(frozen=True, slots=True)
class Servers:
    grpc: GrpcServer
    http: HttpServer
    channel: Channel
    inference: omniserve_pb2_grpc.InferenceStub
    admin: omniserve_pb2_grpc.AdminStub
    url: str


def make_reloader(service: GenerationService, config_path: Path) -> Reloader:
    assert isinstance(service.engine, ScriptedEngine)
    return Reloader(config_path, service.config, service, service.engine)


@asynccontextmanager
async def serving(
    service: GenerationService, config_path: Path = Path("not-there.yaml")
) -> AsyncIterator[Servers]:
    """`config_path` is what is read at reloads."""
    grpc_server = GrpcServer(service, "127.0.0.1:0", make_reloader(service, config_path))
    http_server = HttpServer(service, "127.0.0.1:0")
    await grpc_server.start()
    await http_server.start()
    try:
        async with grpc.aio.insecure_channel(grpc_server.address) as channel:
            yield Servers(
                grpc_server,
                http_server,
                channel,
                omniserve_pb2_grpc.InferenceStub(channel),
                omniserve_pb2_grpc.AdminStub(channel),
                f"http://{http_server.address}",
            )
    finally:
        await http_server.stop(1)
        await grpc_server.stop(0)

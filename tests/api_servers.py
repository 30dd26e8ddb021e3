"""All servers on real sockets in this process, over any service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from grpc.aio import Channel
from service_builders import ScriptedEngine

from omniserve.api.grpc_admin import AdminServicer
from omniserve.api.grpc_admin_server import GrpcAdminServer
from omniserve.api.grpc_server import GrpcServer
from omniserve.api.http_server import HttpServer
from omniserve.api.status_page.routes import status_routes
from omniserve.model_life.manager import ModelManager
from omniserve.reload.reloader import Reloader
from omniserve.service import GenerationService
from omniserve.status.reporter import StatusReporter
from omniserve.tls import Tls
from omniserve.v1 import omniserve_pb2_grpc


@dataclass(frozen=True, slots=True)
class Servers:
    grpc: GrpcServer
    http: HttpServer
    channel: Channel
    admin_channel: Channel
    inference: omniserve_pb2_grpc.InferenceStub
    admin: omniserve_pb2_grpc.AdminStub
    admin_address: str
    url: str


def make_reloader(
    service: GenerationService,
    config_path: Path,
    tls: Tls | None = None,
    models: ModelManager | None = None,
) -> Reloader:
    assert isinstance(service.engine, ScriptedEngine)
    models = models or make_manager(service, config_path)
    return Reloader(config_path, service.config, service, service.engine, models, tls)


def make_manager(service: GenerationService, config_path: Path) -> ModelManager:
    assert isinstance(service.engine, ScriptedEngine)
    return ModelManager(service, service.engine, config_path)


@asynccontextmanager
async def serving(
    service: GenerationService, config_path: Path = Path("not-there.yaml"), tls: Tls | None = None
) -> AsyncIterator[Servers]:
    """`config_path` is what is read at reloads. With `tls`, `channel` and `url` need certificates
    that they do not have."""
    models = make_manager(service, config_path)
    reloader = make_reloader(service, config_path, tls, models)
    reporter = StatusReporter(service, reloader)
    servicer = AdminServicer(service, reloader, reporter, models)
    grpc_server = GrpcServer(service, "127.0.0.1:0", tls)
    admin_server = GrpcAdminServer(service, servicer, "127.0.0.1:0")
    http_server = HttpServer(service, "127.0.0.1:0", tls, status_routes(reporter))
    await grpc_server.start()
    await admin_server.start(0)
    await http_server.start()
    try:
        async with (
            grpc.aio.insecure_channel(grpc_server.address) as channel,
            grpc.aio.insecure_channel(admin_server.address) as admin_channel,
        ):
            yield Servers(
                grpc_server,
                http_server,
                channel,
                admin_channel,
                omniserve_pb2_grpc.InferenceStub(channel),
                omniserve_pb2_grpc.AdminStub(admin_channel),
                admin_server.address,
                f"{'http' if tls is None else 'https'}://{http_server.address}",
            )
    finally:
        await models.close()
        await http_server.stop(1)
        await admin_server.stop(0)
        await grpc_server.stop(0)

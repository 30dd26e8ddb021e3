"""The gRPC server: services, health, reflection, limits."""

import asyncio

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from omniserve.api.grpc_admin import AdminServicer
from omniserve.api.grpc_errors import ErrorInterceptor
from omniserve.api.grpc_inference import InferenceServicer
from omniserve.config_values import split_address
from omniserve.errors import ConfigError
from omniserve.reload.reloader import Reloader
from omniserve.service import GenerationService
from omniserve.v1 import omniserve_pb2, omniserve_pb2_grpc

MAX_MESSAGE_BYTES = 8 << 20
MAX_CONCURRENT_RPCS = 4096

SERVICES = tuple(
    service.full_name for service in omniserve_pb2.DESCRIPTOR.services_by_name.values()
)

OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Linux would else let two servers share the port, each getting some of the calls.
    ("grpc.so_reuseport", 0),
    # Long generations with few messages: clients may ping, and vanished clients are noticed.
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.server_handshake_timeout_ms", 5_000),
)


class GrpcServer:
    """Serves a GenerationService at one address. Made inside a running event loop."""

    def __init__(self, service: GenerationService, address: str, reloader: Reloader) -> None:
        self.address = address
        """host:port; once started, with the port that is really listened on."""
        self._health = health.aio.HealthServicer()
        self._health_updates: set[asyncio.Task[None]] = set()
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=OPTIONS,
            maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS,
        )
        omniserve_pb2_grpc.add_InferenceServicer_to_server(InferenceServicer(service), self._server)
        omniserve_pb2_grpc.add_AdminServicer_to_server(
            AdminServicer(service, reloader), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> None:
        """Listens, and reports not serving until told otherwise; raises ConfigError."""
        host, _ = split_address(self.address)
        try:
            port = self._server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise ConfigError(f"listen.grpc: cannot listen on {self.address}: {error}") from None
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        await self._report(False)
        await self._server.start()

    def set_serving(self, is_serving: bool) -> None:
        """What health checks and watchers hear, for the server as a whole and for every service."""
        update = asyncio.create_task(self._report(is_serving), name="grpc-health")
        self._health_updates.add(update)
        update.add_done_callback(self._health_updates.discard)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls at once and lets running ones end for at most `grace_s`."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def _report(self, is_serving: bool) -> None:
        kinds = health_pb2.HealthCheckResponse
        status = kinds.SERVING if is_serving else kinds.NOT_SERVING
        for name in ("", *SERVICES):
            await self._health.set(name, status)

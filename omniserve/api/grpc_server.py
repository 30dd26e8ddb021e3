"""The gRPC server that clients use: Inference, and health."""

import grpc.aio

from omniserve.api.grpc_access import AccessInterceptor
from omniserve.api.grpc_calls import CallInterceptor
from omniserve.api.grpc_errors import ErrorInterceptor
from omniserve.api.grpc_inference import InferenceServicer
from omniserve.api.grpc_listener import GrpcListener
from omniserve.api.grpc_tls import grpc_credentials
from omniserve.config_values import join_address, split_address
from omniserve.errors import ConfigError
from omniserve.service import GenerationService
from omniserve.tls import Tls
from omniserve.v1 import omniserve_pb2, omniserve_pb2_grpc

SERVICES = (omniserve_pb2.DESCRIPTOR.services_by_name["Inference"].full_name,)


class GrpcServer:
    """Serves a GenerationService at one address. Made inside a running event loop."""

    def __init__(self, service: GenerationService, address: str, tls: Tls | None = None) -> None:
        self.address = address
        """host:port; once started, with the port that is really listened on."""
        self._tls = tls
        limits = service.config.limits
        self._listener = GrpcListener(
            SERVICES,
            limits,
            interceptors=[
                CallInterceptor(service.calls),
                ErrorInterceptor(),
                AccessInterceptor(service.access),
            ],
            max_calls=limits.max_requests,
        )
        omniserve_pb2_grpc.add_InferenceServicer_to_server(
            InferenceServicer(service), self._listener.server
        )

    async def start(self) -> None:
        """Listens, and reports not serving until told otherwise; raises ConfigError."""
        host, _ = split_address(self.address)
        try:
            port = await self._listener.start(self._bind)
        except RuntimeError as error:
            raise ConfigError(f"listen.grpc: cannot listen on {self.address}: {error}") from None
        self.address = join_address(host, port)

    def set_serving(self, is_serving: bool) -> None:
        """What health checks and watchers hear."""
        self._listener.set_serving(is_serving)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls at once and lets running ones end for at most `grace_s`."""
        await self._listener.stop(grace_s)

    def _bind(self, server: grpc.aio.Server) -> int:
        if self._tls is None:
            return server.add_insecure_port(self.address)
        return server.add_secure_port(self.address, grpc_credentials(self._tls))

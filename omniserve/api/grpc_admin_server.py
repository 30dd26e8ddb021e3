"""The gRPC server that operators use: Admin, on a socket of its own."""

from pathlib import Path

import grpc.aio

from omniserve.admin_address import AUTO, listening_address, unix_target
from omniserve.api.admin_socket import SocketFile, closed_to_others, make_way
from omniserve.api.grpc_admin import AdminServicer
from omniserve.api.grpc_calls import CallInterceptor
from omniserve.api.grpc_errors import ErrorInterceptor
from omniserve.api.grpc_listener import GrpcListener
from omniserve.config_listen import UNIX
from omniserve.config_values import join_address, split_address
from omniserve.errors import ConfigError
from omniserve.service import GenerationService
from omniserve.v1 import omniserve_pb2, omniserve_pb2_grpc

MAX_CALLS = 64
"""Operators and what they run are few, and every watcher costs."""

SERVICES = (omniserve_pb2.DESCRIPTOR.services_by_name["Admin"].full_name,)


class GrpcAdminServer:
    """Whoever can open its socket is an operator: there is no other check."""

    def __init__(
        self, service: GenerationService, servicer: AdminServicer, address: str = AUTO
    ) -> None:
        self.address = address
        """As `listen.admin` has it; once started, `unix:/path` or host:port really listened on."""
        self._socket_file: SocketFile | None = None
        self._listener = GrpcListener(
            SERVICES,
            service.config.limits,
            interceptors=[CallInterceptor(service.calls), ErrorInterceptor()],
            max_calls=MAX_CALLS,
        )
        omniserve_pb2_grpc.add_AdminServicer_to_server(servicer, self._listener.server)

    async def start(self, grpc_port: int) -> None:
        """Listens; `grpc_port`, of the server for clients, is part of the default's name.

        Raises ConfigError.
        """
        self.address = listening_address(self.address, grpc_port)
        try:
            port = await self._listener.start(self._bind)
        except (RuntimeError, OSError) as error:
            raise ConfigError(f"listen.admin: cannot listen on {self.address}: {error}") from None
        if not self.address.startswith(UNIX):
            host, _ = split_address(self.address)
            self.address = join_address(host, port)

    def set_serving(self, is_serving: bool) -> None:
        """What health checks and watchers hear."""
        self._listener.set_serving(is_serving)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls at once and lets running ones end for at most `grace_s`."""
        await self._listener.stop(grace_s)
        if self._socket_file is not None:
            self._socket_file.remove()

    def _bind(self, server: grpc.aio.Server) -> int:
        if not self.address.startswith(UNIX):
            return server.add_insecure_port(self.address)
        path = Path(self.address.removeprefix(UNIX))
        make_way(path)
        with closed_to_others(path):
            port = server.add_insecure_port(unix_target(path))
        self._socket_file = SocketFile(path)
        return port

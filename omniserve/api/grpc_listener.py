"""What every gRPC server has: limits, health, reflection, and an end in order."""

import asyncio
from collections.abc import Callable, Sequence

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from omniserve.api.grpc_places import MAX_OPEN_CALLS, MESSAGE_S, PlaceInterceptor
from omniserve.config_listen import LimitsConfig


class GrpcListener:
    """One server, whose services are added to `server`. Made inside a running event loop."""

    def __init__(
        self,
        services: Sequence[str],
        limits: LimitsConfig,
        *,
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        max_calls: int,
        message_s: float = MESSAGE_S,
    ) -> None:
        """`services` are their full names, for health and reflection; `message_s` is how long the
        message of a call of theirs may take."""
        self._services = services
        self._health = health.aio.HealthServicer()
        self._health_updates: set[asyncio.Task[None]] = set()
        self.server = grpc.aio.server(
            interceptors=[*interceptors, PlaceInterceptor(max_calls, message_s)],
            options=_options(limits, max_calls + MAX_OPEN_CALLS),
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.server)

    async def start(self, bind: Callable[[grpc.aio.Server], int]) -> int:
        """Listens where `bind` says, and reports not serving until told otherwise.

        Returns what `bind` does, which is the port; raises what it raises.
        """
        port = bind(self.server)
        await self._report(False)
        await self.server.start()
        return port

    def set_serving(self, is_serving: bool) -> None:
        """What health checks and watchers hear, for the server as a whole and for every service."""
        update = asyncio.create_task(self._report(is_serving), name="grpc-health")
        self._health_updates.add(update)
        update.add_done_callback(self._health_updates.discard)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls at once and lets running ones end for at most `grace_s`."""
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)

    async def _report(self, is_serving: bool) -> None:
        kinds = health_pb2.HealthCheckResponse
        status = kinds.SERVING if is_serving else kinds.NOT_SERVING
        for name in ("", *self._services):
            await self._health.set(name, status)


def _options(limits: LimitsConfig, max_calls: int) -> tuple[tuple[str, int], ...]:
    options = [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_concurrent_streams", max_calls),
        # Linux would else let two servers share the port, each getting some of the calls.
        ("grpc.so_reuseport", 0),
        # Long generations with few messages: clients may ping, and vanished clients are noticed.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.server_handshake_timeout_ms", _milliseconds(limits.handshake_s)),
        ("grpc.max_connection_idle_ms", _milliseconds(limits.idle_s)),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
    ]
    if limits.age_s is not None:
        # Calls that run then may end on the connection, however long they take.
        options.append(("grpc.max_connection_age_ms", _milliseconds(limits.age_s)))
    return tuple(options)


def _milliseconds(seconds: float) -> int:
    return max(1, round(1e3 * seconds))

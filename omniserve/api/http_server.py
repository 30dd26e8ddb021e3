"""The HTTP server: one socket, one application, inside the daemon's own event loop."""

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from omniserve.api.http_app import create_app
from omniserve.config_values import split_address
from omniserve.errors import ConfigError
from omniserve.service import GenerationService

BACKLOG = 128
MAX_CONNECTIONS = 2048
"""Beyond it requests get 503: descriptors must be left for the engine's sockets and files."""
KEEP_ALIVE_S = 75
HEADERS_S = 30
_POLL_S = 0.01


class HttpServer:
    """Serves a GenerationService at one address."""

    def __init__(self, service: GenerationService, address: str) -> None:
        self.address = address
        """host:port; once started, with the port that is really listened on."""
        self._server = _EmbeddedServer(
            uvicorn.Config(
                create_app(service),
                http=_ImpatientProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens and serves; raises ConfigError where the address cannot be had."""
        listener = _listen(self.address)
        host, _ = split_address(self.address)
        port = listener.getsockname()[1]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._task = asyncio.create_task(self._server.serve([listener]), name="http-server")
        while not (self._server.started or self._task.done()):
            await asyncio.sleep(_POLL_S)
        if self._task.done():
            await self._task

    async def failure(self) -> BaseException:
        """Waits for the server to end without having been stopped, and returns the cause."""
        assert self._task is not None
        await asyncio.wait([self._task])
        return self._task.exception() or RuntimeError("the HTTP server ended")

    async def stop(self, grace_s: float) -> None:
        """Refuses new connections at once and lets running requests end for at most `grace_s`."""
        if self._task is None:
            return
        self._server.config.timeout_graceful_shutdown = math.ceil(grace_s)
        self._server.should_exit = True
        await self._task


class _ImpatientProtocol(HttpToolsProtocol):
    """Closes a connection that has not sent a request's headers in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEADERS_S, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()


class _EmbeddedServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the daemon."""
        yield


def _listen(address: str) -> socket.socket:
    host, port = split_address(address)
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"listen.http: cannot listen on {address}: {error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"listen.http: cannot listen on {address}: {error.strerror}") from None
    return listener

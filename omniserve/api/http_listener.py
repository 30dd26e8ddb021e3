"""An HTTP server: one socket, one application, inside the daemon's own event loop."""

import asyncio
import asyncio.sslproto
import contextlib
import functools
import math
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from omniserve.api.bounded_listener import BoundedListener
from omniserve.api.http_connection import LimitedConnection
from omniserve.config_listen import LimitsConfig
from omniserve.config_values import join_address, split_address
from omniserve.errors import ConfigError
from omniserve.tls import Tls

BACKLOG = 1024
"""Connections that may wait to be accepted; beyond it clients try again a second later."""
SEND_BUFFER_BYTES = 128 << 10
"""Of the kernel, for each connection, which makes it twice as much."""
MAX_IDLERS_PER_CONNECTION = 2
"""So many times the allowed connections may be open; beyond it they are not even answered."""
TLS_BUFFER_BYTES = 32 << 10
"""Of each connection, for what has arrived; a record of TLS has half of it."""
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 20), (socket.TCP_KEEPCNT, 3))
"""Clients that vanish without a word are noticed while nothing is sent to them."""
_POLL_S = 0.01


class HttpListener:
    """Serves an application at one address."""

    def __init__(
        self, app: ASGIApp, address: str, key: str, limits: LimitsConfig, tls: Tls | None
    ) -> None:
        """`key` is where the configuration has the address, for messages."""
        self.address = address
        """host:port; once started, with the port that is really listened on."""
        self._key = key
        self._limits = limits
        self._server = _EmbeddedServer(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                # Whatever clients get wrong is no warning.
                log_level="error",
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                limit_concurrency=limits.max_connections,
                timeout_keep_alive=math.ceil(limits.idle_s),
            ),
            limits,
            tls,
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens and serves; raises ConfigError where the address cannot be had."""
        listener = self._listen()
        host, _ = split_address(self.address)
        port = listener.getsockname()[1]
        self.address = join_address(host, port)
        name = f"{self._key.removeprefix('listen.')}-server"
        self._task = asyncio.create_task(self._server.serve([listener]), name=name)
        while not (self._server.started or self._task.done()):
            await asyncio.sleep(_POLL_S)
        if self._task.done():
            await self._task

    async def failure(self) -> BaseException:
        """Waits for the server to end without having been stopped, and returns the cause."""
        assert self._task is not None
        await asyncio.wait([self._task])
        return self._task.exception() or RuntimeError(f"the server of {self._key} ended")

    async def stop(self, grace_s: float) -> None:
        """Refuses new connections at once and lets running requests end for at most `grace_s`."""
        if self._task is None:
            return
        self._server.config.timeout_graceful_shutdown = math.ceil(grace_s)
        self._server.should_exit = True
        # Why a server died is for `failure` to tell: here it would keep others from being stopped.
        await asyncio.wait([self._task])
        # One that died has left its socket open.
        for each in self._server.servers:
            each.close()

    def _listen(self) -> socket.socket:
        host, port = split_address(self.address)
        problem = f"{self._key}: cannot listen on {self.address}"
        try:
            family, kind, protocol, _, target = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            most = MAX_IDLERS_PER_CONNECTION * self._limits.max_connections
            listener = BoundedListener(family, kind, protocol, most)
        except OSError as error:
            raise ConfigError(f"{problem}: {error}") from None
        try:
            self._set_options(listener)
            listener.bind(target)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise ConfigError(f"{problem}: {error.strerror}") from None
        return listener

    def _set_options(self, listener: socket.socket) -> None:
        """Connections inherit them."""
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # Only where the connection itself has not noticed by then.
        unread_ms = round(3e3 * self._limits.unread_s)
        for option, value in (*_KEEPALIVE, (socket.TCP_USER_TIMEOUT, unread_ms)):
            # Not every kernel knows all of them.
            with contextlib.suppress(OSError):
                listener.setsockopt(socket.IPPROTO_TCP, option, value)


class _EmbeddedServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, limits: LimitsConfig, tls: Tls | None) -> None:
        super().__init__(config)
        self.servers = []
        self._limits = limits
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """In place of the base class's, which knows no limit to TLS handshakes."""
        assert sockets is not None
        make_connection = functools.partial(
            LimitedConnection, self._limits, self.config, self.server_state, self.lifespan.state
        )
        context = None if self._tls is None else self._tls.context
        tls_step_s = None if self._tls is None else self._limits.handshake_s
        # Of the whole process, where nothing else has such connections; 256 KiB are each one's
        # otherwise, before it has said anything.
        asyncio.sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                make_connection,
                sock=each,
                backlog=BACKLOG,
                ssl=context,
                ssl_handshake_timeout=tls_step_s,
                ssl_shutdown_timeout=tls_step_s,
            )
            for each in sockets
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the daemon."""
        yield

"""The front's servers and what they serve. Importing this module imports both server stacks."""

import asyncio
from pathlib import Path
from typing import NoReturn

from omniserve.api.grpc_admin import AdminServicer
from omniserve.api.grpc_admin_server import GrpcAdminServer
from omniserve.api.grpc_server import GrpcServer
from omniserve.api.http_server import HttpServer
from omniserve.api.status_page.routes import status_routes
from omniserve.api.status_server import StatusServer
from omniserve.config import Config
from omniserve.config_values import split_address
from omniserve.engine_client import EngineClient
from omniserve.listening import status_address
from omniserve.metrics import Metrics
from omniserve.model_life.manager import ModelManager
from omniserve.reload.reloader import Reloader
from omniserve.service import GenerationService
from omniserve.status.reporter import StatusReporter
from omniserve.tls import Tls
from omniserve.tracing.opening import open_tracing


class Front:
    """All servers over one GenerationService. Made inside a running event loop."""

    def __init__(
        self, config: Config, config_path: Path, engine: EngineClient, tls: Tls | None = None
    ) -> None:
        """Loads the tokenizers; raises CheckpointError or ConfigError.

        `config_path` is read again at reloads, and so are the files of `tls`.
        """
        self._service = service = GenerationService(config, engine, Metrics())
        self._tracing = open_tracing(config.tracing, service)
        self._models = ModelManager(service, engine, config_path)
        engine.on_state_change(self._models.follow_engine)
        self._reloader = Reloader(config_path, config, service, engine, self._models, tls)
        self._reporter = StatusReporter(service, self._reloader)
        self._reporting: asyncio.Task[NoReturn] | None = None
        self._idling: asyncio.Task[NoReturn] | None = None
        servicer = AdminServicer(service, self._reloader, self._reporter, self._models)
        self._grpc = GrpcServer(service, config.listen.grpc, tls)
        self._admin = GrpcAdminServer(service, servicer, config.listen.admin)
        pages = status_routes(self._reporter)
        self._http = HttpServer(service, config.listen.http, tls, pages)
        address = status_address(config)
        self._status = None if address is None else StatusServer(service, address, tls, pages)

    @property
    def grpc_address(self) -> str:
        return self._grpc.address

    @property
    def http_address(self) -> str:
        return self._http.address

    @property
    def admin_address(self) -> str:
        """`unix:/path` or host:port."""
        return self._admin.address

    @property
    def status_address(self) -> str | None:
        """None where the HTTP server has all of it."""
        return None if self._status is None else self._status.address

    async def start(self) -> None:
        """Listens on all addresses, not serving yet; raises ConfigError."""
        await self._grpc.start()
        _, grpc_port = split_address(self._grpc.address)
        await self._admin.start(grpc_port)
        await self._http.start()
        if self._status is not None:
            await self._status.start()
        self._reporting = asyncio.create_task(self._reporter.run(), name="status-reporter")
        self._idling = asyncio.create_task(self._models.idle.run(), name="idle-models")

    async def failure(self) -> BaseException:
        """Waits for a part to end on its own, and returns the cause."""
        assert self._reporting is not None and self._idling is not None
        servers = [each for each in (self._http, self._status) if each is not None]
        watches = [asyncio.create_task(each.failure(), name="watch-server") for each in servers]
        try:
            parts: list[asyncio.Task[BaseException]] = [*watches, self._reporting, self._idling]
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            ended = done.pop()
            return ended.exception() or ended.result()
        finally:
            for watch in watches:
                watch.cancel()

    def set_serving(self, is_serving: bool) -> None:
        """What health checks hear."""
        self._grpc.set_serving(is_serving)
        # Operators are served in every state.
        self._admin.set_serving(True)

    async def reload(self) -> None:
        """Takes over tiers, tenants and models of the configuration file, or says in the log why
        not."""
        await self._reloader.reload()

    @property
    def reload_error(self) -> str:
        """Why the configuration file was refused when it was last read; empty where it was not."""
        return self._reloader.last_error

    def refuse_new_requests(self) -> None:
        """From now on requests get a retryable error; those that run go on."""
        self._service.draining = True
        self._grpc.set_serving(False)

    async def wait_models(self) -> None:
        """Returns once no request waits for a model that wakes."""
        if self._service.wake_queue is not None:
            await self._service.wake_queue.wait_none()

    async def stop(self, grace_s: float) -> None:
        """Stops listening and gives calls that still run `grace_s` to end."""
        if self._idling is not None:
            self._idling.cancel()
        if self._reporting is not None:
            # Ends the streams of status pages, which would else take all of the time.
            self._reporting.cancel()
        await self._models.close()
        servers = [each for each in (self._http, self._status) if each is not None]
        await asyncio.gather(
            self._grpc.stop(grace_s),
            self._admin.stop(grace_s),
            *(each.stop(grace_s) for each in servers),
        )
        if self._tracing is not None:
            await self._tracing.close(grace_s)

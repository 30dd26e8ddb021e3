"""The front's servers and what they serve. Importing this module imports both server stacks."""

import asyncio
from pathlib import Path

from omniserve.api.grpc_server import GrpcServer
from omniserve.api.http_server import HttpServer
from omniserve.config import Config
from omniserve.engine_client import EngineClient
from omniserve.metrics import Metrics
from omniserve.reload.reloader import Reloader
from omniserve.service import GenerationService


class Front:
    """Both servers over one GenerationService. Made inside a running event loop."""

    def __init__(self, config: Config, config_path: Path, engine: EngineClient) -> None:
        """Loads the tokenizers; raises CheckpointError. `config_path` is read again at reloads."""
        self._service = GenerationService(config, engine, Metrics())
        self._reloader = Reloader(config_path, config, self._service, engine)
        self._grpc = GrpcServer(self._service, config.listen.grpc, self._reloader)
        self._http = HttpServer(self._service, config.listen.http)

    @property
    def grpc_address(self) -> str:
        return self._grpc.address

    @property
    def http_address(self) -> str:
        return self._http.address

    async def start(self) -> None:
        """Listens on both addresses, not serving yet; raises ConfigError."""
        await self._grpc.start()
        await self._http.start()

    async def failure(self) -> BaseException:
        """Waits for a server to end on its own, and returns the cause."""
        return await self._http.failure()

    def set_serving(self, is_serving: bool) -> None:
        """What health checks hear."""
        self._grpc.set_serving(is_serving)

    async def reload_tiers(self) -> None:
        """Takes over the tiers of the configuration file, or says in the log why not."""
        await self._reloader.reload()

    def refuse_new_requests(self) -> None:
        """From now on requests get a retryable error; those that run go on."""
        self._service.draining = True
        self._grpc.set_serving(False)

    async def stop(self, grace_s: float) -> None:
        """Stops listening and gives calls that still run `grace_s` to end."""
        await asyncio.gather(self._grpc.stop(grace_s), self._http.stop(grace_s))

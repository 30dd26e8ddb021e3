"""All servers of a scene: started together, resident while one is measured, stopped together."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from omniserve.bench.colocate.omniserve_server import start_omniserve
from omniserve.bench.colocate.processes import ServerFailed
from omniserve.bench.colocate.running_server import RunningServer
from omniserve.bench.colocate.server_plan import Limits, ServerPlan
from omniserve.bench.colocate.vllm_server import start_vllm
from omniserve.bench.colocate.waiting import rest
from omniserve.bench.load.http_target import HttpTarget
from omniserve.errors import OmniServeError


@dataclass(frozen=True, slots=True)
class Launch:
    """How servers are started."""

    limits: Limits
    directory: Path
    """For configurations and logs."""
    vllm_python: Path | None
    """None without vLLM."""
    vllm_cache: Path
    vocab_size: int


class Fleet:
    """The context stops every server, however it ends."""

    def __init__(self, launch: Launch, say: Callable[[str], None]) -> None:
        self._launch = launch
        self._say = say
        self._servers: dict[str, RunningServer] = {}

    async def __aenter__(self) -> Self:
        return self

    async def settle(self, plans: Sequence[ServerPlan]) -> None:
        """Starts what is missing of them, and stops what is none of them or was told otherwise;
        returns once all are ready. Raises OmniServeError, of which ServerFailed is one."""
        self._launch.directory.mkdir(parents=True, exist_ok=True)
        for server in [each for each in self._servers.values() if each.plan not in plans]:
            del self._servers[server.plan.key]
            await server.process.stop()
        plans = [plan for plan in plans if plan.key not in self._servers]
        # Ours measure the machine while they start, so nothing else may run then.
        for plan in plans:
            if plan.system == "omniserve":
                await self._start(plan)
        try:
            async with asyncio.TaskGroup() as group:
                for plan in plans:
                    if plan.system == "vllm":
                        group.create_task(self._start(plan))
        except* OmniServeError as failures:
            raise failures.exceptions[0] from None
        await self.rest()

    async def _start(self, plan: ServerPlan) -> None:
        launch, started_s = self._launch, asyncio.get_running_loop().time()
        self._say(f"starting {plan.key}")
        if plan.system == "omniserve":
            server = await start_omniserve(plan, launch.limits, launch.directory)
        else:
            assert launch.vllm_python is not None
            server = await start_vllm(
                plan, launch.limits, launch.directory, launch.vllm_python, launch.vllm_cache
            )
        self._servers[plan.key] = server
        self._say(f"{plan.key} ready after {asyncio.get_running_loop().time() - started_s:.0f} s")

    def target(self, key: str) -> HttpTarget:
        """A connection of its own to a server; whoever asks closes it."""
        server = self._servers[key]
        return HttpTarget(server.http, self._launch.vocab_size, server.grpc)

    async def rest(self) -> None:
        """Until no server computes. Raises ServerFailed."""
        await rest([server.process for server in self._servers.values()])

    async def death(self) -> ServerFailed:
        """Waits until a server ends that should not."""
        waits = [asyncio.create_task(each.process.wait()) for each in self._servers.values()]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    @property
    def servers(self) -> Mapping[str, RunningServer]:
        return self._servers

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stops = [server.process.stop() for server in self._servers.values()]
        await asyncio.gather(*stops, return_exceptions=True)

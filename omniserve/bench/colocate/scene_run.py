"""One scene being measured: windows come from disk where they are there, else from servers."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

from omniserve.bench.colocate.fleet import Fleet, Launch
from omniserve.bench.colocate.generator_cores import on_host_cores
from omniserve.bench.colocate.layer_waits import LayerWaits, ask_layer_waits, note_layer_waits
from omniserve.bench.colocate.objectives import Objectives
from omniserve.bench.colocate.outlook import Outlook
from omniserve.bench.colocate.plan import WindowKey
from omniserve.bench.colocate.running_server import RunningServer
from omniserve.bench.colocate.scene import Scene
from omniserve.bench.colocate.server_plan import ServerPlan
from omniserve.bench.colocate.undisturbed import OTHERS_CORES, measure_undisturbed
from omniserve.bench.colocate.windows import Windows
from omniserve.bench.colocate.workload import LS_STREAM
from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.run import run_load
from omniserve.bench.load.streams import Stream
from omniserve.bench.run_record import RunRecord
from omniserve.others_meter import OthersMeter, await_quiet

PATIENCE_S = 5.0
"""How long a window waits for other processes to leave the cores alone."""
Streams = Mapping[str, tuple[str, Stream]]
"""By name, each with the key of the server that it goes to."""
ServersFor = Callable[[Objectives | None], Sequence[ServerPlan]]
"""All servers of a scene; None while its objectives are not known."""


class SceneRun:
    """Servers start with the first window that is missing, and stop with the context."""

    def __init__(
        self,
        scene: Scene,
        servers_for: ServersFor,
        launch: Launch,
        windows: Windows,
        outlook: Outlook,
        max_tries: int,
        say: Callable[[str], None],
    ) -> None:
        """Other processes may disturb a window; it is measured up to `max_tries` times."""
        self.scene = scene
        self._servers_for = servers_for
        self._launch = replace(launch, directory=launch.directory / scene.key)
        self._windows = windows
        self._outlook = outlook
        self._max_tries = max_tries
        self._say = say
        self._stack = AsyncExitStack()
        self._fleet: Fleet | None = None
        self._objectives: Objectives | None = None

    async def __aenter__(self) -> Self:
        return self

    async def hold_to(self, objectives: Objectives) -> None:
        """From now on servers know them; those that run and did not are started again."""
        self._objectives = objectives
        if self._fleet is not None:
            await self._fleet.settle(self._servers_for(objectives))

    async def window(self, key: WindowKey, streams: Streams, options: LoadOptions) -> RunRecord:
        """Raises ServerFailed where a server ends meanwhile."""
        if self._windows.has(key):
            self._outlook.skipped(1)
            return self._windows.load(key)
        fleet = await self._started()
        self._say(f"{options.title} ({self._outlook.text})")
        started_s = time.monotonic()
        tries = measure_undisturbed(
            lambda: self._measure(fleet, streams, options), self._max_tries, self._say
        )
        record = await _unless_dead(fleet, tries)
        self._outlook.measured(time.monotonic() - started_s)
        record.facts |= {"scene": self.scene.title}
        self._windows.save(key, record)
        return record

    def skip(self, num_windows: int) -> None:
        """They were expected, and are not needed."""
        self._outlook.skipped(num_windows)

    async def _started(self) -> Fleet:
        if self._fleet is None:
            self._say(f"{self.scene.title}: servers start, which takes a minute or two")
            started_s = time.monotonic()
            fleet = await self._stack.enter_async_context(Fleet(self._launch, self._say))
            await fleet.settle(self._servers_for(self._objectives))
            self._outlook.started(time.monotonic() - started_s)
            self._fleet = fleet
        return self._fleet

    async def _measure(self, fleet: Fleet, streams: Streams, options: LoadOptions) -> RunRecord:
        await fleet.rest()
        await asyncio.to_thread(await_quiet, PATIENCE_S)
        others = OthersMeter()
        servers = {server for server, _ in streams.values()}
        by_server = {server: fleet.target(server) for server in servers}
        try:
            targets = {name: by_server[server] for name, (server, _) in streams.items()}
            ls_server = fleet.servers[streams[LS_STREAM][0]]
            waits_before = await self._layer_waits(ls_server)
            with on_host_cores(self.scene.frame):
                record = await run_load(targets, [each for _, each in streams.values()], options)
            record.facts[OTHERS_CORES] = round(others.cores(), 3)
            waits = await self._layer_waits(ls_server)
            if waits is not None:
                note_layer_waits(record, waits.since(waits_before))
            return record
        finally:
            for target in by_server.values():
                await target.close()

    async def _layer_waits(self, server: RunningServer) -> LayerWaits | None:
        """So far; None unless it is a daemon that serves both models of the scene."""
        plan, scene = server.plan, self.scene
        if plan.system != "omniserve" or len(plan.models) == 1:
            return None
        return await asyncio.to_thread(ask_layer_waits, server.http, scene.ls_model, scene.be_model)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._outlook.left_scene()
        await self._stack.aclose()


async def _unless_dead(fleet: Fleet, measuring: "asyncio._CoroutineLike[RunRecord]") -> RunRecord:
    """What is measured; raises ServerFailed as soon as a server ends."""
    work = asyncio.create_task(measuring)
    death = asyncio.create_task(fleet.death())
    try:
        await asyncio.wait([work, death], return_when=asyncio.FIRST_COMPLETED)
        if death.done() and not work.done():
            raise death.result()
        return await work
    finally:
        for task in (work, death):
            task.cancel()
        await asyncio.gather(work, death, return_exceptions=True)

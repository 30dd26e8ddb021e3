"""What operators ask of models: to be loaded, unloaded, pinned, put to sleep and woken."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from omniserve.errors import (
    EngineUnavailable,
    LoadCancelled,
    ModelBusy,
    UnknownModel,
)
from omniserve.logs import get_logger, log_event
from omniserve.model_life.drain_time import check_drain_s
from omniserve.model_life.drains import ModelDrains, Unloaded, UnloadsModels
from omniserve.model_life.entries import Wanted, read_wanted, settings_beside, shown_name
from omniserve.model_life.idle import IdleWatch
from omniserve.model_life.loads import Load, LoadsModels, ModelLoads
from omniserve.model_life.sleeps import ModelSleeps, SleepsModels
from omniserve.model_life.standing import LoadProgress, ModelStanding
from omniserve.model_life.wake_queue import WakeQueue
from omniserve.model_life.wakes import ModelWakes, WakesModels
from omniserve.service import GenerationService
from omniserve.settings import ModelInfo, ModelSettings

_logger = get_logger(__name__)


class HoldsModels(LoadsModels, UnloadsModels, SleepsModels, WakesModels, Protocol):
    """What the life of models needs of the engine's client."""

    def take_lost_models(self) -> tuple[ModelSettings, ...]:
        """That were loaded while the engine ran, and that the one after it has not; told once."""


class ModelManager:
    """Of one daemon. Made inside a running event loop."""

    def __init__(self, service: GenerationService, engine: HoldsModels, config_path: Path) -> None:
        """`config_path` is where models are looked up that are asked for by name."""
        self._service = service
        self._engine = engine
        self._config_path = config_path
        self.loads = ModelLoads(service, engine)
        self.drains = ModelDrains(service, engine)
        self._sleeps = ModelSleeps(service, engine)
        self._wakes = ModelWakes(service, engine, self._sleeps)
        self.idle = IdleWatch(service, self._sleeps)
        service.wake_queue = WakeQueue(service, self._wakes)

    async def load(
        self, wanted: Wanted, on_progress: Callable[[LoadProgress], None] = lambda progress: None
    ) -> ModelInfo:
        """Has a model served besides; whoever waits may be cancelled, and with that the load.

        Raises ConfigError, CheckpointError, UnknownModel, ModelExists, EngineUnavailable, and
        LoadCancelled where it is unloaded meanwhile.
        """
        # In a thread: a file that is read slowly holds up nobody.
        config = await asyncio.to_thread(read_wanted, wanted, self._config_path)
        service = self._service
        if service.draining:
            raise EngineUnavailable("the server is shutting down; no model is loaded any more")
        # From here to the begin nothing else happens: two loads of one name cannot both pass.
        others = [each.config for each in service.roster.present]
        settings = settings_beside(config, others, service.tiers.tiers, service.config)
        task = self.loads.begin(Load(config, settings, "operator"), on_progress=on_progress)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            await self.loads.cancel(config.name)
            raise
        if task.cancelled():
            raise LoadCancelled(f"the loading of model {config.name!r} was given up")
        return task.result()

    async def unload(self, name: str, drain_s: float | None, *, force: bool) -> Unloaded:
        """Lets requests of a model end for `drain_s`, None for as long as at a stop of the daemon,
        ends what is left of them, and gives its memory back. Goes on where it is cancelled.

        Raises InvalidRequest, UnknownModel, and ModelBusy for one that is pinned, unless by
        `force`, or is being unloaded.
        """
        if drain_s is None:
            drain_s = self._service.config.daemon.shutdown_grace_s
        check_drain_s(drain_s)
        standing = self._standing(name)
        name = standing.name
        if standing.state == "failed":
            self._service.roster.remove(name)
            return Unloaded("failed")
        if standing.state == "draining":
            raise ModelBusy(f"model {name!r} is being unloaded already")
        if standing.is_pinned and not force:
            raise ModelBusy(f"model {name!r} is pinned; unpin it first, or unload it by force")
        if standing.state == "loading":
            await self.loads.cancel(name)
            return Unloaded("loading")
        return await asyncio.shield(self.drains.begin(standing, drain_s))

    def pin(self, name: str, is_pinned: bool) -> None:
        """A pinned model stays; raises UnknownModel, and ModelBusy for one that goes already."""
        standing = self._standing(name)
        name = standing.name
        if standing.state in ("draining", "failed"):
            raise _busy(standing)
        self._service.roster.put(replace(standing, is_pinned=is_pinned))
        log_event(_logger, "model_pinned" if is_pinned else "model_unpinned", model=name)

    async def sleep(self, name: str) -> None:
        """Puts a model to sleep that has no requests, pinned or not; returns once its memory is
        back, at once where it is. Goes on where it is cancelled.

        Raises UnknownModel, EngineUnavailable, and ModelBusy for one that has requests, or is
        loading, waking or going.
        """
        standing = self._standing(name)
        name = standing.name
        if standing.state == "asleep":
            await self._sleeps.settled(name)
            return
        if standing.state != "serving":
            raise _busy(standing)
        num_here = self._service.model_requests.count(name)
        if num_here:
            raise ModelBusy(f"model {name!r} has requests, {num_here} now; it sleeps without any")
        if not self._service.engine.ready:
            raise EngineUnavailable(f"the engine is {self._service.engine.state}; try again later")
        await asyncio.shield(self._sleeps.begin(standing))

    async def wake(self, name: str) -> float:
        """Has a model woken; returns once it is awake, and how many seconds the wake took: 0 of one
        that is not asleep. Goes on where it is cancelled.

        Raises UnknownModel, CheckpointError, ConfigError, EngineUnavailable, and ModelBusy for one
        that is loading or going.
        """
        standing = self._standing(name)
        name = standing.name
        if standing.state == "serving":
            return 0.0
        if standing.state not in ("asleep", "waking"):
            raise _busy(standing)
        wake = self._wakes.begin(name)
        await asyncio.wait({wake})
        if wake.cancelled():
            raise EngineUnavailable("the server is shutting down; no model is woken any more")
        return wake.result()

    def follow_engine(self, state: str) -> None:
        """The state of the engine changed; one that is ready anew may lack models."""
        if state != "ready":
            return
        for settings in self._engine.take_lost_models():
            standing = self._service.roster.get(settings.name)
            # One that is being unloaded is where it was to go.
            if standing is not None and standing.state == "serving":
                self.loads.begin_again(standing, settings)

    async def close(self) -> None:
        """Gives up what is under way; the daemon stops."""
        await self._wakes.cancel_all()
        await self._sleeps.cancel_all()
        await self.loads.cancel_all()
        await self.drains.cancel_all()

    def _standing(self, name: str) -> ModelStanding:
        """By its name or an alias of it."""
        roster = self._service.roster
        standing = roster.get(name)
        if standing is None:
            # Those that failed come last: their names may be others' by now.
            by_alias = (each for each in (*roster.present, *roster) if name in each.config.aliases)
            standing = next(by_alias, None)
        if standing is None:
            known = ", ".join(each.name for each in self._service.roster) or "none"
            raise UnknownModel(f"model {shown_name(name)} is not loaded; there: {known}")
        return standing


def _busy(standing: ModelStanding) -> ModelBusy:
    """It is in a state in which this cannot be asked of it."""
    problem = f"model {standing.name!r} is {standing.state}"
    if standing.state == "failed":
        problem += f": {standing.error}; mend that, and load it"
    return ModelBusy(problem)

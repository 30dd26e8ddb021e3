"""Unloading models: no new requests, time for those that are here, and then the memory back."""

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import Protocol

from omniserve.errors import EngineUnavailable, UnknownModel
from omniserve.logs import get_logger, log_event
from omniserve.model_life.standing import ModelStanding, ModelState
from omniserve.model_table import Absence
from omniserve.service import GenerationService

LEAST_RETRY_S = 1.0
ASK_AGAIN_S = 0.25
"""While an engine is being started again."""

_logger = get_logger(__name__)


class UnloadsModels(Protocol):
    """The part of the engine's client that unloading needs."""

    async def unload_model(self, name: str) -> None:
        """Nothing is left of it. Raises UnknownModel, and EngineUnavailable where no engine is
        ready to be asked: the next one has the model again."""


@dataclass(frozen=True, slots=True)
class Unloaded:
    """What became of a model, and of the requests that were here for it."""

    state: ModelState
    """In which it was."""
    num_finished: int = 0
    num_ended: int = 0
    """Of requests that were cut off."""


class ModelDrains:
    """Of one daemon. Made inside a running event loop."""

    def __init__(self, service: GenerationService, engine: UnloadsModels) -> None:
        self._service = service
        self._engine = engine
        self._tasks: set[asyncio.Task[Unloaded]] = set()

    def begin(self, standing: ModelStanding, drain_s: float) -> asyncio.Task[Unloaded]:
        """From now on the model, which is served, be it asleep or waking, takes no new requests.
        The task goes on to its end whoever waits for it."""
        service = self._service
        until_s = service.clock() + drain_s
        absence = Absence(
            standing.config,
            "being unloaded",
            lambda: max(LEAST_RETRY_S, until_s - service.clock()),
        )
        service.set_models(service.models.with_absent(absence))
        service.roster.put(
            replace(standing, state="draining", since_s=service.clock(), progress=None)
        )
        task = asyncio.create_task(
            self._drain(standing, drain_s), name=f"unload-model-{standing.name}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    @property
    def under_way(self) -> tuple[asyncio.Task[Unloaded], ...]:
        """Those that have not given their memory back yet."""
        return tuple(self._tasks)

    async def cancel_all(self) -> None:
        """The daemon stops, and with it all models."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _drain(self, standing: ModelStanding, drain_s: float) -> Unloaded:
        service, requests = self._service, self._service.model_requests
        name = standing.name
        num_here = requests.count(name)
        log_event(_logger, "model_draining", model=name, num_requests=num_here, drain_s=drain_s)
        await requests.wait_none(name, drain_s)
        message = f"model {name!r} was unloaded before the request had ended; try again elsewhere"
        num_ended = requests.end(name, EngineUnavailable(message))
        await self.forget(name)
        service.set_models(service.models.without(name))
        service.roster.remove(name)
        requests.forget_uses(name)
        service.metrics.models.unloads.inc()
        num_finished = num_here - num_ended
        log_event(
            _logger,
            "model_unloaded",
            model=name,
            num_finished=num_finished,
            num_ended=num_ended,
        )
        return Unloaded(standing.state, num_finished, num_ended)

    async def forget(self, name: str) -> None:
        """The engine has the model no more, nor has one that is started later."""
        while True:
            try:
                await self._engine.unload_model(name)
            except UnknownModel:
                return
            except EngineUnavailable:
                await asyncio.sleep(ASK_AGAIN_S)
            else:
                return

    def _ended(self, task: asyncio.Task[Unloaded]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            shown = error if isinstance(error, Exception) else None
            log_event(_logger, "model_unload_failed", level=logging.ERROR, error=shown)

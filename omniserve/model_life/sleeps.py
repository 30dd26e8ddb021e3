"""Models that fall asleep: they stay served, and give their memory back until somebody asks."""

import asyncio
import logging
from dataclasses import replace
from typing import Protocol

from omniserve.errors import OmniServeError
from omniserve.logs import get_logger, log_event
from omniserve.model_life.standing import ModelStanding
from omniserve.service import GenerationService

_logger = get_logger(__name__)


class SleepsModels(Protocol):
    """The part of the engine's client that falling asleep needs."""

    async def sleep_model(self, name: str) -> None:
        """Its memory is given back. Raises UnknownModel, and EngineUnavailable where no engine is
        ready to be asked: then nothing has changed."""


class ModelSleeps:
    """Of one daemon. Made inside a running event loop."""

    def __init__(self, service: GenerationService, engine: SleepsModels) -> None:
        self._service = service
        self._engine = engine
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, standing: ModelStanding) -> asyncio.Task[None]:
        """From now on the model, which serves and has no request here, is asleep: whoever asks for
        it has to have it woken. The task ends once its memory is back, and raises
        EngineUnavailable where the model is awake after all."""
        service, name = self._service, standing.name
        assert standing.state == "serving" and not service.model_requests.count(name)
        service.roster.put(replace(standing, state="asleep", since_s=service.clock()))
        last_s = max([standing.since_s, *service.model_requests.last_uses(name).values()])
        service.model_requests.forget_uses(name)
        task = asyncio.create_task(self._fall(name, last_s), name=f"sleep-model-{name}")
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._ended(standing, task))
        return task

    async def settled(self, name: str) -> None:
        """Returns once the model is not falling asleep any more."""
        task = self._tasks.get(name)
        if task is not None:
            await asyncio.wait({task})

    async def cancel_all(self) -> None:
        """The daemon stops."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fall(self, name: str, last_s: float) -> None:
        """`last_s` is when it was used last, or began to serve."""
        service = self._service
        stats = service.engine.stats.get(name)
        weights = None if stats is None else stats.weights
        begin_s = service.clock()
        await self._engine.sleep_model(name)
        service.metrics.models.sleeps.inc()
        log_event(
            _logger,
            "model_asleep",
            model=name,
            own_weights_bytes=None if weights is None else weights.own_bytes,
            idle_s=round(begin_s - last_s, 3),
            sleep_s=round(service.clock() - begin_s, 3),
        )

    def _ended(self, before: ModelStanding, task: asyncio.Task[None]) -> None:
        del self._tasks[before.name]
        if task.cancelled() or (error := task.exception()) is None:
            return
        roster = self._service.roster
        standing = roster.get(before.name)
        if standing is not None and standing.state == "asleep":
            # The engine was not to be asked: it still has it, or the next one will.
            since_s = self._service.clock()
            roster.put(replace(standing, state="serving", since_s=since_s))
        if not isinstance(error, OmniServeError):
            shown = error if isinstance(error, Exception) else None
            log_event(
                _logger, "model_sleep_failed", level=logging.ERROR, error=shown, model=before.name
            )

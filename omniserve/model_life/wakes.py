"""Waking models: loaded as they were when they fell asleep, while others run."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from omniserve.errors import ConfigError, EngineUnavailable, OmniServeError
from omniserve.logs import get_logger, log_event
from omniserve.messages import ModelProgress
from omniserve.model_life.sleeps import ModelSleeps
from omniserve.model_life.standing import LoadProgress
from omniserve.model_life.wake_forecast import WakeForecast, left_s
from omniserve.model_life.wake_pauses import WakePauses
from omniserve.service import GenerationService
from omniserve.settings import ModelInfo

MAX_ENGINES = 3
"""So many engines in a row may die while they wake a model before it is given up, for it may be
what they die of."""

_logger = get_logger(__name__)


class WakesModels(Protocol):
    """The part of the engine's client that waking needs."""

    async def wake_model(
        self, name: str, on_progress: Callable[[ModelProgress], None]
    ) -> ModelInfo:
        """Cancelled, nothing is left of it. Raises CheckpointError, after which there is no such
        model any more; ConfigError, where there is no room for it, and EngineUnavailable, after
        both of which it is still asleep."""

    def forget_model(self, name: str) -> None:
        """One that is asleep is gone."""


class ModelWakes:
    """Of one daemon. Made inside a running event loop."""

    def __init__(
        self, service: GenerationService, engine: WakesModels, sleeps: ModelSleeps
    ) -> None:
        self._service = service
        self._engine = engine
        self._sleeps = sleeps
        self._forecast = WakeForecast()
        self._tasks: dict[str, asyncio.Task[float]] = {}
        self._num_deaths: Counter[str] = Counter()
        self._pauses = WakePauses()

    def is_asleep(self, name: str) -> bool:
        """Whether requests for the model have to wait until it is awake."""
        standing = self._service.roster.get(name)
        return name in self._tasks or (standing is not None and standing.state == "asleep")

    def pause_s(self, name: str) -> float:
        """For so long no request has the model woken: there was no room for it just now. Who comes
        amid a wake, an operator's say, waits for that."""
        return 0.0 if name in self._tasks else self._pauses.left_s(name, self._service.clock())

    def begin(self, name: str) -> asyncio.Task[float]:
        """Has a model woken that is asleep, if nobody has yet; the task gives the seconds that it
        took, goes on whoever waits for it, and raises what `WakesModels` does."""
        if name in self._tasks:
            return self._tasks[name]
        service = self._service
        standing = service.roster.get(name)
        assert standing is not None and standing.state == "asleep"
        progress = LoadProgress()
        service.roster.put(
            replace(standing, state="waking", since_s=service.clock(), progress=progress, error="")
        )
        task = asyncio.create_task(self._wake(name), name=f"wake-model-{name}")
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._ended(name, task))
        return task

    def expected_s(self, name: str) -> float:
        """Until a model that is asleep, or waking, is awake, if it is woken now."""
        standing = self._service.roster.get(name)
        info = self._service.engine.models.get(name)
        whole_s = 0.0 if info is None else self._forecast.whole_s(info.digest, info.load_s)
        if standing is None or standing.state != "waking":
            return whole_s
        return left_s(whole_s, self._service.clock() - standing.since_s, standing.progress)

    async def cancel_all(self) -> None:
        """The daemon stops."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wake(self, name: str) -> float:
        service, begin_s = self._service, self._service.clock()
        log_event(_logger, "model_waking", model=name, expected_s=round(self.expected_s(name), 3))
        await self._sleeps.settled(name)
        was_ready = service.engine.ready
        try:
            await self._engine.wake_model(name, lambda told: self._tell(name, told))
        except EngineUnavailable:
            self._num_deaths[name] += was_ready
            raise
        # No await from here on: the engine has it, and so requests find it.
        standing = service.roster.get(name)
        if standing is not None and standing.state == "waking":
            service.roster.put(
                replace(standing, state="serving", since_s=service.clock(), progress=None)
            )
        return service.clock() - begin_s

    def _tell(self, name: str, told: ModelProgress) -> None:
        standing = self._service.roster.get(name)
        if standing is not None and standing.state == "waking":
            progress = LoadProgress(told.phase, told.done_bytes, told.total_bytes)
            self._service.roster.progress(name, progress)

    def _ended(self, name: str, task: asyncio.Task[float]) -> None:
        del self._tasks[name]
        metrics = self._service.metrics.models
        if task.cancelled() or isinstance(task.exception(), EngineUnavailable):
            metrics.wakes.labels("interrupted").inc()
            self._note_interrupted(name)
        elif isinstance(refusal := task.exception(), ConfigError):
            metrics.wakes.labels("refused").inc()
            self._note_refused(name, refusal)
        elif (error := task.exception()) is not None:
            metrics.wakes.labels("failed").inc()
            self._note_failed(name, error)
        else:
            wake_s = task.result()
            self._num_deaths.pop(name, None)
            self._pauses.end(name)
            info = self._service.engine.models.get(name)
            if info is not None:
                self._forecast.note(info.digest, wake_s)
            metrics.wakes.labels("awake").inc()
            metrics.wake_seconds.observe(wake_s)
            log_event(_logger, "model_awake", model=name, wake_s=round(wake_s, 3))

    def _note_interrupted(self, name: str) -> None:
        service = self._service
        standing = service.roster.get(name)
        if standing is None or standing.state != "waking":
            return
        if self._num_deaths[name] >= MAX_ENGINES:
            reason = f"the engine died {MAX_ENGINES} times while it was being woken"
            self._note_failed(name, EngineUnavailable(reason))
            return
        service.roster.put(
            replace(standing, state="asleep", since_s=service.clock(), progress=None)
        )

    def _note_refused(self, name: str, error: ConfigError) -> None:
        service = self._service
        standing = service.roster.get(name)
        if standing is None or standing.state != "waking":
            # It was unloaded meanwhile.
            return
        reason, now_s = str(error), service.clock()
        service.roster.put(
            replace(standing, state="asleep", since_s=now_s, progress=None, error=reason)
        )
        pause_s = round(self._pauses.begin(name, now_s), 3)
        log_event(
            _logger,
            "model_wake_refused",
            level=logging.WARNING,
            model=name,
            reason=reason,
            pause_s=pause_s,
        )

    def _note_failed(self, name: str, error: BaseException) -> None:
        service = self._service
        is_expected = isinstance(error, OmniServeError)
        reason = str(error) if is_expected else type(error).__name__
        self._num_deaths.pop(name, None)
        standing = service.roster.get(name)
        if standing is None or standing.state != "waking":
            # It was unloaded meanwhile.
            return
        self._engine.forget_model(name)
        service.set_models(service.models.without(name))
        service.roster.put(
            replace(standing, state="failed", since_s=service.clock(), progress=None, error=reason)
        )
        log_event(
            _logger,
            "model_wake_failed",
            level=logging.ERROR,
            error=error if isinstance(error, Exception) and not is_expected else None,
            model=name,
            reason=reason,
        )

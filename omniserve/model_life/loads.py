"""Loading models while others are served: one after the other, each in a task of its own."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from omniserve.adapter_checkpoint import inspect_files
from omniserve.config import ModelConfig
from omniserve.errors import CheckpointError, EngineUnavailable, OmniServeError
from omniserve.logs import get_logger, log_event
from omniserve.messages import ModelProgress
from omniserve.model_life.standing import LoadProgress, ModelStanding, Origin
from omniserve.model_table import Absence
from omniserve.served_model import ServedModel
from omniserve.service import GenerationService
from omniserve.settings import ModelInfo, ModelSettings
from omniserve.tenant_threads import TenantThreads

ASK_AGAIN_S = 0.25
RETRY_LOADING_S = 2.0
"""After which a client that wants a model which is being loaded is told to ask again."""
MAX_ENGINES = 3
"""Of a model that was served: so many engines may die in its load before it is given up, for it
may be what they die of."""

_logger = get_logger(__name__)


class LoadsModels(Protocol):
    """The part of the engine's client that loading needs."""

    async def load_model(
        self, settings: ModelSettings, on_progress: Callable[[ModelProgress], None]
    ) -> ModelInfo:
        """Cancelled, nothing is left of it. Raises CheckpointError, ConfigError or
        EngineUnavailable."""


@dataclass(frozen=True, slots=True)
class Load:
    """A model that is to be served, once everything about it that needs no engine was checked."""

    config: ModelConfig
    settings: ModelSettings
    origin: Origin
    served: ServedModel | None = None
    """Where its tokenizer was read already."""
    was_served: bool = False
    """Until the engine died."""

    @property
    def waits_for_engine(self) -> bool:
        """What the file says is to be served as soon as an engine is there, and what was served
        before as well; an operator is told that there is none."""
        return self.was_served or self.origin == "file"


def read_front_part(model: ModelConfig, threads: TenantThreads) -> ServedModel:
    """What the front needs of a checkpoint, which is looked through as far as that goes without
    its weights. Reads files; raises CheckpointError, which names the model."""
    try:
        inspect_files(model.path, model.base)
        return ServedModel.load(model, threads)
    except CheckpointError as error:
        raise CheckpointError(f"model {model.name!r}: {error}") from None


class ModelLoads:
    """Of one daemon. Made inside a running event loop."""

    def __init__(self, service: GenerationService, engine: LoadsModels) -> None:
        self._service = service
        self._engine = engine
        self._turn = asyncio.Lock()
        self._tasks: dict[str, asyncio.Task[ModelInfo]] = {}

    def begin(
        self,
        load: Load,
        after: Iterable[asyncio.Future[Any]] = (),
        on_progress: Callable[[LoadProgress], None] = lambda progress: None,
    ) -> asyncio.Task[ModelInfo]:
        """From now on the model's name is taken and it is loading; `after` are awaited before.

        The task raises CheckpointError, ConfigError or EngineUnavailable.
        """
        return self._begin(load, load.config.pinned, tuple(after), on_progress)

    def begin_again(self, standing: ModelStanding, settings: ModelSettings) -> None:
        """An engine that was started anew has not the model, which was served before: it is loaded
        as any other, but where the engine dies once more the next one is asked."""
        served = self._service.models.models[standing.name]
        load = Load(standing.config, settings, standing.origin, served, was_served=True)
        self._begin(load, standing.is_pinned)

    def _begin(
        self,
        load: Load,
        is_pinned: bool,
        after: tuple[asyncio.Future[Any], ...] = (),
        on_progress: Callable[[LoadProgress], None] = lambda progress: None,
    ) -> asyncio.Task[ModelInfo]:
        config, now_s = load.config, self._service.clock()
        self._service.roster.put(
            ModelStanding(config, "loading", load.origin, now_s, is_pinned, LoadProgress())
        )
        self.rename(config)
        running = self._load(load, after, on_progress)
        task = asyncio.create_task(running, name=f"load-model-{config.name}")
        self._tasks[config.name] = task
        task.add_done_callback(lambda _: self._ended(load, task))
        return task

    def rename(self, config: ModelConfig) -> None:
        """Requests that name the model, which is being loaded, or an alias of it are told so."""
        absence = Absence(config, "being loaded", lambda: RETRY_LOADING_S)
        self._service.set_models(self._service.models.with_absent(absence))

    def give_up(self, name: str) -> None:
        """Ends a load: others see it at once, and its task ends once nothing is left of it."""
        standing = self._service.roster.get(name)
        assert standing is not None
        self._service.roster.put(
            replace(standing, state="draining", since_s=self._service.clock(), progress=None)
        )
        self._tasks[name].cancel()

    @property
    def given_up(self) -> tuple[asyncio.Task[ModelInfo], ...]:
        """Those of which something is left."""
        return tuple(task for task in self._tasks.values() if task.cancelling())

    async def cancel(self, name: str) -> None:
        """Nothing is left of the load when this returns."""
        task = self._tasks.get(name)
        if task is None:
            return
        if not task.cancelling():
            self.give_up(name)
        await asyncio.wait({task})

    async def cancel_all(self) -> None:
        await asyncio.gather(*(self.cancel(name) for name in tuple(self._tasks)))

    async def _load(
        self,
        load: Load,
        after: tuple[asyncio.Future[Any], ...],
        on_progress: Callable[[LoadProgress], None],
    ) -> ModelInfo:
        service, config = self._service, load.config

        def tell(progress: LoadProgress) -> None:
            service.roster.progress(config.name, progress)
            on_progress(progress)

        if after:
            await asyncio.wait(after)
        async with self._turn:
            begin_s = service.clock()
            log_event(_logger, "model_loading", model=config.name, path=config.path)
            tell(LoadProgress("checking"))
            served = load.served
            if served is None:
                served = await asyncio.to_thread(read_front_part, config, service.text_threads)
            info = await self._ask_engines(load, tell)
        # No await from here on: the engine has it, and so requests find it.
        standing = service.roster.get(config.name)
        assert standing is not None
        if not load.was_served:
            # Of another one that had its name.
            service.model_requests.forget_uses(config.name)
        order = [each.name for each in service.roster]
        service.set_models(service.models.with_model(standing.config, served).ordered(order))
        service.roster.put(
            replace(standing, state="serving", since_s=service.clock(), progress=None)
        )
        load_s = service.clock() - begin_s
        service.metrics.models.loads.labels("loaded").inc()
        service.metrics.models.load_seconds.observe(load_s)
        log_event(_logger, "model_loaded", model=config.name, load_s=round(load_s, 3))
        return info

    async def _ask_engines(self, load: Load, tell: Callable[[LoadProgress], None]) -> ModelInfo:
        for _ in range(MAX_ENGINES if load.was_served else 1):
            while load.waits_for_engine and not self._service.engine.ready:
                await asyncio.sleep(ASK_AGAIN_S)
            try:
                return await self._engine.load_model(
                    load.settings,
                    lambda told: tell(LoadProgress(told.phase, told.done_bytes, told.total_bytes)),
                )
            except EngineUnavailable:
                if not load.was_served:
                    raise
        raise EngineUnavailable(f"the engine died {MAX_ENGINES} times while it was being loaded")

    def _ended(self, load: Load, task: asyncio.Task[ModelInfo]) -> None:
        """Also where it was cancelled before it began."""
        service, name = self._service, load.config.name
        del self._tasks[name]
        if not task.cancelled() and task.exception() is None:
            return
        service.set_models(service.models.without(name))
        if task.cancelled():
            service.roster.remove(name)
            service.metrics.models.loads.labels("cancelled").inc()
            log_event(_logger, "model_load_cancelled", model=name)
            return
        error = task.exception()
        self._note_failure(name, _words(error))
        _log_failure("model_lost" if load.was_served else "model_load_failed", name, error)

    def _note_failure(self, name: str, reason: str) -> None:
        service = self._service
        standing = service.roster.get(name)
        assert standing is not None
        service.roster.put(
            replace(standing, state="failed", since_s=service.clock(), progress=None, error=reason)
        )
        service.metrics.models.loads.labels("failed").inc()


def _log_failure(event: str, name: str, error: BaseException | None) -> None:
    expected = isinstance(error, OmniServeError)
    log_event(
        _logger,
        event,
        level=logging.ERROR,
        error=None if expected or not isinstance(error, Exception) else error,
        model=name,
        reason=_words(error),
    )


def _words(error: BaseException | None) -> str:
    """What is not ours may hold anything."""
    return str(error) if isinstance(error, OmniServeError) else type(error).__name__

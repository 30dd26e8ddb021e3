"""Which models the engine is to have: those it began with, and those that come and go."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace

import msgspec

from omniserve.errors import (
    CheckpointError,
    ConfigError,
    EngineUnavailable,
    UnknownModel,
)
from omniserve.messages import (
    EngineReady,
    LoadModel,
    ModelLoaded,
    ModelProgress,
    ModelRefused,
    ModelUnloaded,
    SleepModel,
    ToEngine,
    UnloadModel,
    decode_to_engine,
    encode,
)
from omniserve.settings import AsleepModel, EngineSettings, ModelInfo, ModelSettings
from scheduler.step_time import LinearStepTime

OnProgress = Callable[[ModelProgress], None]
Send = Callable[[ToEngine], None]
Answer = ModelProgress | ModelLoaded | ModelRefused | ModelUnloaded

_END_PATIENCE_S = 10.0
"""So long a load that is given up is waited for: an engine that is stuck holds up no stop."""


class EngineModels:
    """Models are known by name, questions to the engine by number."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        """What the engine has, or had when it died; a model counts from when it is loaded until
        it is to be unloaded. What was left open is as it was settled at the load."""
        self.infos: dict[str, ModelInfo] = {}
        """Those that are loaded, and those that are asleep."""
        self.step_times: dict[str, LinearStepTime] = {}
        """What steps are expected to take, where that is known."""
        self._added: set[str] = set()
        """Those that came while the engine ran."""
        self._asleep: dict[str, bool] = {}
        """Those that no engine has in memory, and whether they came while one ran."""
        self._lost: tuple[ModelSettings, ...] = ()
        self._numbers = itertools.count(1)
        self._loads: dict[int, _Load] = {}
        self._unloads: dict[int, asyncio.Future[None]] = {}

    @property
    def at_start(self) -> EngineSettings:
        """What an engine must load before it serves: not what came while the one before ran, nor
        what is asleep."""
        models = [model for model in self._with_step_times() if model.name not in self._asleep]
        must = tuple(model for model in models if model.name not in self._added)
        asleep = (model for model in self.settings.models if model.name in self._asleep)
        return replace(
            self.settings,
            models=must,
            asleep=tuple(_asleep(model, self.infos[model.name]) for model in asleep),
        )

    def ready(self, message: EngineReady) -> None:
        """An engine has loaded what it was told to at its start."""
        models = self._with_step_times()
        asleep = {name: info for name, info in self.infos.items() if name in self._asleep}
        self.infos = {model.name: model for model in message.models} | asleep
        self.step_times = dict(message.step_times)
        there = tuple(
            _settled(model, self.infos[model.name]) for model in models if model.name in self.infos
        )
        self._lost += tuple(model for model in models if model.name not in self.infos)
        self._added.clear()
        self.settings = replace(self.settings, models=there)

    def take_lost(self) -> tuple[ModelSettings, ...]:
        """As `EngineClient.take_lost_models`."""
        lost, self._lost = self._lost, ()
        return lost

    async def load(self, send: Send, settings: ModelSettings, on_progress: OnProgress) -> ModelInfo:
        """As `EngineClient.load_model`."""
        name = settings.name
        if name in self.infos or self._is_loading(name):
            raise ConfigError(f"models.{name}: there is a model of this name already")
        return await self._load(send, settings, "", on_progress)

    async def sleep(self, send: Send, name: str) -> None:
        """As `EngineClient.sleep_model`."""
        self._require(name)
        if name in self._asleep:
            return
        # From now on: an engine that is started in the place of one that dies amid this has not
        # the model either.
        self._asleep[name] = name in self._added
        self._added.discard(name)
        number = next(self._numbers)
        await self._left(send, number, SleepModel(number, name))

    async def wake(self, send: Send, name: str, on_progress: OnProgress) -> ModelInfo:
        """As `EngineClient.wake_model`."""
        self._require(name)
        if name not in self._asleep:
            return self.infos[name]
        (settings,) = (model for model in self._with_step_times() if model.name == name)
        try:
            return await self._load(send, settings, self.infos[name].digest, on_progress)
        except CheckpointError:
            self._forget(name)
            raise

    def forget(self, send: Send, name: str) -> None:
        """As `EngineClient.forget_model`."""
        if name in self._asleep:
            self._forget(name)
            send(UnloadModel(next(self._numbers), name))

    async def _load(
        self, send: Send, settings: ModelSettings, digest: str, on_progress: OnProgress
    ) -> ModelInfo:
        name, number = settings.name, next(self._numbers)
        message = _checked(LoadModel(number, settings, digest))
        load = self._loads[number] = _Load(settings, on_progress)
        try:
            send(message)
            return await load.loaded
        except asyncio.CancelledError:
            if not load.has_failed:
                self._forget(name)
                # Who waits for the end of this load finds its memory free.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_END_PATIENCE_S):
                        await self._ask_to_unload(send, name)
            raise
        finally:
            self._loads.pop(number, None)

    def _require(self, name: str) -> None:
        if name not in self.infos:
            served = ", ".join(self.infos) or "none"
            raise UnknownModel(f"model {name!r} is not loaded; loaded: {served}")

    def _is_loading(self, name: str) -> bool:
        return any(load.settings.name == name for load in self._loads.values())

    async def unload(self, send: Send, name: str) -> None:
        """As `EngineClient.unload_model`."""
        is_loading = self._is_loading(name)
        known = (*self.settings.models, *self._lost)
        if not is_loading and all(name != model.name for model in known):
            served = ", ".join(self.infos) or "none"
            raise UnknownModel(f"model {name!r} is not loaded; loaded: {served}")
        is_there = is_loading or name in self.infos
        if not is_loading:
            self._forget(name)
        if is_there:
            await self._ask_to_unload(send, name)
            # One that was being woken, or whose load came to its end before.
            self._forget(name)

    async def _ask_to_unload(self, send: Send, name: str) -> None:
        """Returns once the engine says that nothing is left of it, or is gone itself."""
        number = next(self._numbers)
        await self._left(send, number, UnloadModel(number, name))

    async def _left(self, send: Send, number: int, message: SleepModel | UnloadModel) -> None:
        """Until the engine says so, or is gone itself."""
        unloaded = self._unloads[number] = asyncio.get_running_loop().create_future()
        try:
            send(message)
            await unloaded
        finally:
            del self._unloads[number]

    def answer(self, message: Answer) -> None:
        """What the engine says; of loads that nobody waits for any more nothing is taken."""
        if isinstance(message, ModelUnloaded):
            unloaded = self._unloads.get(message.question)
            if unloaded is not None and not unloaded.done():
                unloaded.set_result(None)
            return
        load = self._loads.get(message.question)
        if load is None or load.loaded.done():
            return
        if isinstance(message, ModelProgress):
            load.on_progress(message)
        elif isinstance(message, ModelRefused):
            kind = CheckpointError if message.is_checkpoint else ConfigError
            load.loaded.set_exception(kind(message.message))
        else:
            self._take(load.settings, message)
            load.loaded.set_result(message.info)

    def fail_all(self, message: str) -> None:
        """The engine is gone: loads have failed, and what was to be unloaded is."""
        for load in self._loads.values():
            if not load.loaded.done():
                load.loaded.set_exception(EngineUnavailable(message))
        for unloaded in self._unloads.values():
            if not unloaded.done():
                unloaded.set_result(None)

    def _take(self, settings: ModelSettings, loaded: ModelLoaded) -> None:
        # One that wakes is as it was: of the daemon's beginning, or not.
        is_added = self._asleep.get(settings.name, True)
        self._forget(settings.name)
        model = _settled(settings, loaded.info)
        self.settings = replace(self.settings, models=(*self.settings.models, model))
        if is_added:
            self._added.add(settings.name)
        self.infos = self.infos | {settings.name: loaded.info}
        if loaded.step_time is not None:
            self.step_times[settings.name] = loaded.step_time

    def _forget(self, name: str) -> None:
        models = tuple(model for model in self.settings.models if model.name != name)
        self.settings = replace(self.settings, models=models)
        self._added.discard(name)
        self._asleep.pop(name, None)
        self._lost = tuple(model for model in self._lost if model.name != name)
        self.infos = {other: info for other, info in self.infos.items() if other != name}
        self.step_times.pop(name, None)

    def _with_step_times(self) -> tuple[ModelSettings, ...]:
        """What an engine before has found out about steps need not be found again."""
        return tuple(
            replace(model, step_time=model.step_time or self.step_times.get(model.name))
            for model in self.settings.models
        )


class _Load:
    def __init__(self, settings: ModelSettings, on_progress: OnProgress) -> None:
        self.settings = settings
        self.on_progress = on_progress
        self.loaded: asyncio.Future[ModelInfo] = asyncio.get_running_loop().create_future()

    @property
    def has_failed(self) -> bool:
        """Whether the engine has refused it, or is gone."""
        loaded = self.loaded
        return loaded.done() and not loaded.cancelled() and loaded.exception() is not None


def _settled(model: ModelSettings, info: ModelInfo) -> ModelSettings:
    """Its part of a KV budget as it came out beside the models that were there, so that it is the
    same beside others. What a model has for itself depends on none of them."""
    if info.host_kv_floor_bytes is not None and model.piggyback is not None:
        floor_bytes = info.host_kv_floor_bytes
        piggyback = replace(model.piggyback, host_kv_floor_bytes=floor_bytes)
        model = replace(model, piggyback=piggyback)
    if info.kv_floor_bytes is None:
        return model
    return replace(
        model, device_kv_floor_bytes=info.kv_floor_bytes, max_model_len=info.max_model_len
    )


def _asleep(model: ModelSettings, info: ModelInfo) -> AsleepModel:
    num_blocks = -(-info.max_model_len // model.block_size)
    block_bytes = model.block_size * info.kv_bytes_per_token
    return AsleepModel(model, num_blocks * block_bytes)


def _checked(message: LoadModel) -> LoadModel:
    """An engine takes a message that it cannot read for the end of the world."""
    try:
        decode_to_engine(encode(message))
    except (msgspec.MsgspecError, TypeError, OverflowError) as error:
        raise ConfigError(f"models.{message.settings.name}: {error}") from None
    return message

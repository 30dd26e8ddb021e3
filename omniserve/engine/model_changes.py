"""Models that come to an engine and leave it while it works."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from omniserve.devices.device import Device
from omniserve.engine.kv_arbiter import KvArbiter
from omniserve.engine.memory_return import MemoryReturn
from omniserve.engine.model_load import ModelLoad, Prepare
from omniserve.engine.model_news import LoadAdvanced, Loaded, News, Refused, Unloaded
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.sleepers import Sleepers
from omniserve.engine.trial import Trial
from omniserve.errors import CheckpointError, ConfigError
from omniserve.models.weight_store import WeightStore
from omniserve.requests import RequestOutput
from omniserve.settings import LoadPhase, ModelSettings

_SAY_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Placement:
    """How a model is taken among those that run, and out again; both between two steps."""

    join: Callable[[ModelLoad], ModelRuntime]
    """Takes what the load has built. Raises ConfigError."""
    leave: Callable[[str], tuple[ModelRuntime | None, list[RequestOutput]]]
    """Ends its requests; None where a step of it has to come to its end first."""


class ModelChanges:
    """Loads one model at a time, and unloads any; to be advanced between steps.

    What takes time is done in threads beside the steps, or is a step itself.
    """

    def __init__(
        self, device: Device, store: WeightStore, kv_arbiter: KvArbiter, placement: Placement
    ) -> None:
        """`store` has the weights of all models of the device, `kv_arbiter` their KV memory."""
        self._device = device
        self._store = store
        self._kv_arbiter = kv_arbiter
        self._placement = placement
        self._sleepers = Sleepers(kv_arbiter)
        self._waiting: deque[ModelLoad] = deque()
        self._load: ModelLoad | None = None
        self._trial: Trial | None = None
        """Of the model that is being loaded, once it has joined."""
        self._leaving: deque[tuple[int | None, str]] = deque()
        self._staying: list[tuple[int | None, str]] = []
        self._quieting: list[tuple[int | None, ModelRuntime]] = []
        self._returns: list[tuple[int | None, str, MemoryReturn]] = []
        self._news: list[News] = []
        self._ended_by: int | None = None
        """The question of the unload that ended the load."""
        self._said: tuple[LoadPhase, float] | None = None

    def begin_load(
        self, question: int, settings: ModelSettings, prepare: Prepare, digest: str = ""
    ) -> None:
        """At any time. `Loaded` or `Refused` will be among the news; `digest` is of a model that
        slept."""
        self._waiting.append(ModelLoad(question, settings, prepare, digest))

    def begin_sleep(self, question: int, model: str) -> None:
        """At any time. As an unload, but what is the model's of a KV budget stays its own."""
        self._sleepers.begin(model)
        self._leaving.append((question, model))

    def begin_unload(self, question: int, model: str) -> None:
        """At any time. `Unloaded` will be among the news, also where there is no such model.

        A load of it that is under way is refused.
        """
        self._sleepers.forget(model)
        self._leaving.append((question, model))
        # Now, so that one that is begun after this is not meant.
        for load in (*self._waiting, *([self._load] if self._load is not None else ())):
            if load.settings.name == model:
                load.end()

    @property
    def are_under_way(self) -> bool:
        return bool(
            (self._waiting or self._load)
            or (self._leaving or self._quieting or self._returns)
            or self._news
        )

    @property
    def joining(self) -> str | None:
        """A model that takes part in steps and is not served yet."""
        return None if self._trial is None else self._trial.runtime.info.name

    def take_news(self) -> list[News]:
        """What came to pass since this was asked last."""
        news, self._news = self._news, []
        return news

    def advance(self, is_there: Callable[[str], bool]) -> list[RequestOutput]:
        """Does what can be done now; the outputs end requests of models that have left."""
        outputs: list[RequestOutput] = []
        while self._leaving:
            outputs += self._unload(*self._leaving.popleft(), is_there)
        self._leaving.extend(self._staying)
        self._staying.clear()
        self._note_quiet()
        self._note_returns()
        if self._load is None and self._waiting and not self._is_leaving(self._waiting[0]):
            self._begin_next(is_there)
        elif self._trial is not None:
            self._note_trial(self._trial, is_there)
        elif self._load is not None:
            self._note_load(self._load)
        return outputs

    def without_trial(self, outputs: list[RequestOutput]) -> list[RequestOutput]:
        """Outputs that somebody asked for."""
        return outputs if self._trial is None else self._trial.take_own(outputs)

    def _begin_next(self, is_there: Callable[[str], bool]) -> None:
        load = self._waiting.popleft()
        name = load.settings.name
        if load.is_ended:
            self._refuse(load, None)
            return
        if is_there(name):
            self._refuse(load, ConfigError(f"models.{name}: there is a model of this name already"))
            return
        try:
            self._kv_arbiter.expect(load.settings)
        except ConfigError as error:
            self._refuse(load, error)
            return
        self._load, self._said = load, None
        load.start(self._device, self._store, self._kv_arbiter.budget)

    def _is_leaving(self, load: ModelLoad) -> bool:
        """Whether one of the same name has still to give its memory back."""
        names = [
            *(name for _, name in self._leaving),
            *(runtime.info.name for _, runtime in self._quieting),
            *(name for _, name, _ in self._returns),
        ]
        return load.settings.name in names

    def _note_load(self, load: ModelLoad) -> None:
        if not load.is_done:
            self._tell_progress(load)
            return
        error = load.error
        if load.built is not None and not load.is_ended:
            try:
                self._trial = Trial(self._placement.join(load))
                load.phase = "warming_up"
                self._tell_progress(load)
                return
            except ConfigError as problem:
                error = ConfigError(str(problem))
            except Exception as problem:
                # No memory, say: models that run have no part in it.
                name, kind = load.settings.name, type(problem).__name__
                error = ConfigError(f"models.{name}: {kind}: {problem}")
        left, load.built = load.built, None
        self._load = None
        self._refuse(load, error)
        self._returns.append((self._ended_by, load.settings.name, MemoryReturn(left)))
        self._ended_by = None

    def _note_trial(self, trial: Trial, is_there: Callable[[str], bool]) -> None:
        load = self._load
        assert load is not None
        if trial.error is not None:
            self._unload(None, self._give_up_trial(CheckpointError(trial.error)), is_there)
        elif trial.is_over:
            self._load = self._trial = None
            self._news.append(Loaded(load.question, trial.runtime.info, load.settings.step_time))
        else:
            trial.look()

    def _give_up_trial(self, error: CheckpointError | None) -> str:
        """The name of the model, which has still to leave."""
        load = self._load
        assert load is not None
        self._load = self._trial = None
        self._refuse(load, error)
        return load.settings.name

    def _unload(
        self, question: int | None, name: str, is_there: Callable[[str], bool]
    ) -> list[RequestOutput]:
        is_trial = False
        if self._load is not None and self._load.settings.name == name:
            if self._trial is None and self._ended_by is None:
                # Its thread ends soon; what it has read goes with it.
                self._ended_by = question
                return []
            is_trial = self._trial is not None
            if is_trial:
                self._give_up_trial(None)
        if not is_there(name):
            self._tell_unloaded(question)
            return []
        runtime, outputs = self._placement.leave(name)
        if runtime is None:
            # Once more in the next step.
            self._staying.append((question, name))
        else:
            self._quieting.append((question, runtime))
        return [] if is_trial else outputs

    def _note_quiet(self) -> None:
        """The host lets go of the requests that a model had there, in its own time."""
        for entry in tuple(self._quieting):
            question, runtime = entry
            runtime.poll()
            if runtime.is_quiet:
                self._quieting.remove(entry)
                runtime.leave_host()
                name = runtime.info.name
                self._kv_arbiter.retire(name)
                self._returns.append((question, name, MemoryReturn(runtime)))

    def _tell_unloaded(self, question: int | None) -> None:
        if question is not None:
            self._news.append(Unloaded(question))

    def _note_returns(self) -> None:
        for entry in tuple(self._returns):
            question, name, memory = entry
            if memory.is_done:
                self._returns.remove(entry)
                self._sleepers.note_left(name)
                self._tell_unloaded(question)

    def _refuse(self, load: ModelLoad, error: CheckpointError | ConfigError | None) -> None:
        """None: it was ended."""
        text = f"models.{load.settings.name}: it was unloaded while it was being loaded"
        if error is not None:
            text = str(error)
        is_checkpoint = isinstance(error, CheckpointError)
        self._news.append(Refused(load.question, text, is_checkpoint))

    def _tell_progress(self, load: ModelLoad) -> None:
        now_s = time.monotonic()
        if self._said is not None:
            phase, said_s = self._said
            if phase == load.phase and now_s - said_s < _SAY_EVERY_S:
                return
        self._said = (load.phase, now_s)
        self._news.append(
            LoadAdvanced(load.question, load.phase, load.done_bytes, load.total_bytes)
        )

"""Models that come to an engine and leave it while it works."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from omniserve.devices.device import Device
from omniserve.engine.keeping import KeptModels, keeps_weights
from omniserve.engine.kv_sharing import KvSharing
from omniserve.engine.leaving import Leaving, Stage, TakeOut
from omniserve.engine.model_load import ModelLoad, Prepare
from omniserve.engine.model_news import LoadAdvanced, Loaded, News, Refused, Unloaded
from omniserve.engine.model_runtime import ModelRuntime
from omniserve.engine.trial import Trial
from omniserve.errors import CheckpointError, ConfigError
from omniserve.models.weight_store import WeightStore
from omniserve.requests import RequestOutput
from omniserve.settings import LoadPhase, ModelSettings

_SAY_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Placement:
    """How a model is taken among those that run, and out again; all between two steps."""

    require_place: Callable[[ModelSettings], None]
    """Raises ConfigError where one of these settings could not join, whatever its weights are."""
    join: Callable[[ModelLoad], ModelRuntime]
    """Takes what the load has built. Raises ConfigError."""
    leave: TakeOut


class ModelChanges:
    """Loads one model at a time, and unloads any; to be advanced between steps.

    What takes time is done in threads beside the steps, or is a step itself. No load begins while
    another model leaves: it finds the memory free that this gives back.
    """

    def __init__(
        self, device: Device, store: WeightStore, kv_sharing: KvSharing, placement: Placement
    ) -> None:
        """`store` has the weights of all models of the device, `kv_sharing` their KV memory."""
        self._device = device
        self._store = store
        self._kv_sharing = kv_sharing
        self._placement = placement
        self._kept = KeptModels()
        self._waiting: deque[ModelLoad] = deque()
        self._load: ModelLoad | None = None
        self._trial: Trial | None = None
        """Of the model that is being loaded, once it has joined."""
        self._leaving: list[Leaving] = []
        """Of one name the first goes; the others wait until it has."""
        self._news: list[News] = []
        self._said: tuple[LoadPhase, float] | None = None

    def begin_load(
        self, question: int, settings: ModelSettings, prepare: Prepare, digest: str = ""
    ) -> None:
        """At any time. `Loaded` or `Refused` will be among the news; `digest` is of a model that
        slept."""
        self._waiting.append(ModelLoad(question, settings, prepare, digest))

    def begin_sleep(self, question: int, model: str) -> None:
        """At any time. As an unload, but what is the model's of a KV budget stays its own."""
        news, kv_sharing = [Unloaded(question)], self._kv_sharing
        if keeps_weights(self._device.torch_device):
            leaving = Leaving(model, news, kv_sharing, kv_sharing.rest, self._kept.remains)
        else:
            leaving = Leaving(model, news, kv_sharing, kv_sharing.rest)
        self._leaving.append(leaving)

    def begin_unload(self, question: int, model: str) -> None:
        """At any time. `Unloaded` will be among the news, also where there is no such model.

        A load of it that is under way is refused.
        """
        # Now, so that one that is begun after this is not meant.
        for load in tuple(self._waiting):
            if load.settings.name == model:
                self._waiting.remove(load)
                self._news.append(_refused(load, None))
        if self._load is not None and self._load.settings.name == model:
            self._load.end()
        self._leaving.append(Leaving(model, [Unloaded(question)], self._kv_sharing))

    @property
    def are_under_way(self) -> bool:
        return bool(self._waiting or self._load or self._leaving or self._news)

    @property
    def is_reading(self) -> bool:
        """Whether a thread reads and lays out weights."""
        return self._load is not None and not self._load.is_done

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
        outputs = self._note_leaving(is_there)
        if self._load is None:
            if self._waiting and not self._leaving:
                self._begin_next(is_there)
        elif self._trial is not None:
            self._note_trial(self._load, self._trial)
        else:
            self._note_load(self._load)
        return outputs

    def without_trial(self, outputs: list[RequestOutput]) -> list[RequestOutput]:
        """Outputs that somebody asked for."""
        return outputs if self._trial is None else self._trial.take_own(outputs)

    def _note_leaving(self, is_there: Callable[[str], bool]) -> list[RequestOutput]:
        outputs: list[RequestOutput] = []
        first: dict[str, Leaving] = {}
        for leaving in self._leaving:
            if first.setdefault(leaving.name, leaving) is not leaving:
                continue
            if leaving.stage is Stage.STEPPING:
                outputs += self._take_out(leaving, is_there)
            leaving.advance()
            if leaving.stage is Stage.GONE:
                self._news += leaving.news
        self._leaving = [each for each in self._leaving if each.stage is not Stage.GONE]
        return outputs

    def _take_out(self, leaving: Leaving, is_there: Callable[[str], bool]) -> list[RequestOutput]:
        load = self._load
        if load is not None and load.settings.name == leaving.name:
            if self._trial is None:
                # Its thread ends soon; what it has read goes first.
                return []
            self._trial.end()
            self._load = self._trial = None
            leaving.news = (_refused(load, None), *leaving.news)
        if not is_there(leaving.name):
            kept = self._kept.take(leaving.name)
            if kept is None:
                leaving.end()
            else:
                leaving.give_back(kept)
            return []
        return leaving.take_out(self._placement.leave)

    def _begin_next(self, is_there: Callable[[str], bool]) -> None:
        load = self._waiting.popleft()
        name = load.settings.name
        if is_there(name):
            taken = ConfigError(f"models.{name}: there is a model of this name already")
            self._news.append(_refused(load, taken))
            return
        try:
            self._placement.require_place(load.settings)
            self._kv_sharing.expect(load.settings)
        except ConfigError as error:
            # Of one that slept, what was kept for it goes as well.
            self._take_back(load, error)
            return
        self._load, self._said = load, None
        load.start(self._device, self._store, self._kv_sharing.budgets, self._kept.take(name))

    def _note_load(self, load: ModelLoad) -> None:
        if not load.is_done:
            self._tell_progress(load)
        elif load.built is None or load.is_ended:
            self._come_to_nothing(load, load.error)
        else:
            self._join(load)

    def _join(self, load: ModelLoad) -> None:
        try:
            runtime = self._placement.join(load)
        except Exception as problem:
            # No memory, say: models that run have no part in it.
            self._come_to_nothing(load, _as_error(load, problem))
            return
        try:
            self._trial = Trial(runtime)
        except Exception as problem:
            self._take_back(load, _as_error(load, problem))
            return
        load.phase = "warming_up"
        self._tell_progress(load)

    def _come_to_nothing(
        self, load: ModelLoad, error: CheckpointError | ConfigError | None
    ) -> None:
        """Before it has joined; what was built of it goes."""
        left, load.built = load.built, None
        self._take_back(load, error).give_back(left)

    def _take_back(self, load: ModelLoad, error: CheckpointError | ConfigError | None) -> Leaving:
        """The load is over; it is refused once nothing is left of it."""
        self._load = self._trial = None
        # A model that there is no room for now sleeps on, and its floors stay its own.
        stays_asleep = load.is_wake and isinstance(error, ConfigError)
        note_gone = self._kv_sharing.rest if stays_asleep else None
        leaving = Leaving(load.settings.name, [_refused(load, error)], self._kv_sharing, note_gone)
        # Before an unload that was asked for meanwhile, which waits for it.
        self._leaving.insert(0, leaving)
        return leaving

    def _note_trial(self, load: ModelLoad, trial: Trial) -> None:
        if trial.error is not None:
            self._take_back(load, CheckpointError(trial.error))
        elif trial.is_over:
            self._load = self._trial = None
            self._news.append(Loaded(load.question, trial.runtime.info, load.settings.step_time))
        else:
            trial.look()

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


def _as_error(load: ModelLoad, problem: Exception) -> ConfigError:
    """Without its traceback, which would keep alive what was built."""
    if isinstance(problem, ConfigError):
        return ConfigError(str(problem))
    name, kind = load.settings.name, type(problem).__name__
    return ConfigError(f"models.{name}: {kind}: {problem}")


def _refused(load: ModelLoad, error: CheckpointError | ConfigError | None) -> Refused:
    """None: it was ended."""
    text = f"models.{load.settings.name}: it was unloaded while it was being loaded"
    if error is not None:
        text = str(error)
    return Refused(load.question, text, isinstance(error, CheckpointError))

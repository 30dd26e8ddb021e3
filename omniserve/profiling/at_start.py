"""Step times of an engine that starts: given, kept from another start, or measured now."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from omniserve.engine.core import Engine
from omniserve.errors import OmniServeError
from omniserve.logs import get_logger, log_event
from omniserve.profiling.alone import alone
from omniserve.profiling.assembly import Assembly
from omniserve.profiling.hardware import measured_on
from omniserve.profiling.kept import kept_profile
from omniserve.profiling.measure import measure
from omniserve.profiling.measured_on import MeasuredOn
from omniserve.profiling.messages import Effort, Progress
from omniserve.profiling.profile import Profile
from omniserve.profiling.store import ProfileStore
from omniserve.profiling.timed_engine import TimedEngine
from omniserve.settings import (
    ROWS_BESIDE_LS_ON_CPU,
    TOKENS_BESIDE_LS,
    EngineSettings,
    ModelSettings,
)
from scheduler import SchedulerSettings
from scheduler.step_time import LinearStepTime

_LOG = get_logger(__name__)
BRIEF = Effort(
    "brief",
    alone_s=4.0,
    beside_host_s=3.0,
    host_s=2.0,
    max_scenes=24,
    max_prompt_tokens=4096,
    max_medley_steps=40,
    max_works=3,
)
_MOST_S = 20.0
"""For one model, prompts and all."""
_LEAST_S = 5.0
_SHARE_OF_TIME_LEFT = 0.5
"""That a measurement may take of what is left until the front gives the engine up."""
_SAY_EVERY_S = 3.0
_WITHOUT = "its steps are limited by token budgets alone"


class MeasuringStopped(OmniServeError):
    """There is no more time, or the engine is to stop."""


@dataclass(frozen=True, slots=True)
class StartClock:
    """How long a start may go on."""

    ready_before_s: float
    """On the monotonic clock: then the front gives the engine up."""
    is_stopping: Callable[[], bool]


class StepTimesAtStart:
    """Finds what steps of the models of a warm engine take; what cannot be found is said in the
    log, and keeps nobody from serving."""

    def __init__(
        self, engine: Engine, settings: EngineSettings, store: ProfileStore, num_cores: int
    ) -> None:
        """num_cores: `count_cores`, from before there was an engine."""
        self._engine = engine
        self._settings = settings
        self._store = store
        self._num_cores = num_cores

    def find(self, clock: StartClock) -> dict[str, LinearStepTime]:
        """By model; the schedulers of the engine know them."""
        found: dict[str, LinearStepTime] = {}
        for model in self._settings.models:
            step_time = model.step_time
            if step_time is None and model.measures_step_time:
                step_time = self._step_time(model, clock)
            if step_time is not None:
                found[model.name] = step_time
        return found

    def _step_time(self, model: ModelSettings, clock: StartClock) -> LinearStepTime | None:
        try:
            profile = self._profile(model, clock)
        except Exception as error:
            # Whatever it is: with control or without, requests are to be served.
            is_expected = isinstance(error, OmniServeError | TimeoutError)
            log_event(
                _LOG,
                "step_times_unknown",
                level=logging.WARNING,
                error=None if is_expected else error,
                model=model.name,
                reason=str(error) or type(error).__name__,
                effect=_WITHOUT,
            )
            runtime = self._engine.runtime(model.name)
            runtime.start_over(_without_step_times(runtime.scheduler.settings), None)
            return None
        runtime = self._engine.runtime(model.name)
        runtime.start_over(runtime.scheduler.settings, profile.step_time)
        return profile.step_time

    def _profile(self, model: ModelSettings, clock: StartClock) -> Profile:
        (as_measured,) = alone(self._settings, model.name).models
        of = measured_on(as_measured, self._engine.device, self._num_cores)
        kept = kept_profile(model, of, self._store)
        if kept is not None and kept.measured_on is not None:
            path = str(self._store.path(kept.measured_on))
            log_event(_LOG, "step_times_kept", model=model.name, path=path)
            return kept
        start_s = time.monotonic()
        most_s = min(_MOST_S, _SHARE_OF_TIME_LEFT * (clock.ready_before_s - start_s))
        if most_s < _LEAST_S:
            raise MeasuringStopped("there is too little time until the engine has to be ready")
        log_event(_LOG, "measuring_step_times", model=model.name, at_most_s=round(most_s, 1))
        profile, is_whole = self._measured(as_measured, of, start_s + most_s, clock.is_stopping)
        took_s = round(time.monotonic() - start_s, 1)
        file = self._store.save(profile) if is_whole else None
        kept_in = None if file is None else str(file)
        log_event(_LOG, "step_times_measured", model=model.name, took_s=took_s, path=kept_in)
        for warning in profile.warnings:
            log_event(_LOG, "step_times_doubtful", level=logging.WARNING, problem=warning)
        return profile

    def _measured(
        self,
        model: ModelSettings,
        of: MeasuredOn,
        end_s: float,
        is_stopping: Callable[[], bool],
    ) -> tuple[Profile, bool]:
        """What came until then, where that is enough, and whether it is all that was wanted."""

        def look() -> None:
            if is_stopping():
                raise MeasuringStopped("the engine is to stop")
            if time.monotonic() > end_s:
                raise MeasuringStopped("it took too long")

        assembly, is_whole = Assembly(BRIEF), True
        timed = TimedEngine(self._engine, model, seed=0, before_step=look)
        say = _Teller(model.name)
        try:
            for answer in measure(timed, of, BRIEF):
                assembly.take(answer)
                if isinstance(answer, Progress):
                    say.progress(answer)
        except (MeasuringStopped, TimeoutError) as error:
            if is_stopping():
                raise
            is_whole = False
            log_event(
                _LOG,
                "measuring_cut_short",
                level=logging.WARNING,
                model=model.name,
                reason=str(error),
                hint="`omniserve profile` measures it once, and thoroughly",
            )
        finally:
            timed.close()
        return assembly.result().profile, is_whole


class _Teller:
    """Says now and then how far it has come."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._next_s = time.monotonic() + _SAY_EVERY_S

    def progress(self, progress: Progress) -> None:
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _SAY_EVERY_S
            log_event(
                _LOG,
                "measuring_step_times",
                model=self._model,
                part=progress.phase,
                done=round(progress.done, 2),
            )


def _without_step_times(settings: SchedulerSettings) -> SchedulerSettings:
    """With token budgets where time was to be the only one."""
    tokens, limits = settings.best_effort_tokens_beside_ls, settings.piggyback
    if tokens >= settings.max_step_tokens:
        settings = replace(settings, best_effort_tokens_beside_ls=min(tokens, TOKENS_BESIDE_LS))
    if limits is not None and limits.max_lane_rows_beside_ls >= limits.max_lane_rows:
        rows = min(limits.max_lane_rows, ROWS_BESIDE_LS_ON_CPU)
        settings = replace(settings, piggyback=replace(limits, max_lane_rows_beside_ls=rows))
    return settings

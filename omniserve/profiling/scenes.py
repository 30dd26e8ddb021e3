"""Runs the scenes of a calibration on an engine."""

import time
from collections.abc import Iterator, Sequence
from itertools import count

import msgspec

from omniserve.others_meter import QUIET_CORES, OthersMeter, await_quiet
from omniserve.profiling.cases import Limits, Scene
from omniserve.profiling.medley import Medley, run_medley
from omniserve.profiling.messages import StepSample
from omniserve.profiling.timed_engine import TimedEngine

QUIET_RUNS = 3
"""Of each scene: their median is what a step takes."""
_MEASURABLE_S = 0.3
_SPARE_TOKENS = 8


def limits_of(engine: TimedEngine) -> Limits:
    settings = engine.runtime.scheduler.settings
    kv_bytes = engine.engine.kv_sharing.device.reach_bytes(engine.info.name)
    num_tokens = settings.num_blocks * settings.block_size
    if kv_bytes is not None:
        num_tokens = min(num_tokens, kv_bytes // engine.info.kv_bytes_per_token)
    return Limits(
        kv_tokens=num_tokens,
        block_tokens=settings.block_size,
        max_model_len=settings.max_model_len,
        max_running_requests=settings.max_running_requests,
        max_step_tokens=settings.max_step_tokens,
        may_offload=settings.piggyback is not None and settings.piggyback.is_device_limited,
    )


class SceneRunner:
    """Runs scenes, and says of each whether others disturbed it."""

    def __init__(
        self, engine: TimedEngine, scenes: Sequence[Scene | Medley], patience_s: float = 0.0
    ) -> None:
        """patience_s: longest wait for others to leave the cores alone, before every few scenes."""
        self._engine = engine
        self._scenes = scenes
        self._patience_s = patience_s
        self.measured_s = 0.0
        """That scenes took so far."""
        self.num_quiet = [0] * len(scenes)
        """Undisturbed runs, by scene."""

    @property
    def lacking(self) -> list[int]:
        """Scenes that were not undisturbed often enough."""
        return [at for at, num in enumerate(self.num_quiet) if num < QUIET_RUNS]

    @property
    def done(self) -> float:
        """Of the runs that are wanted."""
        wanted = QUIET_RUNS * len(self._scenes)
        return sum(min(num, QUIET_RUNS) for num in self.num_quiet) / wanted

    def run(self, budget_s: float) -> Iterator[list[StepSample]]:
        """Round after round of what is lacking, some scenes at a time, until they took so long."""
        waiting = self.lacking
        while waiting and self.measured_s < budget_s:
            await_quiet(self._patience_s)
            yield self._run_some(waiting)
            waiting = waiting or self.lacking

    def _run_some(self, waiting: list[int]) -> list[StepSample]:
        """The next scenes, until it can be said who used the cores meanwhile: the kernel counts in
        hundredths of a second."""
        samples: list[StepSample] = []
        started, meter, start_s = [], OthersMeter(), time.monotonic()
        while waiting and time.monotonic() < start_s + _MEASURABLE_S:
            index = waiting.pop(0)
            started.append(index)
            samples += run_scene(self._engine, index, self._scenes[index])
        others_cores = meter.cores()
        self.measured_s += time.monotonic() - start_s
        for index in started:
            self.num_quiet[index] += others_cores <= QUIET_CORES
        return [msgspec.structs.replace(each, others_cores=others_cores) for each in samples]


def run_scene(engine: TimedEngine, index: int, scene: Scene | Medley) -> list[StepSample]:
    """Every step of a scene, in order."""
    if isinstance(scene, Medley):
        samples = list(run_medley(engine, index, scene))
    else:
        samples = list(_run(engine, index, scene))
    engine.clear()
    return samples


def _run(engine: TimedEngine, index: int, scene: Scene) -> Iterator[StepSample]:
    """The prompts come together, so that chunks of one start behind those of another."""
    places = count()
    # Nobody ends before the scene does, also where others are computed one after the other.
    max_tokens = min(
        engine.info.max_model_len - scene.context,
        scene.num_steps + scene.num_decodes * _most_chunks(engine, scene) + _SPARE_TOKENS,
    )
    waiting = {
        engine.add(scene.context, max_tokens, "latency_sensitive") for _ in range(scene.num_decodes)
    }
    yield from _until_first_tokens(engine, waiting, index, places)
    for step in engine.steps(scene.num_steps):
        yield step.sample(index, next(places))
    if scene.joining_prompt:
        joined = {engine.add(scene.joining_prompt, 2, "latency_sensitive")}
        yield from _until_first_tokens(engine, joined, index, places)


def _until_first_tokens(
    engine: TimedEngine, request_ids: set[str], index: int, places: "count[int]"
) -> Iterator[StepSample]:
    while any(not engine.tokens_of(request_id) for request_id in request_ids):
        for step in engine.steps(1):
            yield step.sample(index, next(places))


def _most_chunks(engine: TimedEngine, scene: Scene) -> int:
    return 1 + scene.context // engine.runtime.scheduler.settings.max_step_tokens

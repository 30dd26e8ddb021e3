"""Steps of mixed traffic in this process, each with what was predicted of it before it ran."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np

from omniserve.others_meter import OthersMeter
from omniserve.profiling.host import always_offloading
from omniserve.profiling.timed_engine import TimedEngine
from omniserve.requests import ServiceClassName
from omniserve.settings import EngineSettings
from scheduler.step_time import LinearStepTime

HostState = Literal["idle", "active"]

_WINDOW_S = 0.3
"""In which others are looked for: the kernel counts their time in hundredths of a second."""
_LONGEST_OUTPUT = 96
_BACKLOGS: dict[HostState, tuple[int, ...]] = {"idle": (0, 2, 8, 24), "active": (4, 12, 24, 48)}
"""Best-effort requests that are always there, by phase: on the device, or on the host."""
_ARRIVAL_CHANCES = (0.06, 0.03, 0.1, 0.03)
"""Of a latency-sensitive request before a step, by phase."""
_MOST_FUTILE_STEPS = 200_000


class Task(msgspec.Struct, frozen=True):
    """What a worker is to run."""

    settings: EngineSettings
    host: HostState
    num_warm_ups: int
    """Rounds of other traffic of the kind, before those that count."""
    num_rounds: int
    phase_steps: int
    seed: int


class HeldOutStep(msgspec.Struct, frozen=True):
    """A step with rows on the device, as it was predicted and as it was."""

    round: int
    """From 1 on those that count."""
    place: int
    """Of the step in its round: with nothing on the host, rounds have the same steps."""
    num_decode_rows: int
    num_prefill_tokens: int
    num_lane_rows: float
    predicted_s: float
    """By the live scheduler, from its plan; the lane rows that then joined are priced alike."""
    measured_s: float
    """From the asking for its plan to its completion, as the scheduler sees it."""
    fitted_s: float
    """By the profile, without what was learned from steps."""
    seconds: float
    """As the engine's loop sees it: the same, with messages in and out."""
    others_cores: float


class Ran(msgspec.Struct, frozen=True):
    """What came of a task."""

    steps: list[HeldOutStep]
    fixed_work_s: list[float]
    """Of always the same work, no engine in it."""


@dataclass(slots=True)
class _Request:
    request_id: str
    num_tokens: int


class Traffic:
    """Both classes; latency-sensitive requests arrive at random, best-effort ones follow each
    other. Times of arrival are steps, so that every round of a seed has the same ones."""

    def __init__(self, engine: TimedEngine, task: Task, step_time: LinearStepTime) -> None:
        self._engine = engine
        self._task = task
        self._step_time = step_time
        settings = engine.runtime.scheduler.settings
        tokens = settings.num_blocks * settings.block_size
        self._longest_prompt = min(
            2 * settings.max_step_tokens, settings.max_model_len // 2, tokens // 64
        )
        self._most_requests = settings.max_running_requests

    def run(self) -> Iterator[HeldOutStep]:
        """Round after round."""
        self._start_over()
        task = self._task
        for round_ in range(1 - task.num_warm_ups, 1 + task.num_rounds):
            # What is not counted must not be what is counted.
            seed = task.seed - min(0, round_ - 1)
            yield from self._round(round_, random.Random(seed))
            self._engine.clear()

    def _start_over(self) -> None:
        runtime = self._engine.runtime
        settings, piggyback = runtime.scheduler.settings, runtime.piggyback
        if self._task.host == "active":
            settings = always_offloading(settings)
        # Equal prompts of different rounds must be computed each time.
        runtime.start_over(replace(settings, prefix_caching=False), self._step_time)
        if piggyback is not None:
            piggyback.may_offload = self._task.host == "active"

    def _round(self, round_: int, draw: random.Random) -> Iterator[HeldOutStep]:
        waiting, meter = list[HeldOutStep](), OthersMeter()
        window_s, place = 0.0, 0
        for backlog, chance in zip(_BACKLOGS[self._task.host], _ARRIVAL_CHANCES, strict=True):
            best_effort: list[_Request] = []
            num_wanted = min(backlog, self._most_requests // 2)
            for _ in range(self._task.phase_steps):
                best_effort = [
                    each
                    for each in best_effort
                    if self._engine.tokens_of(each.request_id) < each.num_tokens
                ]
                while len(best_effort) < num_wanted:
                    best_effort.append(self._add(draw, "best_effort"))
                is_idle = self._task.host == "idle" and not self._engine.engine.has_unfinished
                if draw.random() < chance or is_idle:
                    self._add(draw, "latency_sensitive")
                step = self._step(round_, place)
                place += 1
                if step is None:
                    continue
                waiting.append(step)
                window_s += step.seconds
                if window_s >= _WINDOW_S:
                    yield from _said(waiting, meter)
                    waiting, meter, window_s = [], OthersMeter(), 0.0
        yield from _said(waiting, meter)

    def _add(self, draw: random.Random, service_class: ServiceClassName) -> _Request:
        prompt = round(self._longest_prompt ** draw.uniform(0.35, 1.0))
        num_tokens = draw.randint(2, _LONGEST_OUTPUT)
        return _Request(self._engine.add(prompt, num_tokens, service_class), num_tokens)

    def _step(self, round_: int, place: int) -> HeldOutStep | None:
        """None where no row was computed on the device, or nothing was predicted."""
        runtime = self._engine.runtime
        books = runtime.scheduler.step_books
        assert books is not None
        num_before = books.num_steps
        predicted_s, measured_s = books.predicted_s, books.measured_s
        is_host_active = runtime.piggyback is not None and runtime.piggyback.has_host_cores
        for _ in range(_MOST_FUTILE_STEPS):
            step = self._engine.step()
            if step is not None:
                break
            if not self._engine.engine.has_unfinished:
                return None
        else:
            raise TimeoutError(f"no step completes: {runtime.scheduler!r}")
        if books.num_steps != num_before + 1:
            return None
        shape = step.sample(0, place).shape
        return HeldOutStep(
            round=round_,
            place=place,
            num_decode_rows=shape.num_decode_rows,
            num_prefill_tokens=shape.num_prefill_tokens,
            num_lane_rows=shape.num_lane_rows,
            predicted_s=books.predicted_s - predicted_s,
            measured_s=books.measured_s - measured_s,
            fitted_s=self._step_time.costs(is_host_active).step_s(shape),
            seconds=step.seconds,
            others_cores=0.0,
        )


def time_fixed_work(num_times: int) -> list[float]:
    """About a millisecond of one core each: half of it arithmetic, half memory that a shared cache
    holds."""
    source = np.ones(1 << 18)
    target = np.empty_like(source)
    taken = []
    for _ in range(num_times):
        start_s = time.perf_counter()
        np.copyto(target, source)
        sum(number * number for number in range(8000))
        taken.append(time.perf_counter() - start_s)
    return taken


def _said(steps: list[HeldOutStep], meter: OthersMeter) -> Iterator[HeldOutStep]:
    """With what others used of the cores meanwhile."""
    others_cores = meter.cores()
    for step in steps:
        yield msgspec.structs.replace(step, others_cores=others_cores)

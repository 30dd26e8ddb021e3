"""Measures a model's decodes on the host: how fast it attends, and what lane rows cost a step."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec

from omniserve.others_meter import OthersMeter, await_quiet
from omniserve.profiling.copies import copy_bytes_per_s
from omniserve.profiling.messages import (
    Answer,
    Effort,
    HostMeasured,
    HostSample,
    Progress,
    StepSample,
)
from omniserve.profiling.timed_engine import TimedEngine, TimedStep
from scheduler import SchedulerSettings

_PROMPT_ROOM_TOKENS = 4096
_SETTLE_SHARE = 0.25
_GIVE_UP_S = 60.0
_MOST_STEPS = 200
"""Of one kind of work, that are kept each by itself."""
_ARRIVAL_CHANCE = 0.1
"""Of a prompt before a step."""


@dataclass(frozen=True, slots=True)
class _Work:
    num_ls: int
    num_offloaded: int
    context: int


_ALONE = _Work(0, 1, 64)
_WORK = (
    _Work(4, 32, 128),
    _Work(0, 64, 32),
    _ALONE,
    _Work(4, 64, 512),
    _Work(0, 48, 1024),
    _Work(0, 16, 4000),
    _Work(2, 8, 64),
    _Work(0, 8, 64),
)
"""Beside latency-sensitive rows; many short ones; one at a time; such as keep the host busy. The
last ones are for pools and lanes that have no room for the others."""


def measure_host(engine: TimedEngine, effort: Effort) -> Iterator[Answer]:
    """The scheduler of the engine is another one afterwards, with nothing in it."""
    runtime = engine.runtime
    assert runtime.piggyback is not None
    runtime.start_over(always_offloading(runtime.scheduler.settings), None)
    runtime.piggyback.may_offload = True
    if not runtime.piggyback.host_blocks.num_free_blocks:
        # Where models share the host's memory, one has none before it wants some.
        _step_until_all_decode(engine, [engine.add(1, 2, "best_effort")])
        engine.clear()
    copied_bytes_per_s = copy_bytes_per_s(runtime.piggyback, runtime.scheduler.settings.num_blocks)
    works = [work for work in _WORK if _fits(engine, work)][: effort.max_works]
    samples, steps = [], list[StepSample]()
    for place, work in enumerate(works):
        await_quiet(effort.patience_s)
        sample, taken, others_cores = _run(engine, work, effort.host_s / len(works))
        samples.append(sample)
        if work.num_ls:
            joined = [each.sample(place, at) for at, each in enumerate(taken) if each.plan.rows]
            stride = max(1, -(-len(joined) // _MOST_STEPS))
            steps += [
                msgspec.structs.replace(each, others_cores=others_cores)
                for each in joined[::stride]
            ]
        yield Progress("host", (place + 1) / len(works))
    speed = runtime.piggyback.host_speed
    yield HostMeasured(tuple(samples), copied_bytes_per_s, speed, tuple(steps))


def always_offloading(settings: SchedulerSettings) -> SchedulerSettings:
    """All best-effort decodes on the host, as many as there is room for."""
    assert settings.piggyback is not None
    piggyback = replace(
        settings.piggyback,
        max_lane_rows_beside_ls=settings.piggyback.max_lane_rows,
        max_resident_decodes=0,
    )
    # No prompt comes twice, so that what the host's pool would keep of them is of no use later.
    return replace(settings, piggyback=piggyback, kv_reserve_share=None, prefix_caching=False)


def _fits(engine: TimedEngine, work: _Work) -> bool:
    scheduler = engine.runtime.scheduler
    tokens = work.num_offloaded * (work.context + _PROMPT_ROOM_TOKENS // 4)
    limits = scheduler.settings.piggyback
    return (
        tokens <= scheduler.counts.num_host_blocks * scheduler.settings.block_size
        and limits is not None
        and work.num_offloaded <= limits.num_lanes
        and work.context + 1024 <= engine.info.max_model_len
    )


def _run(
    engine: TimedEngine, work: _Work, window_s: float
) -> tuple[HostSample, list[TimedStep], float]:
    """The steps of the window, and cores that others used in it; prompts are not part of it."""
    max_tokens = engine.info.max_model_len - work.context
    offloaded = [
        engine.add(work.context, max_tokens, "best_effort") for _ in range(work.num_offloaded)
    ]
    _step_until_all_decode(engine, offloaded)
    latency_sensitive = [
        engine.add(_ALONE.context, engine.info.max_model_len - 64, "latency_sensitive")
        for _ in range(work.num_ls)
    ]
    _step_until_all_decode(engine, latency_sensitive)
    _step_for(engine, _SETTLE_SHARE * window_s)
    before, start_tokens = _counters(engine), _tokens(engine, offloaded)
    start_s, meter = time.perf_counter(), OthersMeter()
    steps = _step_for(engine, (1.0 - _SETTLE_SHARE) * window_s)
    seconds, others_cores = time.perf_counter() - start_s, meter.cores()
    after, tokens = _counters(engine), _tokens(engine, offloaded)
    ls_tokens = sum(engine.tokens_of(each) + _ALONE.context for each in latency_sensitive)
    sample = HostSample(
        seconds=seconds,
        num_steps=len(steps),
        num_ls_rows=work.num_ls,
        ls_context_tokens=ls_tokens,
        num_offloaded=work.num_offloaded,
        mean_context=work.context + (start_tokens + tokens) / 2 / work.num_offloaded,
        num_rows_joined=after[0] - before[0],
        num_tokens=tokens - start_tokens,
        kv_read_bytes=after[1] - before[1],
    )
    if work.num_ls:
        steps += _step_with_arrivals(engine, window_s / 2)
        # With as many lane rows all the time nobody could tell what they cost from what all do.
        for request_id in offloaded[::2]:
            engine.engine.abort(request_id)
        steps += _step_with_arrivals(engine, window_s / 2)
    engine.clear()
    return sample, steps, others_cores


def _step_with_arrivals(engine: TimedEngine, seconds: float) -> list[TimedStep]:
    """Prompts come at random: what the host's work costs is not the same for all kinds of steps."""
    draw, end_s = random.Random(0), time.perf_counter() + seconds
    longest = min(engine.runtime.scheduler.settings.max_step_tokens, engine.info.max_model_len // 4)
    steps = []
    while time.perf_counter() < end_s:
        if draw.random() < _ARRIVAL_CHANCE:
            num_prompt_tokens = round(longest ** draw.uniform(0.3, 1.0))
            engine.add(num_prompt_tokens, draw.randint(2, 32), "latency_sensitive")
        step = engine.step()
        if step is not None:
            steps.append(step)
    return steps


def _step_until_all_decode(engine: TimedEngine, request_ids: list[str]) -> None:
    deadline_s = time.perf_counter() + _GIVE_UP_S
    while any(not engine.tokens_of(each) for each in request_ids):
        engine.step()
        if time.perf_counter() > deadline_s:
            raise TimeoutError(f"prompts take more than {_GIVE_UP_S:g} s")


def _step_for(engine: TimedEngine, seconds: float) -> list[TimedStep]:
    """Those that were completed."""
    steps, end_s = [], time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        step = engine.step()
        if step is not None:
            steps.append(step)
    return steps


def _counters(engine: TimedEngine) -> tuple[int, int]:
    stats = engine.stats().piggyback
    assert stats is not None
    return stats.num_rows_joined, stats.host_kv_read_bytes


def _tokens(engine: TimedEngine, request_ids: list[str]) -> int:
    return sum(engine.tokens_of(each) for each in request_ids)

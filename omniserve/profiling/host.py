"""Measures a model's decodes on the host: how fast it attends, and what lane rows cost a step."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from omniserve.devices.device import Device, open_device
from omniserve.models.loading import DTYPES, load_config, load_model
from omniserve.others_meter import await_quiet
from omniserve.piggyback.calibration import measure_host_speed
from omniserve.piggyback.core_split import CoreSplit
from omniserve.profiling.messages import (
    Answer,
    HostMeasured,
    HostSample,
    MeasureHost,
)
from omniserve.profiling.timed_engine import TimedEngine
from omniserve.settings import EngineSettings, ModelSettings
from scheduler.offload_rule import HostSpeed

_POOL_BYTES = 1 << 30
_COPY_BYTES = 64 << 20
_PROMPT_ROOM_TOKENS = 4096
_SETTLE_SHARE = 0.25
_GIVE_UP_S = 60.0


@dataclass(frozen=True, slots=True)
class _Work:
    num_ls: int
    num_offloaded: int
    context: int


_WORK = (
    _Work(0, 1, 64),
    _Work(0, 64, 32),
    _Work(0, 48, 1024),
    _Work(0, 16, 4000),
    _Work(4, 32, 128),
    _Work(4, 64, 512),
)
"""One at a time; many short ones; such as keep the host busy; beside latency-sensitive rows."""


def measure(command: MeasureHost) -> Iterator[Answer]:
    """Opened, then HostMeasured."""
    settings = command.settings
    (model,) = (each for each in settings.models if each.name == command.model)
    device = open_device(settings.device)
    speed = _governor_speed(model, device)
    copy_bytes_per_s = _copy_bytes_per_s()
    engine = TimedEngine(_always_offloading(settings, model), model.name, command.seed)
    yield engine.opened()
    window_s = command.budget_s / len(_WORK)
    samples = []
    for work in _WORK:
        if _fits(engine, work):
            await_quiet(command.patience_s)
            samples.append(_run(engine, work, window_s))
    engine.close()
    yield HostMeasured(tuple(samples), copy_bytes_per_s, speed)


def host_cores_of(settings: ModelSettings) -> tuple[int, ...]:
    """Those that host attention takes of this process's; the engine takes the same."""
    num_threads = 0 if settings.piggyback is None else settings.piggyback.host_attention_threads
    return tuple(sorted(os.sched_getaffinity(0)))[-num_threads:] if num_threads else ()


def _governor_speed(model: ModelSettings, device: Device) -> HostSpeed | None:
    if device.torch_device.type != "cpu" or model.piggyback is None:
        return None
    cores = host_cores_of(model)
    split = CoreSplit(cores)
    if not split.costs_device_threads:
        split.unite()
        return None
    path, dtype = Path(model.path), DTYPES[model.dtype]
    loaded = load_model(
        path, load_config(path), dtype, device.torch_device, 4096, device.row_ops(dtype)
    )
    return measure_host_speed(loaded, split, len(cores))


def _copy_bytes_per_s() -> float:
    source = torch.ones(_COPY_BYTES // 4)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        start_s = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start_s)
    return _COPY_BYTES / min(seconds)


def _always_offloading(settings: EngineSettings, model: ModelSettings) -> EngineSettings:
    """The model alone, with all its best-effort decodes on the host."""
    assert model.piggyback is not None
    rows = model.piggyback.max_lane_rows
    piggyback = replace(
        model.piggyback,
        host_kv_bytes=min(model.piggyback.host_kv_bytes, _POOL_BYTES),
        max_lane_rows_beside_ls=rows,
        max_resident_decodes=0,
        when="always",
    )
    return EngineSettings(settings.device, (replace(model, piggyback=piggyback),))


def _fits(engine: TimedEngine, work: _Work) -> bool:
    stats = engine.stats().piggyback
    assert stats is not None
    tokens = work.num_offloaded * (work.context + _PROMPT_ROOM_TOKENS // 4)
    limits = engine.runtime.scheduler.settings.piggyback
    return (
        tokens * engine.info.kv_bytes_per_token <= stats.host_kv_total_bytes
        and limits is not None
        and work.num_offloaded <= limits.num_lanes
        and work.context + 1024 <= engine.info.max_model_len
    )


def _run(engine: TimedEngine, work: _Work, window_s: float) -> HostSample:
    """Decodes go on for longer than the window; prompts are not part of it."""
    max_tokens = engine.info.max_model_len - work.context
    offloaded = [
        engine.add(work.context, max_tokens, "best_effort") for _ in range(work.num_offloaded)
    ]
    _step_until_all_decode(engine, offloaded)
    latency_sensitive = [
        engine.add(_WORK[0].context, engine.info.max_model_len - 64, "latency_sensitive")
        for _ in range(work.num_ls)
    ]
    _step_until_all_decode(engine, latency_sensitive)
    _step_for(engine, _SETTLE_SHARE * window_s)
    before, start_tokens = _counters(engine), _tokens(engine, offloaded)
    start_s = time.perf_counter()
    num_steps = _step_for(engine, (1.0 - _SETTLE_SHARE) * window_s)
    seconds = time.perf_counter() - start_s
    after, tokens = _counters(engine), _tokens(engine, offloaded)
    ls_tokens = sum(engine.tokens_of(each) + _WORK[0].context for each in latency_sensitive)
    sample = HostSample(
        seconds=seconds,
        num_steps=num_steps,
        num_ls_rows=work.num_ls,
        ls_context_tokens=ls_tokens,
        num_offloaded=work.num_offloaded,
        mean_context=work.context + (start_tokens + tokens) / 2 / work.num_offloaded,
        num_rows_joined=after[0] - before[0],
        num_tokens=tokens - start_tokens,
        kv_read_bytes=after[1] - before[1],
    )
    engine.clear()
    return sample


def _step_until_all_decode(engine: TimedEngine, request_ids: list[str]) -> None:
    deadline_s = time.perf_counter() + _GIVE_UP_S
    while any(not engine.tokens_of(each) for each in request_ids):
        engine.step()
        if time.perf_counter() > deadline_s:
            raise TimeoutError(f"prompts take more than {_GIVE_UP_S:g} s")


def _step_for(engine: TimedEngine, seconds: float) -> int:
    """Steps that were completed."""
    num_steps, end_s = 0, time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        num_steps += engine.step() is not None
    return num_steps


def _counters(engine: TimedEngine) -> tuple[int, int]:
    stats = engine.stats().piggyback
    assert stats is not None
    return stats.num_rows_joined, stats.host_kv_read_bytes


def _tokens(engine: TimedEngine, request_ids: list[str]) -> int:
    return sum(engine.tokens_of(each) for each in request_ids)

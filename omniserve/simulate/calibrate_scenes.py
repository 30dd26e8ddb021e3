"""Runs the scenes of a calibration on an engine."""

from collections.abc import Iterator
from itertools import count

import msgspec

from omniserve.simulate.calibrate_cases import Limits, Scene
from omniserve.simulate.calibrate_engine import TimedEngine
from omniserve.simulate.calibrate_messages import StepSample
from omniserve.simulate.others_meter import OthersMeter

_SPARE_TOKENS = 8


def limits_of(engine: TimedEngine) -> Limits:
    settings = engine.runtime.scheduler.settings
    return Limits(
        kv_tokens=settings.num_blocks * settings.block_size,
        block_tokens=settings.block_size,
        max_model_len=settings.max_model_len,
        max_running_requests=settings.max_running_requests,
        max_step_tokens=settings.max_step_tokens,
    )


def run_scene(engine: TimedEngine, index: int, scene: Scene) -> list[StepSample]:
    """Every step of a scene, in order."""
    meter = OthersMeter()
    samples = list(_run(engine, index, scene))
    others_cores = meter.cores()
    engine.clear()
    return [msgspec.structs.replace(sample, others_cores=others_cores) for sample in samples]


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

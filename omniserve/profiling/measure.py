"""The whole measurement of one model, in a process that has it in an engine."""

from collections.abc import Iterator
from dataclasses import replace

from omniserve.profiling.cases import Scene, scenes, thin
from omniserve.profiling.host import measure_host
from omniserve.profiling.measured_on import MeasuredOn
from omniserve.profiling.medley import Medley, medleys
from omniserve.profiling.messages import Answer, Effort, Phase, Progress, Steps
from omniserve.profiling.scenes import SceneRunner, limits_of
from omniserve.profiling.timed_engine import TimedEngine
from scheduler import SchedulerSettings


def measure(engine: TimedEngine, measured_on: MeasuredOn, effort: Effort) -> Iterator[Answer]:
    """Opened, then what is measured, as it is measured.

    However it ends, the engine is afterwards as if nothing had been run on it, with nobody's step
    times. Raises CheckpointError, TimeoutError, and what is raised before a step.
    """
    runtime, settings = engine.runtime, engine.runtime.scheduler.settings
    yield engine.opened(measured_on)
    try:
        runtime.start_over(_on_device(settings), None)
        if runtime.piggyback is not None:
            runtime.piggyback.may_offload = False
        yield from _steps(engine, effort, "alone", effort.alone_s)
        if runtime.piggyback is not None:
            engine.engine.hold_host_cores(True)
            # Where the host has cores of its own, its work changes nothing for these steps.
            if engine.engine.host_costs_threads:
                yield from _steps(engine, effort, "beside_host", effort.beside_host_s)
            runtime.start_over(settings, None)
            yield from measure_host(engine, effort)
    finally:
        engine.clear()
        engine.engine.hold_host_cores(False)
        if runtime.piggyback is not None:
            runtime.piggyback.may_offload = None
        runtime.start_over(settings, None)


def _on_device(settings: SchedulerSettings) -> SchedulerSettings:
    """Nobody has to leave it, and nobody waits for memory that others might need."""
    piggyback = settings.piggyback
    if piggyback is not None:
        piggyback = replace(piggyback, max_resident_decodes=None, max_resident_blocks=None)
    return replace(settings, piggyback=piggyback, kv_reserve_share=None)


def _steps(engine: TimedEngine, effort: Effort, phase: Phase, budget_s: float) -> Iterator[Answer]:
    limits = limits_of(engine)
    short = [each for each in scenes(limits) if each.num_prompt_tokens <= effort.max_prompt_tokens]
    mixes = (
        replace(each, num_steps=min(each.num_steps, effort.max_medley_steps))
        for each in medleys(limits)
    )
    chosen: list[Scene | Medley] = [*mixes, *thin(short, effort.max_scenes)]
    runner = SceneRunner(engine, chosen, effort.patience_s)
    for samples in runner.run(budget_s):
        yield Steps(phase, tuple(samples))
        yield Progress(phase, min(1.0, max(runner.done, runner.measured_s / budget_s)))
    yield Progress(phase, 1.0)

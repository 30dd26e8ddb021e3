"""Runs the loads that show what the front adds: real ones, and the same simulated."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from omniserve.bench.run_record import RunRecord
from omniserve.config import Config
from omniserve.others_meter import QUIET_CORES, await_quiet
from omniserve.profiling.profile import FrontLatency, Profile
from omniserve.settings import ModelSettings
from omniserve.simulate.calibration.front import (
    FrontFigures,
    Load,
    figures_of,
    fit_front,
    front_options,
    front_streams,
    median_of,
)
from omniserve.simulate.real_daemon import RealRun, real_daemon
from omniserve.simulate.resolve import resolve_streams
from omniserve.simulate.run import simulate

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class FrontEffort:
    """How long the front is measured."""

    duration_s: float
    """Of each run."""
    num_rounds: int
    """Of all loads, each on a daemon of its own: the medians count."""
    patience_s: float = 0.0
    """Longest wait for others to leave the cores alone, before each run."""


@dataclass(frozen=True, slots=True)
class FrontMeasured:
    """The front, and what it was found from."""

    latency: FrontLatency
    real: FrontFigures
    simulated: FrontFigures
    """With that front."""
    others_cores: float
    """That others used meanwhile, in the worst of the runs that count."""


def measure_front(
    config: Config, model: ModelSettings, profile: Profile, effort: FrontEffort, say: Say
) -> FrontMeasured:
    """Starts daemons of this configuration, with all its models. Raises DaemonFailed."""
    say("the way between clients and engine, through a daemon")
    rounds = asyncio.run(_run_all(config, model.name, effort, say))
    quiet = [each for each in rounds if each.others_cores <= QUIET_CORES]
    used = quiet or [min(rounds, key=lambda each: each.others_cores)]
    real = median_of([each.figures for each in used])

    def simulated(front: FrontLatency) -> FrontFigures:
        engine = replace(config.engine_settings(), models=(model,))
        profiles = {model.name: replace(profile, front=front)}
        options = front_options(effort.duration_s)
        records: dict[Load, RunRecord] = {}
        for load in Load:
            streams = resolve_streams(front_streams(load, model.name, options), config)
            records[load] = simulate(streams, engine, profiles, options)
        return figures_of(records)

    latency = fit_front(real, simulated)
    others_cores = max(each.others_cores for each in used)
    return FrontMeasured(latency, real, simulated(latency), others_cores)


@dataclass(frozen=True, slots=True)
class _Round:
    figures: FrontFigures
    others_cores: float
    """In the worst of its runs."""


async def _run_all(config: Config, model: str, effort: FrontEffort, say: Say) -> list[_Round]:
    rounds = []
    options = front_options(effort.duration_s)
    for place in range(1, effort.num_rounds + 1):
        runs: dict[Load, RealRun] = {}
        async with real_daemon(config) as daemon:
            for load in Load:
                await asyncio.to_thread(await_quiet, effort.patience_s)
                runs[load] = await daemon.run(front_streams(load, model, options), options)
        others_cores = max(run.others_cores for run in runs.values())
        say(f"  round {place} of {effort.num_rounds}: others used {others_cores:.2f} cores at most")
        figures = figures_of({load: run.record for load, run in runs.items()})
        rounds.append(_Round(figures, others_cores))
    return rounds

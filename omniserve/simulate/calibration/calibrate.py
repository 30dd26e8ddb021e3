"""The whole calibration of one model: from its configuration to a profile."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from omniserve.config import Config
from omniserve.errors import ConfigError
from omniserve.machine import this_machine
from omniserve.profiling.fit import StepFit, fit_steps, observe
from omniserve.profiling.host_fit import fit_host
from omniserve.profiling.measuring_process import MeasuringFailed, measuring
from omniserve.profiling.messages import (
    HostMeasured,
    MeasureHost,
    MeasureSteps,
    Opened,
    Pass,
    StepSample,
)
from omniserve.profiling.profile import HostModel, Profile
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings
from omniserve.simulate.calibration.front_run import FrontEffort, FrontMeasured, measure_front
from scheduler.step_time import LinearStepTime

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a calibration may take."""

    steps_s: float
    """For measuring steps, and again for those beside the host's cores."""
    host_s: float
    max_scenes: int
    front: FrontEffort


THOROUGH = Effort(60.0, 18.0, 44, FrontEffort(duration_s=3.0, num_rounds=4))
QUICK = Effort(20.0, 9.0, 24, FrontEffort(duration_s=3.0, num_rounds=1))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What came of it."""

    profile: Profile
    alone: StepFit
    beside_host: StepFit | None
    front: FrontMeasured | None
    """None where it was not asked for."""


class Calibrator:
    """Measures one model; blocks for minutes."""

    def __init__(
        self,
        config: Config,
        model: str,
        effort: Effort,
        say: Say,
        *,
        seed: int = 0,
        patience_s: float = 0.5,
    ) -> None:
        """patience_s: longest wait, now and then, for others to leave the cores alone.

        Raises ConfigError where there is no such model.
        """
        self._config = config
        self._settings = config.engine_settings()
        self._model = _only_model_of(self._settings, model)
        self._effort = effort
        self._seed = seed
        self._patience_s = patience_s
        self._say = say

    def run(self, *, with_front: bool = True) -> Calibration:
        """Raises ConfigError, CheckpointError, TooFewSteps, MeasuringFailed or DaemonFailed."""
        opened, alone = self._fit_steps(self._only_model(self._settings.device), None)
        step_time, host, beside = LinearStepTime(alone.costs), None, None
        if self._model.piggyback is not None:
            step_time, host, beside = self._fit_beside_host(alone)
        profile = _profile(opened, alone, step_time, host)
        front = None
        if with_front:
            front_effort = replace(self._effort.front, patience_s=self._patience_s)
            front = measure_front(self._config, self._model, profile, front_effort, self._say)
            profile = replace(profile, front=front.latency)
        return Calibration(profile, alone, beside, front)

    def _only_model(self, device: DeviceSettings) -> EngineSettings:
        return EngineSettings(device, (self._model,))

    def _fit_steps(
        self, settings: EngineSettings, cores: tuple[int, ...] | None
    ) -> tuple[Opened, StepFit]:
        effort = self._effort
        command = MeasureSteps(
            settings,
            self._model.name,
            effort.steps_s,
            self._seed,
            effort.max_scenes,
            self._patience_s,
            cores,
        )
        opened, samples = None, list[StepSample]()
        where = "all cores" if cores is None else "the cores that the host leaves"
        with measuring(command) as answers:
            for answer in answers:
                if isinstance(answer, Opened):
                    opened = answer
                    self._say(f"steps of {self._model.name} on {answer.device}, {where}")
                elif isinstance(answer, Pass):
                    samples += answer.samples
                    num_quiet = answer.num_scenes - answer.num_lacking
                    self._say(
                        f"  {answer.elapsed_s:.0f} s: {num_quiet} of {answer.num_scenes} kinds of "
                        "load measured often enough undisturbed"
                    )
        if opened is None:
            raise MeasuringFailed("the measuring process ended before its engine was ready")
        return opened, fit_steps(observe(samples), opened.pipeline_depth)

    def _fit_beside_host(self, alone: StepFit) -> tuple[LinearStepTime, HostModel, StepFit | None]:
        """Where host attention takes cores of a CPU device, steps on the others are of their own
        kind."""
        measured, opened = self._measure_host()
        beside: StepFit | None = None
        costs = alone.costs
        if opened.pipeline_depth == 1:
            device, cores = self._device_beside_host()
            model = replace(self._model, piggyback=None)
            settings = EngineSettings(device, (model,))
            beside = self._fit_steps(settings, cores)[1]
            costs = beside.costs
        host, costs = fit_host(measured, costs, opened.num_layers)
        if beside is None:
            alone_costs = replace(alone.costs, lane_row_s=costs.lane_row_s)
            return LinearStepTime(alone_costs), host, None
        return LinearStepTime(alone.costs, costs), host, beside

    def _measure_host(self) -> tuple[HostMeasured, Opened]:
        command = MeasureHost(
            self._only_model(self._settings.device),
            self._model.name,
            self._effort.host_s,
            self._seed,
            self._patience_s,
        )
        opened, measured = None, None
        with measuring(command) as answers:
            for answer in answers:
                if isinstance(answer, Opened):
                    opened = answer
                    self._say("attention on the host, and steps with its rows")
                elif isinstance(answer, HostMeasured):
                    measured = answer
        if opened is None or measured is None:
            raise MeasuringFailed("the measuring process ended without measuring the host")
        return measured, opened

    def _device_beside_host(self) -> tuple[DeviceSettings, tuple[int, ...]]:
        """As the engine splits the cores: the last ones are the host's."""
        assert self._model.piggyback is not None
        cores = sorted(os.sched_getaffinity(0))
        left = tuple(cores[: -self._model.piggyback.host_attention_threads])
        threads = min(self._settings.device.threads or len(cores), len(left))
        return replace(self._settings.device, threads=threads), left


def _only_model_of(settings: EngineSettings, name: str) -> ModelSettings:
    for model in settings.models:
        if model.name == name:
            return model
    names = ", ".join(model.name for model in settings.models)
    raise ConfigError(f"--model: {name!r} is not configured; allowed: {names}")


def _profile(
    opened: Opened, alone: StepFit, step_time: LinearStepTime, host: HostModel | None
) -> Profile:
    info = opened.info
    return Profile(
        model=info.name,
        device=opened.device,
        num_layers=opened.num_layers,
        kv_bytes_per_token=info.kv_bytes_per_token,
        max_positions=opened.max_positions,
        step_time=step_time,
        pipeline_depth=opened.pipeline_depth,
        launch_s=alone.launch_s,
        host=host,
        step_ratio_quantiles=alone.ratio_quantiles,
        machine=this_machine(),
    )

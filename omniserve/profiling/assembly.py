"""From what a measurement says, as it comes, to a profile."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from omniserve.errors import OmniServeError
from omniserve.machine import this_machine
from omniserve.profiling.accuracy import thinned
from omniserve.profiling.fit import StepFit, fit_steps, observe
from omniserve.profiling.host_fit import fit_host, judge_active
from omniserve.profiling.judged_steps import JudgedStep, JudgedSteps
from omniserve.profiling.messages import (
    Answer,
    Effort,
    HostMeasured,
    Opened,
    Phase,
    Steps,
    StepSample,
)
from omniserve.profiling.profile import HostModel, Profile
from scheduler.step_time import COST_NAMES, LinearStepTime, StepCosts

_LEAST_QUIET_SHARE = 0.5
_MOST_JUDGED = 300
"""Of each kind, that a profile keeps."""


class MeasuringFailed(OmniServeError):
    """A measurement ended without its results."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A profile, and the fits that it is made of."""

    profile: Profile
    alone: StepFit
    beside_host: StepFit | None
    """None where host attention takes no cores from the device."""


class Assembly:
    """Of one model. What came before a measurement was cut short is enough, if it is enough."""

    def __init__(self, effort: Effort) -> None:
        self._effort = effort
        self.opened: Opened | None = None
        self._steps: dict[Phase, list[StepSample]] = {"alone": [], "beside_host": []}
        self._host: HostMeasured | None = None

    def take(self, answer: Answer) -> None:
        if isinstance(answer, Opened):
            self.opened = answer
        elif isinstance(answer, Steps):
            self._steps[answer.phase] += answer.samples
        elif isinstance(answer, HostMeasured):
            self._host = answer

    def result(self) -> Measured:
        """Raises TooFewSteps, or MeasuringFailed where the engine did not get ready."""
        opened = self.opened
        if opened is None:
            raise MeasuringFailed("the measurement ended before the engine was ready")
        alone = fit_steps(observe(self._steps["alone"]), opened.pipeline_depth)
        beside = None
        if self._steps["beside_host"]:
            beside = fit_steps(observe(self._steps["beside_host"]), opened.pipeline_depth)
        costs = alone.costs if beside is None else beside.costs
        host: HostModel | None = None
        with_lanes: tuple[JudgedStep, ...] = ()
        if self._host is not None and self._host.samples:
            takes_cores = beside is not None
            host, costs = fit_host(self._host, costs, opened.num_layers, takes_cores=takes_cores)
            with_lanes = judge_active(self._host, costs)
        step_time = LinearStepTime(costs)
        if beside is not None:
            is_doubtful = alone.quiet_share < _LEAST_QUIET_SHARE
            all_cores = at_most(alone.costs, costs) if is_doubtful else alone.costs
            step_time = LinearStepTime(all_cores, costs)
        judged = JudgedSteps(
            thinned(alone.judged, _MOST_JUDGED),
            () if beside is None else thinned(beside.judged, _MOST_JUDGED),
            thinned(with_lanes, _MOST_JUDGED),
        )
        profile = replace(
            _profile(opened, alone, step_time, host),
            judged=judged,
            effort=self._effort.name,
            warnings=_warnings(alone, beside),
        )
        return Measured(profile, alone, beside)


def at_most(costs: StepCosts, limits: StepCosts) -> StepCosts:
    """Costs none of which is above its limit. With all cores nothing takes longer than with some of
    them; a fit that says so was disturbed, and would have requests refused that could be served."""
    lower = {name: min(getattr(costs, name), getattr(limits, name)) for name in COST_NAMES}
    ladder = tuple((rows, min(rung, limits.dense_s(rows))) for rows, rung in costs.dense_ladder)
    return replace(costs, dense_ladder=ladder, **lower)


def _warnings(alone: StepFit, beside_host: StepFit | None) -> tuple[str, ...]:
    fits = (("steps", alone), ("steps beside host attention", beside_host))
    return tuple(
        f"others used the cores while {what} were measured; repeat on a quiet machine"
        for what, fit in fits
        if fit is not None and fit.quiet_share < _LEAST_QUIET_SHARE
    )


def _profile(
    opened: Opened, alone: StepFit, step_time: LinearStepTime, host: HostModel | None
) -> Profile:
    info = opened.info
    return Profile(
        model=info.name,
        device=opened.measured_on.device,
        num_layers=opened.num_layers,
        kv_bytes_per_token=info.kv_bytes_per_token,
        max_positions=opened.max_positions,
        step_time=step_time,
        pipeline_depth=opened.pipeline_depth,
        launch_s=alone.launch_s,
        host=host,
        step_ratio_quantiles=alone.ratio_quantiles,
        machine=this_machine(),
        measured_on=opened.measured_on,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )

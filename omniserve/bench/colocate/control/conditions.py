"""What holds for a scene of control: objectives, and how many LS requests a second are too many."""

from dataclasses import dataclass

from omniserve.bench.colocate.contenders import LS_ALONE, PLAIN, Contender
from omniserve.bench.colocate.control.capacity import (
    CAPACITY_SHARE,
    NUM_RATES,
    NUM_WINDOWS_AT_EDGE,
    Probe,
    WindowShare,
    capacity_of,
    search_capacity,
)
from omniserve.bench.colocate.control.control_plan import ControlPlan
from omniserve.bench.colocate.control.loads import LOADS, Load, requests_of, slices_of
from omniserve.bench.colocate.figures import figures_of
from omniserve.bench.colocate.objectives import Objectives, Unloaded, unloaded_of
from omniserve.bench.colocate.plan import Plan, WindowKey
from omniserve.bench.colocate.scene_run import SceneRun
from omniserve.bench.colocate.workload import LS_STREAM, Workload
from omniserve.bench.load.options import LoadOptions
from omniserve.errors import OmniServeError

PROBE_WARM_UP_S, PROBE_S = 3.0, 10.0
_MOST_PROBES = NUM_RATES * NUM_WINDOWS_AT_EDGE
NUM_SATURATING = 16
"""LS requests that are always unfinished where throughput is measured."""


@dataclass(frozen=True, slots=True)
class ControlConditions:
    """Found with LS alone; the same for all contenders and loads of a scene."""

    unloaded: Unloaded
    objectives: Objectives
    capacity: float
    """LS requests per second that LS alone keeps within its objectives."""
    throughput: float | None
    """LS requests per second that LS alone answers where some always wait; None where no load is
    measured by it."""
    probes: tuple[Probe, ...] = ()
    """Empty where it was given."""

    def base_rate(self, load: Load) -> float:
        """Requests per second that the rates of a load are parts of."""
        if load.base == "capacity":
            return self.capacity
        assert self.throughput is not None
        return self.throughput

    @property
    def text(self) -> str:
        """One line."""
        tried = "; ".join(each.text for each in self.probes)
        found = (
            f", the highest rate at which LS alone kept {CAPACITY_SHARE:.0%} ({tried})"
            if tried
            else ", which was given"
        )
        answered = (
            f"; throughput: {self.throughput:g} LS requests/s, which LS alone answered with "
            f"{NUM_SATURATING} always unfinished"
            if self.throughput is not None
            else ""
        )
        return (
            f"unloaded p50 TTFT/TPOT ms: {self.unloaded.ttft_ms:.0f}/{self.unloaded.tpot_ms:.1f}; "
            f"objectives: TTFT {self.objectives.ttft_ms:.0f} ms, TPOT "
            f"{self.objectives.tpot_ms:.1f} ms; capacity: {self.capacity:g} LS requests/s{found}"
            f"{answered}"
        )


async def find_control_conditions(
    run: SceneRun, key: str, plan: Plan, control: ControlPlan, workload: Workload
) -> ControlConditions:
    """Measures what is missing of it; `key` names the scene's windows. Raises OmniServeError where
    LS alone holds no rate."""
    options = LoadOptions(
        duration_s=plan.unloaded_s,
        warm_up_s=PROBE_WARM_UP_S,
        drain_s=0.0,
        seed=plan.seed,
        title="LS alone, unloaded",
    )
    streams = {LS_STREAM: workload.unloaded(run.scene, PLAIN)}
    unloaded = unloaded_of(await run.window(WindowKey(key, "unloaded"), streams, options))
    objectives = Objectives(
        control.ttft_factor * unloaded.ttft_ms, control.tpot_factor * unloaded.tpot_ms
    )
    throughput = None
    if _needs_throughput(control):
        throughput = await _throughput(run, key, plan, workload)
    if control.capacity is not None:
        return ControlConditions(unloaded, objectives, control.capacity, throughput)
    windows = _Windows(run, key, plan, control, workload, objectives)
    # Prompts go one after another, so that more than this cannot be answered in time.
    probes = await search_capacity(1e3 / unloaded.ttft_ms, windows.measure)
    run.skip(_MOST_PROBES - sum(len(each.windows) for each in probes))
    return ControlConditions(unloaded, objectives, capacity_of(probes), throughput, probes)


def num_condition_windows(control: ControlPlan) -> int:
    return 1 + _needs_throughput(control) + (_MOST_PROBES if control.capacity is None else 0)


def _needs_throughput(control: ControlPlan) -> bool:
    return any(LOADS[name].base == "throughput" for name in control.loads)


async def _throughput(run: SceneRun, key: str, plan: Plan, workload: Workload) -> float:
    options = LoadOptions(
        duration_s=PROBE_S,
        warm_up_s=PROBE_WARM_UP_S,
        drain_s=0.0,
        seed=plan.seed,
        title=f"LS alone, {NUM_SATURATING} requests always unfinished",
    )
    streams = {LS_STREAM: workload.saturating(run.scene, PLAIN, NUM_SATURATING)}
    record = await run.window(WindowKey(key, "throughput"), streams, options)
    ends_s = [each.ended_s for each in record.requests if each.outcome == "done"]
    num_answered = sum(0.0 <= at_s < options.duration_s for at_s in ends_s if at_s is not None)
    if not num_answered:
        raise OmniServeError(f"LS alone answered no request in {options.duration_s:g} s")
    return round(num_answered / options.duration_s, 2)


class _Windows:
    """Of LS alone at a rate that is tried."""

    def __init__(
        self,
        run: SceneRun,
        key: str,
        plan: Plan,
        control: ControlPlan,
        workload: Workload,
        objectives: Objectives,
    ) -> None:
        self._run = run
        self._key = key
        self._plan = plan
        self._control = control
        self._workload = workload
        self._objectives = objectives

    async def measure(self, rate: float, number: int) -> WindowShare:
        """Its seed is that of no round: what it finds should hold for all."""
        suffix = "" if number == 1 else f"-{number}"
        seed = f"{self._plan.seed} capacity{suffix}"
        slices = slices_of(Load("steady", 1.0, 1.0), rate, PROBE_WARM_UP_S, PROBE_S, seed)
        arrivals = requests_of(slices, self._workload.ls_trace, seed)
        contender = Contender(LS_ALONE, PLAIN, ())
        options = LoadOptions(
            duration_s=PROBE_S,
            warm_up_s=PROBE_WARM_UP_S,
            drain_s=self._control.drain_s,
            seed=self._plan.seed,
            title=f"{contender.title}, {rate:g} LS requests/s, window {number}",
        )
        streams = self._workload.timed_streams(
            self._run.scene, contender, arrivals, 0, self._objectives
        )
        key = WindowKey(self._key, f"capacity-{rate:g}{suffix}")
        figures = figures_of(await self._run.window(key, streams, options))
        if figures.ls_joint is None:
            raise OmniServeError(f"no LS request came at {rate:g}/s: give --capacity")
        return WindowShare(figures.num_ls, round(figures.ls_joint * figures.num_ls))

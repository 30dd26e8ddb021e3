"""What holds for all scenes of a frame and a shape: objectives, and the rate of LS requests."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from omniserve.bench.colocate.contenders import (
    PLAIN,
    VLLM_PRIORITY,
    VLLM_SPLIT,
    WITH_LANES,
    Contender,
    contenders,
)
from omniserve.bench.colocate.figures import figures_of
from omniserve.bench.colocate.objectives import Objectives, Unloaded, objectives_of, unloaded_of
from omniserve.bench.colocate.plan import Plan, WindowKey
from omniserve.bench.colocate.scene_run import SceneRun
from omniserve.bench.colocate.workload import Workload
from omniserve.bench.load.options import LoadOptions
from omniserve.errors import OmniServeError

PEER_SHARE = (0.60, 0.70)
"""Joint attainment of vLLM with priorities, under the backlog, at the rate that is searched for."""
RATES = (0.25, 8.0)
"""Requests per second between which it is searched for."""
NUM_PROBES = 5
UNLOADED_WARM_UP_S = 3.0


@dataclass(frozen=True, slots=True)
class Probe:
    """vLLM's joint attainment at a rate."""

    rate: float
    share: float


@dataclass(frozen=True, slots=True)
class Conditions:
    """Found in one scene, and valid in others."""

    unloaded: dict[str, Unloaded]
    """By server."""
    objectives: Objectives
    rate: float
    probes: tuple[Probe, ...] = field(default=())
    """Empty where the rate was given."""


async def find_conditions(run: SceneRun, plan: Plan, workload: Workload) -> Conditions:
    """Measures what is missing of it."""
    unloaded = {}
    for server in (PLAIN, WITH_LANES, *(["vllm"] if plan.vllm else [])):
        unloaded[server] = await _unloaded(run, plan, workload, server)
    objectives = objectives_of(unloaded)
    if plan.ls_rate is not None:
        return Conditions(unloaded, objectives, plan.ls_rate)
    peer = _peer(run, plan)
    probes = await search_rate(
        RATES, lambda rate: _probe(run, plan, workload, objectives, peer, rate)
    )
    run.skip(NUM_PROBES - len(probes))
    return Conditions(unloaded, objectives, nearest_rate(probes), tuple(probes))


def num_condition_windows(plan: Plan) -> int:
    """At most."""
    return (3 if plan.vllm else 2) + (NUM_PROBES if plan.ls_rate is None else 0)


async def _unloaded(run: SceneRun, plan: Plan, workload: Workload, server: str) -> Unloaded:
    options = LoadOptions(
        duration_s=plan.unloaded_s,
        warm_up_s=UNLOADED_WARM_UP_S,
        drain_s=0.0,
        seed=plan.seed,
        title=f"{server}, unloaded",
    )
    key = WindowKey(run.scene.key, f"unloaded-{server}")
    streams = {"LS": workload.unloaded(run.scene, server)}
    return unloaded_of(await run.window(key, streams, options))


async def search_rate(
    rates: tuple[float, float], probe: Callable[[float], Awaitable[Probe]]
) -> list[Probe]:
    """Halves the range of rates until a peer's share is where it should be, NUM_PROBES at most."""
    low, high = rates
    probes: list[Probe] = []
    while len(probes) < NUM_PROBES:
        probes.append(await probe(round((low * high) ** 0.5, 2)))
        rate, share = probes[-1].rate, probes[-1].share
        if PEER_SHARE[0] <= share <= PEER_SHARE[1]:
            break
        low, high = (rate, high) if share > PEER_SHARE[1] else (low, rate)
    return probes


def nearest_rate(probes: Sequence[Probe]) -> float:
    """Of the probe whose share is nearest to where it should be."""
    middle = sum(PEER_SHARE) / 2
    return min(probes, key=lambda probe: abs(probe.share - middle)).rate


async def _probe(
    run: SceneRun,
    plan: Plan,
    workload: Workload,
    objectives: Objectives,
    peer: Contender,
    rate: float,
) -> Probe:
    options = LoadOptions(
        duration_s=plan.duration_s,
        warm_up_s=plan.warm_up_s,
        drain_s=plan.drain_s,
        seed=plan.seed,
        title=f"{peer.title}, {rate:g} LS requests/s",
    )
    key = WindowKey(run.scene.key, f"probe-{rate:g}")
    streams = workload.streams(run.scene, peer, rate, 0, objectives)
    figures = figures_of(await run.window(key, streams, options))
    if figures.ls_joint is None:
        raise OmniServeError(f"no LS request came at {rate:g}/s: give a longer --duration-s")
    return Probe(rate, figures.ls_joint)


def _peer(run: SceneRun, plan: Plan) -> Contender:
    everyone = contenders(run.scene, plan.backlog.num_requests, with_vllm=True)
    return next(each for each in everyone if each.key in (VLLM_PRIORITY, VLLM_SPLIT))

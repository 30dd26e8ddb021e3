"""Who is compared: which servers each contender has, and where it sends which stream."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from omniserve.bench.colocate.objectives import Objectives
from omniserve.bench.colocate.scene import Scene
from omniserve.bench.colocate.server_plan import ServerPlan

LS_ALONE = "ls-alone"
PIGGYBACKING = "omniserve-piggyback"
DEVICE_ONLY = "omniserve-device-only"
VLLM_PRIORITY = "vllm-priority"
VLLM_FCFS = "vllm-fcfs"
VLLM_SPLIT = "vllm-two-servers"
VLLM_OVERFLOW = "vllm-overflow"
CONTROL = "omniserve-control"
NO_CONTROL = "omniserve-no-control"
NO_ADMISSION = "omniserve-no-admission"

TITLES = {
    LS_ALONE: "OmniServe, LS alone",
    PIGGYBACKING: "OmniServe, piggybacking",
    DEVICE_ONLY: "OmniServe, no piggybacking",
    VLLM_PRIORITY: "vLLM, priority",
    VLLM_FCFS: "vLLM, FCFS",
    VLLM_SPLIT: "vLLM, a server a model",
    VLLM_OVERFLOW: "vLLM, BE overflow",
    CONTROL: "OmniServe, control",
    NO_CONTROL: "OmniServe, no control",
    NO_ADMISSION: "OmniServe, no admission",
}

PLAIN, WITH_LANES, PEER, PEER_BE, PEER_HOST = (
    "omniserve",
    "omniserve-piggyback",
    "vllm",
    "vllm-be",
    "vllm-host",
)
"""Keys of servers."""


@dataclass(frozen=True, slots=True)
class Route:
    """Best-effort requests of one contender that go to one server."""

    server: str
    num_requests: int


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to serve both streams."""

    key: str
    ls_server: str
    be_routes: tuple[Route, ...]
    be_priority: int | None = None
    """vLLM's, of best-effort requests: latency-sensitive ones have 0, and lower goes first."""

    @property
    def title(self) -> str:
        return TITLES[self.key]

    @property
    def servers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([self.ls_server, *(route.server for route in self.be_routes)]))


def server_plans(
    scene: Scene, num_be: int, with_vllm: bool, objectives: Objectives | None = None
) -> list[ServerPlan]:
    """All servers of a scene; ours hold their steps to the objectives where they are known."""
    models, frame = scene.models(), scene.frame
    plans = [
        ServerPlan(PLAIN, "omniserve", models, frame, objectives=objectives),
        ServerPlan(WITH_LANES, "omniserve", models, frame, True, objectives),
    ]
    if with_vllm:
        be_model = models[-1]
        plans += [
            ServerPlan(key, "vllm", (model,), frame)
            for key, model in zip((PEER, PEER_BE), models, strict=False)
        ]
        if scene.be_requests_in_kv < num_be:
            # The memory of the host is its device memory.
            host_model = replace(be_model, device_kv_bytes=be_model.host_kv_bytes)
            plans.append(ServerPlan(PEER_HOST, "vllm", (host_model,), frame, on_host=True))
    return plans


def contenders(scene: Scene, num_be: int, with_vllm: bool) -> list[Contender]:
    """All contenders of a scene, with `num_be` best-effort requests always unfinished."""
    own = [
        Contender(LS_ALONE, PLAIN, ()),
        Contender(PIGGYBACKING, WITH_LANES, (Route(WITH_LANES, num_be),)),
        Contender(DEVICE_ONLY, PLAIN, (Route(PLAIN, num_be),)),
    ]
    if not with_vllm:
        return own
    be_server = PEER if scene.shape == "one" else PEER_BE
    alone = (Route(be_server, num_be),)
    if scene.shape == "one":
        # With equal priorities vLLM's priority scheduling is first come, first served.
        peers = [
            Contender(VLLM_PRIORITY, PEER, alone, be_priority=1),
            Contender(VLLM_FCFS, PEER, alone, be_priority=0),
        ]
    else:
        # No priority reaches from one server to another.
        peers = [Contender(VLLM_SPLIT, PEER, alone, be_priority=1)]
    if scene.be_requests_in_kv < num_be:
        overflow = _overflow(be_server, scene.be_requests_in_kv, num_be)
        peers.append(Contender(VLLM_OVERFLOW, PEER, overflow, be_priority=1))
    return [*own, *peers]


def _overflow(be_server: str, num_on_device: int, num_be: int) -> tuple[Route, ...]:
    """Who finds no KV on the device goes to the host's server."""
    num_on_device = min(num_on_device, num_be)
    routes = [Route(be_server, num_on_device), Route(PEER_HOST, num_be - num_on_device)]
    return tuple(route for route in routes if route.num_requests > 0)


def rotated(items: Sequence[Contender], by: int) -> list[Contender]:
    """Another order for each round: somebody else begins, and every other round goes backwards, so
    that nobody always follows the same."""
    start = by % len(items)
    first, *others = [*items[start:], *items[:start]]
    return [first, *(others if by % 2 == 0 else reversed(others))]

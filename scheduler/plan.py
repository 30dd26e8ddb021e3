"""What one step is to do, and what came of it. Data only."""

from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from scheduler.lane_limits import NO_LANES, LaneLimits
from scheduler.request import ServiceClass


class PlannedRows(NamedTuple):
    """Consecutive tokens of one request, computed in one step."""

    # A tuple, as one is made for every decode of every step: frozen classes take twice as long.

    request_id: str
    slot: int
    service_class: ServiceClass
    start: int
    """Position of the first token."""
    num_tokens: int
    token_ids: tuple[int, ...] | None
    """The tokens to compute; None for one that an earlier plan in flight is still sampling."""
    samples: bool
    """Whether the last of these rows yields a token."""
    first_new_block: int
    """Index in the request's block table at which `new_block_ids` go."""
    new_block_ids: tuple[int, ...]
    """Blocks added since the last plan with this request; after admission the whole table."""

    @property
    def end(self) -> int:
        """Position behind the last token."""
        return self.start + self.num_tokens


class LaneEntry(NamedTuple):
    """The last known token of an offloaded request: it enters the lanes at layer 0."""

    # A tuple for the same reason.

    request_id: str
    lane: int
    token_id: int
    position: int
    first_new_block: int
    """Index in the lane's table of host blocks at which `new_block_ids` go."""
    new_block_ids: tuple[int, ...]
    """Host blocks added since the last entry; of the first entry of a lane the whole table."""


@dataclass(frozen=True, slots=True)
class Offload:
    """KV to be copied from the device to the host; the device blocks stay held until it landed."""

    request_id: str
    lane: int
    device_block_ids: tuple[int, ...]
    """In the order of the sequence, without those whose contents the host holds already."""
    host_block_ids: tuple[int, ...]
    """Where each of them goes."""


@dataclass(frozen=True, slots=True)
class Return:
    """KV to be copied from the host to the device; the host blocks stay held until it landed."""

    request_id: str
    lane: int
    slot: int
    """Row of the executor's tables that the request has again."""
    host_block_ids: tuple[int, ...]
    """In the order of the sequence, without those whose contents the device holds already."""
    device_block_ids: tuple[int, ...]
    """Where each of them goes."""
    block_table: tuple[int, ...]
    """All device blocks of the request, the shared ones included."""


Copy = Offload | Return


@dataclass(frozen=True, slots=True)
class StepPlan:
    plan_id: int
    rows: tuple[PlannedRows, ...]
    """Latency-sensitive rows first; inside a class single tokens before longer prefill chunks."""
    preempted_ids: tuple[str, ...] = ()
    """Requests that lost their slot and blocks since the plan before was made."""
    lane_entries: tuple[LaneEntry, ...] = ()
    lane_limits: LaneLimits = NO_LANES
    """How many lane rows may join at its layers."""
    predicted_s: float = 0.0
    """What its rows are reckoned to take, lane rows apart; 0 where nothing is known of times."""
    budget_s: float = inf
    """What the step may take."""
    urgent_s: float = 0.0
    """Of `predicted_s`, what its latency-sensitive rows take by themselves."""

    @property
    def max_lane_rows(self) -> int:
        """Most lane rows that may join at any one layer."""
        return self.lane_limits.max_rows

    @property
    def num_tokens(self) -> int:
        return sum(rows.num_tokens for rows in self.rows)

    @property
    def has_latency_sensitive(self) -> bool:
        return bool(self.rows) and self.rows[0].service_class is ServiceClass.LATENCY_SENSITIVE

    @property
    def has_best_effort(self) -> bool:
        return bool(self.rows) and self.rows[-1].service_class is ServiceClass.BEST_EFFORT


@dataclass(frozen=True, slots=True)
class StepResult:
    """Tokens sampled by a plan, and the requests that ended with them."""

    sampled: dict[str, int] = field(default_factory=dict)
    """Token by request id, for every row group that samples and was not aborted meanwhile."""
    lane_sampled: dict[str, int] = field(default_factory=dict)
    """Token by id of each offloaded request that left the last layer in this step."""
    finished_ids: frozenset[str] = frozenset()
    """Requests the engine ended (stop token, stop string); length limits need no mention."""
    num_lane_rows: float = 0.0
    """Rows from the host that joined, the mean over the layers."""
    was_interrupted: bool = False
    """Whether other work ran between its layers, so that its time tells nothing of it."""

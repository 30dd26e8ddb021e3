"""What one step is to do, and what came of it. Data only."""

from dataclasses import dataclass, field

from scheduler.request import ServiceClass


@dataclass(frozen=True, slots=True)
class PlannedRows:
    """Consecutive tokens of one request, computed in one step."""

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


@dataclass(frozen=True, slots=True)
class StepPlan:
    plan_id: int
    rows: tuple[PlannedRows, ...]
    """Latency-sensitive rows first; inside a class single tokens before longer prefill chunks."""
    preempted_ids: tuple[str, ...] = ()
    """Requests that lost their slot and blocks when this plan was made."""

    @property
    def num_tokens(self) -> int:
        return sum(rows.num_tokens for rows in self.rows)

    @property
    def has_latency_sensitive(self) -> bool:
        return any(rows.service_class is ServiceClass.LATENCY_SENSITIVE for rows in self.rows)

    @property
    def has_best_effort(self) -> bool:
        return any(rows.service_class is ServiceClass.BEST_EFFORT for rows in self.rows)


@dataclass(frozen=True, slots=True)
class StepResult:
    """Tokens sampled by a plan, and the requests that ended with them."""

    sampled: dict[str, int] = field(default_factory=dict)
    """Token by request id, for every row group that samples and was not aborted meanwhile."""
    finished_ids: frozenset[str] = frozenset()
    """Requests the engine ended (stop token, stop string); length limits need no mention."""

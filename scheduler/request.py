"""What the scheduler knows of a request."""

from array import array
from dataclasses import dataclass, field
from enum import Enum
from math import inf

from scheduler.host_stay import HostStay, Phase
from scheduler.objectives import Objectives


class ServiceClass(Enum):
    """Whose objectives a request counts against."""

    LATENCY_SENSITIVE = "latency_sensitive"
    BEST_EFFORT = "best_effort"

    # An enumeration's own hash is computed from its name: too slow for once a row in every step.
    __hash__ = object.__hash__


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    OFFLOADED = "offloaded"
    """Its KV is on the host, or on its way there or back."""
    FINISHED = "finished"


@dataclass(slots=True)
class Request:
    """State of one sequence. Only the scheduler writes to it.

    Token positions run from 0. `token_ids` holds what is known: the prompt and the sampled tokens
    that came back with a completed plan. A sampled token that is still in flight is counted in
    `num_pending_samples` but not known yet.
    """

    request_id: str
    service_class: ServiceClass
    tier: str
    arrival_s: float
    token_ids: "array[int]"
    max_tokens: int
    """Most tokens to sample; at least 1."""
    objectives: Objectives | None = None
    """None for best-effort requests."""
    tenant: str = ""
    deadline_s: float = inf
    """When its last token is to be there, on the clock of `arrival_s`."""
    demote_after_tokens: int | None = None
    """Output tokens after which a latency-sensitive request goes on as a best-effort one."""
    fallback_tier: str | None = None
    """The best-effort tier that has it from then on; None: its own name goes on being used."""
    needs_known_tokens: bool = False
    """Sampling reads earlier output tokens, so a row is planned only when all of them are known."""

    num_prompt_tokens: int = field(init=False)
    arrival_index: int = -1
    """Place in arrival order, given by `Scheduler.add`."""
    max_total_tokens: int = 0
    """Length at which the sequence ends, given by `Scheduler.add`."""
    status: Status = Status.WAITING
    slot: int = -1
    """Row of the executor's per-request tables while running, else -1."""
    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    stay: HostStay | None = None
    """What it holds on the host while offloaded, and until a copy under way has landed."""
    num_computed: int = 0
    """Tokens whose KV a completed plan has written (or the prefix cache held)."""
    num_scheduled: int = 0
    """`num_computed` plus the tokens of plans in flight."""
    num_pending_samples: int = 0
    num_plans_in_flight: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    expected_prefill_s: float | None = None
    """That its prompt alone takes on the device, as it was reckoned when it came."""
    expected_ttft_s: float | None = None
    """As it was forecast when it came."""
    first_token_s: float | None = None
    """When its first token was complete, on the clock of `arrival_s`."""
    last_token_s: float | None = None
    taken_s_before: float = 0.0
    """What others had taken from its model by its first token, as `StepControl` has it."""

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def due_s(self) -> float:
        """When it must have begun to be of use: its first token is due, or all of it; one that has
        had its first token was due when it lost its place."""
        if self.first_token_s is not None and self.objectives is not None:
            return self.first_token_s
        first_s = inf if self.objectives is None else self.arrival_s + self.objectives.ttft_s
        return min(first_s, self.deadline_s)

    @property
    def is_steady(self) -> bool:
        """Whether it runs, has its first token and may go on to its last as it is."""
        return (
            self.status is Status.RUNNING
            and self.num_computed >= self.num_prompt_tokens
            and self.first_token_s is not None
            and self.demote_after_tokens is None
        )

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_unscheduled(self) -> int:
        """Tokens, known or pending, whose KV no plan has been asked to compute yet."""
        return len(self.token_ids) + self.num_pending_samples - self.num_scheduled

    @property
    def is_straggler(self) -> bool:
        """Whether it has had the tokens that its tier gives in time."""
        most = self.demote_after_tokens
        if most is None or self.service_class is not ServiceClass.LATENCY_SENSITIVE:
            return False
        return self.num_output_tokens >= most

    @property
    def is_decoding(self) -> bool:
        """Whether all that is left to compute is the token sampled last, known or pending."""
        return self.num_unscheduled <= 1 and self.num_scheduled >= self.num_prompt_tokens

    @property
    def phase(self) -> Phase | None:
        """Where it stands on its way to the host, there, or back; None if it is on the device."""
        return None if self.stay is None else self.stay.phase

    @property
    def is_in_use(self) -> bool:
        """Whether plans in flight or a copy under way use what it holds."""
        return self.num_plans_in_flight > 0 or (self.stay is not None and self.stay.is_copying)

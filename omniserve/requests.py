"""What a request is and what comes back, shared by front and engine; needs the policy alone."""

from dataclasses import dataclass, field
from typing import Literal

from scheduler import Objectives

ServiceClassName = Literal["latency_sensitive", "best_effort"]
FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when generation ends. Values are validated by `check_sampling`."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    max_tokens: int | None = None
    """None means as many as the model's context leaves."""
    logprobs: int | None = None
    """Alternatives beside the chosen token; 0 gives the chosen token alone, None nothing."""


@dataclass(frozen=True, slots=True)
class TierRules:
    """What a tier does with its requests, besides the objectives it gives them."""

    admission: bool = True
    """Whether a request is taken only where its first token is predicted to come in time."""
    fallback: str | None = None
    """Best-effort tier that takes requests that would be late; None: they are refused."""
    max_waiting: int | None = None
    """Requests of the tier that may wait in one model's queue; None: any number."""
    demote_after_tokens: int | None = None
    """Output tokens after which a request goes on as best-effort; None: never."""
    fallback_max_waiting: int | None = None
    """`max_waiting` of the fallback, for those that it takes."""


@dataclass(frozen=True, slots=True)
class TierSettings:
    """A tier as the engine knows it."""

    name: str
    service_class: ServiceClassName
    objectives: Objectives | None = None
    """None for best-effort tiers."""
    rules: TierRules = TierRules()


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One sequence to generate. A client's `n` choices are `n` of these."""

    request_id: str
    model: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    service_class: ServiceClassName
    tier: str
    objectives: Objectives | None = None
    """None for best-effort requests."""
    rules: TierRules = TierRules()
    tenant: str = ""
    """Whose it is: best-effort service is shared fairly between tenants."""
    arrival_s: float | None = None
    """When the front got it, on the monotonic clock that all processes share; None: now."""
    deadline_s: float | None = None
    """When its last token must be there, on the same clock; None: whenever."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one emitted token under the model's own (unscaled) distribution."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(token id, logprob) of the most probable alternatives, best first."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What one step added to one request."""

    request_id: str
    text: str
    """New text; never half a character, never part of a stop string."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the request."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens whose KV came from the prefix cache."""
    num_output_tokens: int = 0
    num_piggybacked_tokens: int = 0
    """Output tokens so far whose decode attention ran on the host."""
    error: str | None = None
    retry_after_s: float | None = None
    """Of a request that was refused for the load there is: when it may be tried again."""
    missed_deadline: bool = False
    """Of a request that was refused because its deadline had passed."""
    is_unavailable: bool = False
    """Of a request whose model was unloaded: it may be sent again."""
    tier: str = ""
    """The tier that serves it, where that is not the one it was sent for."""

"""What a load generator needs of a server, whichever it is and whatever it speaks."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from omniserve.errors import OmniServeError

_CLASS_OF_ROLE = {"priority": "latency_sensitive", "flex": "best_effort"}

OnTokens = Callable[[int], None]
"""Called with the number of tokens at the moment they come."""


class RequestFailed(OmniServeError):
    """A request did not end as it has to, or a server does not answer."""


class RequestRejected(RequestFailed):
    """The server refused a request for its load, before any token."""


@dataclass(frozen=True, slots=True)
class TierInfo:
    """A tier that a server has."""

    name: str
    service_class: Literal["latency_sensitive", "best_effort"]
    ttft_ms: float | None = None
    tpot_ms: float | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that a server has."""

    name: str
    vocab_size: int
    max_model_len: int | None = None
    """None where the server does not say."""
    default_tier: str = ""
    num_layers: int | None = None
    """None where the server does not say."""


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """What a server says of itself."""

    name: str
    version: str
    device: str
    """Empty where the server does not say."""
    models: tuple[ModelInfo, ...]
    tiers: tuple[TierInfo, ...] = ()
    """Empty for a server without tiers."""

    @property
    def text(self) -> str:
        return " ".join(
            filter(None, (self.name, self.version, self.device and f"on {self.device}"))
        )

    def model(self, name: str) -> ModelInfo | None:
        """The model of that name, the first where it is empty; None where it is not served."""
        return next((model for model in self.models if name in ("", model.name)), None)

    def tier(self, model: str, name: str) -> TierInfo | None:
        """The tier that a request for a model means by a name or a role; None where the server has
        none such."""
        if name in ("", "auto", "default"):
            found = self.model(model)
            name = found.default_tier if found is not None else ""
        elif name in _CLASS_OF_ROLE:
            wanted = _CLASS_OF_ROLE[name]
            return next((tier for tier in self.tiers if tier.service_class == wanted), None)
        return next((tier for tier in self.tiers if tier.name == name), None)


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A prompt of token ids; greedy, and exactly `max_tokens` of output."""

    model: str
    token_ids: tuple[int, ...]
    max_tokens: int
    tier: str = ""
    """Empty: the server's default."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Latencies:
    """Observations of one kind since the server started."""

    num: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ClockKey:
    """What the server tells apart."""

    model: str
    tier: str
    """Empty where the server has no tiers."""


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The server's own latencies of requests of one kind."""

    ttft: Latencies = Latencies()
    tpot: Latencies = Latencies()
    e2e: Latencies = Latencies()


Clock = Mapping[ClockKey, ClockReading]
"""The server's own metrics at one moment."""


@dataclass(frozen=True, slots=True)
class StatusReading:
    """The server's own word on this moment, over all of its models."""

    kv_used_bytes: int
    kv_total_bytes: int
    num_running: int
    num_waiting: int
    num_offloaded: int
    num_steps: int
    num_preemptions: int
    num_rows_joined: int
    num_piggybacked_tokens: int


class Target(Protocol):
    """A server under load. Made inside a running event loop, closed by whoever made it."""

    async def describe(self) -> TargetInfo:
        """Raises RequestFailed where the server does not answer."""

    def encode(self, request: TokenRequest) -> bytes:
        """The request as it goes over the wire: made before it is due, so that sending is quick."""

    async def send(self, payload: bytes, on_tokens: OnTokens) -> int:
        """Streams an answer to its end and returns its number of tokens as the server counts them.

        Raises RequestRejected or RequestFailed. A cancelled call is cancelled at the server too.
        """

    async def clock(self) -> Clock:
        """The server's own metrics; empty where it has none. Raises RequestFailed."""

    def watch_status(self, interval_ms: int) -> AsyncIterator[StatusReading]:
        """Ends where the server does; at once where it has no status to tell."""

    async def close(self) -> None:
        """Ends connections; requests that run fail."""

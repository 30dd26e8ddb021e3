"""What a run recorded: every request with the time of every token. Written by the load generator
and by the simulator, read by reports. Times are seconds since the measured part began: what was
sent to warm up has negative ones."""

from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["done", "failed", "rejected", "cut_off"]
"""rejected: the server refused it for its load (HTTP 429 or 503, gRPC RESOURCE_EXHAUSTED or
UNAVAILABLE before a token); cut_off: the run ended before the request did."""


@dataclass(slots=True)
class RequestRecord:
    """One request as its client saw it."""

    stream: str
    """Name of the stream that sent it."""
    index: int
    """Its place in the stream."""
    scheduled_s: float
    """When the trace wanted it sent; of a backlog, when it was its turn."""
    prompt_tokens: int
    max_tokens: int
    """Output tokens that were asked for."""
    sent_s: float = 0.0
    token_times_s: list[float] = field(default_factory=list)
    """One time for each output token; tokens that came together have the same."""
    ended_s: float | None = None
    outcome: Outcome = "cut_off"
    error: str = ""

    @property
    def ttft_s(self) -> float | None:
        """From when it should have been sent: a late generator must not flatter the server."""
        return self.token_times_s[0] - self.scheduled_s if self.token_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """Mean time between tokens after the first; None with fewer than two, or unfinished."""
        times = self.token_times_s
        if self.outcome != "done" or len(times) < 2:
            return None
        return (times[-1] - times[0]) / (len(times) - 1)

    @property
    def e2e_s(self) -> float | None:
        if self.outcome != "done" or self.ended_s is None:
            return None
        return self.ended_s - self.scheduled_s


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What a stream sends, and what its requests are to keep."""

    name: str
    service_class: Literal["latency_sensitive", "best_effort"]
    model: str
    tier: str = ""
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    """Objectives, where the stream has them."""
    is_open_loop: bool = True
    """False: a backlog, of which a fixed number of requests is always with the server."""


@dataclass(frozen=True, slots=True)
class StatusSample:
    """The server's own word on one moment of the run."""

    at_s: float
    kv_used_bytes: int
    kv_total_bytes: int
    num_running: int
    num_waiting: int
    num_offloaded: int
    num_steps: int
    """Since the engine started."""
    num_preemptions: int
    """Since the engine started."""
    num_rows_joined: int
    """Since the engine started: lane rows that joined, counted at every layer."""
    num_piggybacked_tokens: int


@dataclass(frozen=True, slots=True)
class ServerClock:
    """What the server's own metrics say of the run, by stream where they tell tiers apart."""

    stream: str
    """Empty: all streams together."""
    num_requests: int
    ttft_mean_ms: float | None
    tpot_mean_ms: float | None
    e2e_mean_ms: float | None


@dataclass(slots=True)
class RunRecord:
    """All that is known of one run."""

    title: str
    target: str
    """What served it, in words: name, version, device."""
    streams: list[StreamInfo]
    duration_s: float
    """Length of the measured part; what came later belongs to requests sent before its end."""
    requests: list[RequestRecord]
    samples: list[StatusSample] = field(default_factory=list)
    server_clock: list[ServerClock] = field(default_factory=list)
    generator_cores: float = 0.0
    """CPU seconds that the load generator used, per second of the run."""
    num_layers: int | None = None
    """Of the model with lanes, where that is known: lane rows a step are counted per layer."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What a reader may want to know besides: machine, date, command, seed, trace."""

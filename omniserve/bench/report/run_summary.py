"""What a run amounts to, as numbers. Latencies are milliseconds, shares are 0 to 1; None stands
where there was nothing to measure."""

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from omniserve.bench.run_record import StreamInfo
from omniserve.errors import ConfigError

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Latency:
    """How one kind of time was distributed over a stream's requests (ITL: over its tokens)."""

    num: int
    mean_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Attainment:
    """Shares of all requests, failed, rejected and cut-off ones included: those missed it."""

    ttft: float | None
    tpot: float | None
    joint: float | None
    """All objectives that the stream has."""


@dataclass(frozen=True, slots=True)
class StreamSeries:
    """What plots need of a stream."""

    ttft_by_send: list[Point]
    """(second it was to be sent, TTFT in ms) of some requests, evenly chosen."""
    ttft_curve: list[Point]
    """(ms, share of the requests with a first token that had it by then)."""
    tpot_curve: list[Point]
    itl_curve: list[Point]
    ttft_p50_ms: list[float | None]
    """By bin of the window, as are the next three, of the requests to be sent in it."""
    ttft_p99_ms: list[float | None]
    tpot_p50_ms: list[float | None]
    tpot_p99_ms: list[float | None]
    tokens_per_s: list[float]
    """By bin of the window in which the tokens came."""


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """Counts and latencies are of the requests to be sent in the window; tokens per second are of
    the tokens that came in it, whichever request they belong to."""

    info: StreamInfo
    num_requests: int
    num_done: int
    num_failed: int
    num_rejected: int
    num_cut_off: int
    ttft: Latency
    """From when the request was to be sent."""
    tpot: Latency
    """Of finished requests with two tokens or more: mean time between tokens."""
    itl: Latency
    """Between tokens one by one; tokens that came together have 0 between them."""
    e2e: Latency
    attainment: Attainment
    goodput_requests_per_s: float | None
    """Requests that met all objectives, per second of the window."""
    goodput_tokens_per_s: float | None
    """Their output tokens."""
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    """Prompts whose first output token came in the window."""
    lateness: Latency
    """Of the generator: sent after the time the trace says. Requests that went out only."""
    errors: dict[str, int]
    """How often each kind was seen; the words are an example, as their numbers may differ."""
    series: StreamSeries


@dataclass(frozen=True, slots=True)
class ServerSummary:
    """What the server said of itself during the window."""

    kv_total_bytes: int
    kv_used_mean_bytes: float
    kv_used_max_bytes: int
    num_running_mean: float
    num_waiting_mean: float
    num_offloaded_mean: float
    num_preemptions: int
    steps_per_s: float
    lane_rows_per_step: float | None
    """Lane rows that joined a step, mean of its layers; of all layers together where their number
    is not known."""
    is_per_layer: bool
    piggybacked_tokens_per_s: float
    kv_used: list[Point]
    """(second, bytes)."""
    lanes: list[Point]
    """(second, lane rows per step) between one sample and the next."""


@dataclass(frozen=True, slots=True)
class ClockMeans:
    """What one side measured, from the beginning of the window to the last request's end."""

    num_requests: int
    """That had their first token in this time."""
    ttft_mean_ms: float | None
    tpot_mean_ms: float | None
    e2e_mean_ms: float | None


@dataclass(frozen=True, slots=True)
class ClockComparison:
    """The server's own clock, which begins when a request arrives, beside the clients', which
    begins when they send it."""

    stream: str
    """Empty: all streams together."""
    server: ClockMeans
    client: ClockMeans


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run."""

    title: str
    target: str
    duration_s: float
    bin_s: float
    """Width of the bins of the streams' series."""
    streams: list[StreamSummary]
    server: ServerSummary | None
    """None where the server says nothing of itself."""
    clocks: list[ClockComparison]
    """By stream where the server tells them apart, and of all together."""
    generator_cores: float
    facts: dict[str, Any] = field(default_factory=dict)
    format: Literal["omniserve run summary 1"] = "omniserve run summary 1"

    def stream(self, name: str) -> StreamSummary:
        """Raises KeyError."""
        for stream in self.streams:
            if stream.info.name == name:
                return stream
        raise KeyError(name)

    def to_json(self) -> str:
        return msgspec.json.format(msgspec.json.encode(self), indent=1).decode() + "\n"

    @staticmethod
    def from_json(text: str) -> "RunSummary":
        """Raises ConfigError, which names the field, where the text is something else."""
        try:
            return msgspec.json.decode(text, type=RunSummary)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"not a summary of a run: {error}") from None

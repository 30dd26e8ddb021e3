"""How a run stands, for whoever watches it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamProgress:
    """One stream so far, its warm-up included."""

    name: str
    num_running: int
    """With a token."""
    num_waiting: int
    """Sent, without a token."""
    num_done: int
    num_failed: int
    num_rejected: int
    ttft_p50_ms: float | None
    tpot_p50_ms: float | None
    """Of the last requests that got so far."""
    tokens_per_s: float
    """Of output, since the last progress."""


@dataclass(frozen=True, slots=True)
class Progress:
    """All streams at one moment."""

    at_s: float
    """Since the measured part began; negative while warming up."""
    streams: tuple[StreamProgress, ...]

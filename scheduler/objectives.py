"""What a latency-sensitive request was promised."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Objectives:
    """Of one tier. Seconds."""

    ttft_s: float
    """From arrival to the first token."""
    tpot_s: float
    """Mean time between tokens after the first."""
    share: float = 0.99
    """Of the tier's requests, how many are to meet both."""

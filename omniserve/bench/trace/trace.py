"""A trace: who asked for how many tokens, and when; the schema that all formats are read into."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PREFIX_BLOCK_TOKENS = 512
"""Prompt tokens that one prefix hash stands for, as in Mooncake's traces."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace; unknown texts are empty."""

    arrival_s: float
    """Since the start of the trace, at least 0."""
    prompt_tokens: int
    """At least 1."""
    output_tokens: int
    """0 where the request failed before its first token."""
    session: str = ""
    """Requests of one session continue each other."""
    prefix_hashes: tuple[int, ...] = ()
    """One for each block of PREFIX_BLOCK_TOKENS, the last partial one too; equal, equal tokens."""
    tier: str = ""
    """Name of the tier that is asked for; empty leaves it to whoever replays the trace."""
    tenant: str = ""
    failed: bool = False
    """Whether it failed when it was recorded."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival."""

    name: str
    requests: tuple[TraceRequest, ...]

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[TraceRequest]:
        return iter(self.requests)

    @property
    def duration_s(self) -> float:
        """From 0 to the last arrival."""
        return self.requests[-1].arrival_s if self.requests else 0.0

    @staticmethod
    def sorted(name: str, requests: Sequence[TraceRequest]) -> "Trace":
        """In order of arrival; requests that arrive together keep their order."""
        return Trace(name, tuple(sorted(requests, key=lambda request: request.arrival_s)))

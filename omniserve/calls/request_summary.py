"""How one request to generate went, for the log and for traces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from omniserve.decision import Decision
from omniserve.generation import Prompt, Usage
from omniserve.metrics import Outcome


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """Made when it ends, whatever the reason."""

    model: str
    """Empty where it was not known; so is the tier."""
    tier: str
    """The one that the client sent it for."""
    fallback: str
    """The tier that took it over; empty where none did."""
    outcome: Outcome
    usage: Usage
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    decisions: tuple[Decision, ...]
    """Of the front; the engine has its own."""
    was_sent_on: bool
    """Whether it was to go to the engine."""
    prompts: tuple[Prompt, ...] = field(repr=False)
    outputs: Mapping[int, Sequence[str]] = field(repr=False)
    """Texts by choice; like the prompts, content: logged only on demand, and never traced."""

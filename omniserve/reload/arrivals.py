"""Who asked for how much, and when: what arrived lately, without a word of what was said."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from omniserve.requests import EngineRequest

WINDOW_S = 3600.0
MAX_ARRIVALS = 20_000
"""The newest are kept; some 3 MB."""


@dataclass(slots=True)
class Arrival:
    """One sequence that was sent to the engine, or refused by it."""

    at_s: float
    """On the monotonic clock."""
    model: str
    asked_tier: str | None
    """As the client named it; None where it named none."""
    num_prompt_tokens: int
    num_output_tokens: int
    """As many as it may have, until it is known how many it had."""

    def note_length(self, num_output_tokens: int) -> None:
        """It ended with so many; what was refused goes on counting as what it might have had."""
        if num_output_tokens:
            self.num_output_tokens = num_output_tokens


class ArrivalRecord:
    """What arrived within the last hour, the newest of it."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, max_arrivals: int = MAX_ARRIVALS
    ) -> None:
        self._arrivals: deque[Arrival] = deque(maxlen=max_arrivals)
        self._clock = clock

    def note(
        self, asked_tier: str | None, arrival_s: float, sequences: Sequence[EngineRequest]
    ) -> list[Arrival]:
        """A client's request, whose sequences go to the engine now: an arrival for each, to be told
        how many tokens it had."""
        arrivals = [
            Arrival(
                arrival_s,
                sequence.model,
                asked_tier,
                len(sequence.prompt_token_ids),
                sequence.sampling.max_tokens or 1,
            )
            for sequence in sequences
        ]
        self._arrivals.extend(arrivals)
        self._forget_old()
        return arrivals

    def recent(self) -> list[Arrival]:
        """In order of their arrival."""
        self._forget_old()
        return sorted(self._arrivals, key=lambda arrival: arrival.at_s)

    def _forget_old(self) -> None:
        oldest_s = self._clock() - WINDOW_S
        while self._arrivals and self._arrivals[0].at_s < oldest_s:
            self._arrivals.popleft()

"""Sessions: which request continues which, and the prefixes that they share by it.

Arrivals and lengths stay as they were drawn. A request continues the session with the longest
context that its prompt has room for, among those whose user has read the last answer by then.
"""

import bisect
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from omniserve.bench.trace.trace import PREFIX_BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class SessionModel:
    """How users go on."""

    continuing_share: float
    """Probability that a session has another turn, after each: turns are geometric."""
    think_time_s: float
    """Median time from a request to the next one of its session, lognormal."""
    think_time_sigma: float = 1.0
    """Of the logarithm of that time."""
    patience_s: float = 1800.0
    """A session that found no request for so long has ended."""
    num_system_blocks: int = 0
    """Blocks at the beginning of the prompt that all sessions share."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The session of one request, and the hashes of its prompt's blocks."""

    session: int
    prefix_hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True, order=True)
class _Open:
    """A session that will go on; in order of its context's length."""

    context_tokens: int
    """Prompt and answer of its last turn: what the next prompt begins with."""
    session: int
    prompt_tokens: int = field(compare=False)
    prefix_hashes: tuple[int, ...] = field(compare=False)
    ready_s: float = field(compare=False)


class Sessions:
    """Gives requests, in order of arrival, their place in sessions."""

    def __init__(self, model: SessionModel, rng: np.random.Generator) -> None:
        self._model = model
        self._rng = rng
        self._thinking: list[tuple[float, _Open]] = []
        """A heap: whose user comes back first."""
        self._ready: list[_Open] = []
        """In order of context."""
        self._num_sessions = 0
        self._next_hash = model.num_system_blocks

    def turn(self, arrival_s: float, prompt_tokens: int, output_tokens: int) -> Turn:
        """The next request's turn; arrivals never go back."""
        self._wake(arrival_s)
        last = self._longest_that_fits(arrival_s, prompt_tokens)
        turn = self._first(prompt_tokens) if last is None else self._next(last, prompt_tokens)
        if self._rng.random() < self._model.continuing_share:
            self._keep(turn, arrival_s, prompt_tokens, output_tokens)
        return turn

    def _wake(self, now_s: float) -> None:
        while self._thinking and self._thinking[0][0] <= now_s:
            bisect.insort(self._ready, heapq.heappop(self._thinking)[1])

    def _longest_that_fits(self, now_s: float, prompt_tokens: int) -> _Open | None:
        # Something has to be new: a context as long as the prompt does not fit.
        place = bisect.bisect_left(self._ready, prompt_tokens, key=lambda each: each.context_tokens)
        while place:
            place -= 1
            found = self._ready.pop(place)
            if now_s - found.ready_s <= self._model.patience_s:
                return found
        return None

    def _first(self, prompt_tokens: int) -> Turn:
        self._num_sessions += 1
        return Turn(self._num_sessions, self._with_new_blocks((), prompt_tokens))

    def _next(self, last: _Open, prompt_tokens: int) -> Turn:
        # The last block was not full: with more tokens in it, it is another one.
        kept = last.prefix_hashes[: last.prompt_tokens // PREFIX_BLOCK_TOKENS]
        return Turn(last.session, self._with_new_blocks(kept, prompt_tokens))

    def _with_new_blocks(self, hashes: tuple[int, ...], prompt_tokens: int) -> tuple[int, ...]:
        num_full = prompt_tokens // PREFIX_BLOCK_TOKENS
        hashes = hashes or tuple(range(min(self._model.num_system_blocks, num_full)))
        num_new = math.ceil(prompt_tokens / PREFIX_BLOCK_TOKENS) - len(hashes)
        first = self._next_hash
        self._next_hash += num_new
        return hashes + tuple(range(first, self._next_hash))

    def _keep(self, turn: Turn, now_s: float, prompt_tokens: int, output_tokens: int) -> None:
        model = self._model
        think_s = model.think_time_s * math.exp(
            model.think_time_sigma * self._rng.standard_normal()
        )
        kept = _Open(
            prompt_tokens + output_tokens,
            turn.session,
            prompt_tokens,
            turn.prefix_hashes,
            now_s + think_s,
        )
        heapq.heappush(self._thinking, (kept.ready_s, kept))


def thread_sessions(
    model: SessionModel,
    arrivals_s: Sequence[float],
    prompt_tokens: Sequence[int],
    output_tokens: Sequence[int],
    rng: np.random.Generator,
) -> list[Turn]:
    """One turn for each request."""
    sessions = Sessions(model, rng)
    requests = zip(arrivals_s, prompt_tokens, output_tokens, strict=True)
    return [sessions.turn(*request) for request in requests]

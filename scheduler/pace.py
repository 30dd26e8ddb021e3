"""When the next token of a latency-sensitive request is due, and what a step may take by it."""

from collections.abc import Iterable
from math import inf
from typing import NamedTuple

from scheduler.aim import Aims
from scheduler.request import Request

_MOST_LENT = 3.0
"""Times per token that one step may take at most, however far ahead a request is that can meet its
objective: its client would see the pause."""


class Allowed(NamedTuple):
    """Time until decodes are due; infinite where none of the kind is there."""

    by_savable_s: float = inf
    """The first of those that can still meet their objective. Prompts go by this alone: who is lost
    takes from nobody."""
    by_lost_s: float = inf
    """The first of the others, each due at the pace of its objective from now on. Best-effort work
    goes by this as well."""
    most_lent_s: float = inf
    """The most that any of them lends, however far ahead it is."""
    token_s: float = inf
    """Time per token that the most demanding one was promised."""

    @property
    def by_all_s(self) -> float:
        return min(self.by_savable_s, self.by_lost_s)


class Pace:
    """The objective is a mean, so a request that is ahead of it lends what it has gained.

    A request is due to have its n-th token after the first n times per token later. As long as that
    holds at every token it holds at the end, whenever that is.
    """

    def __init__(self, aims: Aims) -> None:
        self._aims = aims

    def allowed(self, decodes: Iterable[Request], now_s: float, fastest_s: float) -> Allowed:
        """Time until the next tokens of these have to be there.

        `fastest_s` is the least that a step with all of them takes. Who cannot meet its objective
        even so is lost.
        """
        savable_s = lost_s = least_most_s = least_token_s = inf
        # This runs for every decode of every step: what is the tier's is looked up once.
        by_tier: dict[str, tuple[float, float]] = {}
        for request in decodes:
            objectives, first_s = request.objectives, request.first_token_s
            if objectives is None or first_s is None:
                continue
            found = by_tier.get(request.tier)
            if found is None:
                token_s = objectives.tpot_s * self._aims.of(request.tier)
                found = by_tier[request.tier] = token_s, _MOST_LENT * token_s
                least_most_s = min(least_most_s, found[1])
                least_token_s = min(least_token_s, objectives.tpot_s)
            token_s, most_s = found
            num_tokens = (
                len(request.token_ids) - request.num_prompt_tokens + request.num_pending_samples
            )
            until_s = first_s + token_s * num_tokens - now_s
            if until_s >= most_s:
                until_s = most_s
            elif until_s < fastest_s and _is_lost(request, num_tokens, now_s, fastest_s):
                if token_s < lost_s:
                    lost_s = token_s
                continue
            if until_s < savable_s:
                savable_s = until_s
        return Allowed(savable_s, lost_s, least_most_s, least_token_s)

    def note_end(self, request: Request, taken_s: float) -> None:
        """It has had its last token: what became of its objective moves the tier's aim.

        `taken_s` is what others took since its first token: best-effort work, and other models.
        Where it would have missed without that as well, nothing is learnt: were the aim lowered,
        best-effort work would get less and less for what is no fault of its own.
        """
        objectives, first_s, last_s = (
            request.objectives,
            request.first_token_s,
            request.last_token_s,
        )
        num_gaps = request.num_output_tokens - 1
        if objectives is None or first_s is None or last_s is None or num_gaps < 1:
            return
        late_s = last_s - first_s - objectives.tpot_s * num_gaps
        if late_s <= taken_s:
            self._aims.note(request.tier, objectives, is_met=late_s <= 0.0)


def _is_lost(request: Request, num_tokens: int, now_s: float, fastest_s: float) -> bool:
    """Whether its mean stays too high though all steps that may follow take the least."""
    objectives, first_s = request.objectives, request.first_token_s
    assert objectives is not None and first_s is not None
    most_tokens = request.max_total_tokens - request.num_prompt_tokens
    earliest_s = now_s + fastest_s * (most_tokens - num_tokens)
    return earliest_s > first_s + objectives.tpot_s * (most_tokens - 1)

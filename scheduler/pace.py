"""When the next token of a latency-sensitive request is due, and what a step may take by it."""

from collections.abc import Iterable
from math import inf
from typing import NamedTuple

from scheduler.aim import Aims
from scheduler.objectives import Objectives
from scheduler.request import Request

_MOST_LENT = 3.0
"""Times per token that one step may take at most, however far ahead a request is that can meet its
objective: its client would see the pause."""


class Allowed(NamedTuple):
    """Time until decodes are due; infinite where none of the kind is there."""

    by_savable_s: float
    """The first of those that can still meet their objective. Prompts go by this alone: who is lost
    takes from nobody."""
    by_lost_s: float
    """The first of the others, each due at the pace of its objective from now on. Best-effort work
    goes by this as well."""

    @property
    def by_all_s(self) -> float:
        return min(self)


class Tightest(NamedTuple):
    """Of several requests; infinite without any."""

    token_s: float = inf
    """Time per token that the most demanding one was promised."""
    most_lent_s: float = inf
    """That a step may take at most beside those that can meet their objective, however far ahead
    they are."""


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
        savable_s = lost_s = inf
        for request in decodes:
            objectives, first_s = request.objectives, request.first_token_s
            if objectives is None or first_s is None:
                continue
            token_s = objectives.tpot_s * self._aims.of(request.tier)
            until_s = first_s + token_s * _num_tokens(request) - now_s
            if until_s < fastest_s and _is_lost(request, objectives, first_s, now_s, fastest_s):
                if token_s < lost_s:
                    lost_s = token_s
                continue
            most_s = _MOST_LENT * token_s
            if until_s > most_s:
                until_s = most_s
            if until_s < savable_s:
                savable_s = until_s
        return Allowed(savable_s, lost_s)

    def tightest(self, decodes: Iterable[Request]) -> Tightest:
        """Of what these were promised."""
        # The objectives are the tier's: asking each of hundreds of requests would take too long.
        by_tier = {each.tier: each.objectives for each in decodes}
        tightest = Tightest()
        for tier, objectives in by_tier.items():
            if objectives is not None:
                token_s = objectives.tpot_s
                most_lent_s = _MOST_LENT * token_s * self._aims.of(tier)
                tightest = Tightest(
                    min(tightest.token_s, token_s), min(tightest.most_lent_s, most_lent_s)
                )
        return tightest

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


def _num_tokens(request: Request) -> int:
    """Of its output, those in flight included."""
    return len(request.token_ids) - request.num_prompt_tokens + request.num_pending_samples


def _is_lost(
    request: Request, objectives: Objectives, first_s: float, now_s: float, fastest_s: float
) -> bool:
    """Whether its mean stays too high though all steps that may follow take the least."""
    most_tokens = request.max_total_tokens - request.num_prompt_tokens
    earliest_s = now_s + fastest_s * (most_tokens - _num_tokens(request))
    return earliest_s > first_s + objectives.tpot_s * (most_tokens - 1)

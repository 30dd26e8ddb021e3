"""Which model steps next on a device that several share."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """What one model could do now."""

    latency_sensitive: bool
    best_effort: bool
    awaits_first_token: bool
    """A latency-sensitive request has not had its first token."""
    best_effort_tokens_beside_ls: int
    slack_s: float = inf
    """That its latency-sensitive requests can spare before their next step; infinite where it has
    none, or nothing is known of times."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A model may step."""

    model: str
    best_effort_tokens: int | None = None
    """Most best-effort rows; None leaves it free."""
    best_effort_s: float = inf
    """Time of the step, if it has any best-effort rows."""


class ModelTurns:
    """Latency-sensitive models first, least recently served first; best-effort ones in between.

    A model with best-effort work alone gets one small step after each round of the
    latency-sensitive models, unless someone waits for a first token: the rows it gets are those it
    would get riding in a latency-sensitive step of its own model. Best-effort rows of any model
    take no more time than the latency-sensitive requests of all others can spare.
    """

    def __init__(self, models: list[str]) -> None:
        self._least_recent_first = list(models)
        self._num_ls_turns = 0

    def next(self, demands: Mapping[str, ModelDemand]) -> Turn | None:
        """The next turn, or None where no model has work."""
        kept = [name for name in self._least_recent_first if name in demands]
        order = kept + [name for name in demands if name not in kept]
        self._least_recent_first = order
        urgent = [name for name in order if demands[name].latency_sensitive]
        patient = [
            name
            for name in order
            if demands[name].best_effort and not demands[name].latency_sensitive
        ]
        if not urgent:
            self._num_ls_turns = 0
            return self._take(patient[0]) if patient else None
        awaited = any(demand.awaits_first_token for demand in demands.values())
        slack_s = min(demands[name].slack_s for name in urgent)
        is_patients_turn = not awaited and self._num_ls_turns >= len(urgent)
        if patient and is_patients_turn and slack_s > 0.0:
            self._num_ls_turns = 0
            most_tokens = demands[patient[0]].best_effort_tokens_beside_ls
            return self._take(patient[0], most_tokens, slack_s)
        self._num_ls_turns += 1
        others_slack_s = min((demands[name].slack_s for name in urgent[1:]), default=inf)
        return self._take(urgent[0], best_effort_s=others_slack_s)

    def _take(
        self, model: str, best_effort_tokens: int | None = None, best_effort_s: float = inf
    ) -> Turn:
        self._least_recent_first.remove(model)
        self._least_recent_first.append(model)
        return Turn(model, best_effort_tokens, best_effort_s)

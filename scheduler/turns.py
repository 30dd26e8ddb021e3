"""Which model steps next on a device that several share."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """What one model could do now."""

    latency_sensitive: bool
    best_effort: bool
    awaits_first_token: bool
    """A latency-sensitive request has not had its first token."""
    best_effort_tokens_beside_ls: int


@dataclass(frozen=True, slots=True)
class Turn:
    """A model may step; `best_effort_tokens` limits its best-effort rows, None leaves it free."""

    model: str
    best_effort_tokens: int | None = None


class ModelTurns:
    """Latency-sensitive models first, least recently served first; best-effort ones in between.

    A model with best-effort work alone gets one small step after each round of the
    latency-sensitive models, unless someone waits for a first token: the rows it gets are those it
    would get riding in a latency-sensitive step of its own model.
    """

    def __init__(self, models: list[str]) -> None:
        self._least_recent_first = list(models)
        self._num_ls_turns = 0

    def next(self, demands: Mapping[str, ModelDemand]) -> Turn | None:
        """The next turn, or None where no model has work."""
        order = self._least_recent_first
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
        if patient and not awaited and self._num_ls_turns >= len(urgent):
            self._num_ls_turns = 0
            return self._take(patient[0], demands[patient[0]].best_effort_tokens_beside_ls)
        self._num_ls_turns += 1
        return self._take(urgent[0])

    def _take(self, model: str, best_effort_tokens: int | None = None) -> Turn:
        self._least_recent_first.remove(model)
        self._least_recent_first.append(model)
        return Turn(model, best_effort_tokens)

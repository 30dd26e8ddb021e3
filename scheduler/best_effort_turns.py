"""Best-effort service of several models on one device: who had least is next."""

from collections.abc import Container, Iterable, Sequence

from scheduler.plan import StepPlan
from scheduler.request import ServiceClass

_TOKEN_S = 1e-3
"""For what a token takes where nothing is known of times."""
_LEAD_S = 0.25
"""Of service: by so much a model's rows beside its latency-sensitive ones may be ahead of a model
that has no such steps. They share their weights' way to the device, so they are worth more at once
than one by one."""


class BestEffortTurns:
    """Counts service in predicted seconds, all models of equal weight.

    Who has had nothing to do gains no credit by it: it comes back with what the least served of
    those have had that were there.
    """

    def __init__(self) -> None:
        self._served_s: dict[str, float] = {}
        self._present: frozenset[str] = frozenset()
        self._withheld: set[str] = set()

    def follow(self, models: Sequence[str]) -> None:
        """These have best-effort work that nothing latency-sensitive of their own carries."""
        present = frozenset(models)
        if present == self._present:
            return
        stayed = present & self._present
        least_s = min((self._served_s.get(name, 0.0) for name in stayed), default=None)
        if least_s is None:
            least_s = max(self._served_s.values(), default=0.0)
        for name in present - stayed:
            self._served_s[name] = max(self._served_s.get(name, 0.0), least_s)
        self._present = present

    def keep(self, models: Container[str]) -> None:
        """All others are gone."""
        self._served_s = {name: each for name, each in self._served_s.items() if name in models}
        self._withheld = {name for name in self._withheld if name in models}

    def next(self, models: Sequence[str]) -> str:
        """The least served of these; of equals the first."""
        return self.least_served_first(models)[0]

    def least_served_first(self, models: Iterable[str]) -> list[str]:
        """Of equals the first comes first."""
        return sorted(models, key=lambda name: self._served_s.get(name, 0.0))

    def charge(self, model: str, plan: StepPlan) -> None:
        """A step began; what best-effort rows add to it is service of its model."""
        if plan.has_latency_sensitive and not plan.has_best_effort:
            return
        served_s = plan.predicted_s - plan.urgent_s
        if plan.predicted_s <= 0.0:
            rows = plan.rows
            num_tokens = sum(
                each.num_tokens for each in rows if each.service_class is ServiceClass.BEST_EFFORT
            )
            served_s = _TOKEN_S * max(1, num_tokens)
        self._add(model, served_s)

    def charge_rider(self, model: str, plan: StepPlan, beside_s: float, shared: float) -> None:
        """A step began that rides with another model's through a part `shared` of its layers, to
        which it adds as if it were `beside_s` long."""
        if plan.predicted_s > 0.0:
            self._add(model, shared * beside_s + (1.0 - shared) * plan.predicted_s)
        else:
            self.charge(model, plan)

    def _add(self, model: str, served_s: float) -> None:
        self._served_s[model] = self._served_s.get(model, 0.0) + served_s

    def is_withheld(self, model: str, others: Sequence[str]) -> bool:
        """Whether best-effort rows stay out of a latency-sensitive step of this model, so that
        others get the time; never in two of its steps in a row, as these may have no use for it."""
        served_s = self._served_s
        is_ahead = bool(others) and served_s.get(model, 0.0) > _LEAD_S + min(
            served_s.get(name, 0.0) for name in others
        )
        if not is_ahead or model in self._withheld:
            self._withheld.discard(model)
            return False
        self._withheld.add(model)
        return True

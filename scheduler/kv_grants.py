"""How much of the device's KV memory each model gets, of one budget for all of them.

Every model has a floor, which nobody else can keep from it. Latency-sensitive work draws on its
model's floor and on what is no model's floor, so that floors are at hand whenever they are wanted.
Best-effort work may also use what floors leave unused, and gives way when it is wanted.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf

KEEPS_UNUSED_S = 1.0
"""So long a model without work keeps memory that holds nothing."""
KEEPS_CACHE_S = 60.0
"""So long it keeps its prefix cache, if nobody else wants the memory."""
_HEADROOM_SHARE = 32
EVEN_SHARE = 8
"""One part in so many of the budget is what models with waiting best-effort requests may differ
in before memory moves between them: what moves with every request that ends gains nobody much."""


@dataclass(frozen=True, slots=True)
class KvClaims:
    """What one model has and could use, in bytes."""

    unit: int
    """Memory moves in multiples of it; the floor is one."""
    most: int
    floor: int
    granted: int
    cached: int
    """Of what it has, free, with a known prefix."""
    urgent_running: int
    """Held by running latency-sensitive requests, and their growth."""
    urgent_waiting: int
    """Lacked by those which wait."""
    patient_running: int
    """Held by and for everybody else, and their growth."""
    patient_waiting: int
    """Lacked by best-effort requests to begin, and to go on to their ends."""
    urgent_since_s: float = inf
    """Arrival of the oldest running latency-sensitive request; the older go first."""
    patient_since_s: float = inf
    idle_s: float = 0.0
    """Time since it last had work."""

    @property
    def urgent(self) -> int:
        return self.urgent_running + self.urgent_waiting

    @property
    def wanted(self) -> int:
        return self.urgent + self.patient_running + self.patient_waiting


def share_out(budget: int, models: Mapping[str, KvClaims]) -> dict[str, int]:
    """Bytes for each model, multiples of its unit; their sum is within the budget.

    The floors' sum must be. In this order, the older first where it says running: floors, as far as
    they are wanted; latency-sensitive requests that run, then those that wait, within what is no
    floor; best-effort requests that run, then those that wait; room to grow; prefix caches, those
    used last first; what is unused stays where it is for a while.
    """
    assert sum(model.floor for model in models.values()) <= budget, "floors exceed the budget"
    share = _Share(budget, models)
    share.raise_floors()
    share.raise_urgent()
    # Whatever else a model gets its latency-sensitive requests would take: those that lack any
    # have had all that they may have.
    sated = {name: model for name, model in models.items() if model.urgent <= share.given[name]}
    running = _by(sated, lambda model: model.patient_since_s)
    share.raise_to(running, lambda model: model.urgent + model.patient_running)
    share.raise_waiting(sated)
    headroom = budget // _HEADROOM_SHARE
    busy = [name for name, model in sated.items() if model.wanted > model.granted - model.cached]
    share.raise_to(busy, lambda model: model.wanted + headroom)
    by_use = _by(sated, lambda model: model.idle_s)
    share.raise_to(by_use, _with_cache)
    share.raise_to(by_use, lambda model: model.granted if model.idle_s < KEEPS_UNUSED_S else 0)
    # Where there is more than everybody has, nobody need grow at the cost of its own cache.
    share.raise_to(busy, lambda model: model.wanted + headroom + model.cached)
    return share.given


def _with_cache(model: KvClaims) -> int:
    """What is in use and known now, without what growth would need; at most what it has."""
    keeps = model.cached if model.idle_s < KEEPS_CACHE_S else 0
    return min(model.granted, model.urgent_running + model.patient_running + keeps)


def _by(models: Mapping[str, KvClaims], key: Callable[[KvClaims], float]) -> list[str]:
    return sorted(models, key=lambda name: key(models[name]))


class _Share:
    """What has been given so far, and what is left."""

    def __init__(self, budget: int, models: Mapping[str, KvClaims]) -> None:
        self._budget = budget
        self._models = models
        self._left = budget
        self.given = dict.fromkeys(models, 0)

    def raise_to(
        self, names: Iterable[str], level: Callable[[KvClaims], int], most: float = inf
    ) -> None:
        """In this order, to the level, as far as what is left goes, and no more than `most`
        all together."""
        for name in names:
            model = self._models[name]
            level_bytes = min(model.most, -(-level(model) // model.unit) * model.unit)
            lacking = max(0, level_bytes - self.given[name])
            num_bytes = int(min(lacking, self._left, most)) // model.unit * model.unit
            self.given[name] += num_bytes
            self._left -= num_bytes
            most -= num_bytes

    def raise_floors(self) -> None:
        self.raise_to(self._models, lambda model: min(model.floor, model.wanted))

    def raise_urgent(self) -> None:
        """Latency-sensitive work takes nothing of others' floors, wanted now or not."""
        models = self._models
        common = self._budget - sum(model.floor for model in models.values())
        by_age = _by(models, lambda model: model.urgent_since_s)
        before = self._left
        self.raise_to(by_age, lambda model: model.urgent_running, common)
        self.raise_to(by_age, lambda model: model.urgent, common - (before - self._left))
        # What it took from best-effort requests of its own model it keeps until a floor is wanted.
        self.raise_to(by_age, lambda model: min(model.urgent_running, model.granted))

    def raise_waiting(self, models: Mapping[str, KvClaims]) -> None:
        """Whoever has least first, but not for small differences."""
        waiting = [name for name, model in models.items() if model.patient_waiting]
        kept = [models[name].granted for name in waiting]
        if kept and max(kept) - min(kept) <= self._budget // EVEN_SHARE:
            self.raise_to(waiting, lambda model: min(model.wanted, model.granted))
        # Nobody gets to the next level before all who want it are at this one.
        num_levels = EVEN_SHARE
        for level in range(1, num_levels + 1):
            self.raise_to(waiting, partial(_wanted_up_to, self._budget * level // num_levels))


def _wanted_up_to(most: int, model: KvClaims) -> int:
    return min(model.wanted, most)

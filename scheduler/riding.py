"""Whose rows go along through layers that models share: pure rules, no state.

A layer that several models have in common can run once for the rows of all their steps. One step,
the host, has the device by its own right; steps without latency-sensitive rows ride with it where
what they add to its layers fits. It is decided anew at every layer.
"""

from collections.abc import Collection, Iterable, Mapping
from math import inf
from typing import NamedTuple

from scheduler.interleaving import Claim, StandingStep, background_s, spare_s

ALONE_EVERY = 16
"""Of the steps of a model whose times are known one in so many goes alone: what a step takes is
learnt from those."""


class RowLimits(NamedTuple):
    """Most rows of one layer of the host's model."""

    all_rows: int
    """Of a step: what a newcomer waits for does not grow with the number of models."""
    best_effort_beside_ls: int


class Room(NamedTuple):
    """What others may add to each of the next layers of a step."""

    num_rows: int
    layer_s: float = inf

    def less(self, num_rows: int, layer_s: float) -> "Room":
        """When these have joined."""
        return Room(self.num_rows - num_rows, self.layer_s - layer_s)

    @property
    def is_none(self) -> bool:
        return self.num_rows <= 0 or self.layer_s <= 0.0


_NO_ROOM = Room(0, 0.0)


def room_beside(
    host: StandingStep,
    limits: RowLimits,
    claims: Mapping[str, Claim],
    now_s: float,
    gap_share: float = 1.0,
) -> Room:
    """What steps without latency-sensitive rows may add to the next layer of `host`.

    `claims` are by model, of all that have any; of a gap between latency-sensitive steps host and
    riders take `gap_share` together. There is no room while anyone waits for a first token.
    """
    if host.is_urgent:
        return _room_beside_urgent(host, limits, claims, now_s)
    num_rows = host.num_best_effort_rows
    if not claims:
        return Room(limits.all_rows - num_rows)
    gap_s = background_s(claims, now_s, host.model)
    if gap_s == inf:
        return Room(limits.best_effort_beside_ls - num_rows)
    return Room(limits.all_rows - num_rows, gap_share * gap_s - host.riding_layer_s)


def _room_beside_urgent(
    host: StandingStep, limits: RowLimits, claims: Mapping[str, Claim], now_s: float
) -> Room:
    """As for best-effort rows of its own: within its budget, and nobody comes late by them."""
    if any(claim.awaits_first_token for claim in claims.values()):
        return _NO_ROOM
    plan, num_left = host.plan, host.num_layers - host.next_layer
    num_rows = limits.best_effort_beside_ls - host.num_best_effort_rows
    if plan.predicted_s <= 0.0:
        return Room(num_rows)
    others = [claim for model, claim in claims.items() if model != host.model]
    most_s = spare_s([*others, host.as_claim(now_s)], now_s)
    most_s -= host.lanes_s
    budget_s = plan.budget_s - plan.predicted_s - host.lanes_s
    return Room(num_rows, min(most_s / max(1, num_left), budget_s / host.num_layers))


def riders(room: Room, candidates: Iterable[StandingStep]) -> list[StandingStep]:
    """Of these, in their order, all that there is room for."""
    found = []
    for step in candidates:
        left = room.less(step.num_best_effort_rows, step.riding_layer_s)
        if left.num_rows >= 0 and left.layer_s >= 0.0:
            found.append(step)
            room = left
    return found


def guest_models(
    sharing: Iterable[str], patient: Collection[str], standing: Iterable[StandingStep]
) -> list[str]:
    """Models of which a step may begin in order to ride: they have best-effort work alone, and no
    step that stands between two layers."""
    busy = {step.model for step in standing}
    return [name for name in sharing if name in patient and name not in busy]

"""How far below its objective a tier is paced, so that its share of requests meets it."""

from collections.abc import Container

from scheduler.objectives import Objectives

_STEP = 0.02
_LOWEST = 0.6
_FIRST = 0.9
"""Until requests have ended: from 1 the right aim would be found by missing."""


class Aims:
    """A factor on the time per output token for each tier, in [0.6, 1]; 0.9 at first.

    Steps take longer or shorter than predicted, so that aiming at the objective itself would miss
    it half of the time. Each request that ends moves its tier's aim: up a little where it met the
    objective, down by more where it did not, in the ratio of the shares that are wanted. Where the
    aim stands still, exactly that share of the requests that are noted is met (Robbins and Monro's
    stochastic approximation of a quantile). One request moves it by 2 % at most, which is why
    it does not oscillate.
    """

    def __init__(self) -> None:
        self._by_tier: dict[str, float] = {}

    def of(self, tier: str) -> float:
        return self._by_tier.get(tier, _FIRST)

    def by_tier(self) -> dict[str, float]:
        """Of the tiers of which requests have ended."""
        return dict(self._by_tier)

    def forget_all_but(self, tiers: Container[str]) -> None:
        """The others are no more."""
        self._by_tier = {name: aim for name, aim in self._by_tier.items() if name in tiers}

    def note(self, tier: str, objectives: Objectives, *, is_met: bool) -> None:
        """A request of the tier ended, and its tokens came in time or not."""
        moved = self.of(tier) + _STEP * ((1.0 - objectives.share) if is_met else -objectives.share)
        self._by_tier[tier] = min(1.0, max(_LOWEST, moved))

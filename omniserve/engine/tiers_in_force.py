"""The tiers as the engine was last told of them."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from omniserve.requests import EngineRequest, TierSettings
from scheduler import ServiceClass
from scheduler.tier_terms import TierTerms


class TiersInForce:
    """By name. Until it is told of any, requests have what they bring with them."""

    def __init__(self, tiers: Iterable[TierSettings] = ()) -> None:
        self._by_name = {tier.name: tier for tier in tiers}

    def applied_to(self, request: EngineRequest) -> EngineRequest:
        """A request that was on its way while its tier changed gets what the tier gives now.

        Where the tier is gone, or of another class, it has what it was promised.
        """
        tier = self._by_name.get(request.tier)
        if tier is None or tier.service_class != request.service_class:
            return request
        if (tier.objectives, tier.rules) == (request.objectives, request.rules):
            return request
        return replace(request, objectives=tier.objectives, rules=tier.rules)

    @property
    def terms(self) -> Mapping[str, TierTerms]:
        """By tier, as the scheduler takes them."""
        return {
            name: TierTerms(
                ServiceClass(tier.service_class),
                tier.objectives,
                tier.rules.demote_after_tokens,
                tier.rules.fallback,
            )
            for name, tier in self._by_name.items()
        }

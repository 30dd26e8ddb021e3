"""A change of tiers, as it concerns requests that are there already."""

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.objectives import Objectives
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass, Status
from scheduler.timeline import Event, Reason


@dataclass(frozen=True, slots=True)
class TierTerms:
    """What a tier gives to requests that it has taken."""

    service_class: ServiceClass
    objectives: Objectives | None = None
    """None for best-effort tiers."""
    demote_after_tokens: int | None = None
    fallback_tier: str | None = None

    def are_of(self, request: Request) -> bool:
        own = (request.objectives, request.demote_after_tokens, request.fallback_tier)
        return own == (self.objectives, self.demote_after_tokens, self.fallback_tier)


def follow_terms(queues: RequestQueues, by_tier: Mapping[str, TierTerms]) -> None:
    """Requests that wait or run get the new terms of their tiers.

    Those of a tier that is gone, or that is of another class than they are, keep what they have:
    so do those that were demoted, of which nothing more was promised.
    """
    for request in queues.by_id.values():
        terms = by_tier.get(request.tier)
        if terms is None or terms.service_class is not request.service_class:
            continue
        if request.status is Status.FINISHED or terms.are_of(request):
            continue
        if request.status is Status.WAITING:
            queues.waiting[request.service_class].promise(request, terms.objectives)
        request.objectives = terms.objectives
        request.demote_after_tokens = terms.demote_after_tokens
        request.fallback_tier = terms.fallback_tier
        queues.journal.note(request.request_id, Event.TIER_CHANGED, Reason.TIERS_CHANGED)

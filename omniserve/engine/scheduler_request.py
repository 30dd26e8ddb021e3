"""From a request to what the scheduler is told of it."""

from array import array
from math import inf

from omniserve.engine.limits import most_output_tokens
from omniserve.engine.penalties import has_penalties
from omniserve.requests import EngineRequest
from omniserve.settings import ModelInfo
from scheduler import Request, ServiceClass


def scheduler_request(request: EngineRequest, info: ModelInfo, now_s: float) -> Request:
    """A request that has just come to a model, with what it has waited on its way."""
    rules = request.rules
    return Request(
        request_id=request.request_id,
        service_class=ServiceClass(request.service_class),
        tier=request.tier,
        arrival_s=now_s if request.arrival_s is None else min(now_s, request.arrival_s),
        token_ids=array("q", request.prompt_token_ids),
        max_tokens=most_output_tokens(request, info),
        objectives=request.objectives,
        tenant=request.tenant,
        deadline_s=inf if request.deadline_s is None else request.deadline_s,
        demote_after_tokens=rules.demote_after_tokens,
        fallback_tier=rules.fallback,
        needs_known_tokens=has_penalties(request.sampling),
    )

"""How many requests there are and how long they are."""

from dataclasses import dataclass

from scheduler.queues import RequestQueues
from scheduler.request import ServiceClass


@dataclass(frozen=True, slots=True)
class TokenLoad:
    """Requests of one model, whatever their state, and the tokens known of them."""

    num_running_ls: int
    running_ls_tokens: int
    num_best_effort: int
    best_effort_tokens: int


def token_load(queues: RequestQueues) -> TokenLoad:
    """Takes time for each best-effort request; not for every step."""
    ls, be = ServiceClass.LATENCY_SENSITIVE, ServiceClass.BEST_EFFORT
    running_ls = [len(request.token_ids) for request in queues.running[ls]]
    best_effort = [
        len(request.token_ids)
        for queue in (queues.waiting[be], queues.running[be], queues.offloaded)
        for request in queue
    ]
    return TokenLoad(len(running_ls), sum(running_ls), len(best_effort), sum(best_effort))

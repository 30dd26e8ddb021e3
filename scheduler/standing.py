"""A request's timeline, with where it stands in its queue at this moment."""

from scheduler.queues import RequestQueues
from scheduler.request import Request, Status
from scheduler.timeline import Entry, Event, Reason
from scheduler.waiting_line import WaitingLine

_BEHIND_OTHERS = (Reason.QUEUE, Reason.SHARE, Reason.URGENCY)


def explain(queues: RequestQueues, request_id: str) -> tuple[Entry, ...] | None:
    """What happened to the request, in order of time; None where nothing is known of it.

    That others are before it is not noted in every step but found out here.
    """
    timeline = queues.journal.timeline(request_id)
    request = queues.by_id.get(request_id)
    if timeline is None or request is None or request.status is not Status.WAITING:
        return timeline
    now_s = queues.journal.now_s
    line = queues.waiting[request.service_class]
    if line.next(now_s) is request:
        return timeline
    reason, detail = _place(line, request, now_s)
    for entry in reversed(timeline):
        if entry.event is Event.WAITS and entry.reason in _BEHIND_OTHERS:
            if queues.journal.waits_for(request_id, entry.reason):
                entry.reason, entry.detail = reason, detail
                return timeline
    return (*timeline, Entry(now_s, Event.WAITS, reason, detail, now_s))


def _place(line: WaitingLine, request: Request, now_s: float) -> tuple[Reason, str]:
    num_before = line.num_before(request, now_s)
    first = line.next(now_s)
    if first.tenant == request.tenant:
        return Reason.QUEUE, f"{num_before} before it now"
    given, least = line.given(request.tenant), line.given(first.tenant)
    return (
        Reason.SHARE,
        f"its tenant has had {given:.0f} weighted tokens, the one that is next {least:.0f}; "
        f"{num_before} of its own before it now",
    )

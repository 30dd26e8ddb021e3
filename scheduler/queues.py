"""Where every request stands: waiting, running, offloaded, or draining."""

from collections import Counter
from collections.abc import Iterable, Iterator

from scheduler.arrival_list import ArrivalList
from scheduler.fair_share import FairShare
from scheduler.integrity import require_equal
from scheduler.journal import Journal
from scheduler.request import Request, ServiceClass, Status
from scheduler.timeline import Event, Reason
from scheduler.waiting_line import WaitingLine


def count_by_tier(queues: Iterable[Iterable[Request]]) -> Counter[str]:
    """Number of requests per tier name; tiers without any are left out."""
    return Counter(request.tier for queue in queues for request in queue)


class RequestQueues:
    """Requests by state and class; every change of `Request.status` happens here.

    A draining request is finished or aborted, but a plan in flight still writes to its blocks, or
    a copy under way reads or writes them.
    """

    def __init__(self) -> None:
        self.by_id: dict[str, Request] = {}
        self.shares = {service_class: FairShare() for service_class in ServiceClass}
        self.waiting = {each: WaitingLine(share) for each, share in self.shares.items()}
        self.running = {service_class: ArrivalList() for service_class in ServiceClass}
        self.offloaded = ArrivalList()
        self.draining: dict[str, Request] = {}
        self.num_preemptions = 0
        self.journal = Journal()

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self.waiting.values()))

    @property
    def num_running(self) -> int:
        return sum(map(len, self.running.values()))

    @property
    def holders(self) -> Iterator[Request]:
        """Every request that may hold a slot or blocks."""
        for running in self.running.values():
            yield from running
        yield from self.offloaded
        yield from self.draining.values()

    def add(self, request: Request) -> None:
        self.by_id[request.request_id] = request
        line = self.waiting[request.service_class]
        self._note_queued(request, len(line))
        line.add(request)

    def _note_queued(self, request: Request, num_before: int) -> None:
        detail = f"tier {request.tier!r}, {request.num_prompt_tokens} prompt tokens"
        self.journal.note(request.request_id, Event.QUEUED, Reason.NONE, detail)
        if num_before:
            self.journal.wait(request.request_id, Reason.QUEUE, f"{num_before} when it came")

    def start(self, request: Request) -> None:
        """Waiting to running."""
        self.waiting[request.service_class].remove(request)
        self.running[request.service_class].add(request)
        request.status = Status.RUNNING

    def offload(self, request: Request) -> None:
        """Running to offloaded."""
        self.running[request.service_class].remove(request)
        self.offloaded.add(request)
        request.status = Status.OFFLOADED

    def bring_back(self, request: Request) -> None:
        """Offloaded to running."""
        self.offloaded.remove(request)
        self.running[request.service_class].add(request)
        request.status = Status.RUNNING

    def preempt(self, request: Request) -> None:
        """Running or offloaded to waiting, at its old place, to be computed from its start."""
        self._place_of(request).remove(request)
        self.waiting[request.service_class].add(request)
        request.status = Status.WAITING
        request.num_computed = request.num_scheduled = 0
        request.num_preemptions += 1
        self.num_preemptions += 1

    def demote(self, request: Request) -> None:
        """A running latency-sensitive request goes on as a best-effort one, without objectives."""
        tier = request.fallback_tier or request.tier
        detail = f"after {request.num_output_tokens} tokens; tier {tier!r} from now on"
        self.journal.note(request.request_id, Event.DEMOTED, Reason.LENGTH, detail)
        self.running[request.service_class].remove(request)
        request.service_class = ServiceClass.BEST_EFFORT
        request.tier = tier
        request.objectives = request.demote_after_tokens = request.fallback_tier = None
        self.running[request.service_class].add(request)

    def end(self, request: Request) -> None:
        """To finished; it drains first while plans of it or a copy are in flight."""
        self._place_of(request).remove(request)
        request.status = Status.FINISHED
        if request.is_in_use:
            self.draining[request.request_id] = request
        else:
            del self.by_id[request.request_id]

    def _place_of(self, request: Request) -> ArrivalList | WaitingLine:
        if request.status is Status.OFFLOADED:
            return self.offloaded
        if request.status is Status.RUNNING:
            return self.running[request.service_class]
        return self.waiting[request.service_class]

    def forget_drained(self, request: Request) -> None:
        del self.draining[request.request_id]
        del self.by_id[request.request_id]

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every request is in the one place its status names."""
        places: dict[str, Status] = dict.fromkeys(self.draining, Status.FINISHED)
        for queue, status in self._queues_by_status():
            order = [request.arrival_index for request in queue]
            require_equal("arrival order", order, sorted(set(order)))
            places.update((request.request_id, status) for request in queue)
        statuses = {request.request_id: request.status for request in self.by_id.values()}
        require_equal("requests by status", places, statuses)
        num_placed = sum(len(queue) for queue, _ in self._queues_by_status()) + len(self.draining)
        require_equal("requests in queues", num_placed, len(self.by_id))

    def _queues_by_status(self) -> Iterator[tuple[ArrivalList | WaitingLine, Status]]:
        for line in self.waiting.values():
            yield line, Status.WAITING
        for running in self.running.values():
            yield running, Status.RUNNING
        yield self.offloaded, Status.OFFLOADED

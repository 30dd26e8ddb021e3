"""Where every request stands: waiting, running, or draining."""

from collections import Counter
from collections.abc import Iterable, Iterator

from scheduler.arrival_list import ArrivalList
from scheduler.integrity import require_equal
from scheduler.request import Request, ServiceClass, Status


def count_by_tier(queues: Iterable[Iterable[Request]]) -> dict[str, int]:
    """Number of requests per tier name; tiers without any are left out."""
    return Counter(request.tier for queue in queues for request in queue)


class RequestQueues:
    """Requests by state and class; every change of `Request.status` happens here.

    A draining request is finished or aborted, but a plan in flight still writes to its blocks.
    """

    def __init__(self) -> None:
        self.by_id: dict[str, Request] = {}
        self.waiting = {service_class: ArrivalList() for service_class in ServiceClass}
        self.running = {service_class: ArrivalList() for service_class in ServiceClass}
        self.draining: dict[str, Request] = {}

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self.waiting.values()))

    @property
    def num_running(self) -> int:
        return sum(map(len, self.running.values()))

    @property
    def holders(self) -> Iterator[Request]:
        """Every request that holds a slot."""
        for running in self.running.values():
            yield from running
        yield from self.draining.values()

    def add(self, request: Request) -> None:
        self.by_id[request.request_id] = request
        self.waiting[request.service_class].add(request)

    def start(self, request: Request) -> None:
        """Waiting to running."""
        self.waiting[request.service_class].remove(request)
        self.running[request.service_class].add(request)
        request.status = Status.RUNNING

    def put_back(self, request: Request) -> None:
        """Running to waiting, at its old place in arrival order."""
        self.running[request.service_class].remove(request)
        self.waiting[request.service_class].add(request)
        request.status = Status.WAITING

    def end(self, request: Request) -> None:
        """Waiting or running to finished; it drains first while plans of it are in flight."""
        queue = self.running if request.status is Status.RUNNING else self.waiting
        queue[request.service_class].remove(request)
        request.status = Status.FINISHED
        if request.num_plans_in_flight:
            self.draining[request.request_id] = request
        else:
            del self.by_id[request.request_id]

    def forget_drained(self, request: Request) -> None:
        del self.draining[request.request_id]
        del self.by_id[request.request_id]

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every request is in the one place its status names."""
        places: dict[str, Status] = dict.fromkeys(self.draining, Status.FINISHED)
        for queues, status in ((self.waiting, Status.WAITING), (self.running, Status.RUNNING)):
            for queue in queues.values():
                order = [request.arrival_index for request in queue]
                require_equal("arrival order", order, sorted(set(order)))
                places.update((request.request_id, status) for request in queue)
        statuses = {request.request_id: request.status for request in self.by_id.values()}
        require_equal("requests by status", places, statuses)
        num_placed = self.num_waiting + self.num_running + len(self.draining)
        require_equal("requests in queues", num_placed, len(self.by_id))

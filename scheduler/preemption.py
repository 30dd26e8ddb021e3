"""Taking memory and slots from requests that come later in line."""

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum

from scheduler.blocks import BlockManager
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass, Status
from scheduler.residency import Residency


class Room(Enum):
    """Whether a request can have what it asks for."""

    ENOUGH = "enough"
    IN_FLIGHT = "in_flight"
    """Not before plans in flight complete that use what it needs."""
    SHORT = "short"
    """Not before requests ahead of it in line let go."""


def choose_victims(
    candidates: Sequence[Request], num_blocks: int, blocks: BlockManager
) -> list[Request] | None:
    """Shortest run of `candidates` from the front that frees `num_blocks` blocks, at least one.

    None if all of them are too few. Each victim frees its slot as well.
    """
    if sum(len(request.block_ids) for request in candidates) < num_blocks:
        return None
    victims: list[Request] = []
    released: Counter[int] = Counter()
    num_freed = 0
    for request in candidates:
        victims.append(request)
        num_freed += blocks.count_freed(request.block_ids, released)
        if num_freed >= num_blocks:
            return victims
    return None


class Preemptor:
    """Makes room for one request at a time by sending others back to the waiting queues.

    Best-effort requests yield to latency-sensitive ones, younger ones to a running request of their
    own class, the youngest first. A request with plans in flight is never sent back.
    """

    def __init__(self, queues: RequestQueues, residency: Residency) -> None:
        self.num_preemptions = 0
        self._queues = queues
        self._residency = residency
        self._preempted_ids: list[str] = []

    def take_preempted_ids(self) -> tuple[str, ...]:
        """Ids preempted since the last call."""
        preempted_ids = tuple(self._preempted_ids)
        self._preempted_ids.clear()
        return preempted_ids

    def was_just_preempted(self, request: Request) -> bool:
        return request.request_id in self._preempted_ids

    def may_get_slot(self, request: Request) -> bool:
        """Whether a slot is free or held by a request that would have to leave it."""
        others = self._lower_class(request) or self._queues.draining
        return self._residency.slots.num_free > 0 or bool(others)

    def make_room(self, request: Request, num_blocks: int, *, needs_slot: bool) -> Room:
        """Free `num_blocks` blocks (and a slot) for `request`, or preempt nobody."""
        blocks, slots = self._residency.blocks, self._residency.slots
        missing_blocks = num_blocks - blocks.num_free
        if missing_blocks <= 0 and (slots.num_free or not needs_slot):
            return Room.ENOUGH

        def victims_among(candidates: Sequence[Request]) -> list[Request] | None:
            return choose_victims(candidates, missing_blocks, blocks)

        lower, peers = self._lower_class(request), self._younger_peers(request)
        draining = self._queues.draining.values()
        # 1. Of the lower class, those that are idle now: nothing is gained by waiting for others.
        victims = victims_among([other for other in lower if not other.num_plans_in_flight])
        # 2. Waiting for plans in flight is better than preempting the request's own class.
        if victims is None and victims_among([*lower, *draining]):
            return Room.IN_FLIGHT
        # 3. Younger requests of its own class as well.
        if victims is None:
            victims = victims_among([*lower, *peers])
            if victims is None:
                blocked_in_flight = victims_among([*lower, *draining, *peers])
                return Room.IN_FLIGHT if blocked_in_flight else Room.SHORT
            if any(victim.num_plans_in_flight for victim in victims):
                return Room.IN_FLIGHT
        self._preempt(victims)
        return Room.ENOUGH

    def _lower_class(self, request: Request) -> Sequence[Request]:
        if request.service_class is ServiceClass.BEST_EFFORT:
            return ()
        return list(reversed(self._queues.running[ServiceClass.BEST_EFFORT]))

    def _younger_peers(self, request: Request) -> Sequence[Request]:
        # Admission takes nothing from its own class, where first come is first served.
        if request.status is not Status.RUNNING:
            return ()
        return self._queues.running[request.service_class].younger_than(request)

    def _preempt(self, victims: Iterable[Request]) -> None:
        for victim in victims:
            self._residency.release(victim)
            self._queues.put_back(victim)
            victim.num_computed = victim.num_scheduled = 0
            victim.num_preemptions += 1
            self.num_preemptions += 1
            self._preempted_ids.append(victim.request_id)

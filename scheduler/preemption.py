"""Taking memory and slots from requests that come later in line."""

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum

from scheduler.blocks import BlockManager
from scheduler.offloading import Offloader
from scheduler.plan import StepPlan
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass, Status
from scheduler.residency import Residency
from scheduler.timeline import Event, Reason
from scheduler.vacating import holders_to_vacate


class Room(Enum):
    """Whether a request can have what it asks for."""

    ENOUGH = "enough"
    IN_FLIGHT = "in_flight"
    """Not before plans in flight complete that use what it needs."""
    LANDING = "landing"
    """Not before copies to the host have landed that free what it needs; it is kept for it."""
    SHORT = "short"
    """Not before requests ahead of it in line let go."""


def choose_victims(
    candidates: Sequence[Request],
    num_blocks: int,
    blocks: BlockManager,
    yielding: Iterable[Request] = (),
) -> list[Request] | None:
    """Shortest run of `candidates` from the front that frees `num_blocks` blocks, at least one.

    What `yielding` requests, none of them a candidate, will free counts as well. None if all is too
    little. Each victim frees its slot as well.
    """
    victims: list[Request] = []
    released: Counter[int] = Counter()
    num_freed = count_freed(yielding, blocks, released)
    if num_freed + sum(len(request.block_ids) for request in candidates) < num_blocks:
        return None
    for request in candidates:
        victims.append(request)
        num_freed += blocks.count_freed(request.block_ids, released)
        if num_freed >= num_blocks:
            return victims
    return None


def count_freed(requests: Iterable[Request], blocks: BlockManager, released: "Counter[int]") -> int:
    """Blocks that are free once all these requests and those in `released` let go of theirs."""
    return sum(blocks.count_freed(request.block_ids, released) for request in requests)


class Preemptor:
    """Makes room for one request at a time at the cost of others.

    Best-effort requests yield to latency-sensitive ones, younger ones to a running request of their
    own class, the youngest first; best-effort decodes to a best-effort request that waits, if they
    can go on on the host. Who cannot be offloaded is sent back to the waiting queues, unless plans
    of it are in flight.
    """

    def __init__(self, queues: RequestQueues, residency: Residency, offloader: Offloader) -> None:
        self._queues = queues
        self._residency = residency
        self._offloader = offloader
        self._unreported_ids: dict[str, None] = {}
        self._just_preempted_ids: set[str] = set()
        self._num_claimed_blocks = 0
        self._num_claimed_slots = 0
        self.yielding: dict[str, Request] = {}
        """Requests in flight that get no more rows, as they lose their place when they are idle."""

    def begin_plan(self) -> None:
        """Forget who was preempted, and what was claimed, when a plan was last asked for."""
        self._just_preempted_ids.clear()
        self._num_claimed_blocks = self._num_claimed_slots = 0

    def claim(self, num_blocks: int, *, needs_slot: bool) -> None:
        """Keep this much of what is free, or will be, from those who come later in this plan."""
        self._num_claimed_blocks += num_blocks
        self._num_claimed_slots += needs_slot

    def has_now(self, num_blocks: int, *, needs_slot: bool) -> bool:
        """Whether so many blocks (and a slot) are free and not claimed."""
        missing_blocks, missing_slots = self._count_missing(num_blocks, needs_slot)
        return missing_blocks <= 0 and missing_slots <= 0

    def _count_missing(self, num_blocks: int, needs_slot: bool) -> tuple[int, int]:
        blocks, slots = self._residency.blocks, self._residency.slots
        missing_slots = self._num_claimed_slots + 1 - slots.num_free if needs_slot else 0
        return num_blocks + self._num_claimed_blocks - blocks.num_free, missing_slots

    def take_preempted_ids(self) -> tuple[str, ...]:
        """Ids preempted since the last call."""
        preempted_ids = tuple(self._unreported_ids)
        self._unreported_ids.clear()
        return preempted_ids

    def was_just_preempted(self, request: Request) -> bool:
        return request.request_id in self._just_preempted_ids

    def forget(self, request: Request) -> None:
        """The request has ended."""
        self._unreported_ids.pop(request.request_id, None)
        self.yielding.pop(request.request_id, None)

    def give_way(self, num_extents: int) -> None:
        """Let go of all blocks of so many extents for other models, as far as holders are idle.

        Best-effort requests yield before latency-sensitive ones, the youngest first. Those in
        flight get no more rows and yield when it is asked for again, unless it is 0 by then.
        """
        self.yielding.clear()
        self._offloader.send_departing()
        draining = [each for each in self._queues.draining.values() if each.num_plans_in_flight]
        freeing = [*self._offloader.freeing_requests(), *draining]
        staying = [
            request
            for service_class in (ServiceClass.BEST_EFFORT, ServiceClass.LATENCY_SENSITIVE)
            for request in reversed(self._queues.running[service_class])
            if request.request_id not in self._offloader.departing
        ]
        for victim in holders_to_vacate(
            self._residency.blocks, num_extents, map(_table, freeing), staying, _table
        ):
            if not victim.num_plans_in_flight:
                self._evict(victim, Reason.OTHER_MODEL)
            elif not self._offloader.send_away(victim, Reason.OTHER_MODEL):
                self.yielding[victim.request_id] = victim

    def is_awaited(self, plan: StepPlan) -> bool:
        """Whether requests that are to let go of what they hold can do so once this plan, which is
        in flight, is over."""
        by_id = self._queues.by_id
        return any(
            rows.request_id in self.yielding
            or rows.request_id in self._offloader.departing
            or by_id[rows.request_id].status is Status.FINISHED
            for rows in plan.rows
        )

    def may_get_slot(self, request: Request) -> bool:
        """Whether a slot is free or held by a request that would have to leave it."""
        if self._residency.slots.num_free or self._queues.draining or self._lower_class(request):
            return True
        is_best_effort = request.service_class is ServiceClass.BEST_EFFORT
        return is_best_effort and (self._offloader.is_open or bool(self._offloader.departing))

    def make_room(self, request: Request, num_blocks: int, *, needs_slot: bool) -> Room:
        """Free `num_blocks` blocks (and a slot) for `request`, or take nothing from anybody."""
        if self.has_now(num_blocks, needs_slot=needs_slot):
            return Room.ENOUGH
        if not self._is_landing(num_blocks, needs_slot):
            room = self._take_from_others(request, num_blocks, needs_slot)
            if room is not Room.ENOUGH:
                return room
            if self.has_now(num_blocks, needs_slot=needs_slot):
                return Room.ENOUGH
            if not self._is_landing(num_blocks, needs_slot):
                return Room.SHORT
        self.claim(num_blocks, needs_slot=needs_slot)
        return Room.LANDING

    def _is_landing(self, num_blocks: int, needs_slot: bool) -> bool:
        """Whether nobody else has to yield, as enough is on its way to the host."""
        missing_blocks, missing_slots = self._count_missing(num_blocks, needs_slot)
        yielding = self._offloader.freeing_requests()
        if missing_slots > sum(request.slot >= 0 for request in yielding):
            return False
        return count_freed(yielding, self._residency.blocks, Counter()) >= missing_blocks

    def _take_from_others(self, request: Request, num_blocks: int, needs_slot: bool) -> Room:
        """Let others yield; ENOUGH if what they free, now or when it has landed, will do."""
        missing_blocks, _ = self._count_missing(num_blocks, needs_slot)
        yielding = self._offloader.freeing_requests()

        def victims_among(candidates: Sequence[Request]) -> list[Request] | None:
            staying = [c for c in candidates if c.request_id not in self._offloader.departing]
            return choose_victims(staying, missing_blocks, self._residency.blocks, yielding)

        lower, peers = self._lower_class(request), self._younger_peers(request)
        draining = [other for other in self._queues.draining.values() if other.num_plans_in_flight]
        # 1. Of the lower class, those that are idle now: nothing is gained by waiting for others.
        victims = victims_among([other for other in lower if not other.num_plans_in_flight])
        # 2. Waiting for plans in flight is better than preempting the request's own class.
        if victims is None and victims_among([*lower, *draining]):
            return self._await_plans(request, victims_among(lower))
        # 3. Younger requests of its own class as well.
        if victims is None:
            victims = victims_among([*lower, *peers])
            if victims is None:
                if victims_among([*lower, *draining, *peers]):
                    return Room.IN_FLIGHT
                # 4. The host, where a decode goes on that finds no room here.
                if self._offloader.may_go(request):
                    self._offloader.send_away(request, Reason.MEMORY)
                    return Room.SHORT
                return self._send_away(request, victims_among(self._movable_peers(request)))
            if any(victim.num_plans_in_flight for victim in victims):
                return self._await_plans(request, victims)
        for victim in victims:
            self._evict(victim, _why_yields(victim, request))
        return Room.ENOUGH

    def _await_plans(self, request: Request, victims: list[Request] | None) -> Room:
        """Let victims depart once they are idle; where not all can, others must leave them idle."""
        if victims is None or not all(map(self._offloader.may_go, victims)):
            return Room.IN_FLIGHT
        room = self._send_away(request, victims)
        return Room.ENOUGH if room is Room.ENOUGH else Room.IN_FLIGHT

    def _lower_class(self, request: Request) -> Sequence[Request]:
        if request.service_class is ServiceClass.BEST_EFFORT:
            return ()
        return list(reversed(self._queues.running[ServiceClass.BEST_EFFORT]))

    def _younger_peers(self, request: Request) -> Sequence[Request]:
        # Admission takes nothing from its own class, where first come is first served.
        if request.status is not Status.RUNNING:
            return ()
        return self._queues.running[request.service_class].younger_than(request)

    def _movable_peers(self, request: Request) -> Sequence[Request]:
        if request.service_class is not ServiceClass.BEST_EFFORT or not self._offloader.is_open:
            return ()
        return list(self._offloader.youngest_decodes())

    def _send_away(self, request: Request, decodes: list[Request] | None) -> Room:
        if decodes is None:
            return Room.SHORT
        send = self._offloader.send_away
        were_sent = all(send(decode, _why_yields(decode, request)) for decode in decodes)
        return Room.ENOUGH if were_sent else Room.SHORT

    def _evict(self, victim: Request, reason: Reason) -> None:
        if not self._offloader.offload(victim, reason):
            detail = f"{victim.num_computed} tokens are computed again"
            self._queues.journal.note(victim.request_id, Event.PREEMPTED, reason, detail)
            self._residency.release(victim)
            self._queues.preempt(victim)
            self._unreported_ids[victim.request_id] = None
            self._just_preempted_ids.add(victim.request_id)


def _table(request: Request) -> list[int]:
    return request.block_ids


def _why_yields(victim: Request, request: Request) -> Reason:
    """Why `victim` lets go of what it holds for the sake of `request`."""
    if request.service_class is not victim.service_class:
        return Reason.URGENT
    return Reason.OLDER if request.status is Status.RUNNING else Reason.NEWCOMER

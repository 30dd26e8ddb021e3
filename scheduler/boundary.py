"""Offloaded requests between two tokens: who enters the lanes next, and who gives way."""

from collections import OrderedDict
from operator import attrgetter

from scheduler.arrival_list import ArrivalList
from scheduler.host_residency import HostResidency
from scheduler.host_stay import Phase
from scheduler.integrity import require_equal
from scheduler.plan import LaneEntry
from scheduler.queues import RequestQueues
from scheduler.request import Request
from scheduler.timeline import Reason

_arrival_index = attrgetter("arrival_index")


class Boundary:
    """Requests enter in the order in which they came.

    One that lacks a block steps aside; once there is one, the oldest of these goes first.
    """

    def __init__(self, queues: RequestQueues, residency: HostResidency) -> None:
        self.is_open = True
        """Whether anybody may enter."""
        self._queues = queues
        self._residency = residency
        self._line: OrderedDict[str, Request] = OrderedDict()
        self._lacking = ArrivalList()

    def arrive(self, request: Request) -> None:
        """The KV of all tokens but the last is on the host."""
        assert request.stay is not None
        request.stay.phase = Phase.AT_BOUNDARY
        self._line[request.request_id] = request

    def leave(self, request: Request) -> None:
        """The request ends, or goes elsewhere than into the lanes."""
        if self._line.pop(request.request_id, None) is None:
            self._lacking.remove(request)
            self._residency.num_owed -= 1

    def enter(self, num_most: int) -> tuple[LaneEntry, ...]:
        """Let up to `num_most` requests enter the lanes."""
        if not self.is_open:
            self._note_next(Reason.LANES_CLOSED)
            return ()
        entries: list[LaneEntry] = []
        while len(entries) < num_most and self._lacking and self._residency.can_grow:
            request = self._lacking.oldest
            self._lacking.remove(request)
            self._residency.num_owed -= 1
            entries.append(self._enter(request))
        while len(entries) < num_most and self._line:
            _, request = self._line.popitem(last=False)
            if self._residency.can_hold_next(request):
                entries.append(self._enter(request))
            else:
                self._lacking.add(request)
                self._residency.num_owed += 1
                self._queues.journal.wait(request.request_id, Reason.HOST_MEMORY)
        self._note_next(Reason.LANES, f"{num_most} may enter")
        return tuple(entries)

    def _note_next(self, reason: Reason, detail: str = "") -> None:
        """Who is next in line waits for this reason, and all others for it."""
        for request_id in self._line:
            self._queues.journal.wait(request_id, reason, detail)
            return

    def _enter(self, request: Request) -> LaneEntry:
        stay = request.stay
        assert stay is not None
        self._residency.grow(request)
        if request.request_id in self._queues.journal.waiting:
            self._queues.journal.go_on(request.request_id)
        stay.phase = Phase.IN_LANES
        first_new, stay.num_announced = stay.num_announced, len(stay.block_ids)
        return LaneEntry(
            request.request_id,
            stay.lane,
            request.token_ids[-1],
            request.num_computed,
            first_new,
            tuple(stay.block_ids[first_new:]),
        )

    def find_one_to_yield(self) -> Request | None:
        """Whom to send back so that the oldest offloaded request gets a block, itself where it can
        never have all that it needs; None if nobody."""
        oldest = self._queues.offloaded.oldest if self._lacking else None
        if oldest is None or self._lacking.oldest is not oldest:
            return None
        if self._residency.can_grow or self._residency.has_blocks_to_come:
            return None
        if not self._residency.fits_alone(oldest):
            return oldest
        youngest = max((*self._line.values(), *self._lacking), key=_arrival_index)
        return None if youngest is oldest else youngest

    def check_integrity(self) -> None:
        """Raise IntegrityError unless exactly those at their boundary stand in line."""
        standing = sorted([*self._line, *(request.request_id for request in self._lacking)])
        at_boundary = sorted(
            request.request_id
            for request in self._queues.offloaded
            if request.phase is Phase.AT_BOUNDARY
        )
        require_equal("requests at their token boundary", standing, at_boundary)
        require_equal("host blocks owed", self._residency.num_owed, len(self._lacking))

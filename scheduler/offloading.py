"""Which best-effort decodes leave the device for the host."""

from collections.abc import Iterator

from scheduler.host_residency import HostResidency
from scheduler.integrity import require_equal
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass
from scheduler.settings import PiggybackLimits
from scheduler.swaps import Swaps
from scheduler.timeline import Event, Reason


class Offloader:
    """Sends decodes to the host: at once where they are idle, else when their plans are complete.

    Until then such a request is departing: it gets no more rows.
    """

    def __init__(
        self,
        queues: RequestQueues,
        host: HostResidency,
        swaps: Swaps,
        limits: PiggybackLimits,
    ) -> None:
        self.is_allowed = True
        self.departing: dict[str, Request] = {}
        self._why: dict[str, Reason] = {}
        """Of those that depart."""
        self.num_begun = 0
        """Offloads since the start."""
        self._queues = queues
        self._host = host
        self._swaps = swaps
        self._limits = limits

    @property
    def is_open(self) -> bool:
        """Whether requests may be offloaded, as far as lanes go."""
        return self.is_allowed and self._host.lanes.num_free > 0

    def freeing_requests(self) -> list[Request]:
        """Those whose device blocks will be let go without anybody else having to yield."""
        return [*self._swaps.freeing_requests(), *self.departing.values()]

    def may_go(self, request: Request) -> bool:
        """Whether a request is of those that can go on on the host."""
        is_best_effort = request.service_class is ServiceClass.BEST_EFFORT
        return self.is_allowed and is_best_effort and request.is_decoding

    def offload(self, request: Request, reason: Reason) -> bool:
        """Offload an idle request now; False where that is not possible."""
        if not self.may_go(request) or not self._swaps.begin_out(request):
            return False
        self.num_begun += 1
        self._queues.journal.note(request.request_id, Event.OFFLOADED, reason)
        return True

    def send_away(self, request: Request, reason: Reason) -> bool:
        """Offload a request now or as soon as it is idle; False where that is not possible."""
        if not request.num_plans_in_flight:
            return self.offload(request, reason)
        if not self.may_go(request) or not self._host.can_take(request, len(self.departing)):
            return False
        self.departing[request.request_id] = request
        self._why[request.request_id] = reason
        return True

    def send_departing(self) -> None:
        """Offload those that are idle now; where the host has no room any more they stay."""
        for request in list(self.departing.values()):
            if self.is_allowed and request.num_plans_in_flight:
                continue
            del self.departing[request.request_id]
            self.offload(request, self._why.pop(request.request_id))

    def keep_to_limit(self) -> None:
        """Send away the youngest decodes beyond those that may stay."""
        if not self._limits.is_device_limited or not self.is_open:
            return
        decodes = list(self.youngest_decodes())
        num_decodes = len(decodes)
        num_blocks = sum(len(request.block_ids) for request in decodes)
        for request in decodes:
            if self._limits.may_stay(num_decodes, num_blocks):
                return
            num_decodes, num_blocks = num_decodes - 1, num_blocks - len(request.block_ids)
            if not self.send_away(request, Reason.RESIDENT_LIMIT):
                return

    @property
    def next_to_leave(self) -> Request | None:
        """The decode that goes next if the host has room: in favour of those that wait, or as more
        are here than may stay."""
        if not self.is_open:
            return None
        decodes = list(self.youngest_decodes())
        if not decodes:
            return None
        if self._queues.waiting[ServiceClass.BEST_EFFORT]:
            return decodes[0]
        num_blocks = sum(len(request.block_ids) for request in decodes)
        return None if self._limits.may_stay(len(decodes), num_blocks) else decodes[0]

    def youngest_decodes(self) -> Iterator[Request]:
        """Resident best-effort decodes that do not depart yet, youngest first."""
        for request in reversed(self._queues.running[ServiceClass.BEST_EFFORT]):
            if request.is_decoding and request.request_id not in self.departing:
                yield request

    def forget(self, request: Request) -> None:
        """The request has ended."""
        self.departing.pop(request.request_id, None)
        self._why.pop(request.request_id, None)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless all that depart are running."""
        running = {request.request_id for request in self._queues.running[ServiceClass.BEST_EFFORT]}
        require_equal("departing, not running", self.departing.keys() - running, set())

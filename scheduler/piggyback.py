"""Offloaded requests: the managers that know of them, and their ways through these."""

from scheduler.boundary import Boundary
from scheduler.host_blocks import HostBlocks
from scheduler.host_residency import HostResidency
from scheduler.host_stay import Phase
from scheduler.integrity import require_equal
from scheduler.offloading import Offloader
from scheduler.queues import RequestQueues
from scheduler.request import Request, Status
from scheduler.residency import Residency
from scheduler.settings import PiggybackLimits, SchedulerSettings
from scheduler.swaps import Swaps
from scheduler.timeline import Event, Reason


class Piggyback:
    """One offloaded request is on its way out, at its token boundary, in the lanes, or coming back.

    `boundary`, `offloader` and `swaps` decide and record the single steps; what concerns several of
    them is here.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        limits: PiggybackLimits,
        queues: RequestQueues,
        device: Residency,
        blocks: HostBlocks,
    ) -> None:
        self.host = HostResidency(settings, blocks, limits.num_lanes)
        self.boundary = Boundary(queues, self.host)
        self.swaps = Swaps(queues, device, self.host, self.boundary)
        self.offloader = Offloader(queues, self.host, self.swaps, limits)
        self._queues = queues

    def free_blocks_for_oldest(self) -> None:
        """Send one request back to waiting where the oldest could not go on otherwise."""
        request = self.boundary.find_one_to_yield()
        if request is not None:
            self.recompute(request, Reason.HOST_MEMORY)

    def record_token(self, request: Request, token_id: int) -> None:
        """The last known token of the request is computed, and this one follows."""
        assert request.phase is Phase.IN_LANES, f"{request.request_id} is not in the lanes"
        num_full_before = self.host.num_full(request)
        request.num_computed += 1
        request.num_scheduled += 1
        request.token_ids.append(token_id)
        self.host.register(request, num_full_before)

    def recompute(self, request: Request, reason: Reason) -> None:
        """Send an offloaded request back to waiting, now or when a copy under way has landed."""
        stay = request.stay
        assert stay is not None
        detail = f"{request.num_computed} tokens are computed again"
        self._queues.journal.note(request.request_id, Event.PREEMPTED, reason, detail)
        if stay.is_copying:
            stay.is_cancelled = True
            return
        self.let_go(request)
        self._queues.preempt(request)

    def let_go(self, request: Request) -> None:
        """The request ends or leaves the host; what a copy under way uses stays held until then."""
        self.offloader.forget(request)
        stay = request.stay
        if stay is None or stay.is_copying:
            return
        if stay.phase is Phase.AT_BOUNDARY:
            self.boundary.leave(request)
        self.host.release(request)

    def check_integrity(self) -> None:
        """Raise where phases, lanes, host blocks and copies disagree."""
        offloaded = {request.request_id for request in self._queues.offloaded}
        staying = [request for request in self._queues.by_id.values() if request.stay is not None]
        # One that has ended keeps its stay while it is being copied.
        alive = {other.request_id for other in staying if other.status is not Status.FINISHED}
        require_equal("requests with a stay on the host", alive, offloaded)
        self.host.check_integrity(staying)
        self.boundary.check_integrity()
        self.swaps.check_integrity()
        self.offloader.check_integrity()

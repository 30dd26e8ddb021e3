"""Which offloaded request comes back to the device, and when."""

from scheduler.host_stay import Phase
from scheduler.piggyback import Piggyback
from scheduler.preemption import Preemptor
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass
from scheduler.residency import Residency
from scheduler.settings import PiggybackLimits
from scheduler.timeline import Event, Reason

_MARGIN_SHARE = 8
_MIN_MARGIN = 2
"""Blocks that must stay free after a return, so that growth does not undo it soon: one in so many
of the pool, and no fewer than these."""


class Returner:
    """The oldest first, one at a time, when the device has had room for it for some plans in a row.

    While offloading is not allowed there is nothing to be patient for: room that is there now is
    used, and kept from those that wait to be admitted. While nobody may enter the lanes, the limits
    of decodes on the device hold nobody on the host: there it would stand still.
    """

    def __init__(
        self,
        limits: PiggybackLimits,
        queues: RequestQueues,
        device: Residency,
        preemptor: Preemptor,
        piggyback: Piggyback,
    ) -> None:
        self._limits = limits
        self._queues = queues
        self._device = device
        self._preemptor = preemptor
        self._offloader = piggyback.offloader
        self._boundary = piggyback.boundary
        self._swaps = piggyback.swaps
        self._num_roomy_plans = 0
        self._last_plan_id = -1
        self._num_offloads_seen = 0

    def consider(self, plan_id: int) -> None:
        """Bring a request back if it is time; asked for with every plan, before admission."""
        oldest = self._queues.offloaded.oldest if self._queues.offloaded else None
        if oldest is None or oldest.phase is Phase.SWAPPING_IN:
            return
        num_blocks = self._num_wanted(oldest)
        may_stay = self._may_stay_too(oldest)
        has_room = may_stay and self._is_nobody_waiting() and self._has_room(num_blocks)
        self._count(plan_id, has_room)
        if has_room and oldest.phase is Phase.AT_BOUNDARY and self._is_time():
            self._swaps.begin_in(oldest)
            reason = Reason.ROOM if self._offloader.is_allowed else Reason.OFFLOADING_OFF
            self._queues.journal.note(oldest.request_id, Event.RETURNED, reason)
        elif may_stay and not self._offloader.is_allowed:
            self._keep_room(num_blocks)

    def bring_back(self, request: Request, reason: Reason) -> bool:
        """Bring one back now that has to leave the host; False where it is amid a token, or the
        device has no room that nobody latency-sensitive waits for."""
        if request.phase is not Phase.AT_BOUNDARY or not self._may_stay_too(request):
            return False
        if self._queues.waiting[ServiceClass.LATENCY_SENSITIVE]:
            return False
        if not self._has_room(self._num_wanted(request)):
            return False
        self._swaps.begin_in(request)
        self._queues.journal.note(request.request_id, Event.RETURNED, reason)
        return True

    def _has_room(self, num_blocks: int) -> bool:
        return self._preemptor.has_now(num_blocks, needs_slot=True)

    def _keep_room(self, num_blocks: int) -> None:
        # What the pool can never have free must not keep everybody out.
        if num_blocks <= self._device.blocks.num_blocks:
            self._preemptor.claim(num_blocks, needs_slot=True)

    def _num_wanted(self, request: Request) -> int:
        blocks = self._device.blocks
        margin = max(_MIN_MARGIN, blocks.num_granted // _MARGIN_SHARE)
        num_wanted = blocks.num_needed(request.num_computed + 1) + margin
        # One that nothing else is left for may have all of the pool.
        return num_wanted if self._boundary.is_open else min(num_wanted, blocks.num_blocks)

    def _may_stay_too(self, request: Request) -> bool:
        if not self._limits.is_device_limited or not self._boundary.is_open:
            return True
        # Those in prefill count: they will be decodes soon.
        resident = self._queues.running[ServiceClass.BEST_EFFORT]
        num_blocks = self._device.blocks.num_needed(request.num_computed + 1)
        num_blocks += sum(len(other.block_ids) for other in resident)
        return self._limits.may_stay(len(resident) + 1, num_blocks)

    def _is_nobody_waiting(self) -> bool:
        """Whether the room is not rather for requests that have none."""
        waiting = self._queues.waiting
        if waiting[ServiceClass.LATENCY_SENSITIVE]:
            return False
        return not (waiting[ServiceClass.BEST_EFFORT] and self._offloader.is_allowed)

    def _is_time(self) -> bool:
        is_proven = self._num_roomy_plans >= self._limits.return_patience
        return is_proven or not self._offloader.is_allowed

    def _count(self, plan_id: int, has_room: bool) -> None:
        num_offloads = self._offloader.num_begun
        if not has_room or num_offloads != self._num_offloads_seen:
            self._num_roomy_plans, self._num_offloads_seen = 0, num_offloads
        # To be asked again for a plan that was not made is no sign of lasting room.
        if has_room and plan_id != self._last_plan_id:
            self._num_roomy_plans += 1
        self._last_plan_id = plan_id

"""Copies of KV between device and host: what they move, and what is let go when they land."""

from collections.abc import Iterator

from scheduler.boundary import Boundary
from scheduler.host_residency import HostResidency
from scheduler.host_stay import Phase
from scheduler.integrity import require_equal
from scheduler.plan import Copy, Offload, Return
from scheduler.queues import RequestQueues
from scheduler.request import Request, Status
from scheduler.residency import Residency


class Swaps:
    """Both sides of a copy stay held until it has landed, whatever becomes of the request."""

    def __init__(
        self, queues: RequestQueues, device: Residency, host: HostResidency, boundary: Boundary
    ) -> None:
        self._queues = queues
        self._device = device
        self._host = host
        self._boundary = boundary
        self._under_way: dict[str, Request] = {}
        self._copies: list[Copy] = []

    def freeing_requests(self) -> Iterator[Request]:
        """Those whose device blocks will be let go when their copy has landed."""
        for request in self._under_way.values():
            if request.phase is Phase.SWAPPING_OUT or request.status is Status.FINISHED:
                yield request

    def take_copies(self) -> tuple[Copy, ...]:
        """Copies decided since the last call."""
        copies = tuple(self._copies)
        self._copies.clear()
        return copies

    def begin_out(self, request: Request) -> bool:
        """Offload an idle decode; False if the host has no room. Its slot is free at once."""
        stay = self._host.take(request)
        if stay is None:
            return False
        request.stay = stay
        self._queues.offload(request)
        self._device.release_slot(request)
        self._under_way[request.request_id] = request
        self._copies.append(
            Offload(
                request.request_id,
                stay.lane,
                device_block_ids=tuple(request.block_ids[stay.num_shared :]),
                host_block_ids=tuple(stay.block_ids[stay.num_shared :]),
            )
        )
        return True

    def begin_in(self, request: Request) -> None:
        """Bring back a request at its boundary, for which there is a slot and room."""
        stay = request.stay
        assert stay is not None
        self._boundary.leave(request)
        stay.phase = Phase.SWAPPING_IN
        num_shared = self._device.enter_from_host(request)
        self._under_way[request.request_id] = request
        self._copies.append(
            Return(
                request.request_id,
                stay.lane,
                request.slot,
                host_block_ids=tuple(stay.block_ids[num_shared:]),
                device_block_ids=tuple(request.block_ids[num_shared:]),
                block_table=tuple(request.block_ids),
            )
        )

    def land(self, request_id: str) -> None:
        """The copy is done: let go of the side it came from."""
        request = self._under_way.pop(request_id)
        if request.phase is Phase.SWAPPING_OUT:
            self._land_out(request)
        else:
            self._land_in(request)

    def _land_out(self, request: Request) -> None:
        stay = request.stay
        assert stay is not None
        self._host.register(request, stay.num_shared)
        self._device.release(request)
        if request.status is Status.FINISHED or stay.is_cancelled:
            self._host.release(request)
            self._give_up(request)
        else:
            self._boundary.arrive(request)

    def _land_in(self, request: Request) -> None:
        stay = request.stay
        assert stay is not None
        self._device.publish(request, 0)
        self._host.release(request)
        if request.status is Status.FINISHED or stay.is_cancelled:
            self._device.release(request)
            self._give_up(request)
        else:
            self._queues.bring_back(request)

    def _give_up(self, request: Request) -> None:
        if request.status is Status.FINISHED:
            self._queues.forget_drained(request)
        else:
            self._queues.preempt(request)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless exactly the requests that say so are being copied."""
        copying = {
            request.request_id
            for request in self._queues.by_id.values()
            if request.stay is not None and request.stay.is_copying
        }
        require_equal("requests being copied", set(self._under_way), copying)

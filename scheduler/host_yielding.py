"""Offloaded requests that let go of the host's memory for other models."""

from collections.abc import Iterator

from scheduler.elastic_host_blocks import ElasticHostBlocks
from scheduler.host_stay import HostStay, Phase
from scheduler.piggyback import Piggyback
from scheduler.queues import RequestQueues
from scheduler.request import Request, Status
from scheduler.returning import Returner
from scheduler.timeline import Reason
from scheduler.vacating import holders_to_vacate


class HostYielder:
    """The youngest first, each between two of its tokens: to the device where that has room, else
    to be computed again."""

    def __init__(self, queues: RequestQueues, piggyback: Piggyback, returner: Returner) -> None:
        self._queues = queues
        self._piggyback = piggyback
        self._returner = returner
        self._yielding: dict[str, Request] = {}
        """Those that are in the lanes, or on their way to the host."""

    def give_way(self, num_extents: int, blocks: ElasticHostBlocks) -> None:
        """Let go of all blocks of so many extents: those of requests at a token boundary now, of
        others when they get there, unless it is asked for less by then."""
        self._yielding.clear()
        offloaded = reversed(self._queues.offloaded)
        staying = [request for request in offloaded if not _stay(request).is_leaving]
        for victim in holders_to_vacate(
            blocks, num_extents, self._freeing_tables(), staying, lambda each: _stay(each).block_ids
        ):
            if victim.phase is Phase.AT_BOUNDARY:
                self._yield(victim)
            else:
                self._yielding[victim.request_id] = victim

    def send_arrived(self) -> None:
        """Those at a token boundary by now let go, before any of them enters the lanes again."""
        for request in list(self._yielding.values()):
            if request.status is not Status.OFFLOADED:
                del self._yielding[request.request_id]
            elif request.phase is Phase.AT_BOUNDARY:
                del self._yielding[request.request_id]
                self._yield(request)

    def _yield(self, request: Request) -> None:
        if not self._returner.bring_back(request, Reason.OTHER_MODEL):
            self._piggyback.recompute(request, Reason.OTHER_MODEL)

    def _freeing_tables(self) -> Iterator[list[int]]:
        """Of whoever lets go of its blocks without being asked."""
        yield from self._piggyback.host.lanes.stopping_tables
        for request in (*self._queues.offloaded, *self._queues.draining.values()):
            stay = request.stay
            if stay is None:
                continue
            if stay.is_leaving or request.status is Status.FINISHED:
                yield stay.block_ids


def _stay(request: Request) -> HostStay:
    assert request.stay is not None
    return request.stay

"""The host memory of one model as whoever shares memory out among models sees it."""

from itertools import islice
from math import inf

from scheduler.elastic_host_blocks import ElasticHostBlocks
from scheduler.host_blocks import HostBlocks
from scheduler.host_yielding import HostYielder
from scheduler.kv_memory import KvDemand
from scheduler.piggyback import Piggyback
from scheduler.queues import RequestQueues
from scheduler.request import ServiceClass

_BEST_EFFORT = ServiceClass.BEST_EFFORT


class HostKvMemory:
    """Reckons what one model lacks on the host; grants it blocks and withdraws them.

    Only best-effort requests are there, so nothing is ever urgent. Blocks are wanted before anybody
    is offloaded: one that finds none when it has to leave the device is computed again.
    """

    is_urgent_work_short = is_urgent_work_stuck = False

    def __init__(
        self,
        queues: RequestQueues,
        piggyback: Piggyback,
        yielder: HostYielder,
        blocks: ElasticHostBlocks,
    ) -> None:
        self._queues = queues
        self._host = piggyback.host
        self._offloader = piggyback.offloader
        self._yielder = yielder
        self._blocks = blocks

    @property
    def blocks_per_extent(self) -> int:
        return self._blocks.extent_blocks

    @property
    def num_granted(self) -> int:
        return self._blocks.num_granted_blocks

    @property
    def is_patient_work_short(self) -> bool:
        """Whether a request is held up as it, or one that should make room for it, finds no blocks;
        asked every step."""
        if self._host.num_owed:
            return True
        leaving = self._offloader.next_to_leave
        return leaving is not None and not self._host.has_room_for(leaving)

    @property
    def is_in_use(self) -> bool:
        """Whether anybody is there, or may soon be."""
        is_wanted = self._offloader.is_allowed and (
            self._queues.running[_BEST_EFFORT] or self._queues.waiting[_BEST_EFFORT]
        )
        return bool(self._queues.offloaded or is_wanted) or self._blocks.num_used_blocks > 0

    def demand(self) -> KvDemand:
        """Takes time for each offloaded request, and for other best-effort ones as far as lanes
        and blocks would reach."""
        blocks, offloaded = self._blocks, self._queues.offloaded
        num_growing = sum(map(self._host.lacks_block, offloaded))
        return KvDemand(
            granted=blocks.num_granted_blocks,
            cached=blocks.num_cached_blocks,
            urgent_running=0,
            urgent_waiting=0,
            patient_running=blocks.num_used_blocks + num_growing,
            patient_waiting=self._num_to_come() if self._offloader.is_allowed else 0,
            urgent_since_s=inf,
            patient_since_s=offloaded.oldest.arrival_s if offloaded else inf,
        )

    def grant(self, num_extents: int) -> list[int]:
        """Have so many extents more; which ones."""
        return self._blocks.grant(num_extents)

    def withdraw(self, num_extents: int) -> list[int]:
        """Have up to so many extents less, that nobody holds; which ones."""
        return self._blocks.withdraw(num_extents)

    def note_spare(self, num_blocks: int) -> None:
        """Nobody asks: what is lacked on the host is asked for beforehand."""

    def give_way(self, num_extents: int) -> None:
        """Let offloaded requests let go of so many extents, now or at their next token; 0 takes
        back what was asked for before."""
        self._yielder.give_way(num_extents, self._blocks)

    def _num_to_come(self) -> int:
        """That offloaded requests lack to their ends, and those that may join them need."""
        most, queues = self._blocks.num_addresses, self._queues
        num_blocks = 0
        for request in queues.offloaded:
            assert request.stay is not None
            num_blocks += max(0, self._host.num_at_end(request) - len(request.stay.block_ids))
        others = (*queues.running[_BEST_EFFORT], *queues.waiting[_BEST_EFFORT])
        for request in islice(others, self._host.lanes.num_free):
            num_blocks += self._host.num_at_end(request)
            if num_blocks >= most:
                return most
        return num_blocks


def host_kv_memory(
    queues: RequestQueues, piggyback: Piggyback, yielder: HostYielder, blocks: HostBlocks
) -> HostKvMemory | None:
    """None where the blocks are the model's own for good."""
    if not isinstance(blocks, ElasticHostBlocks):
        return None
    return HostKvMemory(queues, piggyback, yielder, blocks)

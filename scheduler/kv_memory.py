"""The device memory of one model as whoever shares memory out among models sees it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from math import inf

from scheduler.first_tokens import FirstTokens
from scheduler.host_stay import Phase
from scheduler.plan import StepPlan
from scheduler.preemption import Preemptor, Room
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass
from scheduler.residency import Residency

_MARGIN_SHARE = 8
"""Of its blocks, as `Returner` keeps them free behind a request that comes back."""


@dataclass(frozen=True, slots=True)
class KvDemand:
    """What a model holds and could use, in blocks."""

    granted: int
    cached: int
    """Free, with a known prefix."""
    urgent_running: int
    """Held by latency-sensitive requests that run, and their growth until their next token."""
    urgent_waiting: int
    """That those which wait lack to begin."""
    patient_running: int
    """Held by and for everybody else, and their growth."""
    patient_waiting: int
    """That best-effort requests lack to begin, and to go on to their ends."""
    urgent_since_s: float
    """Arrival of the oldest latency-sensitive request that runs; infinite without any."""
    patient_since_s: float
    """The same of best-effort requests."""


class KvMemory:
    """Reckons what one model lacks; grants it blocks and withdraws them."""

    def __init__(
        self,
        queues: RequestQueues,
        residency: Residency,
        preemptor: Preemptor,
        first_tokens: FirstTokens,
        note_change: Callable[[], None],
    ) -> None:
        """`note_change` is called where requests may be able to do more, or less, than before."""
        self._queues = queues
        self._residency = residency
        self._preemptor = preemptor
        self._first_tokens = first_tokens
        self._note_change = note_change

    @property
    def blocks_per_extent(self) -> int:
        return self._residency.blocks.extent_blocks

    @property
    def num_granted(self) -> int:
        return self._residency.blocks.num_granted

    @property
    def is_urgent_work_short(self) -> bool:
        """Whether latency-sensitive requests may lack blocks for the next step; asked every
        step."""
        service_class = ServiceClass.LATENCY_SENSITIVE
        if self._queues.waiting[service_class]:
            return True
        num_running = len(self._queues.running[service_class])
        return num_running > 0 and self._residency.blocks.num_free < self._queues.num_running

    @property
    def is_urgent_work_stuck(self) -> bool:
        """Whether some of them wait to begin, or find no free block at all."""
        service_class = ServiceClass.LATENCY_SENSITIVE
        if self._queues.waiting[service_class]:
            return True
        return bool(self._queues.running[service_class]) and not self._residency.blocks.num_free

    @property
    def is_patient_work_short(self) -> bool:
        """The same of best-effort requests."""
        queues, service_class = self._queues, ServiceClass.BEST_EFFORT
        if queues.waiting[service_class] or queues.offloaded:
            return True
        num_running = len(queues.running[service_class])
        return num_running > 0 and self._residency.blocks.num_free < queues.num_running

    @property
    def is_in_use(self) -> bool:
        """Whether anybody waits, runs, or still holds blocks."""
        queues = self._queues
        return bool(queues.by_id) or self._residency.blocks.num_used > 0

    def demand(self) -> KvDemand:
        """Takes time for each request that runs, and for those that wait as far as the pool's
        blocks would reach."""
        blocks, queues = self._residency.blocks, self._queues
        urgent = queues.running[ServiceClass.LATENCY_SENSITIVE]
        patient = queues.running[ServiceClass.BEST_EFFORT]
        # Of blocks that both classes share, the more pressing one counts.
        num_urgent = min(blocks.num_used, sum(len(each.block_ids) for each in urgent))
        return KvDemand(
            granted=blocks.num_granted,
            cached=blocks.num_cached,
            urgent_running=num_urgent + sum(map(self._growth, urgent)),
            urgent_waiting=self._num_to_start(
                queues.waiting[ServiceClass.LATENCY_SENSITIVE],
                self._residency.slots.num_slots - len(urgent),
            ),
            patient_running=blocks.num_used - num_urgent + sum(map(self._growth, patient)),
            patient_waiting=self._num_patient_waiting(patient),
            urgent_since_s=urgent.oldest.arrival_s if urgent else inf,
            patient_since_s=patient.oldest.arrival_s if patient else inf,
        )

    def grant(self, num_extents: int) -> list[int]:
        """Have so many extents more; which ones."""
        # Who waited for memory need not wait for a plan to complete as well.
        self._first_tokens.last_outcome = Room.ENOUGH
        self._note_change()
        return self._residency.blocks.grant(num_extents)

    def revoke(self, extents: Iterable[int]) -> None:
        """There is no memory for extents that were granted just now."""
        self._residency.blocks.revoke(extents)
        self._note_change()

    def withdraw(self, num_extents: int) -> list[int]:
        """Have up to so many extents less, that nobody holds; which ones."""
        return self._residency.blocks.withdraw(num_extents)

    def note_spare(self, num_blocks: int) -> None:
        """So many blocks more it would be granted at once, if it wanted them."""
        self._residency.num_spare_blocks = num_blocks

    def give_way(self, num_extents: int) -> None:
        """Let requests let go of so many extents, now or as plans in flight complete and copies to
        the host land; 0 takes back what was asked for before."""
        self._note_change()
        self._preemptor.give_way(num_extents)

    def is_awaited(self, plan: StepPlan) -> bool:
        """Whether requests that were told to `give_way` can do so once this plan is over."""
        return self._preemptor.is_awaited(plan)

    def _growth(self, request: Request) -> int:
        num_tokens = len(request.token_ids) + request.num_pending_samples + 1
        num_tokens = min(num_tokens, request.max_total_tokens - 1)
        return max(0, self._residency.num_missing(request, num_tokens))

    def _num_to_start(self, waiting: Iterable[Request], num_slots: int) -> int:
        num_blocks, most = 0, self._residency.blocks.num_blocks
        for request in islice(waiting, num_slots):
            num_blocks += self._residency.num_missing_to_start(request)
            if num_blocks >= most:
                return most
        return num_blocks

    def _num_patient_waiting(self, running: Iterable[Request]) -> int:
        blocks, queues = self._residency.blocks, self._queues
        num_blocks = 0
        oldest = queues.offloaded.oldest if queues.offloaded else None
        if oldest is not None and oldest.phase is Phase.AT_BOUNDARY:
            margin = max(2, blocks.num_granted // _MARGIN_SHARE)
            num_blocks += blocks.num_needed(oldest.num_computed + 1) + margin
        waiting = queues.waiting[ServiceClass.BEST_EFFORT]
        if not waiting:
            return num_blocks
        for request in (*running, *waiting):
            num_blocks += max(
                0, blocks.num_needed(request.max_total_tokens) - len(request.block_ids)
            )
            if num_blocks >= blocks.num_blocks:
                return blocks.num_blocks
        return num_blocks

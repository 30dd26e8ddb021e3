"""Which requests of one service class join a step, and with how many tokens."""

from collections.abc import Collection, Iterable, Sequence

from scheduler.kv_forecast import KvForecast
from scheduler.preemption import Preemptor, Room
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass, Status
from scheduler.residency import Residency
from scheduler.step_builder import StepBuilder
from scheduler.timeline import Reason
from scheduler.wait_notes import WaitNotes

_MOST_PASSED_OVER = 1
"""Prompts that are begun and find no place, beside latency-sensitive rows, while a new one is."""


def list_plannable(
    running: Iterable[Request], withheld_ids: Collection[str]
) -> list[tuple[Request, int]]:
    """Running requests that may get rows now, with the number of tokens they still lack."""
    plannable = []
    for request in running:
        num_pending = request.num_pending_samples
        length = len(request.token_ids) + num_pending
        # Without a pending sample the sequence is not finished, so there is something to compute.
        if num_pending and (request.needs_known_tokens or length >= request.max_total_tokens):
            continue
        if request.request_id not in withheld_ids:
            plannable.append((request, length - request.num_scheduled))
    return plannable


class ClassPlanner:
    """Adds rows of running requests, then admits waiting ones, first come first served.

    Where a request waits for what plans in flight use, nobody later in line gets rows: these would
    keep it in use for ever.
    """

    def __init__(
        self,
        queues: RequestQueues,
        residency: Residency,
        preemptor: Preemptor,
        forecast: KvForecast | None,
    ) -> None:
        """Without `forecast` best-effort requests are admitted if they find room at their start."""
        self._queues = queues
        self._residency = residency
        self._preemptor = preemptor
        self._forecast = forecast
        self._notes = WaitNotes(queues, residency, preemptor)
        self._waiting = queues.journal.waiting

    def plan_running(
        self,
        plannable: Sequence[tuple[Request, int]],
        step: StepBuilder,
        withheld_ids: Collection[str] = (),
        least_chunk: int = 0,
    ) -> Room:
        """Add rows of running requests; the outcome is that of one that was left short.

        A prompt gets `least_chunk` tokens whatever time they take.
        """
        # Decodes go first in the budget, but memory is given out in arrival order.
        num_decodes_left = sum(num_tokens == 1 for _, num_tokens in plannable)
        outcome = Room.ENOUGH
        block_size, expected = self._residency.block_size, step.expected
        for request, num_tokens in plannable:
            num_kept = 0
            if num_tokens == 1:
                num_decodes_left -= 1
                # So it is with nearly all decodes of every step; what follows comes to the same.
                if (
                    (request.request_id in expected or step.load is None)
                    and step.budget > 0
                    and request.num_scheduled < len(request.block_ids) * block_size
                    and request.is_steady
                    and request.request_id not in self._waiting
                    and request.request_id not in withheld_ids
                ):
                    step.add_decode(request)
                    continue
                num_granted = step.most_tokens(request, 1)
            else:
                num_kept = num_decodes_left
                num_wanted = min(num_tokens, step.budget - num_kept)
                num_granted = step.most_tokens(request, num_wanted, at_least=least_chunk)
            # An older one may have taken its memory meanwhile, or be about to.
            has_yielded = request.status is not Status.RUNNING or request.request_id in withheld_ids
            if has_yielded:
                continue
            if num_granted <= 0:
                step.num_passed_over += num_tokens > 1
                self._notes.passed_over(request, step, num_kept)
                continue
            room = self._add_rows(request, num_granted, step, num_kept)
            if room is Room.IN_FLIGHT:
                return room
            if room is not Room.ENOUGH:
                outcome = room
        return outcome

    def _add_rows(
        self, request: Request, num_tokens: int, step: StepBuilder, num_kept: int
    ) -> Room:
        table_len = len(request.block_ids)
        num_new = self._residency.num_missing(request, request.num_scheduled + num_tokens)
        new_block_ids: tuple[int, ...] = ()
        if num_new:
            room = self._preemptor.make_room(request, num_new, needs_slot=False)
            if room is not Room.ENOUGH:
                self._notes.lacks_room(request, room, num_new)
                return room
            new_block_ids = self._residency.extend(request, num_new)
        step.add(request, num_tokens, table_len, new_block_ids)
        # Of most decodes there is nothing to be noted.
        if num_tokens > 1 or request.first_token_s is None or request.request_id in self._waiting:
            self._notes.got_rows(request, num_tokens, step, num_kept)
        return Room.ENOUGH

    def admit_waiting(
        self,
        service_class: ServiceClass,
        step: StepBuilder,
        now_s: float,
        least_chunk: int = 0,
    ) -> Room:
        """Admit requests while there is room; the outcome is that of the first one left short.

        What is free belongs first to those who run, so ask only if none of them was left short.
        """
        waiting = self._queues.waiting[service_class]
        while waiting:
            request = waiting.next(now_s)
            self._notes.is_next(request)
            num_granted = step.most_tokens(request, request.num_unscheduled, at_least=least_chunk)
            # The first tokens of a prompt take less time than later ones, so that a new one could
            # join where one that runs could not: many would be begun, and few ended. Beside
            # latency-sensitive rows, though, nobody might get anything for long.
            most_passed_over = _MOST_PASSED_OVER if step.is_beside_urgent else 0
            if not num_granted or step.num_passed_over > most_passed_over:
                self._notes.has_no_budget(request, step)
                break
            # It would take back what it has just yielded.
            if self._preemptor.was_just_preempted(request):
                self._notes.lacks(request, Reason.MEMORY, "it has just let go of its own")
                break
            if service_class is ServiceClass.BEST_EFFORT and not self._will_fit(request):
                break
            room = self._enter(request)
            if room is not Room.ENOUGH:
                return room
            self._start(request, step, least_chunk)
        return Room.ENOUGH

    def hold_back(self, service_class: ServiceClass, now_s: float) -> None:
        """Nobody is admitted in this step, as those that run lack room."""
        waiting = self._queues.waiting[service_class]
        if waiting:
            self._notes.lacks(waiting.next(now_s), Reason.RUNNING)

    def _will_fit(self, request: Request) -> bool:
        if self._forecast is None:
            return True
        blocks = self._residency.blocks
        urgent = self._queues.running[ServiceClass.LATENCY_SENSITIVE]
        num_blocks = blocks.num_granted - sum(len(other.block_ids) for other in urgent)
        if self._forecast.fits(request, num_blocks * blocks.block_size):
            return True
        self._notes.lacks(request, Reason.EXPECTED_MEMORY, self._forecast.last_shortage)
        return False

    def _enter(self, request: Request) -> Room:
        """Give a waiting request its slot and cached prefix, if all its tokens will find room."""
        if not self._preemptor.may_get_slot(request):
            self._notes.lacks_room(request, Room.SHORT, 0, needs_slot=True)
            return Room.SHORT
        self._residency.hold_prefix(request)
        num_blocks = self._residency.num_missing_to_start(request)
        room = self._preemptor.make_room(request, num_blocks, needs_slot=True)
        if room is Room.ENOUGH:
            self._residency.enter(request)
            self._queues.start(request)
            self._notes.admitted(request)
        else:
            self._residency.release(request)
            self._notes.lacks_room(request, room, num_blocks, needs_slot=True)
        return room

    def _start(self, request: Request, step: StepBuilder, least_chunk: int) -> None:
        """Plan the first rows of an admitted request; they carry its whole block table."""
        # With its cached prefix there is less to compute, but each token attends to more.
        num_tokens = max(
            1, step.most_tokens(request, request.num_unscheduled, at_least=least_chunk)
        )
        num_new = self._residency.num_missing(request, request.num_scheduled + num_tokens)
        self._residency.extend(request, num_new)
        step.add(request, num_tokens, 0, tuple(request.block_ids))
        self._notes.got_rows(request, num_tokens, step)

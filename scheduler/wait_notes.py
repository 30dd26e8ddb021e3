"""Notes of why requests get rows, and why others do not."""

from math import inf

from scheduler.preemption import Preemptor, Room
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass, Status
from scheduler.residency import Residency
from scheduler.step_builder import StepBuilder
from scheduler.timeline import Event, Reason

_REASONS = {
    Room.SHORT: Reason.MEMORY,
    Room.IN_FLIGHT: Reason.IN_FLIGHT,
    Room.LANDING: Reason.LANDING,
}


class WaitNotes:
    """Writes to the journal only where something changed for a request.

    Of those that wait to be admitted only the next one is noted in every step, so that a long queue
    costs no more than a short one; all others wait for it.
    """

    def __init__(self, queues: RequestQueues, residency: Residency, preemptor: Preemptor) -> None:
        self._queues = queues
        self._residency = residency
        self._preemptor = preemptor
        self._journal = queues.journal
        self._next: dict[ServiceClass, Request] = {}
        """Who was next when last a step was planned."""

    def got_rows(
        self, request: Request, num_tokens: int, step: StepBuilder, num_kept: int = 0
    ) -> None:
        """Its next tokens joined the step, which keeps `num_kept` tokens for others."""
        journal = self._journal
        end = request.num_scheduled
        if num_tokens == 1 and end > request.num_prompt_tokens:
            journal.go_on(request.request_id)
            return
        num_all = len(request.token_ids)
        detail = f"{num_tokens} tokens, {end} of {num_all} by then; the step had place for "
        detail += f"{step.budget + num_tokens}"
        if step.budget_s < inf:
            detail += f" and {_milliseconds(step.budget_s)}"
        reason = Reason.NONE if end >= num_all else _limit_of(step, num_kept)
        journal.note(request.request_id, Event.COMPUTED, reason, detail)

    def passed_over(self, request: Request, step: StepBuilder, num_kept: int = 0) -> None:
        """A running request gets no rows; `num_kept` tokens are kept for others."""
        self._wait(request, _limit_of(step, num_kept), step)

    def lacks_room(
        self, request: Request, room: Room, num_blocks: int, *, needs_slot: bool = False
    ) -> None:
        """It cannot have so many blocks (and a slot)."""
        if request.status is Status.OFFLOADED:
            return
        reason = _REASONS[room]
        has_blocks = self._preemptor.has_now(num_blocks, needs_slot=False)
        if needs_slot and has_blocks and room is Room.SHORT:
            reason = Reason.SLOTS
        if not self._journal.waits_for(request.request_id, reason):
            num_free = self._residency.blocks.num_free
            detail = f"{num_blocks} more blocks are needed, {num_free} are free"
            if has_blocks:
                detail = f"all {self._residency.slots.num_slots} places for requests are taken"
            self._journal.wait(request.request_id, reason, detail)

    def is_next(self, request: Request) -> None:
        """It is the next one to be admitted."""
        before = self._next.get(request.service_class)
        if before is request:
            return
        self._next[request.service_class] = request
        if before is not None and before.status is Status.WAITING:
            self._wait_behind(before, request)

    def has_no_budget(self, request: Request, step: StepBuilder) -> None:
        """The next one to be admitted would find no place in the step."""
        self._wait(request, _limit_of(step, 0), step)

    def lacks(self, request: Request, reason: Reason, detail: str = "") -> None:
        """The next one to be admitted is kept waiting for another reason."""
        self._journal.wait(request.request_id, reason, detail)

    def admitted(self, request: Request) -> None:
        """It runs from now on; some that came before it may not."""
        num_cached = request.num_computed
        detail = f"{num_cached} tokens were in the prefix cache" if num_cached else ""
        self._journal.note(request.request_id, Event.ADMITTED, Reason.NONE, detail)
        waiting = self._queues.waiting[request.service_class]
        if waiting:
            oldest = waiting.oldest
            if oldest.arrival_index < request.arrival_index:
                self._wait_behind(oldest, request)

    def _wait_behind(self, request: Request, other: Request) -> None:
        reason = Reason.QUEUE
        if other.tenant != request.tenant:
            reason = Reason.SHARE
        elif other.arrival_index > request.arrival_index:
            reason = Reason.URGENCY
        self._journal.wait(request.request_id, reason)

    def _wait(self, request: Request, reason: Reason, step: StepBuilder) -> None:
        if self._journal.waits_for(request.request_id, reason):
            return
        detail = ""
        if reason is Reason.TIME and step.load is not None:
            used = _milliseconds(step.load.seconds)
            detail = f"it takes {used} without it, and may take {_milliseconds(step.budget_s)}"
        self._journal.wait(request.request_id, reason, detail)


def _limit_of(step: StepBuilder, num_kept: int) -> Reason:
    return Reason.TOKENS if step.budget <= num_kept else Reason.TIME


def _milliseconds(seconds: float) -> str:
    return f"{max(0.0, seconds) * 1e3:.1f} ms"

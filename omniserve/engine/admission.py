"""What becomes of a request that arrives: it is taken, taken by its tier's fallback, or refused."""

from collections import defaultdict
from collections.abc import Iterable
from math import inf

from omniserve.errors import DeadlineExceeded, OmniServeError, Overloaded
from omniserve.queue_movement import MOST_WAIT_S, QueueMovement, retry_after_s
from omniserve.requests import TierRules
from scheduler import Request, Scheduler, ServiceClass
from scheduler.first_token_forecast import UrgentLoad
from scheduler.timeline import Event, Reason


class Admission:
    """Of one model. Each sequence is judged by itself, when it arrives and behind those before it;
    that a client's request ends with the first of its sequences that is refused is not known here.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._movements: defaultdict[str, QueueMovement] = defaultdict(QueueMovement)
        self._refuses_idle_since_s: float | None = None

    def judge(
        self,
        state: Request,
        rules: TierRules,
        now_s: float,
        others: Iterable[UrgentLoad] = (),
    ) -> None:
        """Changes a request that goes to the fallback: its tier and class, and nothing promised.

        `others` are the loads of other models on the device; they are asked for where it matters.

        Raises:
            DeadlineExceeded: its deadline has passed.
            Overloaded: the queue of its tier is full, or its first token would come later than
                promised and no fallback takes it.
        """
        if now_s >= state.deadline_s:
            late_s = now_s - state.deadline_s
            error = DeadlineExceeded(
                f"the deadline passed {late_s * 1e3:.0f} ms before it could run"
            )
            self._note_refusal(state, Reason.DEADLINE, error)
            raise error
        self._check_queue(state, state.tier, rules.max_waiting, now_s)
        if rules.admission and state.objectives is not None:
            self._check_first_token(state, rules, now_s, others)

    def _note_refusal(self, state: Request, reason: Reason, error: OmniServeError) -> None:
        self._scheduler.journal.end(state.request_id, Event.REFUSED, reason, str(error))

    def _check_queue(
        self, state: Request, tier: str, max_waiting: int | None, now_s: float
    ) -> None:
        if max_waiting is None:
            return
        counts, movement = self._scheduler.counts, self._movements[tier]
        num_left = counts.num_left_waiting(tier)
        movement.note(now_s, num_left)
        if counts.num_waiting_in(tier) >= max_waiting:
            hint_s = retry_after_s(movement.next_place_s(now_s, num_left))
            error = Overloaded(
                f"tier {tier!r} has no room in its queue of {max_waiting}; "
                f"try again in {hint_s:.1f} s",
                hint_s,
            )
            self._note_refusal(state, Reason.QUEUE_BOUND, error)
            raise error

    def _check_first_token(
        self, state: Request, rules: TierRules, now_s: float, others: Iterable[UrgentLoad]
    ) -> None:
        assert state.objectives is not None
        ttft_s = self._scheduler.ttft_forecast.ttft_s(state, now_s, others)
        in_time_s = state.deadline_s - state.arrival_s
        if ttft_s <= min(state.objectives.ttft_s, in_time_s):
            self._refuses_idle_since_s = None
            return
        if self._is_a_trial(now_s):
            return
        # What would miss its deadline here would miss it by more where others go first.
        if rules.fallback is not None and ttft_s <= in_time_s:
            self._check_queue(state, rules.fallback, rules.fallback_max_waiting, now_s)
            self._send_to_fallback(state, rules.fallback, ttft_s)
            return
        error = _too_late(state, ttft_s, now_s)
        self._note_refusal(state, Reason.OBJECTIVE, error)
        raise error

    def _is_a_trial(self, now_s: float) -> bool:
        """Whether a request runs so that it is learnt what steps take: without, one wrong
        prediction would be believed for ever."""
        if not self._scheduler.ttft_forecast.is_idle:
            self._refuses_idle_since_s = None
        elif self._refuses_idle_since_s is None:
            self._refuses_idle_since_s = now_s
        elif now_s - self._refuses_idle_since_s >= MOST_WAIT_S:
            self._refuses_idle_since_s = None
            return True
        return False

    def _send_to_fallback(self, state: Request, tier: str, ttft_s: float) -> None:
        when = "not soon" if ttft_s == inf else f"after {ttft_s * 1e3:.0f} ms"
        detail = f"it is expected {when}; tier {tier!r} takes the request"
        self._scheduler.journal.note(state.request_id, Event.DEMOTED, Reason.OBJECTIVE, detail)
        state.tier = tier
        state.service_class = ServiceClass.BEST_EFFORT
        state.objectives = state.demote_after_tokens = state.fallback_tier = None


def _too_late(state: Request, ttft_s: float, now_s: float) -> Overloaded:
    assert state.objectives is not None
    promised_s = min(state.objectives.ttft_s, state.deadline_s - state.arrival_s)
    # Sent again it has not waited yet, so that only the queue has to become shorter.
    hint_s = retry_after_s(ttft_s - (now_s - state.arrival_s) - promised_s)
    whose = (
        f"tier {state.tier!r} promises"
        if promised_s == state.objectives.ttft_s
        else "the deadline asks for"
    )
    promise = f"{whose} the first token within {promised_s * 1e3:.0f} ms"
    own_s = state.expected_prefill_s or 0.0
    if own_s > promised_s:
        # No queue is short enough: all that may change is what steps are predicted to take.
        return Overloaded(
            f"{promise}, but its prompt alone would take {own_s * 1e3:.0f} ms: waiting is unlikely "
            f"to help, a shorter prompt or another tier may; try again in {MOST_WAIT_S:.1f} s",
            MOST_WAIT_S,
        )
    when = "not be had soon" if ttft_s == inf else f"take {ttft_s * 1e3:.0f} ms"
    return Overloaded(
        f"{promise}, but it would {when} now; try again in {hint_s:.1f} s",
        hint_s,
    )

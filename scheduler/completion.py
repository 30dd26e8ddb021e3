"""What completed plans change in requests, and what is let go when one ends."""

from scheduler.first_token_forecast import FirstTokenForecast
from scheduler.first_tokens import FirstTokens
from scheduler.kv_forecast import KvForecast
from scheduler.piggyback import Piggyback
from scheduler.plan import PlannedRows, StepPlan, StepResult
from scheduler.preemption import Preemptor, Room
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass, Status
from scheduler.residency import Residency
from scheduler.step_control import StepControl
from scheduler.timeline import Event, Reason


class Completion:
    """Brings every manager that knows of a request up to date."""

    def __init__(
        self,
        queues: RequestQueues,
        residency: Residency,
        preemptor: Preemptor,
        piggyback: Piggyback,
        control: StepControl,
        first_tokens: FirstTokens,
        ttft_forecast: FirstTokenForecast,
        forecast: KvForecast | None,
    ) -> None:
        self._queues = queues
        self._residency = residency
        self._preemptor = preemptor
        self._piggyback = piggyback
        self._control = control
        self._first_tokens = first_tokens
        self._ttft_forecast = ttft_forecast
        self._forecast = forecast
        self._num_decoded: dict[tuple[ServiceClass, str], int] = {}
        """Of the plan that is being recorded, by whom its decodes are for."""

    def record(self, plan: StepPlan, result: StepResult, now_s: float) -> tuple[Request, ...]:
        """Take over what a plan computed; returns the requests that finished with it."""
        finished = []
        by_id = self._queues.by_id
        for rows in plan.rows:
            request = by_id[rows.request_id]
            if rows.num_tokens == 1 and rows.samples and request.is_steady:
                if self._record_decode(request, rows, result, now_s):
                    finished.append(request)
            elif self._record_rows(request, rows, result, now_s):
                finished.append(request)
        finished += [
            ended
            for request_id, token_id in result.lane_sampled.items()
            if (ended := self._record_lane(request_id, token_id, result))
        ]
        self._charge_decodes()
        return tuple(finished)

    def undo(self, plan: StepPlan) -> None:
        """Nothing of a plan was computed, nor will be; none of its requests has a later one."""
        self._first_tokens.last_outcome = Room.ENOUGH
        for rows in plan.rows:
            request = self._queues.by_id[rows.request_id]
            request.num_plans_in_flight -= 1
            if request.status is Status.FINISHED:
                self._drain(request)
                continue
            assert request.num_scheduled == rows.end, f"{rows.request_id} has a later plan"
            request.num_scheduled = rows.start
            request.num_pending_samples -= rows.samples
            self._residency.shorten(request)
            journal, detail = self._queues.journal, f"{rows.num_tokens} tokens are computed again"
            journal.note(rows.request_id, Event.STEP_DROPPED, Reason.OTHER_MODEL, detail)

    def end(self, request: Request) -> None:
        """It gets no more tokens; what is still in use of it is let go when that is done."""
        if self._forecast is not None:
            self._forecast.forget(request)
        self._piggyback.let_go(request)
        self._preemptor.forget(request)
        self._queues.end(request)
        self._first_tokens.stop_expecting(request.request_id)
        self._first_tokens.last_outcome = Room.ENOUGH
        if not request.is_in_use:
            self._residency.release(request)

    def _record_decode(
        self, request: Request, rows: PlannedRows, result: StepResult, now_s: float
    ) -> bool:
        """What `_record_rows` comes to where nothing else happens, for every decode of every step;
        whether the request finished."""
        assert request.num_computed == rows.start
        request.num_plans_in_flight -= 1
        request.num_pending_samples -= 1
        request.num_computed = rows.start + 1
        request.token_ids.append(result.sampled[rows.request_id])
        request.last_token_s = now_s
        whose = request.service_class, request.tenant
        self._num_decoded[whose] = self._num_decoded.get(whose, 0) + 1
        if not request.num_computed % self._residency.block_size:
            self._residency.publish(request, rows.start)
        if _is_finished(request, result):
            self._finish(request)
            return True
        return False

    def _record_rows(
        self, request: Request, rows: PlannedRows, result: StepResult, now_s: float
    ) -> bool:
        """Whether the request finished."""
        request.num_plans_in_flight -= 1
        if request.status is Status.FINISHED:
            self._drain(request)
            return False
        _count_rows(request, rows, result)
        self._charge(request, rows)
        self._residency.publish(request, rows.start)
        if rows.samples:
            request.last_token_s = now_s
            if request.first_token_s is None:
                request.first_token_s = now_s
                request.taken_s_before = self._control.taken_s
                self._first_tokens.stop_expecting(request.request_id)
                self._ttft_forecast.note_first_token(request)
                self._note_first_token(request, now_s)
        if _is_finished(request, result):
            self._finish(request)
            return True
        if request.demote_after_tokens is not None and request.is_straggler:
            if request.status is Status.RUNNING:
                self._queues.demote(request)
        return False

    def _note_first_token(self, request: Request, now_s: float) -> None:
        detail = f"{(now_s - request.arrival_s) * 1e3:.1f} ms after it came"
        if request.objectives is not None:
            detail += f", promised within {request.objectives.ttft_s * 1e3:g} ms"
        self._queues.journal.note(request.request_id, Event.FIRST_TOKEN, Reason.NONE, detail)

    def _charge(self, request: Request, rows: PlannedRows) -> None:
        num_prompt_tokens = max(0, min(request.num_prompt_tokens - rows.start, rows.num_tokens))
        share = self._queues.shares[request.service_class]
        share.charge(request.tenant, num_prompt_tokens, rows.num_tokens - num_prompt_tokens)

    def _charge_decodes(self) -> None:
        """All of a plan at once, as there is one for nearly every row."""
        for (service_class, tenant), num_tokens in self._num_decoded.items():
            self._queues.shares[service_class].charge(tenant, 0, num_tokens)
        self._num_decoded.clear()

    def _record_lane(self, request_id: str, token_id: int, result: StepResult) -> Request | None:
        """The offloaded request, if it finished."""
        request = self._queues.by_id[request_id]
        self._piggyback.record_token(request, token_id)
        whose = request.service_class, request.tenant
        self._num_decoded[whose] = self._num_decoded.get(whose, 0) + 1
        if not _is_finished(request, result):
            self._piggyback.boundary.arrive(request)
            return None
        self._finish(request)
        return request

    def _finish(self, request: Request) -> None:
        """It had all its tokens: what it was like is expected of others."""
        taken_s = self._control.taken_s - request.taken_s_before
        self._control.pace.note_end(request, taken_s)
        if self._forecast is not None and request.service_class is ServiceClass.BEST_EFFORT:
            self._forecast.note_length(request.num_output_tokens)
        detail = f"{request.num_output_tokens} tokens"
        self._queues.journal.end(request.request_id, Event.FINISHED, Reason.NONE, detail)
        self.end(request)

    def _drain(self, request: Request) -> None:
        if not request.num_plans_in_flight:
            self._residency.release(request)
            self._queues.forget_drained(request)
            self._first_tokens.last_outcome = Room.ENOUGH


def _count_rows(request: Request, rows: PlannedRows, result: StepResult) -> None:
    """Count the rows as computed and take over the token they sampled."""
    assert request.num_computed == rows.start, (
        f"{rows.request_id}: rows from {rows.start} completed after {request.num_computed}"
    )
    request.num_computed += rows.num_tokens
    if rows.samples:
        request.num_pending_samples -= 1
        request.token_ids.append(result.sampled[rows.request_id])


def _is_finished(request: Request, result: StepResult) -> bool:
    """Whether the sequence has reached its length or the engine ended it."""
    return (
        len(request.token_ids) >= request.max_total_tokens
        or request.request_id in result.finished_ids
    )

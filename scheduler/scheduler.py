"""The scheduling policy of one model: requests in, plans out."""

from math import inf

from scheduler.completion import is_finished, record_rows
from scheduler.counts import Counts
from scheduler.first_tokens import FirstTokens
from scheduler.flights import Flights
from scheduler.host_blocks import HostBlocks, NoHostBlocks
from scheduler.kv_forecast import KvForecast
from scheduler.limits import find_max_total_tokens
from scheduler.piggyback import Piggyback
from scheduler.plan import Copy, PlannedRows, StepPlan, StepResult
from scheduler.preemption import Preemptor, Room
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass, Status
from scheduler.residency import Residency
from scheduler.settings import PiggybackLimits, SchedulerSettings
from scheduler.step_control import StepControl
from scheduler.step_planner import StepPlanner
from scheduler.step_time import LinearStepTime

_NO_LANES = PiggybackLimits(num_lanes=0, max_lane_rows=0, max_lane_rows_beside_ls=0)


class Scheduler:
    """Latency-sensitive before best-effort, first come first served inside a class.

    `schedule` may be called while earlier plans are in flight. Plans complete in the order in which
    they were made, except that one made with `latency_sensitive_only` may complete before earlier
    plans that carry best-effort rows.

    With `settings.piggyback` best-effort decodes may go on on the host. After each `schedule` the
    caller asks for `take_copies` and `take_released_lanes`, and says when a copy has landed and
    when a released lane is quiet.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        host_blocks: HostBlocks | None = None,
        step_time: LinearStepTime | None = None,
    ) -> None:
        """`host_blocks` and `settings.piggyback` are both given, or neither.

        With `step_time` every step is held to the objectives of the latency-sensitive requests;
        without, only token budgets limit it.
        """
        assert (host_blocks is None) == (settings.piggyback is None)
        limits = settings.piggyback or _NO_LANES
        self._settings = settings
        self._queues = RequestQueues()
        self._residency = Residency(settings)
        blocks = host_blocks or NoHostBlocks()
        self._piggyback = Piggyback(settings, limits, self._queues, self._residency, blocks)
        self._preemptor = Preemptor(self._queues, self._residency, self._piggyback.offloader)
        self._flights = Flights()
        self._control = StepControl(step_time)
        self._forecast: KvForecast | None = None
        if settings.kv_reserve_share is not None:
            num_host_tokens = blocks.num_blocks * settings.block_size
            self._forecast = KvForecast(self._queues, num_host_tokens, settings.kv_reserve_share)
        self._planner = StepPlanner(
            settings,
            limits,
            self._queues,
            self._residency,
            self._preemptor,
            self._piggyback,
            self._flights,
            self._control,
            self._forecast,
        )
        self._first_tokens = FirstTokens()
        self.counts = Counts(self._queues, self._residency, self._piggyback.host.lanes)
        self._num_added = 0

    def __repr__(self) -> str:
        return (
            f"Scheduler({self.num_running} running, {self.num_waiting} waiting, "
            f"{len(self._flights)} plans in flight, {self._residency.blocks!r})"
        )

    @property
    def settings(self) -> SchedulerSettings:
        return self._settings

    def add(self, request: Request) -> None:
        """Queue a new request. ValueError if its id is in use or it could never run."""
        if request.request_id in self._queues.by_id:
            raise ValueError(f"request id {request.request_id!r} is in use")
        request.max_total_tokens = find_max_total_tokens(request, self._settings)
        request.arrival_index = self._num_added
        self._num_added += 1
        self._queues.add(request)
        self._first_tokens.expect(request)

    def abort(self, request_id: str) -> bool:
        """End a request now; False if it is unknown or has ended already."""
        request = self._queues.by_id.get(request_id)
        if request is None or request.status is Status.FINISHED:
            return False
        self._end(request)
        return True

    def schedule(
        self,
        *,
        latency_sensitive_only: bool = False,
        best_effort_tokens: int | None = None,
        best_effort_s: float = inf,
        num_ready_lane_rows: int = 0,
        now_s: float = 0.0,
        is_host_active: bool = False,
    ) -> StepPlan | None:
        """Plan the next step, or None if there is nothing to do before a plan completes.

        `best_effort_tokens` limits the best-effort rows, and the lane rows at any layer, of this
        plan further than the settings do, `best_effort_s` the time of a step with any of them.
        `now_s` is on the clock of the requests' arrivals; `is_host_active` says whether host
        attention has its cores. `num_ready_lane_rows` could join a step now; where there
        are any, a plan may consist of them alone.
        """
        load = self._control.begin(now_s, is_host_active=is_host_active)
        if latency_sensitive_only:
            plan = self._planner.plan_latency_sensitive(load)
        else:
            plan = self._planner.plan(load, best_effort_tokens, best_effort_s, num_ready_lane_rows)
        self._first_tokens.last_outcome = self._planner.ls_outcome
        if plan is not None:
            self._flights.depart(plan)
            if load is not None:
                self._control.depart(plan, load)
        return plan

    def take_copies(self) -> tuple[Copy, ...]:
        """Copies of KV decided since the last call, to be begun before the plan's step runs."""
        return self._piggyback.swaps.take_copies()

    def copy_landed(self, request_id: str) -> None:
        """The copy of this request is done."""
        self._piggyback.swaps.land(request_id)
        self._first_tokens.last_outcome = Room.ENOUGH

    def take_released_lanes(self) -> tuple[int, ...]:
        """Lanes since the last call whose requests have ended, returned or went to waiting."""
        return self._piggyback.host.lanes.take_released()

    def lane_is_quiet(self, lane: int) -> None:
        """Nothing of a released lane is in flight any more: it and its host blocks are free."""
        self._piggyback.host.lane_is_quiet(lane)

    def recompute(self, request_id: str) -> bool:
        """Send an offloaded request whose KV is lost to waiting; False if it is not offloaded.

        It is computed again from its start, like one that was preempted.
        """
        request = self._queues.by_id.get(request_id)
        if request is None or request.status is not Status.OFFLOADED:
            return False
        self._piggyback.recompute(request)
        return True

    @property
    def offload_allowed(self) -> bool:
        """While False nobody is newly offloaded, and requests return before others are admitted."""
        return self._piggyback.offloader.is_allowed

    @offload_allowed.setter
    def offload_allowed(self, is_allowed: bool) -> None:
        self._piggyback.offloader.is_allowed = is_allowed

    @property
    def lanes_open(self) -> bool:
        """While False nobody enters the lanes: requests wait at their boundary, or return."""
        return self._piggyback.boundary.is_open

    @lanes_open.setter
    def lanes_open(self, is_open: bool) -> None:
        self._piggyback.boundary.is_open = is_open

    def complete(
        self, plan: StepPlan, result: StepResult, now_s: float = 0.0
    ) -> tuple[Request, ...]:
        """Record what a plan computed; returns the requests that finished with it."""
        self._flights.land(plan)
        self._control.land(
            plan, now_s, result.num_lane_rows, is_undisturbed=not result.was_interrupted
        )
        finished = [
            request for rows in plan.rows if (request := self._complete_rows(rows, result, now_s))
        ]
        finished += [
            request
            for request_id, token_id in result.lane_sampled.items()
            if (request := self._complete_lane(request_id, token_id, result))
        ]
        if plan.has_best_effort:
            self._first_tokens.last_outcome = Room.ENOUGH
        return tuple(finished)

    def _complete_rows(self, rows: PlannedRows, result: StepResult, now_s: float) -> Request | None:
        """The request, if it finished."""
        request = self._queues.by_id[rows.request_id]
        request.num_plans_in_flight -= 1
        if request.status is Status.FINISHED:
            self._drain(request)
            return None
        record_rows(request, rows, result)
        self._charge(request, rows)
        self._residency.publish(request, rows.start)
        if rows.samples:
            self._first_tokens.stop_expecting(request.request_id)
            request.last_token_s = now_s
            if request.first_token_s is None:
                request.first_token_s = now_s
        if not is_finished(request, result):
            if request.is_straggler and request.status is Status.RUNNING:
                self._queues.demote(request)
            return None
        self._note_finished(request)
        return request

    def _charge(self, request: Request, rows: PlannedRows) -> None:
        num_prompt_tokens = max(0, min(request.num_prompt_tokens, rows.end) - rows.start)
        self._queues.shares[request.service_class].charge(
            request.tenant,
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=rows.num_tokens - num_prompt_tokens,
        )

    def _complete_lane(self, request_id: str, token_id: int, result: StepResult) -> Request | None:
        """The offloaded request, if it finished."""
        request = self._queues.by_id[request_id]
        self._piggyback.record_token(request, token_id)
        share = self._queues.shares[request.service_class]
        share.charge(request.tenant, num_output_tokens=1)
        if not is_finished(request, result):
            self._piggyback.boundary.arrive(request)
            return None
        self._note_finished(request)
        return request

    def _note_finished(self, request: Request) -> None:
        """It had all its tokens: what it was like is expected of others."""
        self._control.pace.note_end(request)
        if self._forecast is not None and request.service_class is ServiceClass.BEST_EFFORT:
            self._forecast.note_length(request.num_output_tokens)
        self._end(request)

    def _end(self, request: Request) -> None:
        if self._forecast is not None:
            self._forecast.forget(request)
        self._piggyback.let_go(request)
        self._preemptor.forget(request)
        self._queues.end(request)
        self._first_tokens.stop_expecting(request.request_id)
        self._first_tokens.last_outcome = Room.ENOUGH
        if not request.is_in_use:
            self._residency.release(request)

    def _drain(self, request: Request) -> None:
        if not request.num_plans_in_flight:
            self._residency.release(request)
            self._queues.forget_drained(request)
            self._first_tokens.last_outcome = Room.ENOUGH

    @property
    def num_running(self) -> int:
        return self._queues.num_running

    @property
    def num_waiting(self) -> int:
        return self._queues.num_waiting

    @property
    def num_offloaded(self) -> int:
        """Requests whose KV is on the host, or on its way there or back."""
        return len(self._queues.offloaded)

    @property
    def has_unfinished(self) -> bool:
        return bool(self.num_running or self.num_waiting or self.num_offloaded)

    @property
    def has_latency_sensitive_work(self) -> bool:
        """Whether latency-sensitive requests are waiting or running, with or without a next row."""
        service_class = ServiceClass.LATENCY_SENSITIVE
        return bool(self._queues.running[service_class] or self._queues.waiting[service_class])

    @property
    def awaits_first_token(self) -> bool:
        """Whether a step made now can bring a latency-sensitive request nearer its first token."""
        running = self._queues.running[ServiceClass.LATENCY_SENSITIVE]
        return self._first_tokens.can_come_closer(running)

    def predicted_ttft_s(self, request: Request, now_s: float) -> float:
        """From the arrival of a new latency-sensitive request to its first token, if it is added
        now: it waits for the step that runs and for all prompts of its class that came before.

        Infinite where latency-sensitive requests hold or await all the memory there is; 0 where
        nothing is known of step times.
        """
        if not self._control.is_predicting:
            return 0.0
        service_class = ServiceClass.LATENCY_SENSITIVE
        running, waiting = self._queues.running[service_class], self._queues.waiting[service_class]
        if self._residency.lacks_blocks_for([*running, *waiting, request]):
            return inf
        decodes = [each for each in running if each.is_decoding]
        prompts = [each for each in running if not each.is_decoding]
        queue_s = self._control.first_token_s(
            [*prompts, *waiting, request], decodes, self._settings.max_step_tokens
        )
        return now_s - request.arrival_s + queue_s

    def slack_s(self, now_s: float) -> float:
        """Time that others may take of the device before these latency-sensitive requests need it;
        infinite where nothing is known of times, or none has had its first token."""
        running = self._queues.running[ServiceClass.LATENCY_SENSITIVE]
        return self._control.slack_s([each for each in running if each.is_decoding], now_s)

    def check_integrity(self) -> None:
        """Raise IntegrityError where requests, queues, slots, blocks, lanes and plans disagree."""
        self._queues.check_integrity()
        self._residency.check_integrity(list(self._queues.holders))
        self._piggyback.check_integrity()
        self._flights.check_integrity(self._queues.by_id.values())

"""The scheduling policy of one model: requests in, plans out."""

from collections.abc import Mapping
from math import inf

from scheduler.arrival_rate import ArrivalRate
from scheduler.completion import Completion
from scheduler.counts import Counts
from scheduler.first_token_forecast import FirstTokenForecast
from scheduler.first_tokens import FirstTokens
from scheduler.flights import Flights
from scheduler.host_blocks import HostBlocks, NoHostBlocks
from scheduler.host_kv_memory import host_kv_memory
from scheduler.interleaving import Claim
from scheduler.kv_forecast import kv_forecast
from scheduler.kv_memory import KvMemory
from scheduler.limits import find_max_total_tokens
from scheduler.piggyback import Piggyback
from scheduler.plan import Copy, StepPlan, StepResult
from scheduler.preemption import Preemptor, Room
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass, Status
from scheduler.residency import Residency
from scheduler.settings import PiggybackLimits, SchedulerSettings
from scheduler.standing import explain
from scheduler.step_books import StepBooks
from scheduler.step_control import StepControl
from scheduler.step_planner import StepPlanner
from scheduler.step_time import LinearStepTime
from scheduler.tier_terms import TierTerms, follow_terms
from scheduler.timeline import Entry, Event, Reason
from scheduler.urgent_claim import UrgentClaim
from scheduler.urgent_pressure import UrgentPressure

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
        self.settings = settings
        self._queues = RequestQueues()
        self.journal = self._queues.journal
        """What was decided; whoever knows the time tells it before it adds or aborts."""
        self._residency = Residency(settings)
        blocks = host_blocks or NoHostBlocks()
        self._piggyback = Piggyback(settings, limits, self._queues, self._residency, blocks)
        self._preemptor = Preemptor(self._queues, self._residency, self._piggyback.offloader)
        self._flights = Flights()
        self._control = StepControl(step_time)
        forecast = kv_forecast(settings, self._queues, self._piggyback.offloader, blocks)
        arrivals = ArrivalRate()
        self.ttft_forecast = FirstTokenForecast(
            self._control, self._queues, self._residency, arrivals, settings.max_step_tokens
        )
        """For whoever decides which latency-sensitive requests are added."""
        self.pressure = UrgentPressure(self._control, self._queues, arrivals)
        """For whoever decides when the host has cores of the device."""
        self._planner = StepPlanner(
            settings,
            limits,
            self._queues,
            self._residency,
            self._preemptor,
            self._piggyback,
            self._flights,
            self._control,
            self.ttft_forecast,
            self.pressure,
            forecast,
        )
        self._first_tokens = FirstTokens()
        self._claim = UrgentClaim(
            self._queues, self._first_tokens, self._control, self._planner, self.ttft_forecast
        )
        self.memory = KvMemory(
            self._queues, self._residency, self._preemptor, self._first_tokens, self._claim.forget
        )
        """For whoever shares the device's memory out among models."""
        self.host_memory = host_kv_memory(
            self._queues, self._piggyback, self._planner.host_yielder, blocks
        )
        """The same for the host's; None where that is the model's own."""
        self._completion = Completion(
            self._queues,
            self._residency,
            self._preemptor,
            self._piggyback,
            self._control,
            self._first_tokens,
            self.ttft_forecast,
            forecast,
        )
        self.counts = Counts(self._queues, self._residency, self._piggyback.host)
        self._num_added = 0

    def __repr__(self) -> str:
        return (
            f"Scheduler({self.num_running} running, {self.num_waiting} waiting, "
            f"{len(self._flights)} plans in flight, {self._residency.blocks!r})"
        )

    def explain(self, request_id: str) -> tuple[Entry, ...] | None:
        """What was decided about a request, in order of time; None of one that is not known."""
        return explain(self._queues, request_id)

    def add(self, request: Request) -> None:
        """Queue a new request. ValueError if its id is in use or it could never run."""
        if request.request_id in self._queues.by_id:
            raise ValueError(f"request id {request.request_id!r} is in use")
        request.max_total_tokens = find_max_total_tokens(request, self.settings)
        request.arrival_index = self._num_added
        self._num_added += 1
        self.journal.advance(request.arrival_s)
        self._claim.forget()
        self._queues.add(request)
        self._first_tokens.expect(request)
        self.ttft_forecast.note_arrival(request)
        self.pressure.note_arrival(request, request.arrival_s)

    def abort(self, request_id: str) -> bool:
        """End a request now; False if it is unknown or has ended already."""
        request = self._queues.by_id.get(request_id)
        if request is None or request.status is Status.FINISHED:
            return False
        self.journal.end(request_id, Event.ABORTED)
        self._claim.forget()
        self._completion.end(request)
        return True

    def set_terms(self, by_tier: Mapping[str, TierTerms]) -> None:
        """These are the tiers now: requests that wait or run follow them."""
        self._claim.forget()
        follow_terms(self._queues, by_tier)
        self._control.aims.forget_all_but(by_tier)

    def set_shares(self, shares: Mapping[str, float]) -> None:
        """Weights of tenants in best-effort service from now on; of all others it is 1."""
        self._queues.shares[ServiceClass.BEST_EFFORT].set_weights(shares)

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
        self.journal.advance(now_s)
        self._claim.forget()
        load = self._control.begin(
            now_s, is_host_active=is_host_active, overtakes=latency_sensitive_only
        )
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
        self._claim.forget()
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
        self._piggyback.recompute(request, Reason.HOST_LOST)
        return True

    @property
    def offload_allowed(self) -> bool:
        """While False nobody is newly offloaded, and requests return before others are admitted."""
        return self._piggyback.offloader.is_allowed

    @offload_allowed.setter
    def offload_allowed(self, is_allowed: bool) -> None:
        self._piggyback.offloader.is_allowed = is_allowed

    @property
    def host_rests(self) -> bool:
        """While True requests in the lanes stay where they are: no row of theirs joins a step."""
        return self._planner.host_rests

    @host_rests.setter
    def host_rests(self, rests: bool) -> None:
        self._planner.host_rests = rests

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
        self._claim.forget()
        self._control.land(
            plan, now_s, result.num_lane_rows, is_undisturbed=not result.was_interrupted
        )
        self.journal.advance(now_s)
        finished = self._completion.record(plan, result, now_s)
        if plan.has_best_effort:
            self._first_tokens.last_outcome = Room.ENOUGH
        return finished

    def drop(self, plan: StepPlan, now_s: float = 0.0) -> None:
        """Take back a plan whose step is not gone on with: its requests stand where they stood
        before it, and may be planned again, or yield.

        None of them may be in a later plan, and no lane row may have joined.
        """
        self._flights.land(plan)
        self._claim.forget()
        self._control.drop(plan, now_s)
        self.journal.advance(now_s)
        self._completion.undo(plan)

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
        return self._claim.is_any

    @property
    def awaits_first_token(self) -> bool:
        """Whether a step made now can bring a latency-sensitive request nearer its first token."""
        return self._claim.awaits_first_token

    def claim(self, now_s: float) -> Claim | None:
        """What the latency-sensitive requests want of the device; None where there are none."""
        return self._claim.at(now_s)

    def stood_back(self, plan: StepPlan, waited_s: float) -> None:
        """The plan's step stood between two layers for so long, while other models' ran."""
        if plan.has_latency_sensitive:
            self._control.stood_back(waited_s)
            self._claim.forget()

    def beside_s(self, plan: StepPlan, num_rows: int) -> float | None:
        """What a plan in flight takes if its layers are run for so many rows of another model
        anyway; None where nothing is known of step times."""
        return self._control.beside_s(plan, num_rows)

    @property
    def step_books(self) -> StepBooks | None:
        """What predictions came to so far; None where nothing is known of step times."""
        return self._control.books if self._control.is_predicting else None

    def aims(self) -> dict[str, float]:
        """Part of its time per token at which each tier is paced now, once one of its requests has
        ended."""
        return self._control.aims.by_tier()

    def check_integrity(self) -> None:
        """Raise IntegrityError where requests, queues, slots, blocks, lanes and plans disagree."""
        self._queues.check_integrity()
        self._residency.check_integrity(list(self._queues.holders))
        self._piggyback.check_integrity()
        self._flights.check_integrity(self._queues.by_id.values())

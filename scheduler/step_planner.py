"""What the next step of a model is made of."""

from collections import ChainMap
from collections.abc import Collection, Sequence
from math import inf

from scheduler.class_planner import ClassPlanner, list_plannable
from scheduler.first_token_forecast import FirstTokenForecast
from scheduler.flights import Flights
from scheduler.host_yielding import HostYielder
from scheduler.kv_forecast import KvForecast
from scheduler.lane_limits import NO_LANES, LaneLimits
from scheduler.pace import Allowed
from scheduler.piggyback import Piggyback
from scheduler.plan import LaneEntry, StepPlan
from scheduler.preemption import Preemptor, Room
from scheduler.queues import RequestQueues
from scheduler.request import Request, ServiceClass
from scheduler.residency import Residency
from scheduler.returning import Returner
from scheduler.settings import PiggybackLimits, SchedulerSettings
from scheduler.step_builder import LEAST_CHUNK, StepBuilder
from scheduler.step_control import StepControl
from scheduler.step_load import StepLoad
from scheduler.urgent_pressure import UrgentPressure

_SHORT_SHARE = 0.25
"""Of the device's KV memory: while less is free, a prompt that comes may find no room."""
_PATIENCE = 0.06
"""Of the shortest time to a first token: so long a prompt that comes may wait for a step."""
_EARLY = 0.5
"""Of the same: with more to spare, prompts wait for decodes to get ahead."""
_LEAST_STEPS = 2.0
"""Times a step with one more row: best-effort work gets so much however impatient others are, as
it would else get nothing where steps take long."""
_LEAD = 1.5
"""Times what the next prompt is expected to take, by so much decodes are to be ahead of their pace
before best-effort work may slow them down: some take longer, and some come together."""
_LEAD_CAP_IDLE, _LEAD_CAP_BUSY = 0.5, 0.9
"""Of what a step may take at most: no longer lead is asked for, however long prompts are. The cap
is the part of the device that decodes and prompts need, between these two: where they need most of
it, what is lent is given back slowly."""


class StepPlanner:
    """Rows of latency-sensitive requests first, then best-effort rows, then lane entries."""

    def __init__(
        self,
        settings: SchedulerSettings,
        limits: PiggybackLimits,
        queues: RequestQueues,
        residency: Residency,
        preemptor: Preemptor,
        piggyback: Piggyback,
        flights: Flights,
        control: StepControl,
        first_tokens: FirstTokenForecast,
        pressure: UrgentPressure,
        forecast: KvForecast | None,
    ) -> None:
        self.ls_outcome = Room.ENOUGH
        """Where the latency-sensitive part of the last plan had to stop."""
        self.host_rests = False
        """While true no lane row joins a step."""
        self._allowed = Allowed()
        """By the decodes of the plan that is being made."""
        self._settings = settings
        self._limits = limits
        self._residency = residency
        self._preemptor = preemptor
        self._piggyback = piggyback
        self._flights = flights
        self._queues = queues
        self._control = control
        self._first_tokens = first_tokens
        self._pressure = pressure
        self._classes = ClassPlanner(queues, residency, preemptor, forecast)
        self._returner = Returner(limits, queues, residency, preemptor, piggyback)
        self.host_yielder = HostYielder(queues, piggyback, self._returner)
        """For whoever shares the host's memory out among models."""

    def plan_latency_sensitive(self, load: StepLoad | None) -> StepPlan | None:
        """A plan that may overtake those in flight which carry best-effort rows."""
        step = self._begin(load, self._flights.ids_beside_best_effort())
        return self._finish(step) if step.has_rows else None

    def plan(
        self,
        load: StepLoad | None,
        max_best_effort_tokens: int | None,
        max_best_effort_s: float,
        num_ready_lane_rows: int,
    ) -> StepPlan | None:
        """A plan of both classes; None if there is nothing to do now."""
        step = self._begin(load, frozenset())
        if self.ls_outcome is Room.IN_FLIGHT and not step.has_rows:
            return None
        is_beside_ls = step.has_rows
        # Best-effort rows planned now would keep in flight what latency-sensitive work waits for.
        if self.ls_outcome is not Room.IN_FLIGHT:
            self._add_best_effort(step, max_best_effort_tokens, max_best_effort_s)
        else:
            self._classes.hold_back(ServiceClass.BEST_EFFORT, self._control.now_s)
            step.budget_s = min(step.budget_s, self._allowed.by_all_s)
        limits = step.lane_limits(self._max_lane_rows(is_beside_ls, max_best_effort_tokens))
        entries = self._piggyback.boundary.enter(limits.max_entries)
        self._piggyback.free_blocks_for_oldest()
        if step.has_rows or entries or (num_ready_lane_rows and limits.max_rows):
            return self._finish(step, entries, limits)
        return None

    def _begin(self, load: StepLoad | None, withheld_ids: frozenset[str]) -> StepBuilder:
        self._preemptor.begin_plan()
        self._piggyback.offloader.send_departing()
        self.host_yielder.send_arrived()
        step = StepBuilder(self._settings.max_step_tokens, load)
        running = self._queues.running[ServiceClass.LATENCY_SENSITIVE]
        withheld_ids = withheld_ids.union(self._preemptor.yielding)
        plannable = list_plannable(running, withheld_ids)
        least_chunk = self._settings.max_step_tokens
        if load is not None:
            least_chunk = self._hold_to_objectives(step, load, plannable)
        room = self._classes.plan_running(plannable, step, withheld_ids, least_chunk)
        if load is not None and room is Room.SHORT and not step.has_rows:
            room = self._let_prompts_go_on(step, plannable, withheld_ids)
        if room is Room.ENOUGH:
            service_class = ServiceClass.LATENCY_SENSITIVE
            room = self._classes.admit_waiting(
                service_class, step, self._control.now_s, least_chunk
            )
        else:
            self._classes.hold_back(ServiceClass.LATENCY_SENSITIVE, self._control.now_s)
        self.ls_outcome = room
        return step

    def _let_prompts_go_on(
        self,
        step: StepBuilder,
        plannable: Sequence[tuple[Request, int]],
        withheld_ids: Collection[str],
    ) -> Room:
        """Prompts that wait for decodes, where these find no room: they take no time from them, and
        may hold what these wait for. Other work still goes by the decodes, which go on soon."""
        step.forget_absent()
        step.budget_s = inf
        prompts = [each for each in plannable if each[1] > 1]
        least_chunk = self._settings.max_step_tokens
        room = self._classes.plan_running(prompts, step, withheld_ids, least_chunk)
        # Whatever the prompts find, decodes are left short.
        return room if room is Room.IN_FLIGHT else Room.SHORT

    def _hold_to_objectives(
        self, step: StepBuilder, load: StepLoad, plannable: Sequence[tuple[Request, int]]
    ) -> int:
        """Limits the step's time; returns the tokens that a prompt gets in it in any case."""
        decodes = [request for request, num_tokens in plannable if num_tokens == 1]
        step.expect_decodes(decodes)
        allowed = self._allowed = self._control.allowed(decodes, load.seconds)
        self._first_tokens.note_running(load.shape, allowed.token_s)
        self._pressure.note_running(load.shape, allowed.token_s if decodes else 0.0)
        step.budget_s = allowed.by_savable_s
        if not decodes:
            return self._settings.max_step_tokens
        # While there is time prompts wait for decodes to get ahead, and take what these can lend.
        now_s = self._control.now_s
        spare_s = self._first_tokens.spare_s(self._control.starts_s)
        if spare_s >= _EARLY * self._first_tokens.tightest_s(now_s):
            return 0
        if not self._first_tokens.is_overloaded(now_s):
            return self._settings.max_step_tokens
        # With too much work decodes would not get ahead again: prompts go on, but slowly.
        num_done = max((each.num_scheduled for each, num in plannable if num > 1), default=0)
        step.budget_s = max(step.budget_s, load.seconds_with(num_done, LEAST_CHUNK))
        return 0

    def _add_best_effort(self, step: StepBuilder, max_tokens: int | None, max_s: float) -> None:
        service_class = ServiceClass.BEST_EFFORT
        max_s = min(max_s, self._first_tokens.spare_s(self._control.starts_s))
        # A prompt may come at any moment. It waits for a step with latency-sensitive rows, which
        # nothing interrupts, and for one that uses the memory it needs.
        patience_s = inf
        if step.load is not None and (step.has_rows or self._is_memory_short):
            patience_s = _PATIENCE * self._first_tokens.tightest_s(self._control.now_s)
            patience_s = max(patience_s, _LEAST_STEPS * step.load.seconds_with(0, 1))
        # Decodes must be ahead by what it then takes from them.
        allowed = self._allowed
        lent_s = allowed.by_all_s - self.lead_s(allowed, self._control.now_s)
        max_s = min(max_s, max(0.0, lent_s))
        # By themselves decodes all go on: what one holds while it gets nothing is of no use.
        decodes_s = 0.0 if step.has_rows else min(step.budget_s, max_s)
        step.begin_best_effort(
            self._settings.best_effort_tokens_beside_ls, max_tokens, min(max_s, patience_s)
        )
        offloader = self._piggyback.offloader
        offloader.keep_to_limit()
        # More may depart while the plan is being made, so this is no copy.
        withheld_ids: Collection[str] = offloader.departing
        if self._preemptor.yielding:
            withheld_ids = ChainMap(offloader.departing, self._preemptor.yielding)
        plannable = list_plannable(self._queues.running[service_class], withheld_ids)
        step.expect_decodes_in_time(plannable, decodes_s)
        step.leave_time_for_chunk(plannable, max_s)
        room = self._classes.plan_running(plannable, step, withheld_ids)
        self._returner.consider(self._flights.next_plan_id)
        if room is Room.ENOUGH:
            self._classes.admit_waiting(service_class, step, self._control.now_s)
        else:
            self._classes.hold_back(service_class, self._control.now_s)

    def lead_s(self, allowed: Allowed, now_s: float) -> float:
        """By so much decodes with these times are to be ahead of them before best-effort work
        delays them. Who is lost has no lead to keep."""
        if allowed.by_savable_s == inf:
            return 0.0
        lead_s = _LEAD * self._pressure.next_prompt_s(now_s)
        lead_cap = min(_LEAD_CAP_BUSY, max(_LEAD_CAP_IDLE, self._first_tokens.needed_share(now_s)))
        lent_s = allowed.by_savable_s - min(lead_s, lead_cap * allowed.most_lent_s)
        return allowed.by_all_s - min(lent_s, allowed.by_lost_s)

    @property
    def _is_memory_short(self) -> bool:
        blocks, num_spare = self._residency.blocks, self._residency.num_spare_blocks
        return blocks.num_free + num_spare < _SHORT_SHARE * (blocks.num_granted + num_spare)

    def _max_lane_rows(self, is_beside_ls: bool, max_best_effort_tokens: int | None) -> int:
        limits = self._limits
        if self.host_rests:
            return 0
        num_rows = limits.max_lane_rows_beside_ls if is_beside_ls else limits.max_lane_rows
        return num_rows if max_best_effort_tokens is None else min(num_rows, max_best_effort_tokens)

    def _finish(
        self, step: StepBuilder, entries: tuple[LaneEntry, ...] = (), limits: LaneLimits = NO_LANES
    ) -> StepPlan:
        preempted_ids = self._preemptor.take_preempted_ids()
        return step.finish(self._flights.next_plan_id, preempted_ids, entries, limits)

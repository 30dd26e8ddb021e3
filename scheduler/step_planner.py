"""What the next step of a model is made of."""

from scheduler.class_planner import ClassPlanner
from scheduler.flights import Flights
from scheduler.piggyback import Piggyback
from scheduler.plan import LaneEntry, StepPlan
from scheduler.preemption import Preemptor, Room
from scheduler.queues import RequestQueues
from scheduler.request import ServiceClass
from scheduler.residency import Residency
from scheduler.returning import Returner
from scheduler.settings import PiggybackLimits, SchedulerSettings
from scheduler.step_builder import StepBuilder


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
    ) -> None:
        self.ls_outcome = Room.ENOUGH
        """Where the latency-sensitive part of the last plan had to stop."""
        self._settings = settings
        self._limits = limits
        self._preemptor = preemptor
        self._piggyback = piggyback
        self._flights = flights
        self._classes = ClassPlanner(queues, residency, preemptor)
        self._returner = Returner(limits, queues, residency, preemptor, piggyback)

    def plan_latency_sensitive(self) -> StepPlan | None:
        """A plan that may overtake those in flight which carry best-effort rows."""
        step = self._begin(self._flights.ids_beside_best_effort())
        return self._finish(step) if step.has_rows else None

    def plan(self, max_best_effort_tokens: int | None, num_ready_lane_rows: int) -> StepPlan | None:
        """A plan of both classes; None if there is nothing to do now."""
        step = self._begin(frozenset())
        if self.ls_outcome is Room.IN_FLIGHT and not step.has_rows:
            return None
        max_lane_rows = self._count_lane_rows(step.has_rows, max_best_effort_tokens)
        # Best-effort rows planned now would keep in flight what latency-sensitive work waits for.
        if self.ls_outcome is not Room.IN_FLIGHT:
            self._add_best_effort(step, max_best_effort_tokens)
        entries = self._piggyback.boundary.enter(max_lane_rows)
        self._piggyback.free_blocks_for_oldest()
        if step.has_rows or entries or (num_ready_lane_rows and max_lane_rows):
            return self._finish(step, entries, max_lane_rows)
        return None

    def _begin(self, withheld_ids: frozenset[str]) -> StepBuilder:
        self._preemptor.begin_plan()
        self._piggyback.offloader.send_departing()
        step = StepBuilder(self._settings.max_step_tokens)
        service_class = ServiceClass.LATENCY_SENSITIVE
        room = self._classes.plan_running(service_class, step, withheld_ids)
        if room is Room.ENOUGH:
            room = self._classes.admit_waiting(service_class, step)
        self.ls_outcome = room
        return step

    def _add_best_effort(self, step: StepBuilder, max_tokens: int | None) -> None:
        service_class = ServiceClass.BEST_EFFORT
        step.begin_best_effort(self._settings.best_effort_tokens_beside_ls, max_tokens)
        offloader = self._piggyback.offloader
        offloader.keep_to_limit()
        room = self._classes.plan_running(service_class, step, offloader.departing)
        self._returner.consider(self._flights.next_plan_id)
        if room is Room.ENOUGH:
            self._classes.admit_waiting(service_class, step)

    def _count_lane_rows(self, is_beside_ls: bool, max_best_effort_tokens: int | None) -> int:
        limits = self._limits
        num_rows = limits.max_lane_rows_beside_ls if is_beside_ls else limits.max_lane_rows
        return num_rows if max_best_effort_tokens is None else min(num_rows, max_best_effort_tokens)

    def _finish(
        self, step: StepBuilder, entries: tuple[LaneEntry, ...] = (), max_lane_rows: int = 0
    ) -> StepPlan:
        preempted_ids = self._preemptor.take_preempted_ids()
        return step.finish(self._flights.next_plan_id, preempted_ids, entries, max_lane_rows)

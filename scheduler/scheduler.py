"""The scheduling policy of one model: requests in, plans out."""

from scheduler.class_planner import ClassPlanner
from scheduler.completion import is_finished, record_rows
from scheduler.first_tokens import FirstTokens
from scheduler.flights import Flights
from scheduler.limits import find_max_total_tokens
from scheduler.plan import StepPlan, StepResult
from scheduler.preemption import Preemptor, Room
from scheduler.queues import RequestQueues, count_by_tier
from scheduler.request import Request, ServiceClass, Status
from scheduler.residency import Residency
from scheduler.settings import SchedulerSettings
from scheduler.step_builder import StepBuilder


class Scheduler:
    """Latency-sensitive before best-effort, first come first served inside a class.

    `schedule` may be called while earlier plans are in flight. Plans complete in the order in which
    they were made, except that one made with `latency_sensitive_only` may complete before earlier
    plans that carry best-effort rows.
    """

    def __init__(self, settings: SchedulerSettings) -> None:
        self._settings = settings
        self._queues = RequestQueues()
        self._residency = Residency(settings)
        self._preemptor = Preemptor(self._queues, self._residency)
        self._planner = ClassPlanner(self._queues, self._residency, self._preemptor)
        self._flights = Flights()
        self._first_tokens = FirstTokens()
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
        self, *, latency_sensitive_only: bool = False, best_effort_tokens: int | None = None
    ) -> StepPlan | None:
        """Plan the next step, or None if there is nothing to do before a plan completes.

        `best_effort_tokens` limits the best-effort rows of this plan further than the settings do.
        """
        step = StepBuilder(self._settings.max_step_tokens)
        withheld_ids = (
            self._flights.ids_beside_best_effort() if latency_sensitive_only else frozenset()
        )
        ls_outcome = self._planner.plan_class(ServiceClass.LATENCY_SENSITIVE, step, withheld_ids)
        self._first_tokens.last_outcome = ls_outcome
        # Best-effort rows planned now would keep in flight what latency-sensitive work waits for.
        if ls_outcome is not Room.IN_FLIGHT and not latency_sensitive_only:
            step.begin_best_effort(self._settings.best_effort_tokens_beside_ls, best_effort_tokens)
            self._planner.plan_class(ServiceClass.BEST_EFFORT, step)
        plan = step.finish(self._flights.next_plan_id, self._preemptor.take_preempted_ids())
        if plan is not None:
            self._flights.depart(plan)
        return plan

    def complete(self, plan: StepPlan, result: StepResult) -> tuple[Request, ...]:
        """Record what a plan computed; returns the requests that finished with it."""
        self._flights.land(plan)
        finished = []
        for rows in plan.rows:
            request = self._queues.by_id[rows.request_id]
            request.num_plans_in_flight -= 1
            if request.status is Status.FINISHED:
                self._drain(request)
                continue
            record_rows(request, rows, result)
            self._residency.publish(request, rows.start)
            if rows.samples:
                self._first_tokens.stop_expecting(request.request_id)
            if is_finished(request, result):
                self._end(request)
                finished.append(request)
        if plan.has_best_effort:
            self._first_tokens.last_outcome = Room.ENOUGH
        return tuple(finished)

    def _end(self, request: Request) -> None:
        self._queues.end(request)
        self._first_tokens.stop_expecting(request.request_id)
        self._first_tokens.last_outcome = Room.ENOUGH
        if not request.num_plans_in_flight:
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

    def running_by_tier(self) -> dict[str, int]:
        return count_by_tier(self._queues.running.values())

    def waiting_by_tier(self) -> dict[str, int]:
        return count_by_tier(self._queues.waiting.values())

    @property
    def num_used_blocks(self) -> int:
        """KV blocks held by requests; cached blocks that nobody holds count as free."""
        return self._residency.blocks.num_used

    @property
    def num_preemptions(self) -> int:
        return self._preemptor.num_preemptions

    @property
    def num_cached_prompt_tokens(self) -> int:
        """Prompt tokens that the prefix cache held when their request was first admitted."""
        return self._residency.num_cached_prompt_tokens

    @property
    def has_unfinished(self) -> bool:
        return bool(self.num_running or self.num_waiting)

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

    def check_integrity(self) -> None:
        """Raise IntegrityError where requests, queues, slots, blocks and plans disagree."""
        self._queues.check_integrity()
        self._residency.check_integrity(list(self._queues.holders))
        self._flights.check_integrity(self._queues.by_id.values())

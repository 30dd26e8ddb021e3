"""What holds for every plan that is held to objectives, worked out from the plan itself."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Any

import pytest
from builders_scheduler import BE, LS

from scheduler import PlannedRows, Request, Scheduler, StepPlan
from scheduler.fair_share import OUTPUT_TOKEN, PROMPT_TOKEN
from scheduler.pace import Allowed
from scheduler.plan_shape import shape_of
from scheduler.preemption import Room
from scheduler.step_books import KINDS
from scheduler.step_builder import StepBuilder
from scheduler.step_load import StepLoad
from scheduler.step_time import StepCosts

AGE_S = 60.0
_MOST_LENT = 3.0


@dataclass(frozen=True)
class Before:
    """What there was when a plan was asked for."""

    now_s: float
    running_ids: frozenset[str]
    waiting: dict[str, Request]


class ControlChecks:
    """Looks at what the scheduler reckons with, and holds its plans to that."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.is_fair = True
        """Whether nothing has happened that fairness between tenants makes way for."""
        self._largest_cost = 0.0
        """Of a request, if all of it is computed."""
        self._costs: StepCosts | None = None
        self._urgent_budget_s = self._best_effort_budget_s = inf
        self._least_chunk = 0
        self._watch()

    def _watch(self) -> None:
        """Remembers the costs and the budget of the plan that is being made."""
        control = self.scheduler._control
        begin, allowed = control.begin, control.allowed

        def watched_begin(now_s: float, **options: bool) -> StepLoad | None:
            load = begin(now_s, **options)
            assert load is not None
            self._costs = load._costs
            return load

        def watched_allowed(running: Iterable[Request], fastest_s: float) -> Allowed:
            decodes = list(running)
            found = allowed(decodes, fastest_s)
            # None of those that have their first token sees a longer pause for best-effort work.
            paces = [r.objectives.tpot_s for r in decodes if r.objectives and r.first_token_s]
            assert found.by_all_s <= max(fastest_s, _MOST_LENT * min(paces, default=inf))
            assert fastest_s <= found.by_all_s
            self._best_effort_budget_s = found.by_all_s
            return found

        control.begin = watched_begin  # type: ignore[method-assign]
        control.allowed = watched_allowed  # type: ignore[method-assign]
        planner = self.scheduler._planner
        hold = planner._hold_to_objectives

        def watched_hold(step: StepBuilder, *arguments: Any) -> int:
            self._least_chunk = hold(step, *arguments)
            self._urgent_budget_s = step.budget_s
            return self._least_chunk

        planner._hold_to_objectives = watched_hold  # type: ignore[method-assign, assignment]
        let_go_on = planner._let_prompts_go_on

        def watched_going_on(step: StepBuilder, *arguments: Any) -> Room:
            # Of decodes that find no room none is delayed.
            self._urgent_budget_s = inf
            return let_go_on(step, *arguments)

        planner._let_prompts_go_on = watched_going_on  # type: ignore[method-assign, assignment]

    def look(self, now_s: float) -> Before:
        queues = self.scheduler._queues
        waiting = {each.request_id: each for line in queues.waiting.values() for each in line}
        running_ids = {each.request_id for line in queues.running.values() for each in line}
        return Before(now_s, frozenset(running_ids), waiting)

    def check(self, before: Before, plan: StepPlan | None) -> None:
        """After a plan was made, or none."""
        claim = self.scheduler.claim(before.now_s)
        assert claim is None or not isnan(claim.begin_by_s + claim.step_s)
        if plan is not None:
            self._check_prediction(plan)
            self._check_urgent_rows(plan, before)
            self._check_best_effort_rows(plan, before)
        self._check_admission(before)

    # Budgets.

    def _seconds(self, rows: Sequence[PlannedRows]) -> float:
        assert self._costs is not None
        return self._costs.step_s(shape_of(StepPlan(0, tuple(rows))))

    def _check_prediction(self, plan: StepPlan) -> None:
        seconds = self._seconds(plan.rows)
        assert plan.predicted_s == pytest.approx(seconds), f"not what is planned: {plan}"

    def _check_urgent_rows(self, plan: StepPlan, before: Before) -> None:
        """Decodes join whatever they take, and so do prompts in a hurry; where these can wait,
        nothing takes the step beyond its budget."""
        urgent = [rows for rows in plan.rows if rows.service_class is LS]
        decodes = [r for r in urgent if r.num_tokens == 1 and r.request_id in before.running_ids]
        chunks = [rows for rows in urgent if rows.num_tokens > 1]
        if chunks and not self._least_chunk:
            assert self._seconds([*decodes, *chunks]) <= _about(self._urgent_budget_s)

    def _check_best_effort_rows(self, plan: StepPlan, before: Before) -> None:
        """Nothing takes the step beyond its budget but the first token of who is admitted with a
        cached prefix."""
        if not plan.has_best_effort:
            return
        urgent = [rows for rows in plan.rows if rows.service_class is LS]
        most_s = max(self._best_effort_budget_s, self._seconds(urgent) if urgent else 0.0)
        assert plan.budget_s <= _about(most_s)
        counted = [
            rows
            for rows in plan.rows
            if rows.service_class is LS
            or rows.num_tokens > 1
            or rows.start == 0
            or rows.request_id in before.running_ids
        ]
        if any(rows.service_class is BE for rows in counted):
            assert self._seconds(counted) <= _about(plan.budget_s)

    def check_lanes(self, plan: StepPlan, granted: Sequence[int]) -> None:
        """Rows that may join at each layer keep to the time that the step has left."""
        limits = plan.lane_limits
        assert max(granted, default=0) <= limits.max_rows
        assert len(plan.lane_entries) <= limits.max_rows
        if limits.budget_s < inf:
            assert plan.predicted_s + limits.budget_s <= _about(plan.budget_s)
            seconds = sum(limits.seconds[num] for num in granted) / len(granted)
            assert seconds <= _about(limits.budget_s)

    # Order.

    def _check_admission(self, before: Before) -> None:
        """Who is lost does not go before who can be saved; who has waited too long goes first."""
        queues = self.scheduler._queues
        for service_class in (LS, BE):
            left = [
                each for each in queues.waiting[service_class] if each.request_id in before.waiting
            ]
            admitted = [
                each
                for each in before.waiting.values()
                if each.service_class is service_class and each.request_id not in _ids(left)
            ]
            for request in admitted:
                _check_turn(request, left, before.now_s)

    # Fairness.

    def note_added(self, request: Request) -> None:
        most_output = OUTPUT_TOKEN * (request.max_total_tokens - request.num_prompt_tokens)
        cost = PROMPT_TOKEN * request.num_prompt_tokens + most_output
        self._largest_cost = max(self._largest_cost, cost)

    def check_fairness(self, now_s: float) -> None:
        """Tenants with waiting requests have had the same but for what can run at one time: the
        turn is that of who had least, and what has begun may go on to its end."""
        line = self.scheduler._queues.waiting[BE]
        if any(now_s - request.arrival_s >= AGE_S for request in line):
            self.is_fair = False
        if not self.is_fair:
            return
        settings = self.scheduler.settings
        num_lanes = settings.piggyback.num_lanes if settings.piggyback else 0
        bound = self._largest_cost * (settings.max_running_requests + num_lanes)
        given = self.scheduler.counts.given_to_waiting_tenants(BE).values()
        if given:
            assert max(given) - min(given) <= bound

    # Books.

    def check_books(self, num_steps: int) -> None:
        """Of all that was completed."""
        books = self.scheduler.step_books
        assert books is not None and books.num_steps <= num_steps
        assert set(books.used_s) == set(KINDS)
        assert all(seconds >= -1e-12 for seconds in books.used_s.values())
        # Steps that were interrupted count as work, but not as predictions.
        assert books.predicted_s <= _about(sum(books.used_s.values()))


def _check_turn(request: Request, left: Sequence[Request], now_s: float) -> None:
    """`request` was admitted while `left` of its class went on waiting."""
    if now_s - request.arrival_s >= AGE_S:
        return
    aged = [each.request_id for each in left if now_s - each.arrival_s >= AGE_S]
    assert not aged, f"{request.request_id} goes before {aged}, which have waited too long"
    if not _is_lost(request, now_s):
        return
    saved = [
        each.request_id
        for each in left
        if each.tenant == request.tenant and not _is_lost(each, now_s)
    ]
    assert not saved, f"{request.request_id}, which is lost, goes before {saved}"


def _is_lost(request: Request, now_s: float) -> bool:
    return request.first_token_s is None and request.due_s < now_s


def _ids(requests: Sequence[Request]) -> set[str]:
    return {request.request_id for request in requests}


def _about(seconds: float) -> float:
    return seconds * (1 + 1e-9) + 1e-12

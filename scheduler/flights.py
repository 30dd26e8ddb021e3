"""Plans that were handed out and have not come back."""

from collections import Counter
from collections.abc import Iterable

from scheduler.integrity import require_equal
from scheduler.plan import StepPlan
from scheduler.request import Request, Status


class Flights:
    """Plans in flight, by id."""

    def __init__(self) -> None:
        self._plans: dict[int, StepPlan] = {}
        self.next_plan_id = 0

    def __len__(self) -> int:
        return len(self._plans)

    def depart(self, plan: StepPlan) -> None:
        self._plans[plan.plan_id] = plan
        self.next_plan_id = plan.plan_id + 1

    def land(self, plan: StepPlan) -> None:
        assert self._plans.get(plan.plan_id) is plan, f"plan {plan.plan_id} is not in flight"
        del self._plans[plan.plan_id]

    def ids_beside_best_effort(self) -> frozenset[str]:
        """Requests whose next rows may not overtake a plan in flight, as they are part of it."""
        return frozenset(
            rows.request_id
            for plan in self._plans.values()
            if plan.has_best_effort
            for rows in plan.rows
        )

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Raise IntegrityError unless the counts in `requests` are those of the plans in flight."""
        num_plans: Counter[str] = Counter()
        num_tokens: Counter[str] = Counter()
        for plan in self._plans.values():
            num_plans.update(rows.request_id for rows in plan.rows)
            num_tokens.update({rows.request_id: rows.num_tokens for rows in plan.rows})
        for request in requests:
            request_id = request.request_id
            in_flight = request.num_plans_in_flight
            require_equal(f"plans in flight of {request_id}", in_flight, num_plans[request_id])
            # What an ended request still computes is not recorded any more.
            if request.status is not Status.FINISHED:
                scheduled = request.num_scheduled - request.num_computed
                require_equal(
                    f"tokens in flight of {request_id}", scheduled, num_tokens[request_id]
                )

"""What steps are reckoned to take behind others, and what of the time between counts as theirs."""

from dataclasses import replace

import pytest
from builders_control import COSTS, SETTINGS, make_request

from scheduler import Scheduler, StepResult
from scheduler.plan import StepPlan
from scheduler.plan_shape import shape_of
from scheduler.step_time import LinearStepTime, coldness_after

COLD = replace(COSTS, cold_step_s=3e-3)


def plans_of(scheduler: Scheduler) -> list[StepPlan]:
    """Of steps that take what they are reckoned to take."""
    plans, now_s = [], 0.0
    while (plan := scheduler.schedule(now_s=now_s)) is not None:
        now_s += plan.predicted_s
        sampled = {rows.request_id: 1 for rows in plan.rows if rows.samples}
        scheduler.complete(plan, StepResult(sampled), now_s=now_s)
        plans.append(plan)
    return plans


def test_decodes_behind_a_prompt_are_reckoned_with_what_it_left() -> None:
    scheduler = Scheduler(SETTINGS, step_time=LinearStepTime(COLD))
    scheduler.add(make_request("r", 100, 6))
    coldness, surplus_s = 0.0, []
    for plan in plans_of(scheduler):
        shape = replace(shape_of(plan), coldness=coldness)
        assert plan.predicted_s == pytest.approx(COLD.step_s(shape))
        surplus_s.append(plan.predicted_s - COLD.step_s(shape_of(plan)))
        coldness = coldness_after(coldness, plan.num_tokens)
    assert surplus_s[0] == 0.0
    assert surplus_s[1] == pytest.approx(3e-3 * 100 / 128 / 2)
    assert surplus_s[1:] == sorted(surplus_s[1:], reverse=True)


@pytest.mark.parametrize(("pause_s", "counted_s"), [(4e-4, 4e-4), (0.5, 0.0)])
def test_messages_between_steps_are_part_of_them_but_waiting_is_not(
    pause_s: float, counted_s: float
) -> None:
    scheduler = Scheduler(SETTINGS, step_time=LinearStepTime(COSTS))
    scheduler.add(make_request("r", 30, 3))
    now_s = 1.0
    for _ in range(3):
        plan = scheduler.schedule(now_s=now_s)
        assert plan is not None
        scheduler.complete(plan, StepResult({"r": 1}), now_s=now_s + 0.01)
        now_s += 0.01 + pause_s
    books = scheduler.step_books
    assert books is not None
    assert books.measured_s == pytest.approx(3 * 0.01 + 2 * counted_s)

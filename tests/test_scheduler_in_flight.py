"""Memory that plans in flight use: who waits for it, and who goes on meanwhile."""

import pytest
from builders_scheduler import (
    add_all,
    describe,
    finish_plan,
    make_request,
    make_scheduler,
    run_step,
    take_plan,
)


def test_latency_sensitive_work_waits_one_step_for_memory_in_flight() -> None:
    scheduler = make_scheduler(num_blocks=4, max_model_len=17)
    add_all(scheduler, [make_request("ls1", 1), make_request("be1", 6)])
    first = take_plan(scheduler)
    scheduler.add(make_request("ls2", 7))
    second = take_plan(scheduler)
    # be1 could go on, but would then be in flight again when ls2 asks the next time.
    assert describe(second) == "ls1@1+1?*"
    finish_plan(scheduler, first)
    assert describe(take_plan(scheduler)) == "ls1@2+1?* ls2@0+7* -be1"


def test_best_effort_that_is_idle_yields_before_one_in_flight() -> None:
    scheduler = make_scheduler(num_blocks=4, max_model_len=17, best_effort_tokens_beside_ls=1)
    add_all(scheduler, [make_request("be1", 1), make_request("be2", 1)])
    run_step(scheduler)
    first = scheduler.schedule(best_effort_tokens=1)
    assert describe(first) == "be1@1+1*"
    add_all(scheduler, [make_request("be3", 1), make_request("ls1", 9)])
    assert describe(take_plan(scheduler)) == "ls1@0+9* be1@2+1?* -be2"


def test_older_request_waits_one_step_for_younger_ones_in_flight() -> None:
    scheduler = make_scheduler(num_blocks=2, max_model_len=9)
    add_all(scheduler, [make_request("ls1", 3), make_request("ls2", 1)])
    first, second = take_plan(scheduler), take_plan(scheduler)
    assert describe(second) == "ls1@3+1?* ls2@1+1?*"
    assert scheduler.schedule() is None
    finish_plan(scheduler, first)
    # ls2 could go on, but would then be in flight again when ls1 asks the next time.
    assert scheduler.schedule() is None
    finish_plan(scheduler, second)
    assert describe(take_plan(scheduler)) == "ls1@4+1* -ls2"


@pytest.mark.parametrize("is_aborted", [False, True])
def test_latency_sensitive_growth_waits_for_a_parked_plan_rather_than_preempt_its_own_class(
    is_aborted: bool,
) -> None:
    scheduler = make_scheduler(num_blocks=3, max_model_len=13)
    scheduler.add(make_request("be1", 1))
    parked = take_plan(scheduler)
    add_all(scheduler, [make_request("ls1", 3), make_request("ls2", 1)])
    for expected in ("ls2@0+1* ls1@0+3*", "ls1@3+1* ls2@1+1*"):
        plan = take_plan(scheduler, latency_sensitive_only=True)
        assert describe(plan) == expected
        finish_plan(scheduler, plan)
    if is_aborted:
        scheduler.abort("be1")
    assert scheduler.schedule(latency_sensitive_only=True) is None
    finish_plan(scheduler, parked)
    assert run_step(scheduler) == "ls1@4+1* ls2@2+1*" + ("" if is_aborted else " -be1")


def test_plan_overtakes_with_memory_of_best_effort_work_that_is_not_parked() -> None:
    scheduler = make_scheduler(num_blocks=3, max_model_len=13)
    add_all(scheduler, [make_request("be1", 3), make_request("be2", 1)])
    run_step(scheduler)
    parked = scheduler.schedule(best_effort_tokens=1)
    assert parked is not None and describe(parked) == "be1@3+1*"
    scheduler.add(make_request("ls1", 7, max_tokens=1))
    urgent = take_plan(scheduler, latency_sensitive_only=True)
    assert describe(urgent) == "ls1@0+7* -be2"
    finish_plan(scheduler, urgent)
    finish_plan(scheduler, parked)
    assert run_step(scheduler) == "be1@4+1* be2@0+2*"

"""How requests end, and what holds while several plans are in flight."""

import pytest
from builders_scheduler import (
    add_all,
    describe,
    finish_plan,
    make_request,
    make_scheduler,
    results_of,
    run_step,
    run_steps,
    take_plan,
)

from scheduler import Status, StepPlan, StepResult


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "max_model_len", "num_outputs"),
    [(4, 1, 64, 1), (4, 3, 64, 3), (4, 9, 6, 2), (4, 2, 6, 2), (5, 9, 6, 1)],
)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_length_limits(
    num_prompt: int, max_tokens: int, max_model_len: int, num_outputs: int, depth: int
) -> None:
    scheduler = make_scheduler(max_model_len=max_model_len)
    requests = add_all(scheduler, [make_request("be1", num_prompt, max_tokens=max_tokens)])
    flights: list[StepPlan] = []
    num_sampled, ended = 0, list[str]()
    while scheduler.has_unfinished:
        while len(flights) < depth and (plan := scheduler.schedule()) is not None:
            flights.append(plan)
            num_sampled += 1
        ended += finish_plan(scheduler, flights.pop(0))
    assert ended == ["be1"] and not flights
    assert num_sampled == requests["be1"].num_output_tokens == num_outputs
    assert requests["be1"].status is Status.FINISHED


def test_engine_ends_a_request() -> None:
    scheduler = make_scheduler()
    add_all(scheduler, [make_request("be1"), make_request("be2")])
    plan = take_plan(scheduler)
    assert finish_plan(scheduler, plan, finished=["be1"]) == ["be1"]
    assert run_step(scheduler) == "be2@4+1*"


def test_request_that_ended_in_flight_holds_its_memory_until_its_last_plan_completes() -> None:
    scheduler = make_scheduler(num_blocks=3, max_model_len=12)
    requests = add_all(scheduler, [make_request("be1", 7, max_tokens=5)])
    first, second = take_plan(scheduler), take_plan(scheduler)
    assert finish_plan(scheduler, first, finished=["be1"]) == ["be1"]
    assert scheduler.counts.num_used_blocks == 2 and not scheduler.has_unfinished
    scheduler.add(make_request("ls1", 4))
    # The one free block is too few for ls1.
    assert scheduler.schedule() is None
    # The late result is ignored, whether the executor still reports it or not.
    assert finish_plan(scheduler, second) == []
    assert requests["be1"].num_output_tokens == 1
    assert run_step(scheduler) == "ls1@0+4*"


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_abort_frees_at_once_what_is_not_in_flight(num_steps: int) -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("be1"))
    run_steps(scheduler, num_steps)
    assert scheduler.abort("be1")
    assert not scheduler.abort("be1") and not scheduler.abort("unknown")
    assert (scheduler.counts.num_used_blocks, scheduler.has_unfinished) == (0, False)
    scheduler.check_integrity()
    scheduler.add(make_request("be1"))


def test_abort_in_flight_frees_when_the_plan_completes() -> None:
    scheduler = make_scheduler(max_running_requests=1)
    scheduler.add(make_request("be1"))
    plan = take_plan(scheduler)
    assert scheduler.abort("be1")
    scheduler.check_integrity()
    with pytest.raises(ValueError, match="in use"):
        scheduler.add(make_request("be1"))
    scheduler.add(make_request("be2"))
    assert scheduler.schedule() is None
    assert scheduler.complete(plan, StepResult()) == ()
    scheduler.check_integrity()
    assert run_step(scheduler) == "be2@0+4*"


# Several plans in flight


def test_next_decode_is_planned_before_its_token_is_known() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("ls1", max_tokens=3))
    plans = [take_plan(scheduler) for _ in range(3)]
    assert [describe(plan) for plan in plans] == ["ls1@0+4*", "ls1@4+1?*", "ls1@5+1?*"]
    assert scheduler.schedule() is None
    assert [finish_plan(scheduler, plan) for plan in plans] == [[], [], ["ls1"]]


def test_request_that_needs_known_tokens_waits_for_them() -> None:
    scheduler = make_scheduler(max_step_tokens=3)
    scheduler.add(make_request("ls1", 5, needs_known_tokens=True))
    first, second = take_plan(scheduler), take_plan(scheduler)
    assert [describe(first), describe(second)] == ["ls1@0+3", "ls1@3+2*"]
    assert scheduler.schedule() is None
    finish_plan(scheduler, first)
    assert scheduler.schedule() is None
    finish_plan(scheduler, second)
    assert run_step(scheduler) == "ls1@5+1*"


def test_latency_sensitive_plan_completes_before_an_earlier_best_effort_plan() -> None:
    scheduler = make_scheduler()
    requests = add_all(scheduler, [make_request("be1", range(8))])
    parked = take_plan(scheduler)
    requests |= add_all(scheduler, [make_request("ls1", range(8))])
    urgent = take_plan(scheduler, latency_sensitive_only=True)
    assert describe(urgent) == "ls1@0+8*"
    finish_plan(scheduler, urgent)
    next_urgent = take_plan(scheduler, latency_sensitive_only=True)
    finish_plan(scheduler, next_urgent)
    finish_plan(scheduler, parked)
    assert [request.num_output_tokens for request in requests.values()] == [1, 2]
    assert run_step(scheduler) == "ls1@9+1* be1@8+1*"


def test_rows_that_ride_with_best_effort_ones_are_not_continued_ahead_of_them() -> None:
    scheduler = make_scheduler()
    add_all(scheduler, [make_request("ls1"), make_request("be1")])
    mixed = take_plan(scheduler)
    assert scheduler.schedule(latency_sensitive_only=True) is None
    scheduler.add(make_request("ls2"))
    urgent = take_plan(scheduler, latency_sensitive_only=True)
    assert describe(urgent) == "ls2@0+4*"
    # A pipelined plan comes after both, so it may continue everything.
    assert describe(take_plan(scheduler)) == "ls1@4+1?* ls2@4+1?* be1@4+1?*"
    finish_plan(scheduler, urgent)
    finish_plan(scheduler, mixed)


def test_plan_completes_once() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("ls1"))
    plan = take_plan(scheduler)
    finish_plan(scheduler, plan)
    with pytest.raises(AssertionError, match="plan 0 is not in flight"):
        scheduler.complete(plan, results_of(plan))


def test_rows_of_one_request_complete_in_order() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("ls1"))
    take_plan(scheduler)
    second = take_plan(scheduler)
    with pytest.raises(AssertionError, match="ls1: rows from 4 completed after 0"):
        scheduler.complete(second, results_of(second))

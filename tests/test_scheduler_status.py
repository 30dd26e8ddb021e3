"""What the scheduler tells others, and the check of its own state."""

from array import array

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

from scheduler import IntegrityError, Request, ServiceClass, Status


def test_counts() -> None:
    scheduler = make_scheduler(max_running_requests=2)
    assert not scheduler.has_latency_sensitive_work
    names = {"ls1": "chat", "ls2": "voice", "be1": "batch", "be2": "batch"}
    add_all(scheduler, [make_request(name, tier=tier) for name, tier in names.items()])
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 4)
    run_step(scheduler)
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 2)
    assert scheduler.counts.running_by_tier() == {"chat": 1, "voice": 1}
    assert scheduler.counts.waiting_by_tier() == {"batch": 2}
    assert scheduler.has_latency_sensitive_work and scheduler.counts.num_used_blocks == 2
    assert repr(scheduler) == (
        "Scheduler(2 running, 2 waiting, 0 plans in flight, "
        "BlockManager(2 used, 62 free, 0 free and cached))"
    )
    scheduler.abort("ls1")
    scheduler.abort("ls2")
    assert scheduler.has_unfinished and not scheduler.has_latency_sensitive_work


def test_requests_that_run_without_a_token_are_prefilling() -> None:
    scheduler = make_scheduler(max_step_tokens=4)
    add_all(scheduler, [make_request("ls1", 6), make_request("ls2", 6)])
    assert scheduler.counts.prefilling_ids() == ()
    run_step(scheduler)
    assert scheduler.counts.prefilling_ids() == ("ls1",)
    for _ in range(4):
        run_step(scheduler)
    assert scheduler.num_running == 2 and scheduler.counts.prefilling_ids() == ()


def test_first_tokens_are_awaited_until_they_come() -> None:
    scheduler = make_scheduler(max_step_tokens=4)
    scheduler.add(make_request("be1"))
    assert not scheduler.awaits_first_token
    scheduler.add(make_request("ls1", 8))
    awaited = []
    for _ in range(3):
        awaited.append(scheduler.awaits_first_token)
        run_step(scheduler)
    assert awaited == [True, True, False]
    scheduler.add(make_request("ls2"))
    assert scheduler.awaits_first_token
    scheduler.abort("ls2")
    assert not scheduler.awaits_first_token


def test_first_token_is_not_urgent_while_plans_in_flight_hold_it_up() -> None:
    scheduler = make_scheduler(num_blocks=4, max_model_len=12)
    scheduler.add(make_request("be1", 8))
    parked = take_plan(scheduler)
    scheduler.add(make_request("ls1", 8))
    assert scheduler.awaits_first_token
    assert scheduler.schedule(latency_sensitive_only=True) is None
    assert not scheduler.awaits_first_token
    finish_plan(scheduler, parked)
    assert scheduler.awaits_first_token
    assert run_step(scheduler) == "ls1@0+8* -be1"


def test_chunk_that_plans_in_flight_hold_up_is_not_urgent() -> None:
    scheduler = make_scheduler(num_blocks=5, max_step_tokens=4, max_model_len=13)
    scheduler.add(make_request("be1", 3))
    parked = take_plan(scheduler)
    scheduler.add(make_request("ls1", 3))
    finish_plan(scheduler, take_plan(scheduler, latency_sensitive_only=True))
    scheduler.add(make_request("ls2", 10))
    urgent = []
    while scheduler.awaits_first_token:
        plan = take_plan(scheduler, latency_sensitive_only=True)
        finish_plan(scheduler, plan)
        urgent.append(describe(plan))
    # ls1 grew into the last block that ls2 was to have.
    assert urgent == ["ls1@3+1* ls2@0+3", "ls1@4+1* ls2@3+3", "ls1@5+1*"]
    finish_plan(scheduler, parked)
    assert scheduler.awaits_first_token


def test_first_token_behind_other_latency_sensitive_work_is_not_urgent() -> None:
    scheduler = make_scheduler(max_running_requests=1)
    scheduler.add(make_request("ls1", max_tokens=2))
    run_step(scheduler)
    scheduler.add(make_request("ls2"))
    assert scheduler.awaits_first_token
    assert describe(plan := take_plan(scheduler)) == "ls1@4+1*"
    assert not scheduler.awaits_first_token
    assert finish_plan(scheduler, plan) == ["ls1"]
    assert scheduler.awaits_first_token


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("slot", 5),
        ("block_ids", [0, 0]),
        ("status", Status.WAITING),
        ("num_plans_in_flight", 1),
        ("num_scheduled", 3),
        ("num_scheduled", 9),
        ("arrival_index", 4),
    ],
)
def test_integrity_check_sees_what_is_wrong(field: str, value: object) -> None:
    scheduler = make_scheduler()
    requests = add_all(scheduler, [make_request("be1"), make_request("be2")])
    run_step(scheduler)
    scheduler.check_integrity()
    setattr(requests["be1"], field, value)
    with pytest.raises(IntegrityError, match=" != "):
        scheduler.check_integrity()


def test_a_request_counts_its_tokens() -> None:
    request = Request("a", ServiceClass.BEST_EFFORT, "batch", 0.0, array("q", [1, 2, 3]), 5)
    assert (request.num_prompt_tokens, request.num_output_tokens) == (3, 0)
    request.token_ids.append(4)
    request.num_pending_samples = 1
    assert (request.num_output_tokens, request.num_unscheduled) == (1, 5)

"""What is planned in which state: order, budgets, admission, progress of a request."""

from array import array

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

from scheduler import IntegrityError, Request, ServiceClass, Status, StepResult


@pytest.mark.parametrize(
    ("prompts", "budget", "beside_ls", "expected"),
    [
        pytest.param(
            {"be1": 4, "ls1": 4, "be2": 4, "ls2": 4},
            32,
            32,
            ["ls1@0+4* ls2@0+4* be1@0+4* be2@0+4*", "ls1@4+1* ls2@4+1* be1@4+1* be2@4+1*"],
            id="LS before BE, first come first served inside a class",
        ),
        pytest.param(
            {"be1": 20},
            8,
            2,
            ["be1@0+8", "be1@8+8", "be1@16+4*", "be1@20+1*"],
            id="a prefill is cut into chunks of the budget; without LS rows BE has all of it",
        ),
        pytest.param(
            {"ls1": 1, "ls2": 12},
            8,
            8,
            ["ls1@0+1* ls2@0+7", "ls1@1+1* ls2@7+5*", "ls1@2+1* ls2@12+1*"],
            id="decodes before prefill chunks",
        ),
        pytest.param(
            {"ls1": 12, "ls2": 1},
            6,
            8,
            ["ls1@0+6", "ls1@6+6*", "ls1@12+1* ls2@0+1*"],
            id="nobody is admitted while the budget is used up",
        ),
        pytest.param(
            {"ls1": 1, "be1": 10},
            32,
            4,
            ["ls1@0+1* be1@0+4", "ls1@1+1* be1@4+4", "ls1@2+1* be1@8+2*", "ls1@3+1* be1@10+1*"],
            id="BE rows beside LS rows are limited",
        ),
        pytest.param(
            {"ls1": 6, "be1": 10},
            8,
            4,
            ["ls1@0+6* be1@0+2", "ls1@6+1* be1@2+4"],
            id="BE gets no more than LS leaves of the budget",
        ),
        pytest.param(
            {"ls1": 1, "be1": 1, "be2": 1, "be3": 9},
            32,
            3,
            [
                "ls1@0+1* be1@0+1* be2@0+1* be3@0+1",
                "ls1@1+1* be1@1+1* be2@1+1* be3@1+1",
            ],
            id="the limit holds for BE decodes and chunks together",
        ),
        pytest.param(
            {"ls1": 1, "be1": 4}, 32, 0, ["ls1@0+1*", "ls1@1+1*"], id="BE may get nothing"
        ),
    ],
)
def test_order_and_budgets(
    prompts: dict[str, int], budget: int, beside_ls: int, expected: list[str]
) -> None:
    scheduler = make_scheduler(max_step_tokens=budget, best_effort_tokens_beside_ls=beside_ls)
    add_all(scheduler, [make_request(name, prompt) for name, prompt in prompts.items()])
    assert run_steps(scheduler, len(expected)) == expected


def test_old_prefill_and_young_decode_share_the_budget() -> None:
    scheduler = make_scheduler(max_step_tokens=6)
    scheduler.add(make_request("ls1", 30))
    assert run_step(scheduler) == "ls1@0+6"
    scheduler.add(make_request("ls2", 1))
    # The chunk would take the whole budget again, so the newcomer waits; a decode would not.
    assert run_steps(scheduler, 4)[-1] == "ls1@24+6*"
    assert run_step(scheduler) == "ls1@30+1* ls2@0+1*"


def test_caller_can_limit_best_effort_rows_further() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("be1", 10))
    assert describe(scheduler.schedule(best_effort_tokens=3)) == "be1@0+3"
    assert describe(scheduler.schedule(best_effort_tokens=0)) == "nothing"
    assert describe(scheduler.schedule(best_effort_tokens=99)) == "be1@3+7*"


def test_latency_sensitive_only_leaves_best_effort_out() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("be1"))
    assert scheduler.schedule(latency_sensitive_only=True) is None
    scheduler.add(make_request("ls1"))
    assert describe(scheduler.schedule(latency_sensitive_only=True)) == "ls1@0+4*"


def test_nothing_to_do() -> None:
    scheduler = make_scheduler()
    assert scheduler.schedule() is None
    assert not scheduler.has_unfinished


def test_rows_carry_tokens_and_just_enough_new_blocks() -> None:
    scheduler = make_scheduler(max_step_tokens=6)
    scheduler.add(make_request("ls1", range(10, 20)))
    first, second = take_plan(scheduler), take_plan(scheduler)
    third = take_plan(scheduler)
    (a,), (b,), (c,) = first.rows, second.rows, third.rows
    assert (a.token_ids, b.token_ids, c.token_ids) == ((*range(10, 16),), (*range(16, 20),), None)
    assert (a.first_new_block, len(a.new_block_ids)) == (0, 2)
    assert (b.first_new_block, len(b.new_block_ids)) == (2, 1)
    assert (c.first_new_block, c.new_block_ids) == (3, ())
    finish_plan(scheduler, first)
    finish_plan(scheduler, second)
    finish_plan(scheduler, third)
    (d,) = take_plan(scheduler).rows
    assert (d.token_ids, d.first_new_block, len(d.new_block_ids)) == ((7,), 3, 0)


# Admission


def test_slots_limit_how_many_run() -> None:
    scheduler = make_scheduler(max_running_requests=2)
    add_all(scheduler, [make_request(name, max_tokens=1) for name in ("be1", "be2", "be3")])
    plan = take_plan(scheduler)
    assert describe(plan) == "be1@0+4* be2@0+4*"
    assert sorted(rows.slot for rows in plan.rows) == [0, 1]
    assert finish_plan(scheduler, plan) == ["be1", "be2"]
    assert run_step(scheduler) == "be3@0+4*"


def test_admission_waits_for_room_for_all_known_tokens_and_one_more() -> None:
    scheduler = make_scheduler(num_blocks=5, max_model_len=21)
    add_all(scheduler, [make_request("be1", 8, max_tokens=2), make_request("be2", 12)])
    # be1 needs 2 blocks at once and is promised a third; be2 needs 3 and one more token's.
    assert run_steps(scheduler, 3) == ["be1@0+8*", "be1@8+1*", "be2@0+12*"]


def test_blocks_are_not_promised_twice() -> None:
    scheduler = make_scheduler(num_blocks=10, max_step_tokens=8)
    add_all(scheduler, [make_request("be1", 24, max_tokens=1), make_request("be2", 16)])
    # After one chunk of be1 8 blocks are free, but 4 of them are be1's: be2 needs 5.
    assert run_steps(scheduler, 3) == ["be1@0+8", "be1@8+8", "be1@16+8*"]
    assert run_step(scheduler) == "be2@0+8"
    assert scheduler.num_preemptions == 0


def test_head_of_line_is_not_overtaken_inside_its_class() -> None:
    scheduler = make_scheduler(num_blocks=6, max_step_tokens=64, max_model_len=24)
    add_all(scheduler, [make_request("be1", 8), make_request("be2", 16), make_request("be3", 1)])
    assert run_step(scheduler) == "be1@0+8*"


def test_last_token_of_a_sequence_needs_no_place() -> None:
    scheduler = make_scheduler(num_blocks=2)
    scheduler.add(make_request("be1", 8, max_tokens=1))
    assert run_step(scheduler) == "be1@0+8*"
    assert not scheduler.has_unfinished


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (make_request("be1"), "request id 'be1' is in use"),
        (make_request("be2", 0), "prompt has 0 tokens, allowed are 1 to 31"),
        (make_request("be2", 32), "prompt has 32 tokens, allowed are 1 to 31"),
        (make_request("be2", max_tokens=0), "max_tokens is 0, it must be at least 1"),
        (make_request("be2", 10, max_tokens=12), "need 21 KV places, the pool has 20"),
    ],
)
def test_impossible_requests_are_refused(request_: Request, message: str) -> None:
    scheduler = make_scheduler(num_blocks=5, max_model_len=32)
    scheduler.add(make_request("be1"))
    with pytest.raises(ValueError, match=message):
        scheduler.add(request_)
    assert scheduler.num_waiting == 1
    scheduler.check_integrity()


# Prefix cache


def test_second_request_reuses_full_blocks_of_the_first() -> None:
    scheduler = make_scheduler()
    requests = add_all(scheduler, [make_request("be1", range(10), max_tokens=1)])
    first = take_plan(scheduler)
    finish_plan(scheduler, first)
    requests |= add_all(scheduler, [make_request("be2", [*range(8), 90, 91, 92])])
    second = take_plan(scheduler)
    assert describe(second) == "be2@8+3*"
    assert second.rows[0].new_block_ids[:2] == first.rows[0].new_block_ids[:2]
    assert second.rows[0].first_new_block == 0
    assert requests["be2"].num_cached_tokens == 8
    assert scheduler.num_cached_prompt_tokens == 8


def test_last_known_token_is_always_computed() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("be1", range(8), max_tokens=1))
    run_step(scheduler)
    scheduler.add(make_request("be2", range(8)))
    assert run_step(scheduler) == "be2@4+4*"


def test_output_tokens_are_cached_too() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("be1", [1, 2, 3], max_tokens=6))
    run_steps(scheduler, 6)
    assert not scheduler.has_unfinished
    scheduler.add(make_request("be2", [1, 2, 3, 7, 7, 7, 7, 7, 9]))
    assert run_step(scheduler) == "be2@8+1*"


def test_blocks_are_shared_only_after_the_plan_that_wrote_them_completed() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("be1", range(9)))
    first = take_plan(scheduler)
    scheduler.add(make_request("be2", range(9)))
    second = take_plan(scheduler)
    assert describe(second) == "be1@9+1?* be2@0+9*"
    assert not {*first.rows[0].new_block_ids} & {*second.rows[1].new_block_ids}
    finish_plan(scheduler, first)
    scheduler.add(make_request("be3", range(9)))
    assert describe(take_plan(scheduler)) == "be1@10+1?* be2@9+1?* be3@8+1*"


def test_cached_block_is_shared_by_two_running_requests() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("be1", range(4), max_tokens=1))
    run_step(scheduler)
    add_all(scheduler, [make_request("be2", range(6)), make_request("be3", range(5))])
    plan = take_plan(scheduler)
    assert describe(plan) == "be3@4+1* be2@4+2*"
    assert plan.rows[0].new_block_ids[0] == plan.rows[1].new_block_ids[0]
    assert scheduler.num_used_blocks == 3


def test_without_prefix_caching_nothing_is_shared() -> None:
    scheduler = make_scheduler(prefix_caching=False)
    scheduler.add(make_request("be1", range(9), max_tokens=1))
    run_step(scheduler)
    scheduler.add(make_request("be2", range(9)))
    assert run_step(scheduler) == "be2@0+9*"
    assert scheduler.num_cached_prompt_tokens == 0


# Ends


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
    flights, num_sampled, ended = [], 0, []
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
    assert scheduler.num_used_blocks == 2 and not scheduler.has_unfinished
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
    assert (scheduler.num_used_blocks, scheduler.has_unfinished) == (0, False)
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


# What others see


def test_counts() -> None:
    scheduler = make_scheduler(max_running_requests=2)
    assert not scheduler.has_latency_sensitive_work
    names = {"ls1": "chat", "ls2": "voice", "be1": "batch", "be2": "batch"}
    add_all(scheduler, [make_request(name, tier=tier) for name, tier in names.items()])
    assert (scheduler.num_running, scheduler.num_waiting) == (0, 4)
    run_step(scheduler)
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 2)
    assert scheduler.running_by_tier() == {"chat": 1, "voice": 1}
    assert scheduler.waiting_by_tier() == {"batch": 2}
    assert scheduler.has_latency_sensitive_work and scheduler.num_used_blocks == 2
    assert repr(scheduler) == (
        "Scheduler(2 running, 2 waiting, 0 plans in flight, "
        "BlockManager(2 used, 62 free, 0 free and cached))"
    )
    scheduler.abort("ls1")
    scheduler.abort("ls2")
    assert scheduler.has_unfinished and not scheduler.has_latency_sensitive_work


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

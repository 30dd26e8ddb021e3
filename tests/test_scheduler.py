"""What is planned in which state: order, budgets, admission, the prefix cache."""

import pytest
from builders_scheduler import (
    add_all,
    describe,
    finish_plan,
    make_request,
    make_scheduler,
    run_step,
    run_steps,
    take_plan,
)

from scheduler import Request


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
    assert scheduler.counts.num_cached_prompt_tokens == 8


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
    assert scheduler.counts.num_used_blocks == 3


def test_without_prefix_caching_nothing_is_shared() -> None:
    scheduler = make_scheduler(prefix_caching=False)
    scheduler.add(make_request("be1", range(9), max_tokens=1))
    run_step(scheduler)
    scheduler.add(make_request("be2", range(9)))
    assert run_step(scheduler) == "be2@0+9*"
    assert scheduler.counts.num_cached_prompt_tokens == 0

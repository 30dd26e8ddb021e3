"""Who yields memory and slots to whom, and how the one that yielded goes on."""

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

# Everybody in these tables has run for two steps: of a prompt of n tokens, n + 1 are computed. A
# block holds 4 tokens, so a prompt of 3 needs its second block now, and one of 1 or 2 does not.
GROWS, STAYS = 3, 1


@pytest.mark.parametrize(
    ("running", "newcomer", "num_blocks", "num_slots", "expected"),
    [
        pytest.param(
            {"be1": STAYS, "be2": STAYS},
            {"ls1": 3},
            5,
            2,
            "ls1@0+3* be1@2+1* -be2",
            id="a slot for LS comes from the youngest BE",
        ),
        pytest.param(
            {"be1": STAYS, "be2": STAYS, "be3": STAYS},
            {"ls1": 7},
            3,
            8,
            "ls1@0+7* be1@2+1* -be3 -be2",
            id="memory for LS comes from as many of the youngest BE as it takes",
        ),
        pytest.param(
            {"be1": STAYS},
            {"be2": 7},
            2,
            8,
            "be1@2+1*",
            id="BE gives no memory to admit BE",
        ),
        pytest.param(
            {"be1": STAYS},
            {"be2": 3},
            2,
            1,
            "be1@2+1*",
            id="BE gives no slot to admit BE",
        ),
        pytest.param(
            {"ls1": STAYS, "ls2": STAYS},
            {"ls3": 7},
            3,
            8,
            "ls1@2+1* ls2@2+1*",
            id="LS gives nothing to admit LS",
        ),
        pytest.param(
            {"ls1": STAYS, "ls2": STAYS, "be1": STAYS},
            {"ls3": 7},
            3,
            8,
            "ls1@2+1* ls2@2+1* be1@2+1*",
            id="nobody is preempted where it would not be enough",
        ),
        pytest.param(
            {"be1": GROWS, "be2": STAYS},
            {},
            3,
            8,
            "be1@4+1* be2@2+1*",
            id="growth takes a free block first",
        ),
        pytest.param(
            {"be1": GROWS, "be2": STAYS, "be3": STAYS},
            {},
            3,
            8,
            "be1@4+1* be2@2+1* -be3",
            id="an older BE grows at the cost of the youngest",
        ),
        pytest.param(
            {"be1": STAYS, "be2": GROWS},
            {},
            2,
            8,
            "be1@2+1*",
            id="the youngest BE waits where memory is out",
        ),
        pytest.param(
            {"be1": STAYS, "ls1": GROWS},
            {},
            2,
            8,
            "ls1@4+1* -be1",
            id="LS grows at the cost of an older BE",
        ),
        pytest.param(
            {"ls1": STAYS, "be1": GROWS},
            {},
            2,
            8,
            "ls1@2+1*",
            id="BE does not grow at the cost of LS",
        ),
        pytest.param(
            {"ls1": GROWS, "ls2": STAYS, "ls3": STAYS},
            {},
            3,
            8,
            "ls1@4+1* ls2@2+1* -ls3",
            id="an older LS grows at the cost of the youngest",
        ),
        pytest.param(
            {"ls1": STAYS, "ls2": GROWS},
            {},
            2,
            8,
            "ls1@2+1*",
            id="the youngest LS waits where LS has all memory",
        ),
        pytest.param(
            {"ls1": GROWS, "ls2": STAYS, "be1": STAYS},
            {},
            3,
            8,
            "ls1@4+1* ls2@2+1* -be1",
            id="LS yields to LS only when no BE is left",
        ),
        pytest.param(
            {"ls1": GROWS, "ls2": STAYS},
            {"be1": 1},
            2,
            8,
            "ls1@4+1* -ls2",
            id="BE is not admitted into what LS lacks",
        ),
    ],
)
def test_who_yields(
    running: dict[str, int],
    newcomer: dict[str, int],
    num_blocks: int,
    num_slots: int,
    expected: str,
) -> None:
    scheduler = make_scheduler(
        num_blocks=num_blocks, max_running_requests=num_slots, max_model_len=4 * num_blocks + 1
    )
    add_all(scheduler, [make_request(name, length) for name, length in running.items()])
    run_steps(scheduler, 2)
    assert scheduler.num_waiting == 0
    add_all(scheduler, [make_request(name, length) for name, length in newcomer.items()])
    assert run_step(scheduler) == expected
    assert scheduler.counts.num_preemptions == expected.count(" -")


def test_preempted_request_recomputes_what_it_knows_and_goes_on() -> None:
    scheduler = make_scheduler(num_blocks=2, max_model_len=9, prefix_caching=False)
    requests = add_all(scheduler, [make_request("be1", 1, max_tokens=4)])
    run_steps(scheduler, 2)
    requests |= add_all(scheduler, [make_request("ls1", 7, max_tokens=2)])
    be1 = requests["be1"]
    assert run_step(scheduler) == "ls1@0+7* -be1"
    assert (be1.num_computed, be1.num_output_tokens, be1.num_preemptions) == (0, 2, 1)
    assert run_steps(scheduler, 3) == ["ls1@7+1*", "be1@0+3*", "be1@3+1*"]
    assert be1.num_output_tokens == 4 and not scheduler.has_unfinished


def test_preempted_request_finds_its_full_blocks_in_the_cache() -> None:
    scheduler = make_scheduler(num_blocks=5, max_model_len=21)
    requests = add_all(scheduler, [make_request("be1", 9)])
    first = take_plan(scheduler)
    finish_plan(scheduler, first)
    requests |= add_all(scheduler, [make_request("ls1", 8, max_tokens=1)])
    # ls1 takes the three blocks nobody has used; be1 lost only a block that was not full.
    assert run_step(scheduler) == "ls1@0+8* be1@9+1*"
    requests |= add_all(scheduler, [make_request("ls2", 11, max_tokens=1)])
    assert run_step(scheduler) == "ls2@0+11* -be1"
    second = take_plan(scheduler)
    assert describe(second) == "be1@8+3*"
    assert second.rows[0].new_block_ids[:2] == first.rows[0].new_block_ids[:2]
    assert requests["be1"].num_cached_tokens == 0 == scheduler.counts.num_cached_prompt_tokens


def test_preempted_request_comes_before_younger_ones_that_wait() -> None:
    scheduler = make_scheduler(num_blocks=3, max_running_requests=2, max_model_len=13)
    add_all(scheduler, [make_request("be1", 1), make_request("be2", 1), make_request("be3", 1)])
    run_step(scheduler)
    scheduler.add(make_request("ls1", 1, max_tokens=1))
    assert run_step(scheduler) == "ls1@0+1* be1@1+1* -be2"
    assert run_step(scheduler) == "be1@2+1* be2@0+2*"


def test_preempted_request_does_not_return_in_the_same_plan() -> None:
    scheduler = make_scheduler(num_blocks=7, max_model_len=21)
    add_all(scheduler, [make_request("be1", range(9)), make_request("be2", range(9))])
    run_step(scheduler)
    scheduler.add(make_request("ls1", 7))
    # be2 had blocks of its own; were it to share those of be1, there would be room at once.
    assert run_step(scheduler) == "ls1@0+7* be1@9+1* -be2"
    assert run_step(scheduler) == "ls1@7+1* be1@10+1* be2@8+2*"


def test_decode_goes_before_the_prefill_of_an_older_request() -> None:
    scheduler = make_scheduler(
        num_blocks=5, max_model_len=21, max_step_tokens=4, prefix_caching=False
    )
    add_all(scheduler, [make_request("be1", 6, needs_known_tokens=True), make_request("be2", 1)])
    run_steps(scheduler, 4)
    first, second = take_plan(scheduler), take_plan(scheduler)
    assert (describe(first), describe(second)) == ("be1@8+1* be2@3+1*", "be2@4+1?*")
    finish_plan(scheduler, first)
    # be1 alone is idle and loses its memory; be2, younger, was in flight and goes on.
    scheduler.add(make_request("ls1", 4, max_tokens=1))
    third = take_plan(scheduler)
    assert describe(third) == "ls1@0+4* -be1"
    finish_plan(scheduler, second)
    finish_plan(scheduler, third)
    assert run_steps(scheduler, 3) == [
        "be2@5+1* be1@0+3",
        "be2@6+1* be1@3+3",
        "be2@7+1* be1@6+3",
    ]


def test_nobody_is_admitted_while_one_that_runs_is_short() -> None:
    scheduler = make_scheduler(num_blocks=7, max_model_len=29)
    add_all(scheduler, [make_request("ls1", 3), make_request("be1", 23)])
    assert run_steps(scheduler, 2) == ["ls1@0+3* be1@0+8", "ls1@3+1* be1@8+8"]
    scheduler.add(make_request("be2", 3))
    # ls1 grew into one of the two blocks that be1 was to have; the other would do for be2.
    assert run_step(scheduler) == "ls1@4+1*"
    scheduler.abort("ls1")
    assert run_step(scheduler) == "be1@16+7* be2@0+3*"


def test_blocks_shared_by_victims_count_once_and_only_if_all_let_go() -> None:
    scheduler = make_scheduler(num_blocks=6, max_model_len=25)
    scheduler.add(make_request("be1", range(16), max_tokens=1))
    run_step(scheduler)
    add_all(
        scheduler,
        [make_request(name, [*range(16), tail]) for name, tail in (("be2", 1), ("be3", 2))],
    )
    assert run_step(scheduler) == "be2@16+1* be3@16+1*"
    assert scheduler.counts.num_used_blocks == 6
    scheduler.add(make_request("ls1", 7))
    # Each alone would free one block, both together free six.
    assert run_step(scheduler) == "ls1@0+7* -be3 -be2"


def test_newcomer_that_shares_a_prefix_with_its_victim_keeps_it() -> None:
    scheduler = make_scheduler(num_blocks=4, max_model_len=17)
    scheduler.add(make_request("be1", range(12)))
    first = take_plan(scheduler)
    finish_plan(scheduler, first)
    scheduler.add(make_request("ls1", [*range(8), 90, 91, 92, 93]))
    plan = take_plan(scheduler)
    assert describe(plan) == "ls1@8+4* -be1"
    assert plan.rows[0].new_block_ids[:2] == first.rows[0].new_block_ids[:2]

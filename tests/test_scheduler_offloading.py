"""Who leaves the device for the host, and who waits for what that frees."""

from dataclasses import replace

import pytest
from builders_scheduler import make_request
from scheduler_host_driver import LIMITS, HostDriver

from scheduler import Offload

# As in the tests of preemption: after two steps a prompt of 3 needs its second block, 1 does not.
GROWS, STAYS = 3, 1


@pytest.mark.parametrize(
    ("running", "newcomer", "num_blocks", "num_slots", "expected"),
    [
        pytest.param(
            {"be1": STAYS, "be2": STAYS},
            {"ls1": 3},
            5,
            2,
            ["ls1@0+3* be1@2+1* >be2", "ls1@3+1* be1@3+1* be2^2"],
            id="a slot for LS is free at once",
        ),
        pytest.param(
            {"be1": STAYS, "be2": STAYS, "be3": STAYS},
            {"ls1": 7},
            3,
            8,
            ["be1@2+1* >be3 >be2", "ls1@0+7* be1@3+1* be3^2 be2^2"],
            id="memory for LS is there when the copies have landed; others go on",
        ),
        pytest.param(
            {"be1": STAYS},
            {"be2": 7},
            2,
            8,
            ["be1@2+1*", "nothing >be1", "be2@0+7* be1^3"],
            id="BE gives way to BE that waits, but is computed in the plan before",
        ),
        pytest.param(
            {"be1": STAYS, "be2": STAYS},
            {"be3": 7},
            3,
            8,
            ["be1@2+1* be2@2+1*", "be1@3+1* >be2", "be1@4+1* be2^3"],
            id="the youngest of them, and no more than needed",
        ),
        pytest.param(
            {"ls1": STAYS, "be1": STAYS},
            {"ls2": 15},
            4,
            8,
            ["ls1@2+1* be1@2+1*", "ls1@3+1* be1@3+1*"],
            id="nobody is offloaded where it would not be enough",
        ),
        pytest.param(
            {"be1": GROWS, "be2": STAYS, "be3": STAYS},
            {},
            3,
            8,
            ["be2@2+1* >be3", "be1@4+1* be2@3+1* be3^2"],
            id="an older BE grows at the cost of the youngest",
        ),
        pytest.param(
            {"be1": STAYS, "be2": GROWS},
            {},
            2,
            8,
            ["be1@2+1* >be2", "be1@3+1* be2^4"],
            id="the youngest BE moves itself where memory is out",
        ),
        pytest.param(
            {"be1": STAYS, "ls1": GROWS},
            {},
            2,
            8,
            ["nothing >be1", "ls1@4+1* be1^2"],
            id="LS grows at the cost of an older BE",
        ),
        pytest.param(
            {"ls1": GROWS, "ls2": STAYS, "be1": STAYS},
            {},
            3,
            8,
            ["ls2@2+1* >be1", "ls1@4+1* ls2@3+1* be1^2"],
            id="LS that waits for a copy does not hold up LS that does not",
        ),
    ],
)
def test_who_is_offloaded(
    running: dict[str, int],
    newcomer: dict[str, int],
    num_blocks: int,
    num_slots: int,
    expected: list[str],
) -> None:
    driver = HostDriver(
        num_blocks=num_blocks, max_running_requests=num_slots, max_model_len=4 * num_blocks + 1
    )
    driver.add(**running)
    driver.step()
    driver.step()
    driver.add(**newcomer)
    steps = []
    for _ in expected:
        steps.append(driver.step())
        driver.land(*driver.copies)
        driver.copies.clear()
    assert steps == expected
    assert driver.scheduler.counts.num_preemptions == 0


def test_prefill_that_yields_is_computed_again() -> None:
    driver = HostDriver(num_blocks=4, max_step_tokens=8, max_model_len=17)
    driver.add(be1=12)
    assert driver.step() == "be1@0+8"
    driver.add(ls1=12)
    assert driver.step() == "ls1@0+8 -be1"
    assert driver.scheduler.counts.num_preemptions == 1


def test_no_second_victim_while_the_first_is_copied() -> None:
    driver = HostDriver(num_blocks=4, max_model_len=17)
    driver.add(be1=1, be2=1, be3=1, be4=1)
    driver.step()
    driver.step()
    driver.add(ls1=3)
    assert driver.step() == "be1@2+1* be2@2+1* be3@2+1* >be4"
    assert driver.step() == "be1@3+1* be2@3+1* be3@3+1*"
    driver.land("be4")
    # be1 and be2 need a block each as well now: the one of be3 is for be1, and be2 moves itself.
    assert driver.step() == "ls1@0+3* be4^2 >be3 >be2"


def test_what_lands_is_kept_for_latency_sensitive_work() -> None:
    driver = HostDriver(num_blocks=4, max_model_len=17)
    driver.add(be1=1, be2=1)
    driver.step()
    driver.step()
    driver.add(ls1=11, be3=1)
    # Two blocks are free, but they are what ls1 will need beside that of be2; be1 goes for be3.
    assert driver.step() == "be1@2+1* >be2"
    driver.land("be2")
    assert driver.step() == "ls1@0+11* be2^2 >be1"


def test_slot_is_kept_for_latency_sensitive_work_that_waits_for_memory() -> None:
    driver = HostDriver(num_blocks=4, max_running_requests=3, max_model_len=17)
    driver.add(be1=3, be2=1)
    driver.step()
    driver.add(ls1=11)
    assert driver.step() == "be1@3+1* >be2"
    driver.add(be3=1)
    assert driver.step() == "nothing >be1"


@pytest.mark.parametrize(
    ("num_lanes", "num_host_blocks", "is_offloaded"),
    [(1, 4, True), (0, 4, False), (1, 3, False), (1, 2, False)],
)
def test_without_room_on_the_host_a_victim_is_computed_again(
    num_lanes: int, num_host_blocks: int, is_offloaded: bool
) -> None:
    limits = replace(LIMITS, num_lanes=num_lanes)
    driver = HostDriver(
        num_blocks=4, max_model_len=17, num_host_blocks=num_host_blocks, limits=limits
    )
    # With 14 tokens at most, it needs 4 blocks at its end.
    driver.scheduler.add(make_request("be1", 5, max_tokens=9))
    driver.step()
    driver.add(ls1=15)
    assert driver.step() == ("nothing >be1" if is_offloaded else "ls1@0+15* -be1")


def test_victims_that_fit_the_host_go_there_and_others_are_computed_again() -> None:
    driver = HostDriver(num_blocks=4, max_model_len=17, limits=replace(LIMITS, num_lanes=1))
    driver.add(be1=3, be2=3)
    driver.step()
    driver.add(ls1=15)
    assert driver.step() == "nothing >be2"
    # be1 was told to a plan that was not made; it is not admitted again before ls1.
    assert driver.scheduler.counts.num_preemptions == 1
    driver.land("be2")
    assert driver.step() == "ls1@0+15* -be1 be2^3"


def test_preempted_request_that_waits_for_nobody_is_admitted_again() -> None:
    driver = HostDriver(num_blocks=4, max_model_len=17, limits=replace(LIMITS, num_lanes=1))
    driver.add(be1=3, be2=3)
    driver.step()
    driver.add(ls1=15)
    assert driver.step() == "nothing >be2"
    driver.scheduler.abort("ls1")
    assert driver.step() == "be1@0+4* -be1"
    driver.add(ls2=15)
    driver.land("be2")
    assert driver.step() == "ls2@0+15* -be1 be2^3"


def test_preempted_request_that_is_aborted_is_not_reported() -> None:
    driver = HostDriver(num_blocks=4, max_model_len=17, limits=replace(LIMITS, num_lanes=1))
    driver.add(be1=3, be2=3)
    driver.step()
    driver.add(ls1=15)
    driver.step()
    driver.scheduler.abort("be1")
    driver.land("be2")
    assert driver.step() == "ls1@0+15* be2^3"


def test_decodes_beyond_the_limit_leave_when_their_prompt_is_done() -> None:
    limits = replace(LIMITS, max_resident_decodes=1)
    driver = HostDriver(max_step_tokens=8, limits=limits)
    driver.add(be1=3, be2=4, be3=6)
    assert driver.step() == "be3@0+1 be1@0+3* be2@0+4*"
    assert driver.step() == "be1@3+1* be3@1+5* >be2"
    assert driver.step() == "be1@4+1* >be3"
    assert (driver.scheduler.num_running, driver.scheduler.num_offloaded) == (1, 2)


def test_decodes_that_hold_more_than_their_share_leave_until_they_do_not() -> None:
    """Blocks hold 4 tokens: the three prompts take 1, 1 and 2 of them."""
    limits = replace(LIMITS, max_resident_blocks=2)
    driver = HostDriver(max_step_tokens=16, limits=limits)
    driver.add(be1=2, be2=2, be3=6)
    assert driver.step() == "be1@0+2* be2@0+2* be3@0+6*"
    assert driver.step() == "be1@2+1* be2@2+1* >be3"
    assert driver.step() == "be1@3+1* be2@3+1*"
    assert driver.step() == "be1@4+1* be2@4+1*"
    assert driver.step() == "be1@5+1* >be2"


def test_latency_sensitive_decodes_stay() -> None:
    driver = HostDriver(limits=replace(LIMITS, max_resident_decodes=0))
    driver.add(ls1=3, be1=3)
    driver.step()
    assert driver.step() == "ls1@3+1* >be1"


def test_nobody_leaves_while_that_is_not_allowed() -> None:
    driver = HostDriver(
        num_blocks=4, max_model_len=17, limits=replace(LIMITS, max_resident_decodes=0)
    )
    driver.scheduler.offload_allowed = False
    driver.add(be1=3)
    assert [driver.step(), driver.step()] == ["be1@0+3*", "be1@3+1*"]
    driver.add(ls1=15)
    assert driver.step() == "ls1@0+15* -be1"


def test_nobody_leaves_for_one_that_waits_behind_one_that_runs_and_is_short() -> None:
    driver = HostDriver(num_blocks=3, max_model_len=13)
    driver.add(ls1=3, be1=1, be2=1)
    driver.step()
    driver.step()
    driver.add(ls2=1)
    assert driver.step() == "be1@2+1* >be2"


def test_blocks_of_an_ended_request_on_its_way_back_are_awaited() -> None:
    limits = replace(LIMITS, return_patience=1)
    driver = HostDriver(num_blocks=8, max_running_requests=2, limits=limits, prefix_caching=False)
    driver.add(be1=4, be2=1)
    driver.step()
    driver.add(ls1=1)
    assert driver.step() == "ls1@0+1* be1@4+1* >be2"
    driver.scheduler.abort("ls1")
    driver.land("be2")
    assert driver.step() == "be1@5+1* <be2"
    driver.scheduler.abort("be2")
    driver.scheduler.add(make_request("ls2", 20, max_tokens=8))
    assert driver.scheduler.counts.num_used_blocks == 3
    # Of 8 blocks be1 has 2 and ls2 needs 6: there is no need for be1 to leave.
    assert driver.step() == "be1@6+1*"


def test_offload_copies_all_blocks_and_frees_them_when_it_landed() -> None:
    driver = HostDriver(limits=replace(LIMITS, max_resident_decodes=0))
    driver.add(be1=9)
    driver.step()
    assert driver.step() == "nothing >be1"
    copy = driver.copies["be1"]
    assert isinstance(copy, Offload) and len(copy.device_block_ids) == 3 == len(copy.host_block_ids)
    assert driver.scheduler.counts.num_used_blocks == 3
    driver.land("be1")
    assert driver.scheduler.counts.num_used_blocks == 0
    assert driver.step() == "be1^9"
    entry = driver.entries["be1"]
    assert (entry.lane, entry.token_id, entry.first_new_block) == (copy.lane, 7, 0)
    assert entry.new_block_ids == copy.host_block_ids

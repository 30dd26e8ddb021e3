"""Tokens in the lanes: who enters when, host blocks, and how requests leave."""

from dataclasses import replace

import pytest
from builders_scheduler import add_all, make_request
from scheduler_host_driver import LIMITS, HostDriver, make_hosting_driver


def test_token_by_token_until_the_length_is_reached() -> None:
    driver = HostDriver(limits=replace(LIMITS, max_resident_decodes=0))
    requests = add_all(driver.scheduler, [make_request("be1", 3, max_tokens=4)])
    assert [driver.step(), driver.step()] == ["be1@0+3*", "nothing >be1"]
    driver.land("be1")
    assert driver.step() == "be1^3"
    assert driver.step() == "nothing"
    assert driver.schedule(num_ready=1) == ""
    assert driver.complete("be1") == []
    assert driver.step("be1") == "be1^4"
    assert driver.schedule() == "be1^5"
    assert driver.complete("be1") == ["be1"]
    assert list(requests["be1"].token_ids)[3:] == [7, 7, 7, 7]
    assert not driver.scheduler.has_unfinished and driver.scheduler.counts.num_lanes_in_use == 1
    assert driver.quieten() == (0,)
    assert driver.scheduler.counts.num_lanes_in_use == 0 and driver.blocks.num_free == 64


def test_engine_ends_an_offloaded_request() -> None:
    driver = make_hosting_driver("be1", "be2")
    assert driver.schedule() == "be1^4 be2^4"
    assert driver.complete("be1", "be2", finished=["be1"]) == ["be1"]
    assert driver.schedule() == "be2^5"


def test_token_that_leaves_the_lanes_may_come_with_a_later_plan() -> None:
    driver = make_hosting_driver("be1", "be2")
    assert driver.schedule() == "be1^4 be2^4"
    assert driver.schedule(num_ready=1) == ""
    driver.complete()
    driver.complete("be1")
    assert driver.schedule() == "be1^5"


def test_nobody_enters_while_the_lanes_are_closed() -> None:
    driver = make_hosting_driver("be1")
    driver.scheduler.lanes_open = False
    assert driver.step() == "nothing"
    driver.scheduler.lanes_open = True
    assert driver.step() == "be1^4"


def test_requests_enter_in_the_order_in_which_they_came_to_their_boundary() -> None:
    driver = make_hosting_driver("be1", "be2", "be3")
    driver.schedule()
    driver.schedule(num_ready=3)
    driver.complete("be2")
    driver.complete("be3", "be1")
    assert driver.schedule() == "be2^5 be3^5 be1^5"


@pytest.mark.parametrize(
    ("best_effort_tokens", "expected"), [(None, "4 3"), (2, "2 2"), (0, "0"), (9, "4 3")]
)
def test_lane_rows_are_capped(best_effort_tokens: int | None, expected: str) -> None:
    limits = replace(LIMITS, max_lane_rows=4, max_lane_rows_beside_ls=3, max_resident_decodes=0)
    names = [f"be{index}" for index in range(7)]
    driver = HostDriver(limits=limits)
    driver.add(**dict.fromkeys(names, 4))
    driver.step()
    driver.schedule()
    driver.land(*names)
    found = []
    for beside in ("ls1", "ls2"):
        driver.schedule(best_effort_tokens=best_effort_tokens)
        if driver.plans:
            plan = driver.plans[-1]
            assert len(plan.lane_entries) == plan.max_lane_rows
            found.append(str(plan.max_lane_rows))
            driver.complete()
        driver.add(**{beside: 4})
    assert " ".join(found) == expected


def test_latency_sensitive_plans_take_no_lane_rows() -> None:
    driver = make_hosting_driver("be1")
    assert driver.schedule(latency_sensitive_only=True) == "nothing"
    driver.add(ls1=4)
    assert driver.schedule(latency_sensitive_only=True) == "ls1@0+4*"
    assert driver.plans[0].max_lane_rows == 0


def test_lane_rows_ride_beside_latency_sensitive_rows_that_wait_for_plans_in_flight() -> None:
    driver = make_hosting_driver("be1", num_blocks=4, max_model_len=17)
    driver.scheduler.offload_allowed = False
    driver.add(be2=8, ls1=1)
    assert driver.schedule() == "ls1@0+1* be2@0+8* be1^4"
    driver.add(ls2=8)
    # BE rows would keep in flight what ls2 waits for; rows in the lanes hold no device memory.
    assert driver.schedule(num_ready=1) == "ls1@1+1?*"
    assert driver.plans[-1].max_lane_rows == LIMITS.max_lane_rows_beside_ls
    driver.scheduler.abort("ls1")
    # Without them, a plan for the lanes alone would come between ls2 and its first token.
    assert driver.schedule(num_ready=1) == "nothing"


def test_block_is_added_when_a_token_needs_it() -> None:
    driver = make_hosting_driver("be1")
    found = []
    for _ in range(5):
        driver.step("be1")
        entry = driver.entries["be1"]
        found.append((entry.position, entry.first_new_block, len(entry.new_block_ids)))
    assert found == [(4, 0, 2), (5, 2, 0), (6, 2, 0), (7, 2, 0), (8, 2, 1)]


def make_driver_without_blocks() -> HostDriver:
    """be1, be2 and be3 have all 6 host blocks, and each needs one more to go on."""
    driver = make_hosting_driver("be1", "be2", "be3", num_host_blocks=6, max_model_len=20)
    for position in range(4, 8):
        entered = {f"be{index}^{position}" for index in (1, 2, 3)}
        assert set(driver.step("be2", "be3", "be1").split()) == entered
    assert driver.blocks.num_free == 0
    return driver


def test_youngest_goes_back_so_that_the_oldest_gets_a_block() -> None:
    driver = make_driver_without_blocks()
    assert driver.step() == "nothing"
    assert (driver.scheduler.num_waiting, driver.scheduler.counts.num_preemptions) == (1, 1)
    # Blocks are on their way, so nobody else yields.
    assert driver.step() == "be3@4+5*"
    assert driver.scheduler.num_offloaded == 2
    assert driver.quieten() != ()
    # The oldest first, though be2 came to its boundary before it.
    assert driver.step() == "be3@9+1* be1^8 be2^8"


def test_nobody_goes_back_while_the_oldest_goes_on() -> None:
    driver = make_hosting_driver("be1", "be2", num_host_blocks=5, max_model_len=20)
    assert driver.step("be2") == "be1^4 be2^4"
    for position in range(5, 12):
        assert driver.step("be2") == f"be2^{position}"
    # be2 has 3 blocks, the last free one among them, and lacks one; be1 is in the lanes.
    assert driver.step() == "nothing" and driver.scheduler.num_offloaded == 2
    driver.schedule(num_ready=1)
    driver.complete("be1")
    for position in range(5, 8):
        assert driver.step("be1") == f"be1^{position}"
    assert driver.step() == "nothing" and driver.scheduler.num_offloaded == 1


def test_free_blocks_belong_to_those_on_the_host_first() -> None:
    driver = make_driver_without_blocks()
    driver.add(be4=4)
    assert driver.step() == "be4@0+4*"
    assert driver.step() == "be4@4+1* be3@4+5*"
    driver.scheduler.abort("be3")
    driver.quieten()
    # be4 needs two blocks there, and two are free; but be1 and be2 wait for one each.
    assert driver.blocks.num_free == 2
    assert driver.step() == "be4@5+1* be1^8 be2^8"


def test_oldest_alone_waits_for_those_in_the_lanes() -> None:
    driver = make_hosting_driver("be1", "be2", num_host_blocks=5, max_model_len=20)
    assert driver.step("be1") == "be1^4 be2^4"
    for position in range(5, 12):
        assert driver.step("be1") == f"be1^{position}"
    assert driver.step() == "nothing" and driver.scheduler.num_offloaded == 2
    driver.schedule(num_ready=1)
    driver.complete("be2")
    assert driver.schedule() == "be2^5"


def test_host_keeps_a_few_blocks_for_those_that_grow() -> None:
    limits = replace(LIMITS, max_resident_decodes=0)
    driver = HostDriver(num_host_blocks=128, num_blocks=256, max_model_len=500, limits=limits)
    driver.add(be1=240)
    for _ in range(9):
        driver.step()
    driver.land("be1")
    assert driver.step() == "be1^240"
    driver.add(be2=260)
    for _ in range(10):
        driver.step()
    # It needs 66 of the 67 free blocks, its next token included, but 2 of 128 are kept.
    assert driver.scheduler.num_offloaded == 1


def test_request_that_is_alone_may_have_the_whole_host() -> None:
    limits = replace(LIMITS, max_resident_decodes=0)
    driver = HostDriver(num_host_blocks=64, max_model_len=256, limits=limits, max_step_tokens=256)
    driver.scheduler.add(make_request("be1", 252, max_tokens=4))
    assert driver.step() == "be1@0+252*"
    assert driver.step() == "nothing >be1"

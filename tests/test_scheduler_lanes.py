"""Tokens in the lanes: who enters when, host blocks, and how requests leave."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from builders_scheduler import add_all, make_request
from scheduler_host_driver import LIMITS, HostDriver, make_hosting_driver

from scheduler import Request, Status
from scheduler.host_stay import Phase


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
    assert not driver.scheduler.has_unfinished and driver.scheduler.num_lanes_in_use == 1
    assert driver.quieten() == (0,)
    assert driver.scheduler.num_lanes_in_use == 0 and driver.blocks.num_free == 64


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
    assert (driver.scheduler.num_waiting, driver.scheduler.num_preemptions) == (1, 1)
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


def test_free_block_belongs_to_those_on_the_host_first() -> None:
    driver = make_driver_without_blocks()
    driver.step()
    driver.scheduler.abort("be2")
    driver.step()
    driver.scheduler.abort("be3")
    driver.add(be4=4)
    driver.quieten()
    assert driver.blocks.num_free == 4
    assert driver.step() == "be4@0+4* be1^8"


def test_oldest_alone_waits_for_those_in_the_lanes() -> None:
    driver = make_hosting_driver("be1", "be2", num_host_blocks=5, max_model_len=20)
    assert driver.step("be1") == "be1^4 be2^4"
    for position in range(5, 12):
        assert driver.step("be1") == f"be1^{position}"
    assert driver.step() == "nothing" and driver.scheduler.num_offloaded == 2
    driver.schedule(num_ready=1)
    driver.complete("be2")
    assert driver.schedule() == "be2^5"


# How requests leave, phase by phase.


def enter_phase(phase: Phase) -> tuple[HostDriver, Request]:
    """be1, with a prompt of 6 tokens, is there; it is alone."""
    patience = 1 if phase is Phase.SWAPPING_IN else 1000
    limits = replace(LIMITS, return_patience=patience)
    driver = HostDriver(num_blocks=8, max_running_requests=1, limits=limits)
    be1 = make_request("be1", 6)
    driver.scheduler.add(be1)
    driver.step()
    driver.add(ls1=1)
    assert driver.step() == "ls1@0+1* >be1"
    driver.scheduler.abort("ls1")
    if phase is not Phase.SWAPPING_OUT:
        driver.land("be1")
    if phase is Phase.IN_LANES:
        assert driver.step() == "be1^6"
    if phase is Phase.SWAPPING_IN:
        assert driver.step() == "nothing <be1"
    assert be1.stay is not None and be1.stay.phase is phase
    return driver, be1


@pytest.mark.parametrize("phase", Phase)
def test_aborted_request_lets_go_when_nothing_uses_what_it_holds(phase: Phase) -> None:
    driver, be1 = enter_phase(phase)
    is_copying = phase in (Phase.SWAPPING_OUT, Phase.SWAPPING_IN)
    assert driver.scheduler.abort("be1") and not driver.scheduler.abort("be1")
    assert be1.status is Status.FINISHED and not driver.scheduler.has_unfinished
    assert driver.scheduler.num_used_blocks == (2 if is_copying else 0)
    if is_copying:
        assert driver.quieten() == ()
        driver.land("be1")
    assert driver.scheduler.num_used_blocks == 0
    assert (driver.blocks.num_free, driver.scheduler.num_lanes_in_use) == (62, 1)
    assert driver.quieten() == (0,)
    assert (driver.blocks.num_free, driver.scheduler.num_lanes_in_use) == (64, 0)
    driver.add(be1=6)
    assert driver.step() == "be1@4+2*"


@pytest.mark.parametrize("phase", Phase)
def test_request_whose_lane_failed_is_computed_again(phase: Phase) -> None:
    driver, be1 = enter_phase(phase)
    assert driver.scheduler.recompute("be1")
    if phase in (Phase.SWAPPING_OUT, Phase.SWAPPING_IN):
        assert driver.step() == "nothing"
        driver.land("be1")
    assert (be1.status, be1.num_preemptions) == (Status.WAITING, 1)
    assert driver.quieten() == (0,)
    # Its first block is still in the cache.
    assert driver.step() == "be1@4+3*"
    assert not driver.scheduler.recompute("be1") and not driver.scheduler.recompute("be2")


def test_lane_and_blocks_are_lent_again_only_when_the_lane_is_quiet() -> None:
    limits = replace(LIMITS, max_resident_decodes=0, num_lanes=1)
    driver = HostDriver(limits=limits)
    driver.add(be1=4, be2=4)
    driver.step()
    assert driver.step() == "be1@4+1* >be2"
    driver.land("be2")
    driver.scheduler.abort("be2")
    assert driver.step() == "be1@5+1*"
    assert driver.scheduler.take_released_lanes() == (0,)
    assert driver.scheduler.take_released_lanes() == ()
    assert driver.step() == "be1@6+1*"
    driver.scheduler.lane_is_quiet(0)
    assert driver.step() == "nothing >be1"


# What the host holds of a prefix.


def test_prefix_that_the_host_holds_is_not_copied_again() -> None:
    driver = make_hosting_driver()
    driver.add(be1=range(10))
    driver.step()
    driver.step()
    driver.add(be2=range(9))
    driver.step()
    assert driver.step() == "nothing >be2"
    # Not before the copy of be1 has landed.
    assert len(driver.copies["be2"].host_block_ids) == 3
    driver.land("be1", "be2")
    driver.add(be3=[*range(8), 70, 71])
    driver.step("be1", "be2")
    shared = driver.entries["be1"].new_block_ids[:2]
    assert driver.schedule().endswith(">be3")
    copy = driver.copies["be3"]
    assert len(copy.host_block_ids) == 1 == len(copy.device_block_ids)
    driver.land("be3")
    driver.schedule()
    table = driver.entries["be3"].new_block_ids
    assert table[:2] == shared and len(table) == 3


def test_block_that_became_full_on_the_host_is_found() -> None:
    driver = make_hosting_driver()
    driver.add(be1=range(4))
    driver.step()
    driver.step()
    driver.land("be1")
    for _ in range(4):
        driver.step("be1")
    # Tokens 4 .. 7 of be1 were computed in the lanes; all samples are 7.
    driver.add(be2=[*range(4), 7, 7, 7, 7, 50])
    driver.step("be1")
    driver.step()
    assert len(driver.copies["be2"].host_block_ids) == 1


def test_without_prefix_caching_everything_is_copied() -> None:
    driver = make_hosting_driver(prefix_caching=False)
    for name in ("be1", "be2"):
        driver.add(**{name: range(9)})
        driver.step()
        driver.step()
        assert len(driver.copies[name].host_block_ids) == 3
        driver.land(name)


# What others are told, and the check of the state.


def test_counts() -> None:
    driver = make_hosting_driver()
    names = {"be1": "batch", "be2": "batch", "be3": "night"}
    add_all(driver.scheduler, [make_request(name, tier=tier) for name, tier in names.items()])
    driver.step()
    driver.step()
    scheduler = driver.scheduler
    assert scheduler.num_offloaded == 3 and scheduler.has_unfinished
    assert scheduler.offloaded_by_tier() == {"batch": 2, "night": 1}
    assert scheduler.running_by_tier() == scheduler.waiting_by_tier() == {}
    assert not scheduler.has_latency_sensitive_work
    with pytest.raises(ValueError, match="'be1' is in use"):
        driver.add(be1=4)


def test_first_token_that_waits_for_a_copy_is_urgent_again_when_it_landed() -> None:
    driver = HostDriver(num_blocks=2, max_model_len=9)
    driver.add(be1=4)
    driver.step()
    driver.add(ls1=6)
    assert driver.scheduler.awaits_first_token
    assert driver.schedule(latency_sensitive_only=True) == "nothing >be1"
    assert not driver.scheduler.awaits_first_token
    driver.land("be1")
    assert driver.scheduler.awaits_first_token
    assert driver.schedule(latency_sensitive_only=True) == "ls1@0+6*"


def corrupt_stay(driver: HostDriver, request: Request) -> None:
    assert request.stay is not None
    request.stay.block_ids.pop()


def corrupt_lane(driver: HostDriver, request: Request) -> None:
    assert request.stay is not None
    request.stay.lane = 3


def corrupt_phase(driver: HostDriver, request: Request) -> None:
    assert request.stay is not None
    request.stay.phase = Phase.IN_LANES


def lose_stay(driver: HostDriver, request: Request) -> None:
    request.stay = None


def take_block(driver: HostDriver, request: Request) -> None:
    driver.blocks.allocate(1)


@pytest.mark.parametrize(
    "corrupt", [corrupt_stay, corrupt_lane, corrupt_phase, lose_stay, take_block]
)
@pytest.mark.parametrize("phase", [Phase.SWAPPING_OUT, Phase.AT_BOUNDARY, Phase.SWAPPING_IN])
def test_integrity_check_sees_what_is_wrong(
    phase: Phase, corrupt: Callable[[HostDriver, Request], None]
) -> None:
    driver, be1 = enter_phase(phase)
    driver.scheduler.check_integrity()
    corrupt(driver, be1)
    with pytest.raises(AssertionError, match=" != "):
        driver.scheduler.check_integrity()

"""How offloaded requests leave in every phase, shared prefixes on the host, the state's check."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from builders_scheduler import add_all, make_request
from scheduler_host_driver import LIMITS, HostDriver, make_hosting_driver

from scheduler import Request, Status
from scheduler.host_stay import Phase


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
    assert driver.scheduler.counts.num_used_blocks == (2 if is_copying else 0)
    if is_copying:
        assert driver.quieten() == ()
        driver.land("be1")
    assert driver.scheduler.counts.num_used_blocks == 0
    assert (driver.blocks.num_free, driver.scheduler.counts.num_lanes_in_use) == (62, 1)
    assert driver.quieten() == (0,)
    assert (driver.blocks.num_free, driver.scheduler.counts.num_lanes_in_use) == (64, 0)
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
    assert scheduler.counts.offloaded_by_tier() == {"batch": 2, "night": 1}
    assert scheduler.counts.running_by_tier() == scheduler.counts.waiting_by_tier() == {}
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

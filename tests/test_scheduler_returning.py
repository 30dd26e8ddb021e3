"""When an offloaded request comes back to the device."""

from dataclasses import replace

import pytest
from scheduler_host_driver import LIMITS, HostDriver

from scheduler import Return


def make_driver(
    *names: str,
    patience: int = 3,
    max_resident_decodes: int | None = None,
    max_resident_blocks: int | None = None,
    **changes: int,
) -> HostDriver:
    """Requests with prompts of 4 tokens are at their boundary on the host, and nobody runs."""
    limits = replace(
        LIMITS,
        return_patience=patience,
        max_resident_decodes=max_resident_decodes,
        max_resident_blocks=max_resident_blocks,
    )
    driver = HostDriver(limits=limits, **changes)
    driver.add(**dict.fromkeys(names, 4))
    driver.step()
    # A slot for each latency-sensitive request is taken from one of them.
    num_slots = driver.scheduler.settings.max_running_requests
    urgent = [f"ls{index}" for index in range(num_slots)]
    driver.add(**dict.fromkeys(urgent, 1))
    driver.schedule(latency_sensitive_only=True)
    for name in urgent:
        driver.scheduler.abort(name)
    driver.complete()
    driver.land(*names)
    assert driver.scheduler.num_offloaded == len(names)
    return driver


def run_lanes(driver: HostDriver, *names: str, num_steps: int) -> list[str]:
    """Steps in which each of these brings a token."""
    return [driver.step(*names) for _ in range(num_steps)]


def test_returns_when_there_was_room_for_some_plans_and_goes_on_there() -> None:
    driver = make_driver("be1")
    assert run_lanes(driver, "be1", num_steps=2) == ["be1^4", "be1^5"]
    assert driver.step() == "nothing <be1"
    copy = driver.copies["be1"]
    assert isinstance(copy, Return) and len(copy.host_block_ids) == len(copy.device_block_ids)
    assert driver.step() == "nothing" and driver.quieten() == ()
    driver.land("be1")
    assert driver.quieten() == (copy.lane,) and driver.blocks.num_free == 64
    plan = driver.scheduler.schedule()
    assert plan is not None
    (rows,) = plan.rows
    assert (rows.slot, rows.start, rows.token_ids) == (copy.slot, 6, (7,))
    assert rows.first_new_block == len(copy.block_table) == 2


def test_prefix_that_the_device_holds_is_not_copied() -> None:
    driver = make_driver("be1")
    run_lanes(driver, "be1", num_steps=2)
    driver.step()
    copy = driver.copies["be1"]
    # The prompt was computed there; its block is cached since it was copied to the host.
    assert isinstance(copy, Return) and len(copy.block_table) == 2
    assert len(copy.host_block_ids) == 1
    assert copy.device_block_ids == copy.block_table[1:]


def test_blocks_that_became_full_on_the_host_are_cached_when_they_landed() -> None:
    driver = make_driver("be1", patience=5)
    run_lanes(driver, "be1", num_steps=4)
    assert driver.step() == "nothing <be1"
    prompt = [*driver.requests["be1"].token_ids, 50]
    driver.add(be2=prompt)
    assert driver.schedule().startswith("be2@4+6*")
    driver.land("be1")
    driver.add(be3=prompt)
    assert "be3@8+2*" in driver.schedule()


def test_being_asked_without_making_a_plan_is_no_sign_of_room() -> None:
    driver = make_driver("be1", patience=5)
    assert driver.step() == "be1^4"
    assert [driver.step() for _ in range(9)] == ["nothing"] * 9
    driver.schedule(num_ready=1)
    driver.complete("be1")
    assert run_lanes(driver, "be1", num_steps=3) == ["be1^5", "be1^6", "nothing <be1"]


def test_oldest_returns_first_and_one_at_a_time() -> None:
    driver = make_driver("be1", "be2", "be3")
    run_lanes(driver, "be1", "be2", "be3", num_steps=2)
    driver.schedule()
    driver.complete("be2", "be3")
    assert driver.copies["be1"].__class__ is Return
    # be2 has to wait until be1 is there.
    assert sorted(driver.step("be2", "be3").split()) == ["be2^7", "be3^7"]
    driver.land("be1")
    assert driver.step("be3") == "be1@6+1* be3^8 <be2"


def test_oldest_is_waited_for_until_it_comes_to_its_boundary() -> None:
    driver = make_driver("be1", "be2", patience=2)
    driver.step("be2")
    assert [driver.step("be2") for _ in range(3)] == ["be2^5", "be2^6", "be2^7"]
    driver.schedule()
    driver.complete("be1", "be2")
    assert driver.step() == "be2^9 <be1"


@pytest.mark.parametrize("newcomer", ["ls9", "be9"])
def test_patience_starts_anew_when_somebody_waits(newcomer: str) -> None:
    driver = make_driver("be1", max_running_requests=1)
    run_lanes(driver, "be1", num_steps=2)
    # It is admitted in the same plan, but waited when that was made.
    driver.add(**{newcomer: 1})
    assert driver.step("be1") == f"{newcomer}@0+1* be1^6"
    driver.scheduler.abort(newcomer)
    assert run_lanes(driver, "be1", num_steps=3) == ["be1^7", "be1^8", "nothing <be1"]


def test_patience_starts_anew_after_an_offload() -> None:
    driver = make_driver("be1", patience=3, max_resident_decodes=3)
    driver.add(be2=1, be3=1)
    assert driver.step("be1") == "be2@0+1* be3@0+1* be1^4"
    assert driver.step("be1") == "be2@1+1* be3@1+1* be1^5"
    driver.add(**{f"ls{index}": 1 for index in range(10, 17)})
    # A slot for the last of them is that of be3.
    assert driver.schedule(latency_sensitive_only=True).endswith(">be3")
    for index in range(10, 17):
        driver.scheduler.abort(f"ls{index}")
    driver.complete()
    assert run_lanes(driver, "be1", num_steps=2) == ["be2@2+1* be1^6", "be2@3+1* be1^7"]
    assert driver.step() == "be2@4+1* <be1"


@pytest.mark.parametrize(("num_resident", "returns"), [(11, True), (12, False)])
def test_room_includes_a_margin(num_resident: int, returns: bool) -> None:
    # A pool of 16 keeps 2 blocks free; be1 needs 2, its next token included.
    driver = make_driver("be1", num_blocks=16, patience=1, max_step_tokens=64)
    driver.add(ls1=4 * num_resident)
    driver.schedule(latency_sensitive_only=True)
    driver.complete()
    assert driver.scheduler.counts.num_used_blocks == num_resident
    found = driver.schedule()
    assert ("<be1" in found) == returns
    assert driver.scheduler.counts.num_used_blocks == num_resident + 1 + returns


def test_room_includes_a_slot() -> None:
    driver = make_driver("be1", patience=1, max_running_requests=1)
    driver.add(ls1=1)
    assert driver.step("be1") == "ls1@0+1* be1^4"
    assert driver.step("be1") == "ls1@1+1* be1^5"
    driver.scheduler.abort("ls1")
    assert driver.step() == "nothing <be1"


@pytest.mark.parametrize(
    "limit", [{"max_resident_decodes": 1}, {"max_resident_blocks": 2}], ids=str
)
def test_limit_of_the_device_keeps_others_on_the_host(limit: dict[str, int]) -> None:
    """With their next token both take 2 blocks."""
    driver = make_driver("be1", "be2", patience=1, **limit)
    assert driver.step("be2") == "be2^4 <be1"
    driver.land("be1")
    assert run_lanes(driver, "be2", num_steps=2) == ["be1@4+1* be2^5", "be1@5+1* be2^6"]
    driver.scheduler.abort("be1")
    assert driver.step() == "nothing <be2"


def test_without_leave_to_offload_there_is_no_patience() -> None:
    driver = make_driver("be1", "be2", patience=1000)
    assert driver.step("be1", "be2") == "be1^4 be2^4"
    driver.scheduler.offload_allowed = False
    assert driver.step("be2") == "be2^5 <be1"
    driver.land("be1")
    assert driver.step() == "be1@5+1* <be2"


def test_without_leave_to_offload_a_slot_is_kept_from_those_that_wait() -> None:
    driver = make_driver("be1", patience=1000, max_running_requests=1)
    assert driver.step() == "be1^4"
    driver.scheduler.offload_allowed = False
    driver.add(be9=1)
    assert driver.step() == "nothing"


def test_nobody_returns_while_latency_sensitive_work_waits() -> None:
    driver = make_driver("be1", patience=1, max_step_tokens=4, max_running_requests=2)
    driver.add(ls8=8, ls9=8)
    # All rows of the step are taken, so ls9 waits, with memory enough for all.
    assert driver.step("be1") == "ls8@0+4 be1^4"
    assert driver.step("be1") == "ls8@4+4* be1^5"


def test_without_leave_to_offload_room_is_kept_from_those_that_wait() -> None:
    driver = make_driver("be1", patience=1000, num_blocks=8, prefix_caching=False)
    assert driver.step() == "be1^4"
    driver.scheduler.offload_allowed = False
    # be1 will need 2 blocks and a margin of 2; be9 would leave 3.
    driver.add(be9=16)
    assert driver.step() == "nothing"
    driver.schedule(num_ready=1)
    driver.complete("be1")
    assert driver.step() == "be9@0+16* <be1"


def test_room_is_not_kept_for_one_that_has_it_already() -> None:
    driver = make_driver("be1", patience=1, num_blocks=8, prefix_caching=False)
    driver.scheduler.offload_allowed = False
    assert driver.step() == "nothing <be1"
    driver.add(be9=16)
    assert driver.step() == "be9@0+16*"


def test_request_that_is_too_large_to_return_keeps_nobody_out() -> None:
    driver = make_driver("be1", patience=1, num_blocks=3, max_model_len=13, prefix_caching=False)
    driver.scheduler.offload_allowed = False
    driver.add(be9=11)
    assert driver.step() == "be9@0+11* be1^4"


@pytest.mark.parametrize("limit", [{"max_resident_decodes": 0}, {"max_resident_blocks": 1}])
def test_limit_of_the_device_keeps_nobody_where_it_would_stand_still(limit: dict[str, int]) -> None:
    """The host is gone: nobody enters the lanes any more."""
    driver = make_driver("be1", **limit)
    driver.scheduler.offload_allowed = False
    assert driver.step("be1") == "be1^4"
    driver.scheduler.lanes_open = False
    assert driver.step() == "nothing <be1"
    driver.land("be1")
    assert driver.step() == "be1@5+1*"


def test_who_would_stand_still_needs_no_more_than_there_is() -> None:
    """Its two blocks and a margin of two are more than the pool has."""
    driver = make_driver("be1", num_blocks=3, max_model_len=13, prefix_caching=False)
    driver.scheduler.offload_allowed = False
    assert driver.step("be1") == "be1^4"
    assert driver.step("be1") == "be1^5"
    driver.scheduler.lanes_open = False
    assert driver.step() == "nothing <be1"

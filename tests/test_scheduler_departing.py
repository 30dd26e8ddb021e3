"""Decodes that are to leave the device while plans of them are in flight."""

from dataclasses import replace

from scheduler_host_driver import LIMITS, HostDriver


def test_decode_in_flight_gets_no_more_rows_and_leaves_when_it_is_idle() -> None:
    driver = HostDriver(limits=replace(LIMITS, max_resident_decodes=1))
    driver.add(be1=3, be2=3)
    assert driver.schedule() == "be1@0+3* be2@0+3*"
    assert driver.schedule() == "be1@3+1?*"
    driver.complete()
    assert driver.schedule() == "be1@4+1?* >be2"


def test_departing_decode_stays_where_that_is_not_allowed_any_more() -> None:
    driver = HostDriver(limits=replace(LIMITS, max_resident_decodes=1))
    driver.add(be1=3, be2=3)
    driver.schedule()
    assert driver.schedule() == "be1@3+1?*"
    driver.scheduler.offload_allowed = False
    assert driver.schedule() == "be1@4+1?* be2@3+1?*"


def test_no_more_decodes_depart_than_there_are_lanes() -> None:
    limits = replace(LIMITS, max_resident_decodes=0, num_lanes=1)
    driver = HostDriver(limits=limits)
    driver.add(be1=3, be2=3)
    driver.schedule()
    # be2 departs; be1 does not stop for a lane that is not there.
    assert driver.schedule() == "be1@3+1?*"
    assert driver.schedule() == "be1@4+1?*"


def test_latency_sensitive_work_that_waits_for_decodes_in_flight_stops_nobody_else() -> None:
    driver = HostDriver(num_blocks=4, max_model_len=17)
    driver.add(be1=1, be2=1)
    driver.schedule()
    driver.add(ls1=11)
    assert driver.schedule() == "be1@1+1?*"
    driver.complete()
    assert driver.schedule() == "be1@2+1?* >be2"
    driver.land("be2")
    assert driver.schedule() == "ls1@0+11* be1@3+1?* be2^1"


def test_older_decode_that_waits_for_younger_ones_in_flight_stops_nobody_else() -> None:
    driver = HostDriver(num_blocks=3, max_model_len=13)
    driver.add(be1=3, be2=1, be3=1)
    driver.step()
    assert driver.schedule() == "be1@3+1* be2@1+1* be3@1+1*"
    # be1 needs a second block; be3 departs for it.
    assert driver.schedule() == "be2@2+1?*"
    driver.complete()
    assert driver.schedule() == "be2@3+1?* >be3"


def test_aborted_departing_decode_is_forgotten() -> None:
    driver = HostDriver(limits=replace(LIMITS, max_resident_decodes=1))
    driver.add(be1=3, be2=3)
    driver.schedule()
    driver.schedule()
    driver.scheduler.abort("be2")
    driver.complete()
    assert driver.schedule() == "be1@4+1?*"

"""What a real schedule notes of its requests: each reason, brought about."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from builders_control import Clocked
from builders_control import make_request as make_paced_request
from builders_scheduler import (
    ROOMY,
    add_all,
    finish_plan,
    make_request,
    make_scheduler,
    results_of,
    run_step,
    run_steps,
    take_plan,
)
from scheduler_host_driver import LIMITS, HostDriver, make_hosting_driver

from scheduler import Objectives, Scheduler
from scheduler.timeline import Entry, Event, Reason


def story(scheduler: Scheduler, request_id: str) -> list[str]:
    """Each entry as `event` or `event: reason`, and `x3` behind what happened three times."""
    return [_words(entry) for entry in entries(scheduler, request_id)]


def _words(entry: Entry) -> str:
    reason = f": {entry.reason.name}" if entry.reason is not Reason.NONE else ""
    times = f" x{entry.times}" if entry.times > 1 else ""
    return f"{entry.event.value}{reason}{times}"


def entries(scheduler: Scheduler, request_id: str) -> tuple[Entry, ...]:
    timeline = scheduler.explain(request_id)
    assert timeline is not None
    return timeline


def last_wait(scheduler: Scheduler, request_id: str) -> Entry:
    waits = [each for each in entries(scheduler, request_id) if each.event is Event.WAITS]
    assert waits, story(scheduler, request_id)
    return waits[-1]


def test_nothing_hinders_a_request_that_is_alone() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("ls1", 4, max_tokens=3))
    run_steps(scheduler, 3)
    assert story(scheduler, "ls1") == ["queued", "admitted", "computed", "first token", "finished"]
    assert entries(scheduler, "ls1")[-1].detail == "3 tokens"
    assert scheduler.explain("ls2") is None


def test_a_prompt_in_chunks() -> None:
    scheduler = make_scheduler(max_step_tokens=8)
    scheduler.add(make_request("ls1", 20, max_tokens=1))
    run_steps(scheduler, 3)
    assert story(scheduler, "ls1")[2:5] == ["computed: TOKENS x2", "computed", "first token"]
    chunks = entries(scheduler, "ls1")[2:4]
    assert [each.detail for each in chunks] == [
        "8 tokens, 16 of 20 by then; the step had place for 8",
        "4 tokens, 20 of 20 by then; the step had place for 8",
    ]


def test_the_prefix_cache_is_told_of() -> None:
    scheduler = make_scheduler()
    add_all(scheduler, [make_request("ls1", range(12), max_tokens=1)])
    run_step(scheduler)
    add_all(scheduler, [make_request("ls2", range(12), max_tokens=1)])
    run_step(scheduler)
    assert entries(scheduler, "ls2")[1].detail == "8 tokens were in the prefix cache"


def test_of_a_queue_the_next_one_knows_why_and_the_others_their_place() -> None:
    scheduler = make_scheduler(max_running_requests=1)
    add_all(scheduler, [make_request(f"be{number}", max_tokens=3) for number in range(4)])
    run_step(scheduler)
    assert story(scheduler, "be1") == ["queued", "waits: QUEUE", "waits: SLOTS"]
    assert last_wait(scheduler, "be1").detail == "all 1 places for requests are taken"
    assert story(scheduler, "be3") == ["queued", "waits: QUEUE"]
    assert last_wait(scheduler, "be3").detail == "2 before it now"
    run_steps(scheduler, 3)
    assert story(scheduler, "be1")[-2:] == ["computed", "first token"]
    assert last_wait(scheduler, "be3").detail == "1 before it now"


def test_a_long_queue_is_not_noted_in_every_step() -> None:
    scheduler = make_scheduler(max_running_requests=1)
    add_all(scheduler, [make_request(f"be{number}", max_tokens=16) for number in range(50)])
    run_step(scheduler)
    noted: list[str] = []
    wait = scheduler.journal.wait

    def note(request_id: str, reason: Reason, detail: str = "") -> None:
        noted.append(request_id)
        wait(request_id, reason, detail)

    scheduler.journal.wait = note  # type: ignore[method-assign]
    run_steps(scheduler, 10)
    assert noted == []
    run_steps(scheduler, 10)
    # be0 has ended and be1 is running: be2 is the next one.
    assert set(noted) == {"be2"}


def test_memory() -> None:
    scheduler = make_scheduler(num_blocks=4, max_model_len=17)
    add_all(scheduler, [make_request("be1", 8), make_request("be2", 8)])
    run_step(scheduler)
    assert story(scheduler, "be2") == ["queued", "waits: QUEUE", "waits: MEMORY"]
    # be1 holds two blocks of four tokens; eight tokens and one more need three.
    assert last_wait(scheduler, "be2").detail == "3 more blocks are needed, 2 are free"


def test_memory_that_is_expected_to_be_needed() -> None:
    scheduler = Scheduler(replace(ROOMY, num_blocks=8, max_model_len=33, kv_reserve_share=0.0))
    add_all(scheduler, [make_request(name, 4, max_tokens=16) for name in ("be1", "be2")])
    run_step(scheduler)
    assert story(scheduler, "be2") == ["queued", "waits: QUEUE", "waits: EXPECTED_MEMORY"]
    # Without experience 16 tokens are expected of each: 2 x (4 + 16), and the pool holds 32.
    assert last_wait(scheduler, "be2").detail == "40 tokens at one time are expected, 32 may be"


def test_tokens_of_a_step_beside_latency_sensitive_work() -> None:
    scheduler = make_scheduler(best_effort_tokens_beside_ls=1)
    add_all(scheduler, [make_request("be1", 1), make_request("be2", 1)])
    run_step(scheduler)
    add_all(scheduler, [make_request("ls1", 4, max_tokens=3), make_request("be3", 1)])
    run_step(scheduler)
    assert story(scheduler, "be2")[-1] == "waits: TOKENS" == story(scheduler, "be3")[-1]
    before = story(scheduler, "be2")
    run_steps(scheduler, 2)
    assert story(scheduler, "be2") == before, "a wait that goes on is one entry"
    run_step(scheduler)
    # With nobody beside them both get their rows.
    assert not scheduler.journal.waiting
    assert story(scheduler, "be3")[-2:] == ["computed", "first token"]


def test_time_of_a_step() -> None:
    clocked = Clocked()
    clocked.scheduler.add(make_paced_request("ls", 20, 40, 0.0, Objectives(0.5, 13.4e-3)))
    clocked.step()
    clocked.scheduler.add(make_paced_request("be1", 400, 5, clocked.now_s))
    clocked.scheduler.add(make_paced_request("be2", 400, 5, clocked.now_s))
    clocked.step()
    assert story(clocked.scheduler, "be1")[-1] == "waits: TIME"
    assert story(clocked.scheduler, "be2")[-1] == "waits: QUEUE"
    # A decode row: a millisecond of overhead, five for one row of dense layers, and a little more.
    detail = last_wait(clocked.scheduler, "be1").detail
    assert detail.startswith("it takes 6.1 ms without it, and may take ")
    clocked.run()
    told = story(clocked.scheduler, "be1")
    # Chunks that take turns with steps that had no time for one are told in two entries.
    assert [each.partition(" x")[0] for each in told] == [
        *("queued", "waits: TIME", "admitted", "computed: TIME"),
        *("waits: TIME", "computed", "first token", "finished"),
    ]
    wait = next(each for each in entries(clocked.scheduler, "be1") if each.event is Event.WAITS)
    assert wait.last_s > wait.at_s > 0.0


def test_what_a_plan_in_flight_uses() -> None:
    scheduler = make_scheduler(num_blocks=4, max_model_len=17)
    add_all(scheduler, [make_request("ls1", 1), make_request("be1", 6)])
    first = take_plan(scheduler)
    add_all(scheduler, [make_request("ls2", 7), make_request("be2", 1)])
    take_plan(scheduler)
    assert story(scheduler, "ls2")[-1] == "waits: IN_FLIGHT"
    assert story(scheduler, "be2")[-1] == "waits: RUNNING"
    finish_plan(scheduler, first)
    take_plan(scheduler)
    assert story(scheduler, "ls2")[-2:] == ["admitted", "computed"]
    assert story(scheduler, "be1")[-2:] == ["preempted: URGENT", "waits: MEMORY"]
    assert entries(scheduler, "be1")[-2].detail == "6 tokens are computed again"


def test_who_is_older_keeps_its_room() -> None:
    scheduler = make_scheduler(num_blocks=2, max_model_len=9)
    add_all(scheduler, [make_request("ls1", 3), make_request("ls2", 1)])
    run_steps(scheduler, 3)
    assert story(scheduler, "ls2")[-2:] == ["preempted: OLDER", "waits: MEMORY"]


def test_a_tenant_that_has_had_more_waits_for_the_other() -> None:
    scheduler = make_scheduler(max_running_requests=1)
    requests = [make_request(name, max_tokens=4) for name in ("be1", "be2", "be3")]
    for request, tenant in zip(requests, ("a", "a", "b"), strict=True):
        request.tenant = tenant
        scheduler.add(request)
    # While nobody has had anything the oldest is next.
    run_steps(scheduler, 2)
    assert story(scheduler, "be2") == ["queued", "waits: QUEUE", "waits: SLOTS", "waits: SHARE"]
    # A prompt token counts one, and an output token two: be1 had four and one; b begins with none.
    assert last_wait(scheduler, "be2").detail == (
        "its tenant has had 6 weighted tokens, the one that is next 0; 0 of its own before it now"
    )
    assert story(scheduler, "be3") == ["queued", "waits: QUEUE", "waits: SLOTS"]
    run_steps(scheduler, 3)
    assert story(scheduler, "be3")[-3:] == ["admitted", "computed", "first token"]
    # Now it is its turn again.
    assert story(scheduler, "be2")[1:] == ["waits: QUEUE", "waits: SLOTS x2", "waits: SHARE"]
    assert scheduler.journal.waits_for("be2", Reason.SLOTS)


def test_whoever_is_due_goes_first() -> None:
    scheduler = make_scheduler(max_running_requests=1)
    scheduler.add(make_request("be0", max_tokens=2))
    run_step(scheduler)
    scheduler.add(make_request("be1"))
    due = make_request("be2")
    due.deadline_s = 100.0
    run_step(scheduler)
    scheduler.add(due)
    run_step(scheduler)
    assert story(scheduler, "be2")[-2:] == ["computed", "first token"]
    assert story(scheduler, "be1") == [
        "queued",
        "waits: SLOTS x2",
        "waits: URGENCY",
    ]


def test_a_straggler_is_demoted() -> None:
    clocked = Clocked()
    objectives = Objectives(0.5, 15e-3)
    clocked.scheduler.add(make_paced_request("ls", 20, 50, 0.0, objectives, demote_after_tokens=10))
    clocked.run()
    (entry,) = [e for e in entries(clocked.scheduler, "ls") if e.event is Event.DEMOTED]
    assert (entry.reason, entry.detail) == (
        Reason.LENGTH,
        "after 10 tokens; tier 'chat' from now on",
    )


def test_an_aborted_request_has_ended() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request("ls1"))
    scheduler.abort("ls1")
    assert story(scheduler, "ls1") == ["queued", "aborted"]
    assert not scheduler.abort("ls1")
    assert story(scheduler, "ls1") == ["queued", "aborted"]


def offload(driver: HostDriver, name: str) -> None:
    """Sends a decode to the host by taking its slot for a latency-sensitive request."""
    driver.add(ls9=1)
    driver.schedule(latency_sensitive_only=True)
    driver.scheduler.abort("ls9")
    driver.complete()
    driver.land(name)


def test_out_to_the_host_for_urgent_work_and_back_when_there_is_room() -> None:
    limits = replace(LIMITS, return_patience=2)
    driver = HostDriver(limits=limits, max_running_requests=1)
    driver.add(be1=4)
    driver.step()
    offload(driver, "be1")
    assert story(driver.scheduler, "be1")[-1] == "offloaded: URGENT"
    driver.step("be1")
    driver.step()
    assert story(driver.scheduler, "be1")[-1] == "returned: ROOM"


def test_back_to_the_device_when_offloading_is_not_allowed_any_more() -> None:
    driver = HostDriver(max_running_requests=1)
    driver.add(be1=4)
    driver.step()
    offload(driver, "be1")
    driver.scheduler.offload_allowed = False
    driver.step()
    assert story(driver.scheduler, "be1")[-1] == "returned: OFFLOADING_OFF"


def _for_a_newcomer(driver: HostDriver) -> None:
    driver.add(be1=1)
    driver.step()
    driver.step()
    driver.add(be2=7)
    driver.step()
    driver.step()


def _for_an_older_one(driver: HostDriver) -> None:
    driver.add(be1=3, be2=1)
    for _ in range(3):
        driver.step()


def _for_itself(driver: HostDriver) -> None:
    driver.add(be2=1, be1=3)
    for _ in range(3):
        driver.step()


@pytest.mark.parametrize(
    ("bring_about", "expected"),
    [
        (_for_a_newcomer, "offloaded: NEWCOMER"),
        (_for_an_older_one, "offloaded: OLDER"),
        (_for_itself, "offloaded: MEMORY"),
    ],
)
def test_out_to_the_host(bring_about: Callable[[HostDriver], None], expected: str) -> None:
    driver = HostDriver(num_blocks=2, max_model_len=9)
    bring_about(driver)
    told = [story(driver.scheduler, name)[-1] for name in ("be1", "be2")]
    assert expected in told, told


def test_while_room_is_made_by_copies_others_wait_for_them() -> None:
    driver = HostDriver(num_blocks=3, max_model_len=13)
    driver.add(be1=1, be2=1, be3=1)
    driver.step()
    driver.step()
    driver.add(ls1=7)
    driver.step()
    assert story(driver.scheduler, "ls1")[-1] == "waits: LANDING"
    driver.land("be2", "be3")
    driver.step()
    assert story(driver.scheduler, "ls1")[-2:] == ["computed", "first token"]


def test_more_decodes_than_may_stay() -> None:
    driver = make_hosting_driver("be1")
    assert story(driver.scheduler, "be1")[-1] == "offloaded: RESIDENT_LIMIT"


def test_lanes_are_closed_or_full() -> None:
    limits = replace(LIMITS, max_lane_rows=1, max_resident_decodes=0)
    driver = HostDriver(limits=limits)
    driver.add(be1=4, be2=4, be3=4)
    driver.step()
    driver.schedule()
    driver.land("be1", "be2", "be3")
    driver.scheduler.lanes_open = False
    driver.step()
    assert story(driver.scheduler, "be1")[-1] == "waits: LANES_CLOSED"
    driver.scheduler.lanes_open = True
    assert driver.step() == "be1^4"
    assert "be1" not in driver.scheduler.journal.waiting
    assert story(driver.scheduler, "be2")[-1] == "waits: LANES"
    assert last_wait(driver.scheduler, "be2").detail == "1 may enter"


def test_the_host_has_no_block_for_the_next_token_of_all() -> None:
    driver = make_hosting_driver("be1", "be2", "be3", num_host_blocks=6, max_model_len=20)
    for _ in range(4):
        driver.step("be1", "be2", "be3")
    # All six blocks are full, and each of them needs one more.
    assert driver.step() == "nothing"
    assert story(driver.scheduler, "be1")[-1] == "waits: HOST_MEMORY"
    assert "preempted: HOST_MEMORY" in story(driver.scheduler, "be3")
    driver.quieten()
    driver.step()
    assert "be1" not in driver.scheduler.journal.waiting


def test_what_the_host_lost_is_computed_again() -> None:
    driver = make_hosting_driver("be1")
    driver.step()
    driver.scheduler.recompute("be1")
    assert story(driver.scheduler, "be1")[-1] == "preempted: HOST_LOST"


def test_times_are_those_of_the_caller() -> None:
    scheduler = make_scheduler(max_running_requests=1)
    first, second = make_request("be1", max_tokens=1), make_request("be2", max_tokens=1)
    first.arrival_s, second.arrival_s = 10.0, 10.5
    for request in (first, second):
        scheduler.add(request)
    for now_s in (11.0, 13.0):
        plan = scheduler.schedule(now_s=now_s)
        assert plan is not None
        scheduler.complete(plan, results_of(plan), now_s + 1.0)
    times = [(_words(each), each.at_s, each.last_s) for each in entries(scheduler, "be2")]
    assert times == [
        ("queued", 10.5, 10.5),
        ("waits: QUEUE", 10.5, 11.0),
        ("waits: SLOTS", 11.0, 13.0),
        ("admitted", 13.0, 13.0),
        ("computed", 13.0, 13.0),
        ("first token", 14.0, 14.0),
        ("finished", 14.0, 14.0),
    ]
    assert entries(scheduler, "be2")[5].detail == "3500.0 ms after it came"


def test_one_that_was_preempted_goes_before_those_that_came_later() -> None:
    scheduler = make_scheduler(max_running_requests=2)
    add_all(scheduler, [make_request(f"be{number}", max_tokens=9) for number in range(4)])
    run_step(scheduler)
    assert scheduler.journal.waits_for("be2", Reason.SLOTS)
    add_all(scheduler, [make_request("ls1", max_tokens=2)])
    run_steps(scheduler, 2)
    assert "preempted: URGENT" in story(scheduler, "be1")
    assert scheduler.journal.waits_for("be2", Reason.QUEUE)
    assert last_wait(scheduler, "be1").reason is Reason.SLOTS

"""Who is next: shares of tenants, due times, and age."""

from array import array
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import Objectives, Request, Scheduler, SchedulerSettings, ServiceClass, StepResult
from scheduler.fair_share import FairShare
from scheduler.waiting_line import WaitingLine

ONE_AT_A_TIME = SchedulerSettings(
    num_blocks=64,
    block_size=8,
    max_running_requests=1,
    max_step_tokens=16,
    best_effort_tokens_beside_ls=16,
    max_model_len=64,
    prefix_caching=False,
)


def make_request(
    index: int,
    tenant: str = "",
    arrival_s: float = 0.0,
    ttft_s: float | None = None,
    deadline_s: float = inf,
    num_tokens: int = 4,
    max_tokens: int = 4,
) -> Request:
    is_urgent = ttft_s is not None
    request = Request(
        request_id=f"{tenant}{index}",
        service_class=ServiceClass.LATENCY_SENSITIVE if is_urgent else ServiceClass.BEST_EFFORT,
        tier="t",
        arrival_s=arrival_s,
        token_ids=array("q", [index] * num_tokens),
        max_tokens=max_tokens,
        objectives=None if ttft_s is None else Objectives(ttft_s, 0.1),
        tenant=tenant,
        deadline_s=deadline_s,
    )
    request.arrival_index = index
    return request


def drain(line: WaitingLine, now_s: float) -> list[str]:
    order = []
    while line:
        request = line.next(now_s)
        line.remove(request)
        order.append(request.request_id)
    return order


def test_without_tenants_and_due_times_first_come_first_served() -> None:
    line = WaitingLine(FairShare())
    for index in (2, 0, 1):
        line.add(make_request(index))
    assert [each.arrival_index for each in line] == [0, 1, 2]
    assert drain(line, 1.0) == ["0", "1", "2"]


def test_the_tenant_that_had_least_is_next() -> None:
    shares = FairShare()
    line = WaitingLine(shares)
    for index, tenant in enumerate("aab"):
        line.add(make_request(index, tenant))
    shares.charge("a", 10, 0)
    assert line.next(1.0).tenant == "b"
    shares.charge("b", 0, 6)
    assert line.next(1.0).tenant == "a"


def test_a_pause_saves_nothing_up() -> None:
    shares = FairShare()
    line = WaitingLine(shares)
    line.add(make_request(0, "busy"))
    shares.charge("busy", 1000, 0)
    line.add(make_request(1, "late"))
    assert shares.given("late") == 1000


def test_a_pause_saves_nothing_up_where_nobody_waits() -> None:
    shares = FairShare()
    line = WaitingLine(shares)
    first = make_request(0, "busy")
    line.add(first)
    line.remove(first)
    shares.charge("busy", 1000, 0)
    line.add(make_request(1, "late"))
    line.add(make_request(2, "busy"))
    assert shares.given("late") == shares.given("busy") == 1000


def test_tenants_that_were_there_once_are_not_remembered_for_ever() -> None:
    shares = FairShare()
    line = WaitingLine(shares)
    line.add(make_request(0, "steady"))
    for index in range(1, 5000):
        request = make_request(index, f"guest{index}")
        line.add(request)
        line.remove(request)
        shares.charge("steady", 0, 1)
    assert len(shares._given) <= 1001
    assert shares.given("steady") == 2.0 * 4999


def test_the_earliest_due_goes_first_and_the_lost_last() -> None:
    line = WaitingLine(FairShare())
    line.add(make_request(0, ttft_s=0.2))
    line.add(make_request(1, ttft_s=5.0))
    line.add(make_request(2, ttft_s=2.0))
    # At 1 s the first one can not be in time any more.
    assert drain(line, 1.0) == ["2", "1", "0"]


def test_deadlines_go_before_none() -> None:
    line = WaitingLine(FairShare())
    line.add(make_request(0))
    line.add(make_request(1, deadline_s=100.0))
    assert drain(line, 1.0) == ["1", "0"]


def test_one_that_lost_its_place_amid_its_tokens_goes_first() -> None:
    line = WaitingLine(FairShare())
    preempted = make_request(0, ttft_s=0.2)
    preempted.first_token_s = 0.1
    line.add(make_request(1, ttft_s=2.0))
    line.add(preempted)
    assert drain(line, 1.5) == ["0", "1"]


def test_age_goes_before_everything() -> None:
    shares = FairShare()
    line = WaitingLine(shares)
    line.add(make_request(0, "greedy", arrival_s=0.0))
    line.add(make_request(1, "modest", arrival_s=50.0))
    shares.charge("greedy", 10**9, 0)
    assert line.next(59.0).tenant == "modest"
    assert line.next(60.0).tenant == "greedy"


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 40), st.integers(1, 12)),
        min_size=6,
        max_size=40,
    )
)
def test_backlogged_tenants_get_the_same_but_for_what_runs(
    wanted: list[tuple[str, int, int]],
) -> None:
    """While all of two tenants' requests still wait, what they had differs by no more than twice
    what the requests that may run at one time take."""
    settings = SchedulerSettings(
        num_blocks=64,
        block_size=8,
        max_running_requests=2,
        max_step_tokens=16,
        best_effort_tokens_beside_ls=16,
        max_model_len=64,
        prefix_caching=False,
    )
    scheduler = Scheduler(settings)
    for index, (tenant, num_tokens, max_tokens) in enumerate(wanted):
        scheduler.add(make_request(index, tenant, num_tokens=num_tokens, max_tokens=max_tokens))
    largest = max(num_tokens + 2 * max_tokens for _, num_tokens, max_tokens in wanted)
    while (plan := scheduler.schedule(now_s=1.0)) is not None:
        sampled = {rows.request_id: 1 for rows in plan.rows if rows.samples}
        scheduler.complete(plan, StepResult(sampled), now_s=1.0)
        given_by_tenant = scheduler.counts.given_to_waiting_tenants(ServiceClass.BEST_EFFORT)
        if given_by_tenant:
            spread = max(given_by_tenant.values()) - min(given_by_tenant.values())
            assert spread <= 2 * settings.max_running_requests * largest
    assert not scheduler.has_unfinished


def test_least_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        FairShare().least([])


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 20), st.integers(1, 8))
def test_backlogged_tenants_get_what_their_weights_say(
    weight: int, other_weight: int, num_tokens: int, max_tokens: int
) -> None:
    """Of two tenants that both have work waiting, each has had its part but for a request that
    runs and the one that is next."""
    scheduler = Scheduler(ONE_AT_A_TIME)
    scheduler.set_shares({"a": float(weight), "b": float(other_weight)})
    for index in range(60):
        tenant = "ab"[index % 2]
        scheduler.add(make_request(index, tenant, num_tokens=num_tokens, max_tokens=max_tokens))
    num_done = {"a": 0, "b": 0}
    while max(num_done.values()) < 20:
        plan = scheduler.schedule(now_s=1.0)
        assert plan is not None
        sampled = {rows.request_id: 1 for rows in plan.rows if rows.samples}
        for ended in scheduler.complete(plan, StepResult(sampled), now_s=1.0):
            num_done[ended.tenant] += 1
        had = num_done["a"] / weight - num_done["b"] / other_weight
        assert abs(had) <= 1 / weight + 1 / other_weight


def test_weights_hold_from_now_on_and_are_one_where_nobody_says() -> None:
    shares = FairShare()
    shares.charge("a", 8, 0)
    shares.set_weights({"a": 4.0})
    shares.charge("a", 8, 0)
    shares.charge("b", 8, 0)
    assert (shares.given("a"), shares.given("b")) == (10.0, 8.0)
    shares.set_weights({})
    shares.charge("a", 8, 0)
    assert shares.given("a") == 18.0


def test_weights_are_of_best_effort_service_alone() -> None:
    scheduler = Scheduler(ONE_AT_A_TIME)
    scheduler.set_shares({"a": 2.0})
    for service_class, given_to_a in (
        (ServiceClass.BEST_EFFORT, 4.0),
        (ServiceClass.LATENCY_SENSITIVE, 8.0),
    ):
        shares = scheduler._queues.shares[service_class]
        shares.charge("a", 8, 0)
        assert shares.given("a") == given_to_a

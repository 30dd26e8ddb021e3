"""Requests that wait or run follow a change of their tier."""

import pytest
from builders_scheduler import LS, add_all, finish_plan, make_request, make_scheduler, take_plan

from scheduler import Objectives, Request, ServiceClass
from scheduler.tier_terms import TierTerms
from scheduler.timeline import Event

OLD, NEW = Objectives(1.0, 0.1), Objectives(0.5, 0.05)
TERMS = {LS.value: TierTerms(LS, NEW, demote_after_tokens=2, fallback_tier="batch")}


def make_urgent(request_id: str) -> Request:
    request = make_request(request_id)
    request.objectives = OLD
    return request


def test_requests_that_wait_and_run_follow() -> None:
    scheduler = make_scheduler(max_running_requests=1)
    requests = add_all(scheduler, [make_urgent("ls0"), make_urgent("ls1")])
    finish_plan(scheduler, take_plan(scheduler))
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 1)
    scheduler.set_terms(TERMS)
    scheduler.check_integrity()
    for request in requests.values():
        assert TERMS[LS.value].are_of(request)
        assert request.service_class is LS


def test_a_running_request_is_demoted_by_the_new_rule() -> None:
    scheduler = make_scheduler()
    (request,) = add_all(scheduler, [make_urgent("ls0")]).values()
    for _ in range(2):
        finish_plan(scheduler, take_plan(scheduler))
    assert request.service_class is LS
    scheduler.set_terms(TERMS)
    finish_plan(scheduler, take_plan(scheduler))
    assert request.service_class is ServiceClass.BEST_EFFORT
    assert (request.tier, request.objectives) == ("batch", None)
    # Nothing is promised to it any more, whatever its tier becomes.
    scheduler.set_terms(TERMS | {"batch": TierTerms(LS, NEW)})
    assert request.objectives is None


@pytest.mark.parametrize("is_withdrawn", [False, True])
def test_a_waiting_line_reckons_with_new_due_times(is_withdrawn: bool) -> None:
    scheduler = make_scheduler(max_running_requests=1)
    # Neither is due at any time, so that the first goes first.
    add_all(scheduler, [make_request("ls0"), make_request("ls1", tier="voice")])
    scheduler.set_terms({"voice": TierTerms(LS, NEW)})
    if is_withdrawn:
        scheduler.set_terms({"voice": TierTerms(LS)})
    plan = take_plan(scheduler)
    assert [rows.request_id for rows in plan.rows] == ["ls0" if is_withdrawn else "ls1"]
    finish_plan(scheduler, plan)


def test_others_keep_what_they_have() -> None:
    scheduler = make_scheduler()
    gone, other_class = add_all(scheduler, [make_urgent("ls0"), make_urgent("ls1")]).values()
    gone.tier = "gone"
    scheduler.set_terms({LS.value: TierTerms(ServiceClass.BEST_EFFORT)})
    assert gone.objectives == other_class.objectives == OLD
    assert other_class.service_class is LS


def test_a_demoted_request_is_not_told_of_changes_that_do_not_concern_it() -> None:
    scheduler = make_scheduler()
    add_all(scheduler, [make_urgent("ls0")])
    scheduler.set_terms(TERMS)
    for _ in range(2):
        finish_plan(scheduler, take_plan(scheduler))
    scheduler.set_terms(TERMS | {"batch": TierTerms(ServiceClass.BEST_EFFORT)})
    events = [entry.event for entry in scheduler.explain("ls0") or ()]
    assert events.count(Event.DEMOTED) == 1
    assert events.count(Event.TIER_CHANGED) == 1

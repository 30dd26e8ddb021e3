"""Whether requests count as having met what they were promised."""

from dataclasses import replace

import pytest
from service_builders import make_output

from omniserve.promise import Promise, Verdict
from omniserve.requests import EngineRequest, SamplingParams, TierRules
from scheduler import Objectives

ARRIVAL_S = 10.0
CHAT = EngineRequest(
    "r#0", "demo", (1, 2), SamplingParams(), "latency_sensitive", "chat", Objectives(1.0, 0.1)
)
BATCH = EngineRequest("r#0", "demo", (1, 2), SamplingParams(), "best_effort", "batch")


def held_to(
    sequence: EngineRequest, *token_times_s: float, index: int = 0, promise: Promise | None = None
) -> Promise:
    """A promise after tokens of one choice at these times from the arrival on."""
    promise = promise or Promise(ARRIVAL_S, sequence)
    for place, time_s in enumerate(token_times_s):
        promise.note(index, make_output(sequence, place, 99), ARRIVAL_S + time_s)
    return promise


@pytest.mark.parametrize(
    ("token_times_s", "expected"),
    [
        ((0.9, 1.0, 1.05), Verdict(ttft=True, tpot=True)),
        ((1.1, 1.2), Verdict(ttft=False, tpot=True)),
        ((0.5, 0.55, 0.75), Verdict(ttft=True, tpot=False)),
        ((0.5,), Verdict(ttft=True, tpot=True)),
        ((), Verdict(ttft=False, tpot=True)),
    ],
)
def test_each_objective_by_its_own_time(token_times_s: list[float], expected: Verdict) -> None:
    promise = held_to(CHAT, *token_times_s)
    assert promise.verdict(is_complete=True) == expected
    assert promise.is_kept is (expected.ttft and expected.tpot)


def test_what_did_not_end_well_has_not_met_its_time_per_token() -> None:
    promise = held_to(CHAT, 0.5, 0.55)
    assert promise.verdict(is_complete=False) == Verdict(ttft=True, tpot=False)


def test_of_choices_the_first_token_and_the_mean_count() -> None:
    promise = held_to(CHAT, 0.9, 0.95)
    held_to(CHAT, 5.0, 5.14, index=1, promise=promise)
    assert promise.verdict(is_complete=True) == Verdict(ttft=True, tpot=True)
    held_to(CHAT, 5.0, 6.0, index=2, promise=promise)
    assert promise.verdict(is_complete=True) == Verdict(ttft=True, tpot=False)


def test_a_straggler_is_held_to_its_pace_up_to_the_demotion() -> None:
    straggler = replace(CHAT, rules=TierRules(demote_after_tokens=3))
    assert held_to(straggler, 0.5, 0.55, 0.6, 9.0, 20.0).is_kept
    assert not held_to(straggler, 0.5, 0.55, 9.0).is_kept


def test_what_goes_to_the_fallback_at_once_has_no_verdict() -> None:
    promise = Promise(ARRIVAL_S, CHAT)
    promise.note(0, replace(make_output(CHAT, 0, 2), tier="batch"), ARRIVAL_S + 50)
    assert promise.verdict(is_complete=True) is None
    assert promise.is_kept


def test_what_goes_there_later_keeps_its_verdict() -> None:
    promise = held_to(CHAT, 0.5, 0.55)
    promise.note(0, replace(make_output(CHAT, 2, 3), tier="batch"), ARRIVAL_S + 50)
    assert promise.verdict(is_complete=True) == Verdict(ttft=True, tpot=True)


def test_a_deadline_is_a_promise_to_best_effort_requests_too() -> None:
    assert held_to(BATCH, 100.0).is_kept
    in_a_second = replace(BATCH, deadline_s=ARRIVAL_S + 1.0)
    assert held_to(in_a_second, 0.5, 1.0).is_kept
    assert not held_to(in_a_second, 0.5, 1.1).is_kept
    assert held_to(in_a_second, 0.5, 1.1).verdict(is_complete=True) is None

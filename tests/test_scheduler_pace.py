"""Pace and aim: what a step may take, by what running requests were promised."""

import random
from array import array
from collections.abc import Sequence
from math import inf

import pytest

from scheduler import Objectives, Request, ServiceClass
from scheduler.aim import Aims
from scheduler.pace import Pace

TPOT_S = 0.1


def decode(num_tokens: int, first_s: float = 0.0, max_tokens: int = 1000) -> Request:
    """A request with so many tokens, the first of them at `first_s`."""
    request = Request(
        request_id="ls",
        service_class=ServiceClass.LATENCY_SENSITIVE,
        tier="chat",
        arrival_s=first_s - 0.2,
        token_ids=array("q", [7] * 10),
        max_tokens=max_tokens,
        objectives=Objectives(0.5, TPOT_S),
    )
    request.token_ids.extend([7] * num_tokens)
    request.max_total_tokens = 10 + max_tokens
    request.first_token_s = first_s
    return request


@pytest.fixture
def pace() -> Pace:
    """That aims at the objective itself, as its tier never missed."""
    aims = Aims()
    for _ in range(100):
        aims.note("chat", Objectives(0.5, TPOT_S, share=0.5), is_met=True)
    return Pace(aims)


def allowed_s(pace: Pace, decodes: Sequence[Request], now_s: float, fastest_s: float) -> float:
    """Where none of these is lost."""
    return pace.allowed(decodes, now_s, fastest_s).by_savable_s


def test_a_request_at_its_pace_has_the_time_of_one_token(pace: Pace) -> None:
    assert allowed_s(pace, [decode(1)], 0.0, 0.01) == pytest.approx(TPOT_S)
    assert allowed_s(pace, [decode(5)], 0.4, 0.01) == pytest.approx(TPOT_S)


def test_one_that_is_ahead_lends_what_it_gained_but_not_more_than_a_pause(pace: Pace) -> None:
    assert allowed_s(pace, [decode(3)], 0.15, 0.01) == pytest.approx(0.15)
    assert allowed_s(pace, [decode(50)], 0.5, 0.01) == pytest.approx(3 * TPOT_S)


def test_the_tightest_one_decides(pace: Pace) -> None:
    both = [decode(3), decode(2)]
    assert allowed_s(pace, both, 0.15, 0.01) == pytest.approx(0.05)


def test_one_that_is_behind_is_to_catch_up(pace: Pace) -> None:
    assert allowed_s(pace, [decode(3)], 0.5, 0.01) < 0.0


def test_one_that_is_lost_goes_on_at_its_pace(pace: Pace) -> None:
    # Two tokens of ten came within 2 s, the others cannot make up for it.
    lost = decode(2, max_tokens=10)
    allowed = pace.allowed([lost], now_s=2.0, fastest_s=0.05)
    assert allowed.by_all_s == pytest.approx(TPOT_S)
    # Who can still be saved does not have to wait for it.
    assert allowed.by_savable_s == inf
    assert allowed_s(pace, [lost, decode(21)], 2.0, 0.05) == pytest.approx(TPOT_S)
    # With a thousand to come it can.
    assert allowed_s(pace, [decode(2)], 2.0, 0.05) < 0.0


def test_who_has_no_first_token_or_no_objective_is_not_due(pace: Pace) -> None:
    prompt, free = decode(0), decode(3)
    prompt.first_token_s = None
    free.objectives = None
    assert allowed_s(pace, [prompt, free], 9.0, 0.01) == inf
    assert allowed_s(pace, [], 9.0, 0.01) == inf


def test_tokens_in_flight_count(pace: Pace) -> None:
    request = decode(3)
    request.num_pending_samples = 1
    assert allowed_s(pace, [request], 0.3, 0.01) == pytest.approx(TPOT_S)


def ended(gap_s: float, num_tokens: int = 11) -> Request:
    request = decode(num_tokens)
    request.last_token_s = gap_s * (num_tokens - 1)
    return request


def test_misses_lower_the_aim_and_requests_that_met_it_raise_it() -> None:
    aims = Aims()
    pace = Pace(aims)
    pace.note_end(ended(1.1 * TPOT_S), taken_s=1.0)
    after_miss = aims.of("chat")
    assert after_miss < aims.of("other")
    pace.note_end(ended(0.5 * TPOT_S), taken_s=1.0)
    assert after_miss < aims.of("chat") < aims.of("other")


def test_a_miss_counts_where_best_effort_work_made_it_one() -> None:
    aims = Aims()
    pace = Pace(aims)
    late = ended(1.1 * TPOT_S, num_tokens=11)  # Late by one token's time.
    pace.note_end(late, taken_s=0.9 * TPOT_S)
    assert aims.of("chat") == Aims().of("chat")
    pace.note_end(late, taken_s=1.1 * TPOT_S)
    assert aims.of("chat") < Aims().of("chat")


def test_the_aim_settles_where_the_wanted_share_is_met() -> None:
    """Tokens take what is aimed at, times noise: the share that meets the objective converges."""
    noise = random.Random(5)
    objectives = Objectives(0.5, TPOT_S, share=0.9)
    aims = Aims()
    met = []
    for _ in range(20_000):
        is_met = aims.of("chat") * noise.lognormvariate(0.0, 0.1) <= 1.0
        aims.note("chat", objectives, is_met=is_met)
        met.append(is_met)
    assert sum(met[5_000:]) / len(met[5_000:]) == pytest.approx(0.9, abs=0.01)


def test_aims_of_tiers_that_are_no_more_are_forgotten() -> None:
    aims = Aims()
    for tier in ("chat", "gone"):
        aims.note(tier, Objectives(0.5, TPOT_S), is_met=False)
    chat = aims.of("chat")
    aims.forget_all_but({"chat": None})
    assert aims.by_tier() == {"chat": chat}


def test_the_aim_stays_within_its_bounds() -> None:
    aims, objectives = Aims(), Objectives(0.5, TPOT_S)
    for _ in range(1000):
        aims.note("chat", objectives, is_met=False)
    assert aims.of("chat") == 0.6
    for _ in range(10_000):
        aims.note("chat", objectives, is_met=True)
    assert aims.of("chat") == 1.0

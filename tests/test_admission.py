"""What becomes of requests that arrive: taken, sent to the fallback, or refused with a hint."""

from array import array
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniserve.engine.admission import Admission
from omniserve.engine.scheduler_request import scheduler_request
from omniserve.errors import DeadlineExceeded, Overloaded
from omniserve.queue_movement import QueueMovement, retry_after_s
from omniserve.requests import EngineRequest, SamplingParams, TierRules
from omniserve.settings import ModelInfo
from scheduler import Objectives, Request, Scheduler, SchedulerSettings, ServiceClass
from scheduler.first_token_forecast import UrgentLoad
from scheduler.step_time import LinearStepTime, StepCosts

ROW_S = 1e-3
PER_ROW = LinearStepTime(StepCosts(0.0, ((1, ROW_S), (512, 512 * ROW_S))))
"""A prompt takes a millisecond a token."""
SETTINGS = SchedulerSettings(
    num_blocks=64,
    block_size=16,
    max_running_requests=32,
    max_step_tokens=128,
    best_effort_tokens_beside_ls=128,
    max_model_len=512,
    prefix_caching=False,
)
NOW_S = 1000.0
TO_BATCH = TierRules(fallback="batch")
CHAT = Objectives(ttft_s=0.1, tpot_s=1.0)


def make_scheduler(*, knows_times: bool = True) -> Scheduler:
    return Scheduler(SETTINGS, step_time=PER_ROW if knows_times else None)


def make_state(
    name: str = "new",
    num_tokens: int = 60,
    *,
    tier: str = "chat",
    waited_s: float = 0.0,
    deadline_s: float = inf,
) -> Request:
    is_urgent = tier == "chat"
    return Request(
        request_id=name,
        service_class=ServiceClass.LATENCY_SENSITIVE if is_urgent else ServiceClass.BEST_EFFORT,
        tier=tier,
        arrival_s=NOW_S - waited_s,
        token_ids=array("q", range(num_tokens)),
        max_tokens=8,
        objectives=CHAT if is_urgent else None,
        deadline_s=deadline_s,
    )


def refusal(
    admission: Admission, state: Request, rules: TierRules, now_s: float = NOW_S
) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        admission.judge(state, rules, now_s)
    return caught.value


def test_a_request_that_will_be_in_time_is_taken_as_it_is() -> None:
    state = make_state()
    Admission(make_scheduler()).judge(state, TO_BATCH, NOW_S)
    assert (state.tier, state.service_class) == ("chat", ServiceClass.LATENCY_SENSITIVE)
    assert state.objectives == CHAT


def test_the_hint_is_what_the_queue_is_too_long() -> None:
    scheduler = make_scheduler()
    for number in range(10):
        scheduler.add(make_state(f"{number}"))
    error = refusal(Admission(scheduler), make_state(), TierRules())
    # Eleven prompts of 60 ms each, where the last is promised 100 ms.
    assert error.retry_after_s == pytest.approx(0.56, rel=0.01)
    assert "tier 'chat' promises the first token within 100 ms, but it would take 660 ms" in str(
        error
    )


def test_the_time_that_it_has_waited_counts_but_not_for_the_hint() -> None:
    admission = Admission(make_scheduler())
    admission.judge(make_state(waited_s=0.03), TierRules(), NOW_S)
    error = refusal(admission, make_state(waited_s=0.9), TierRules())
    # Sent again it would be in time at once.
    assert error.retry_after_s == 0.1


def test_what_other_models_need_of_the_device_counts() -> None:
    admission = Admission(make_scheduler())
    admission.judge(make_state(), TierRules(), NOW_S, [UrgentLoad(prompts_s=0.03)])
    with pytest.raises(Overloaded):
        admission.judge(make_state(), TierRules(), NOW_S, [UrgentLoad(prompts_s=0.05)])
    with pytest.raises(Overloaded):
        admission.judge(make_state(), TierRules(), NOW_S, [UrgentLoad(decode_share=0.5)])


def test_a_request_without_room_in_memory_is_told_to_wait_as_long_as_anybody() -> None:
    scheduler = make_scheduler()
    for number in range(3):
        scheduler.add(make_state(f"{number}", 400))
    error = refusal(Admission(scheduler), make_state("new", 400), TierRules())
    assert error.retry_after_s == 10.0
    assert "would not be had soon" in str(error)


def test_a_prompt_that_is_too_long_by_itself_is_not_told_to_come_back_soon() -> None:
    error = refusal(Admission(make_scheduler()), make_state(num_tokens=120), TierRules())
    assert error.retry_after_s == 10.0
    assert "within 100 ms, but its prompt alone would take 120 ms: waiting" in str(error)
    assert str(error).endswith("try again in 10.0 s")


def test_an_idle_model_tries_now_and_then_what_it_would_refuse() -> None:
    scheduler = make_scheduler()
    admission = Admission(scheduler)
    refusal(admission, make_state(num_tokens=120), TierRules())
    refusal(admission, make_state(num_tokens=120), TierRules(), NOW_S + 9.9)
    admission.judge(make_state(num_tokens=120), TierRules(), NOW_S + 10.0)
    refusal(admission, make_state(num_tokens=120), TierRules(), NOW_S + 10.1)
    scheduler.add(make_state("other"))
    refusal(admission, make_state(num_tokens=120), TierRules(), NOW_S + 30.0)


def test_a_late_request_goes_to_the_fallback() -> None:
    state = make_state(num_tokens=120)
    Admission(make_scheduler()).judge(state, TO_BATCH, NOW_S)
    assert (state.tier, state.service_class) == ("batch", ServiceClass.BEST_EFFORT)
    assert state.objectives is None


def test_where_admission_is_off_or_nothing_is_known_everybody_is_taken() -> None:
    state = make_state(num_tokens=400)
    Admission(make_scheduler()).judge(state, replace(TO_BATCH, admission=False), NOW_S)
    assert state.tier == "chat"
    late = make_state(num_tokens=400, waited_s=9.0)
    Admission(make_scheduler(knows_times=False)).judge(late, TO_BATCH, NOW_S)
    assert late.tier == "chat"


def test_a_passed_deadline_ends_a_request_of_any_class() -> None:
    admission = Admission(make_scheduler())
    for tier in ("chat", "batch"):
        state = make_state(tier=tier, deadline_s=NOW_S)
        with pytest.raises(DeadlineExceeded, match="the deadline passed"):
            admission.judge(state, TierRules(), NOW_S)
        admission.judge(make_state(tier=tier, deadline_s=NOW_S + 0.07), TierRules(), NOW_S)


def test_who_would_miss_its_deadline_is_refused_rather_than_sent_to_the_fallback() -> None:
    error = refusal(Admission(make_scheduler()), make_state(deadline_s=NOW_S + 0.05), TO_BATCH)
    assert "the deadline asks for the first token within 50 ms" in str(error)


def test_a_full_queue_takes_nobody_until_somebody_has_left_it() -> None:
    scheduler = make_scheduler()
    admission, rules = Admission(scheduler), TierRules(max_waiting=2)
    for number in range(2):
        state = make_state(f"{number}", 8)
        admission.judge(state, rules, NOW_S)
        scheduler.add(state)
    error = refusal(admission, make_state("new", 8), rules)
    assert "tier 'chat' has no room in its queue of 2" in str(error)
    # Of another tier there is nobody.
    admission.judge(make_state("other", 8, tier="batch"), rules, NOW_S)
    plan = scheduler.schedule(now_s=NOW_S)
    assert plan is not None
    admission.judge(make_state("new", 8), rules, NOW_S)


def test_the_queue_of_the_fallback_is_bounded_too() -> None:
    scheduler = make_scheduler()
    admission, rules = Admission(scheduler), replace(TO_BATCH, fallback_max_waiting=1)
    first = make_state("first", 120)
    admission.judge(first, rules, NOW_S)
    scheduler.add(first)
    error = refusal(admission, make_state("second", 120), rules)
    assert "tier 'batch' has no room in its queue of 1" in str(error)


def test_requests_that_are_aborted_or_preempted_are_counted_once() -> None:
    scheduler = make_scheduler()
    for name in ("a", "b"):
        scheduler.add(make_state(name, 8))
    counts = scheduler.counts
    assert (counts.num_waiting_in("chat"), counts.num_left_waiting("chat")) == (2, 0)
    scheduler.abort("a")
    scheduler.schedule(now_s=NOW_S)
    assert (counts.num_waiting_in("chat"), counts.num_left_waiting("chat")) == (0, 2)
    assert counts.num_waiting_in("batch") == 0


def test_the_hint_of_a_full_queue_goes_by_how_fast_it_moved() -> None:
    movement = QueueMovement()
    for tenth in range(11):
        movement.note(NOW_S + tenth / 10, num_left=tenth // 2)
    # Five left in a second.
    assert movement.next_place_s(NOW_S + 1, 5) == pytest.approx(0.2)
    # Nobody has left for three seconds: it may well be three more.
    stuck = QueueMovement()
    stuck.note(NOW_S, 7)
    assert stuck.next_place_s(NOW_S + 3, 7) == 3.0


def test_what_was_long_ago_does_not_count() -> None:
    movement = QueueMovement()
    movement.note(NOW_S, 0)
    movement.note(NOW_S + 60, 1000)
    movement.note(NOW_S + 62, 1001)
    assert movement.next_place_s(NOW_S + 62, 1001) == 2.0


@given(st.floats(min_value=0, allow_nan=False))
def test_hints_are_bounded(predicted_s: float) -> None:
    assert 0.1 <= retry_after_s(predicted_s) <= 10.0


INFO = ModelInfo("demo", "x", "float32", 512, 512, 1, 1, 1, (0,), 2)


def make_engine_request(**fields: object) -> EngineRequest:
    request = EngineRequest(
        "r", "demo", (1, 2), SamplingParams(max_tokens=4), "latency_sensitive", "chat", CHAT
    )
    return replace(request, **fields)  # type: ignore[arg-type]


def test_the_scheduler_is_told_all_that_it_decides_by() -> None:
    rules = TierRules(fallback="batch", demote_after_tokens=9)
    state = scheduler_request(
        make_engine_request(rules=rules, tenant="acme", arrival_s=NOW_S - 2, deadline_s=NOW_S + 3),
        INFO,
        NOW_S,
    )
    assert (state.arrival_s, state.deadline_s) == (NOW_S - 2, NOW_S + 3)
    assert (state.tenant, state.demote_after_tokens) == ("acme", 9)
    assert (state.tier, state.fallback_tier, state.objectives) == ("chat", "batch", CHAT)
    assert state.max_tokens == 4


def test_a_request_that_says_no_times_arrives_now_and_may_take_for_ever() -> None:
    state = scheduler_request(make_engine_request(), INFO, NOW_S)
    assert (state.arrival_s, state.deadline_s, state.tenant) == (NOW_S, inf, "")

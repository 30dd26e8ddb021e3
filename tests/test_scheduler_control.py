"""Steps that are held to objectives: budgets, by the model's own reckoning and on a clock."""

from dataclasses import replace
from math import inf

import pytest
from builders_control import COSTS, SETTINGS, Clocked, chat, make_request
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler import Objectives, Request, Scheduler, ServiceClass, StepResult
from scheduler.interleaving import background_s, spare_s
from scheduler.plan_shape import shape_of
from scheduler.step_time import StepShape


def tpot_s(request: Request) -> float:
    assert request.first_token_s is not None and request.last_token_s is not None
    return (request.last_token_s - request.first_token_s) / (request.num_output_tokens - 1)


def test_a_plan_is_reckoned_as_the_model_says() -> None:
    clocked = Clocked()
    clocked.scheduler.add(make_request("be", 100, 3))
    clocked.scheduler.add(chat("ls"))
    clocked.run()
    for plan in clocked.plans:
        assert plan.predicted_s == pytest.approx(COSTS.step_s(shape_of(plan)))


def test_best_effort_work_fills_steps_but_objectives_hold() -> None:
    clocked = Clocked()
    for number in range(8):
        clocked.scheduler.add(make_request(f"be{number}", 120, 60))
    for _ in range(4):
        clocked.step()
    clocked.scheduler.add(chat("ls", clocked.now_s))
    finished = {request.request_id: request for request in clocked.run()}
    # It is used up: a token comes at nearly the time at which it has to, as the tier is paced.
    assert 0.7 * 15e-3 < tpot_s(finished["ls"]) <= 15e-3
    assert len(finished) == 9


def test_decodes_keep_the_lead_before_other_models_that_they_keep_before_their_own() -> None:
    clocked = Clocked()
    clocked.scheduler.add(chat("ls", clocked.now_s))
    clocked.step()
    claim = clocked.scheduler.claim(clocked.now_s)
    # One and a half times the prompt that came; at the start less than a step may take at most.
    assert claim is not None
    prompt_s = clocked.now_s
    assert 0.5 * prompt_s < claim.lead_s <= 1.5 * prompt_s
    assert spare_s([claim], clocked.now_s) == pytest.approx(
        claim.begin_by_s - clocked.now_s - claim.lead_s
    )
    # Alone they soon have it, and lend the rest.
    for _ in range(8):
        clocked.step()
    later = clocked.scheduler.claim(clocked.now_s)
    assert later is not None
    assert later.lead_s > 0.0 and background_s({"m": later}, clocked.now_s, "other") > 0.0


def test_decodes_that_wait_for_the_memory_of_prompts_are_not_forgotten() -> None:
    small = replace(SETTINGS, num_blocks=7, max_step_tokens=40, max_model_len=96)
    clocked = Clocked(settings=small)
    clocked.scheduler.add(make_request("patient", 42, 7, objectives=Objectives(5.0, 12e-3)))
    clocked.scheduler.add(make_request("urgent", 63, 7, objectives=Objectives(0.1, 12e-3)))
    num_finished, has_decodes = 0, False
    while clocked.scheduler.has_unfinished:
        num_finished += len(clocked.step())
        has_decodes |= any(rows.num_tokens == 1 for rows in clocked.plans[-1].rows)
        if has_decodes and num_finished < 2:
            assert clocked.scheduler.ttft_forecast.load.decode_share > 0.0
    assert num_finished == 2


def test_where_nobody_came_lately_or_nothing_is_known_there_is_no_lead() -> None:
    clocked = Clocked()
    clocked.scheduler.add(chat("ls", clocked.now_s, max_tokens=200))
    clocked.step()
    claim = clocked.scheduler.claim(clocked.now_s + 600.0)
    assert claim is not None and claim.lead_s == 0.0
    unknown = Scheduler(SETTINGS)
    unknown.add(chat("ls"))
    plan = unknown.schedule(now_s=0.0)
    assert plan is not None
    unknown.complete(plan, StepResult({"ls": 1}), now_s=1.0)
    claim = unknown.claim(1.0)
    assert claim is not None and (claim.begin_by_s, claim.lead_s) == (inf, 0.0)


def test_without_step_times_tokens_alone_limit() -> None:
    scheduler = Scheduler(SETTINGS)
    scheduler.add(make_request("be", 300, 2))
    scheduler.add(chat("ls"))
    plan = scheduler.schedule(now_s=5.0)
    assert plan is not None
    assert (plan.num_tokens, plan.budget_s, plan.predicted_s) == (128, inf, 0.0)
    assert scheduler.ttft_forecast.ttft_s(chat("next"), 5.0) == 0.0


def test_steps_that_take_longer_than_reckoned_are_learnt() -> None:
    clocked = Clocked(factor=1.3)
    clocked.scheduler.add(make_request("be", 20, 300))
    clocked.run()
    late = clocked.plans[-1]
    assert late.predicted_s == pytest.approx(1.3 * COSTS.step_s(shape_of(late)), rel=0.05)


def test_the_longer_the_queue_the_later_the_first_token() -> None:
    clocked = Clocked()
    forecasts = []
    for number in range(5):
        newcomer = chat(f"{number}")
        forecasts.append(clocked.scheduler.ttft_forecast.ttft_s(newcomer, 0.0))
        clocked.scheduler.add(newcomer)
    assert forecasts == sorted(forecasts)
    assert forecasts[0] == pytest.approx(COSTS.step_s(shape_of_prompt(20)))
    # The time that it has waited before it came here is part of it.
    late = chat("late", arrival_s=-0.4)
    more_s = clocked.scheduler.ttft_forecast.ttft_s(late, 0.0) - forecasts[-1]
    assert more_s > 0.4


def shape_of_prompt(num_tokens: int) -> StepShape:
    scheduler = Scheduler(SETTINGS)
    scheduler.add(make_request("p", num_tokens, 1))
    plan = scheduler.schedule()
    assert plan is not None
    return shape_of(plan)


def test_a_forecast_is_what_comes_about() -> None:
    clocked = Clocked()
    names = [f"{number}" for number in range(6)]
    for name in names:
        clocked.scheduler.add(chat(name))
    last = chat("last")
    forecast_s = clocked.scheduler.ttft_forecast.ttft_s(last, 0.0)
    clocked.scheduler.add(last)
    clocked.run()
    assert last.first_token_s == pytest.approx(forecast_s, rel=0.35)


def test_where_latency_sensitive_requests_fill_the_memory_nobody_is_promised_anything() -> None:
    clocked = Clocked()
    for number in range(6):
        clocked.scheduler.add(make_request(f"{number}", 300, 40, 0.0, Objectives(9.0, 0.1)))
    newcomer = make_request("next", 300, 40, 0.0, Objectives(9.0, 0.1))
    assert clocked.scheduler.ttft_forecast.ttft_s(newcomer, 0.0) == inf


def test_a_straggler_goes_on_as_best_effort_work() -> None:
    clocked = Clocked()
    objectives = Objectives(0.5, 15e-3)
    clocked.scheduler.add(make_request("ls", 20, 50, 0.0, objectives, demote_after_tokens=10))
    (finished,) = clocked.run()
    assert finished.num_output_tokens == 50
    assert finished.service_class is ServiceClass.BEST_EFFORT
    classes = [rows.service_class for plan in clocked.plans for rows in plan.rows]
    assert classes.count(ServiceClass.LATENCY_SENSITIVE) == 10


arrivals = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(1, 120),
        st.integers(1, 30),
        st.floats(0.0, 0.05),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(arrivals, st.floats(0.7, 1.5))
def test_budgets_hold_by_the_models_own_reckoning_and_everyone_ends(
    wanted: list[tuple[bool, int, int, float]], factor: float
) -> None:
    clocked = Clocked(factor)
    finished = []
    for number, (is_urgent, num_tokens, max_tokens, pause_s) in enumerate(wanted):
        objectives = Objectives(0.3, 20e-3) if is_urgent else None
        clocked.scheduler.add(
            make_request(f"{number}", num_tokens, max_tokens, clocked.now_s, objectives)
        )
        finished += clocked.step()
        clocked.now_s += pause_s
    finished += clocked.run()
    assert len(finished) == len(wanted)
    for plan in clocked.plans:
        best_effort = [row for row in plan.rows if row.service_class is ServiceClass.BEST_EFFORT]
        if best_effort:
            # Who is admitted gets one token at least, which is looked at again by the next plan.
            least_s = COSTS.step_s(shape_of_prompt(1))
            assert plan.predicted_s <= max(plan.budget_s, 0.0) + factor * least_s


tiers = st.sampled_from(
    [None, Objectives(0.1, 12e-3), Objectives(0.3, 25e-3), Objectives(5, 12e-3)]
)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(tiers, st.integers(20, 80), st.integers(2, 16)), min_size=2, max_size=4),
    st.integers(6, 9),
    st.sampled_from([2, 2, 4]),
    st.sampled_from([16, 40, 128]),
)
# A prompt that has seconds left holds the memory that the other's decodes wait for.
@example([(Objectives(5.0, 12e-3), 42, 7), (Objectives(0.1, 12e-3), 63, 7)], 7, 2, 40)
def test_a_device_never_stands_still_however_short_memory_is(
    wanted: list[tuple[Objectives | None, int, int]],
    num_blocks: int,
    max_running_requests: int,
    max_step_tokens: int,
) -> None:
    small = replace(
        SETTINGS,
        num_blocks=num_blocks,
        max_running_requests=max_running_requests,
        max_step_tokens=max_step_tokens,
        max_model_len=96,
    )
    clocked = Clocked(settings=small)
    for number, (objectives, num_tokens, max_tokens) in enumerate(wanted):
        clocked.scheduler.add(
            make_request(f"{number}", num_tokens, max_tokens, objectives=objectives)
        )
    while clocked.scheduler.has_unfinished:
        num_plans = len(clocked.plans)
        clocked.step()
        assert len(clocked.plans) > num_plans

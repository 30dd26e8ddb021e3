"""When first tokens are forecast, and what becomes of forecasts that were wrong."""

from dataclasses import replace
from math import exp

import pytest
from builders_control import COSTS, SETTINGS, Clocked, chat, make_request

from scheduler import Objectives
from scheduler.first_token_forecast import UrgentLoad, prefill_s
from scheduler.forecast_margins import ForecastMargins
from scheduler.plan_shape import shape_of

OBJECTIVES = Objectives(0.5, 15e-3, share=0.9)
NOW_S = 70.0


def note(margins: ForecastMargins, forecast_s: float, measured_s: float) -> None:
    margins.note("chat", OBJECTIVES, forecast_s=forecast_s, measured_s=measured_s, now_s=NOW_S)


def test_a_cached_prefix_is_not_waited_for() -> None:
    clocked = Clocked(settings=replace(SETTINGS, prefix_caching=True))
    clocked.scheduler.add(make_request("first", 96, 4))
    clocked.run()
    asked = make_request("again", 96, 4, objectives=OBJECTIVES)
    forecast_s = clocked.scheduler.ttft_forecast.ttft_s(asked, clocked.now_s)
    waited_s = clocked.now_s
    # One token of six blocks is computed again, and with it the rest of its block.
    assert forecast_s - waited_s == pytest.approx(prefill_s(COSTS, 80, 16, 128))


def test_the_step_under_way_is_waited_for_where_nothing_interrupts_it() -> None:
    clocked = Clocked()
    clocked.scheduler.add(chat("first"))
    plan = clocked.scheduler.schedule(now_s=0.0)
    assert plan is not None
    alone_s = prefill_s(COSTS, 0, 20, 128)
    forecast_s = clocked.scheduler.ttft_forecast.ttft_s(chat("next"), 0.0)
    assert forecast_s == pytest.approx(COSTS.step_s(shape_of(plan)) + alone_s)


def test_a_best_effort_step_under_way_is_not_waited_for() -> None:
    clocked = Clocked()
    clocked.scheduler.add(make_request("be", 100, 4))
    clocked.scheduler.schedule(now_s=0.0)
    forecast_s = clocked.scheduler.ttft_forecast.ttft_s(chat("next"), 0.0)
    assert forecast_s == pytest.approx(prefill_s(COSTS, 0, 20, 128))


def test_other_models_on_the_device_are_waited_for() -> None:
    scheduler = Clocked().scheduler
    alone_s = scheduler.ttft_forecast.ttft_s(chat("a"), 0.0)
    beside_s = scheduler.ttft_forecast.ttft_s(
        chat("a"), 0.0, [UrgentLoad(prompts_s=0.1), UrgentLoad(decode_share=0.5)]
    )
    assert beside_s == pytest.approx(2 * (alone_s + 0.1))


def test_decodes_take_their_share_from_prompts() -> None:
    clocked = Clocked()
    for number in range(4):
        clocked.scheduler.add(chat(f"{number}", max_tokens=200))
    while clocked.scheduler.ttft_forecast.load.prompts_s or not clocked.plans:
        clocked.step()
    clocked.step()
    load = clocked.scheduler.ttft_forecast.load
    decodes_s = COSTS.step_s(shape_of(clocked.plans[-1]))
    assert load.decode_share == pytest.approx(decodes_s / 15e-3, rel=0.01)


def test_what_is_left_of_a_prompt_counts_as_soon_as_its_first_chunk_is_done() -> None:
    clocked = Clocked()
    clocked.scheduler.add(make_request("long", 400, 4, 0.0, OBJECTIVES))
    clocked.step()
    load = clocked.scheduler.ttft_forecast.load
    assert load.prompts_s == pytest.approx(prefill_s(COSTS, 128, 272, 128))


def test_nothing_is_reckoned_for_requests_that_have_ended() -> None:
    clocked = Clocked()
    for number in range(8):
        clocked.scheduler.add(chat(f"{number}"))
    clocked.run()
    clocked.scheduler.add(make_request("long", 400, 4, clocked.now_s, OBJECTIVES))
    clocked.step()
    clocked.scheduler.abort("long")
    assert clocked.scheduler.ttft_forecast.load == UrgentLoad()


def test_a_prompt_in_a_hurry_is_forecast_to_go_first_unless_there_is_too_much_work() -> None:
    beside = {}
    for num_decodes in (4, 24):
        clocked = Clocked()
        for number in range(num_decodes):
            clocked.scheduler.add(chat(f"{number}", max_tokens=400))
        while clocked.scheduler.ttft_forecast.load.prompts_s or not clocked.plans:
            clocked.step()
        # Until what came has been forgotten.
        clocked.now_s += 20.0
        clocked.step()
        newcomer = chat("comes", clocked.now_s)
        beside[num_decodes] = clocked.scheduler.ttft_forecast.ttft_s(newcomer, clocked.now_s)
        decodes_s = COSTS.step_s(shape_of(clocked.plans[-1]))
        alone_s = prefill_s(COSTS, 0, 20, 128)
        if num_decodes == 4:
            assert beside[4] == pytest.approx(alone_s + decodes_s, rel=0.05)
    # Decodes alone take longer than their objective allows, so prompts get the tenth they must.
    assert beside[24] == pytest.approx(10 * alone_s, rel=0.05)


def test_where_first_tokens_come_too_late_forecasts_are_believed_less() -> None:
    margins = ForecastMargins()
    for _ in range(5):
        note(margins, 0.3, 0.6)
    assert margins.of("chat", NOW_S) == pytest.approx(exp(5 * 0.1 * 0.9))
    assert margins.of("other", NOW_S) == 1.0
    for _ in range(100):
        note(margins, 0.3, 0.6)
    assert margins.of("chat", NOW_S) == 3.0
    # While requests are refused nothing new is learnt, so the old is believed less and less.
    assert margins.of("chat", NOW_S + 60.0) == pytest.approx(3.0**0.5)


def test_prompts_that_wait_while_they_may_teach_nothing_wrong() -> None:
    margins = ForecastMargins()
    for _ in range(3):
        note(margins, 0.2, 0.49)
    assert margins.of("chat", NOW_S) < 1.0


def test_as_many_of_those_taken_are_in_time_as_the_tier_promises() -> None:
    margins, was_in_time = ForecastMargins(), []
    # Later than forecast by up to 100 %, each equally often, in an order without long runs.
    for number in range(8000):
        forecast_s = 0.2 + 0.4 * (number * 61 % 97) / 97
        measured_s = forecast_s * (1.0 + (number * 37 % 100) / 100)
        if margins.of("chat", NOW_S) * forecast_s <= OBJECTIVES.ttft_s:
            was_in_time.append(measured_s <= OBJECTIVES.ttft_s)
            note(margins, forecast_s, measured_s)
    later = was_in_time[len(was_in_time) // 2 :]
    assert sum(later) / len(later) == pytest.approx(0.9, abs=0.03)


def test_forecasts_that_decide_nothing_teach_nothing() -> None:
    margins = ForecastMargins()
    note(margins, 0.01, 0.1)
    assert margins.of("chat", NOW_S) == 1.0


def test_prompts_wait_for_decodes_to_get_ahead_while_there_is_time() -> None:
    clocked = Clocked()
    clocked.scheduler.add(chat("decodes", max_tokens=60))
    clocked.step()
    newcomer = make_request("comes", 100, 4, clocked.now_s, OBJECTIVES)
    clocked.scheduler.add(newcomer)
    rows = []
    while newcomer.first_token_s is None:
        clocked.step()
        rows.append({each.request_id: each.num_tokens for each in clocked.plans[-1].rows})
    # It does not get the whole prompt at once, and the decode gets its token in every step.
    assert len(rows) > 2
    assert all("decodes" in step for step in rows)
    assert newcomer.first_token_s - newcomer.arrival_s <= OBJECTIVES.ttft_s


def test_a_prompt_in_a_hurry_does_not_wait() -> None:
    clocked = Clocked()
    clocked.scheduler.add(chat("decodes", max_tokens=60))
    clocked.step()
    late = make_request("late", 100, 4, clocked.now_s - 0.4, OBJECTIVES)
    clocked.scheduler.add(late)
    clocked.step()
    chunks = {each.request_id: each.num_tokens for each in clocked.plans[-1].rows}
    assert chunks["late"] == 100


def test_where_there_is_too_much_work_decodes_lend_no_prompt_what_it_is_in_a_hurry_for() -> None:
    clocked = Clocked()
    clocked.scheduler.add(chat("decodes", max_tokens=60))
    clocked.step()
    for number in range(40):
        clocked.scheduler.add(make_request(f"{number}", 100, 4, clocked.now_s, OBJECTIVES))
        clocked.scheduler.abort(f"{number}")
    late = make_request("late", 100, 4, clocked.now_s - 0.4, OBJECTIVES)
    clocked.scheduler.add(late)
    clocked.step()
    chunks = {each.request_id: each.num_tokens for each in clocked.plans[-1].rows}
    assert chunks["decodes"] == 1 and 16 <= chunks["late"] < 100
    assert clocked.plans[-1].predicted_s <= clocked.plans[-1].budget_s


def test_steps_that_nothing_interrupts_are_short_enough_for_whoever_may_come() -> None:
    clocked = Clocked()
    for number in range(6):
        clocked.scheduler.add(make_request(f"be{number}", 120, 60))
    clocked.scheduler.add(make_request("ls", 20, 1, 0.0, Objectives(0.8, 15e-3)))
    clocked.step()
    plan = clocked.plans[-1]
    assert plan.has_latency_sensitive and plan.has_best_effort
    # A part of its time to the first token.
    assert 0.04 < plan.predicted_s <= 0.05

"""When first tokens are forecast, and what becomes of forecasts that were wrong."""

import pytest
from builders_control import COSTS, Clocked, chat, make_request

from scheduler import Objectives
from scheduler.first_token_forecast import UrgentLoad, prefill_s
from scheduler.forecast_margins import ForecastMargins
from scheduler.plan_shape import shape_of

OBJECTIVES = Objectives(0.5, 15e-3, share=0.9)


def test_a_cached_prefix_is_not_waited_for() -> None:
    clocked = Clocked(prefix_caching=True)
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


def test_forecasts_that_were_too_early_are_believed_less() -> None:
    margins = ForecastMargins()
    for _ in range(100):
        margins.note("chat", OBJECTIVES, 0.3, 0.45)
    # The factor hovers about the one at which the forecast comes true.
    assert margins.of("chat") == pytest.approx(1.5, rel=0.1)
    assert margins.of("other") == 1.0


def test_as_many_forecasts_hold_as_the_tier_promises() -> None:
    margins, held = ForecastMargins(), []
    # Late by 0 to 99 %, each equally often, in an order that no run of equal ones disturbs.
    for number in range(4000):
        measured_s = 0.3 * (1.0 + (number * 37 % 100) / 100)
        held.append(measured_s <= margins.of("chat") * 0.3)
        margins.note("chat", OBJECTIVES, 0.3, measured_s)
    assert sum(held[1000:]) / 3000 == pytest.approx(0.9, abs=0.03)


def test_forecasts_that_decide_nothing_teach_nothing() -> None:
    margins = ForecastMargins()
    margins.note("chat", OBJECTIVES, 0.01, 0.1)
    assert margins.of("chat") == 1.0

"""When the host has cores of the device, and when latency-sensitive requests take them back."""

import pytest
from builders_control import COSTS, SETTINGS, chat

from scheduler import HostCoresRule, Scheduler, ServiceClass, StepResult
from scheduler.arrival_rate import ArrivalRate
from scheduler.step_time import LinearStepTime, StepCosts
from scheduler.urgent_pressure import Pressure, pressure_on

BESIDE = StepCosts(
    overhead_s=1e-3,
    dense_ladder=((1, 10e-3), (8, 14e-3), (64, 80e-3), (256, 320e-3)),
    decode_context_token_s=4e-6,
    prefill_pair_s=4e-8,
)


def updated(rule: HostCoresRule, now_s: float, pressure: float) -> bool:
    return rule.update(now_s, num_offloaded=3, pressure=pressure)


def test_the_host_has_its_cores_while_somebody_is_there_and_a_little_longer() -> None:
    rule = HostCoresRule()
    assert not rule.update(0.0, num_offloaded=0, pressure=0.0)
    assert updated(rule, 1.0, 0.0)
    assert rule.update(1.4, num_offloaded=0, pressure=0.0)
    assert not rule.update(1.6, num_offloaded=0, pressure=0.0)


def test_it_rests_under_pressure() -> None:
    rule = HostCoresRule()
    assert updated(rule, 0.0, 0.5) and not rule.is_resting
    assert not updated(rule, 0.1, 0.9)
    assert rule.is_resting


def test_it_goes_on_when_the_pressure_has_been_little_for_a_while() -> None:
    rule = HostCoresRule()
    updated(rule, 0.0, 1.0)
    # Between the two bounds everything stays as it is, in either state.
    assert not updated(rule, 1.0, 0.7)
    assert not updated(rule, 1.1, 0.5)
    assert not updated(rule, 1.2, 0.5)
    assert updated(rule, 1.45, 0.5)
    assert updated(rule, 1.5, 0.7)


def test_arrivals_are_forgotten() -> None:
    rate = ArrivalRate()
    for number in range(400):
        rate.note(0.03, number * 0.1)
    assert rate.of(40.0) == pytest.approx(0.3, rel=0.1)
    assert rate.of(50.0) < 0.01


def test_an_arrival_that_was_long_on_its_way_makes_others_no_older() -> None:
    rate = ArrivalRate()
    rate.note(0.4, 10.0)
    rate.note(0.0, 5.0)
    assert rate.of(10.0) == pytest.approx(0.2)


def test_decodes_and_prompts_press_on_a_device_without_the_hosts_cores() -> None:
    scheduler = Scheduler(SETTINGS, step_time=LinearStepTime(COSTS, BESIDE))
    assert scheduler.pressure.at(0.0) == Pressure()
    lateness = []
    for number in range(12):
        newcomer = chat(f"{number}")
        scheduler.ttft_forecast.ttft_s(newcomer, 0.0)
        scheduler.add(newcomer)
        lateness.append(scheduler.pressure.at(0.0).lateness)
    assert lateness == sorted(lateness)
    # 240 tokens at more than a millisecond each, of half a second.
    assert lateness[-1] > 0.5
    # Waiting makes it later.
    assert scheduler.pressure.at(0.2).lateness == pytest.approx(lateness[-1] + 0.4)
    assert pressure_on([Pressure(0.3, 0.2), Pressure(0.4, 0.9)]) == 0.9
    assert pressure_on([Pressure(0.3, 0.2), Pressure(0.7, 0.9)]) == 1.0


def test_decodes_that_have_ended_do_not_press() -> None:
    scheduler = Scheduler(SETTINGS, step_time=LinearStepTime(COSTS, BESIDE))
    scheduler.add(chat("a"))
    for now_s in (0.0, 0.1):
        plan = scheduler.schedule(now_s=now_s)
        assert plan is not None
        scheduler.complete(plan, StepResult({"a": 1}), now_s=now_s)
    assert scheduler.pressure.at(100.0).share > 0.1
    scheduler.abort("a")
    assert scheduler.pressure.at(100.0).share == pytest.approx(0.0)


def test_what_the_fallback_has_does_not_press() -> None:
    scheduler = Scheduler(SETTINGS, step_time=LinearStepTime(COSTS, BESIDE))
    demoted = chat("a")
    scheduler.ttft_forecast.ttft_s(demoted, 0.0)
    demoted.service_class, demoted.objectives = ServiceClass.BEST_EFFORT, None
    scheduler.add(demoted)
    assert scheduler.pressure.at(0.0) == Pressure()


def test_a_device_whose_cores_are_its_own_is_not_pressed() -> None:
    scheduler = Scheduler(SETTINGS, step_time=LinearStepTime(COSTS))
    scheduler.add(chat("a"))
    assert scheduler.pressure.at(1.0) == Pressure()

"""What the books say of steps: work by kind, predictions against what was measured."""

from dataclasses import replace
from math import inf

import pytest
from builders_control import COSTS, SETTINGS, Clocked, chat, make_request

from scheduler import Scheduler, StepResult
from scheduler.aim import Aims
from scheduler.step_books import KINDS, PlannedStep, StepBooks
from scheduler.step_time import StepCosts, StepShape

TEN_A_ROW = StepCosts(
    overhead_s=100.0,
    dense_ladder=((1, 10.0), (100, 1000.0)),
    decode_context_token_s=1.0,
    prefill_step_s=7.0,
    lane_row_s=3.0,
    sampled_row_s=0.5,
)
URGENT = StepShape(
    num_decode_rows=2,
    decode_context_tokens=40,
    num_prefill_tokens=5,
    prefill_pairs=15,
    prefill_context_tokens=5,
    num_sampled_rows=3,
)
ALL = replace(
    URGENT,
    num_decode_rows=5,
    decode_context_tokens=100,
    num_prefill_tokens=15,
    num_sampled_rows=6,
)
STEP = PlannedStep(
    0.0, TEN_A_ROW, TEN_A_ROW, TEN_A_ROW, URGENT, ALL, budget_s=500.0, is_host_active=False
)


def test_each_kind_counts_for_what_it_adds() -> None:
    books = StepBooks()
    books.note(STEP, num_lane_rows=4.0, measured_s=None)
    assert books.used_s == {
        "overhead": 100.0,
        "latency_sensitive_decode": 2 * 10 + 40 + 2 * 0.5,
        "latency_sensitive_prefill": 5 * 10 + 7.0 + 0.5,
        "best_effort_decode": 3 * 10 + 60 + 3 * 0.5,
        "best_effort_prefill": 10 * 10,
        "lanes": 4 * (10 + 3),
    }
    shape = ALL.with_lane_rows(4.0)
    assert sum(books.used_s.values()) == pytest.approx(TEN_A_ROW.step_s(shape))
    assert (books.num_steps, books.predicted_s, books.budget_s) == (0, 0.0, 500.0)
    assert books.best_effort_s == pytest.approx(91.5 + 100 + 52)


def test_cores_that_best_effort_attention_takes_are_time_that_it_takes() -> None:
    books = StepBooks()
    alone = replace(TEN_A_ROW, overhead_s=30.0)
    books.note(replace(STEP, usual_alone=alone), num_lane_rows=0.0, measured_s=None)
    assert books.best_effort_s == pytest.approx(70 + 91.5 + 100)
    # All of a step that would not be without it.
    books.note(replace(STEP, urgent=StepShape(), shape=StepShape(num_decode_rows=1)), 0.0, None)
    assert books.best_effort_s == pytest.approx(70 + 91.5 + 100 + 110)


def test_cold_caches_are_overhead() -> None:
    costs = replace(TEN_A_ROW, cold_step_s=8.0)
    shape, urgent = replace(ALL, coldness=0.5), replace(URGENT, coldness=0.5)
    books = StepBooks()
    books.note(replace(STEP, costs=costs, shape=shape, urgent=urgent), 4.0, measured_s=None)
    assert books.used_s["overhead"] == 104.0
    assert sum(books.used_s.values()) == pytest.approx(costs.step_s(shape.with_lane_rows(4.0)))


def test_predictions_and_measurements_are_of_the_same_steps() -> None:
    books = StepBooks()
    decode = StepShape(num_decode_rows=1, decode_context_tokens=10)
    step = PlannedStep(
        0.0,
        TEN_A_ROW,
        TEN_A_ROW,
        TEN_A_ROW,
        StepShape(),
        decode,
        budget_s=5.0,
        is_host_active=False,
    )
    books.note(step, 0.0, measured_s=100.0)
    books.note(step, 0.0, measured_s=240.0)
    books.note(step, 0.0, measured_s=None)
    assert (books.num_steps, books.predicted_s, books.measured_s) == (2, 240.0, 340.0)
    assert books.mean_error == pytest.approx((0.2 + 0.5) / 2)
    # No latency-sensitive request was there whose objective would have been a budget.
    assert books.budget_s == 0.0


def test_a_step_without_a_budget_adds_none() -> None:
    books = StepBooks()
    books.note(replace(STEP, budget_s=inf), 0.0, 1.0)
    assert books.budget_s == 0.0


def test_all_that_was_planned_is_in_the_books() -> None:
    clocked = Clocked()
    for number in range(4):
        clocked.scheduler.add(make_request(f"be{number}", 120, 30))
    for number in range(2):
        clocked.step()
        clocked.scheduler.add(chat(f"ls{number}", clocked.now_s))
    clocked.run()
    books = clocked.scheduler.step_books
    assert books is not None and set(books.used_s) == set(KINDS)
    predicted_s = sum(plan.predicted_s for plan in clocked.plans)
    assert sum(books.used_s.values()) == pytest.approx(predicted_s)
    assert books.predicted_s == pytest.approx(predicted_s)
    assert books.measured_s == pytest.approx(clocked.now_s)
    assert books.mean_error == pytest.approx(0.0, abs=1e-9)
    assert books.num_steps == len(clocked.plans)
    assert all(books.used_s[kind] > 0.0 for kind in KINDS if kind != "lanes")
    assert books.used_s["lanes"] == 0.0
    budgets = [plan.budget_s for plan in clocked.plans if plan.has_latency_sensitive]
    assert 0.0 < books.budget_s <= sum(budget_s for budget_s in budgets if budget_s < inf)
    # Both chats met their objective.
    assert list(clocked.scheduler.aims()) == ["chat"]
    assert clocked.scheduler.aims()["chat"] > Aims().of("chat")


def test_an_interrupted_step_is_work_but_no_prediction() -> None:
    clocked = Clocked()
    clocked.scheduler.add(make_request("be", 100, 1))
    plan = clocked.scheduler.schedule(now_s=0.0)
    assert plan is not None
    clocked.scheduler.complete(plan, StepResult({"be": 1}, was_interrupted=True), now_s=9.0)
    books = clocked.scheduler.step_books
    assert books is not None and books.num_steps == 0
    assert books.used_s["best_effort_prefill"] == pytest.approx(plan.predicted_s - COSTS.overhead_s)


def test_without_step_times_there_are_no_books() -> None:
    scheduler = Scheduler(SETTINGS)
    assert scheduler.step_books is None and scheduler.aims() == {}


def test_a_slow_machine_is_no_best_effort_work() -> None:
    clocked = Clocked(factor=1.5)
    clocked.scheduler.add(chat("ls", max_tokens=60))
    clocked.run()
    books = clocked.scheduler.step_books
    assert books is not None
    assert books.best_effort_s == pytest.approx(0.0, abs=0.02 * clocked.now_s)

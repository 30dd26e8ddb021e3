"""Whose rows go along through shared layers: what the rules allow, and what they do to others."""

from dataclasses import replace
from math import inf

import pytest
from builders_control import COSTS, SETTINGS, make_request
from hypothesis import given
from hypothesis import strategies as st
from interleaving_builders import BE, make_plan

from scheduler import (
    Claim,
    ModelDemand,
    ModelTurns,
    PlannedRows,
    Scheduler,
    StandingStep,
    StepPlan,
    Turn,
)
from scheduler.interleaving import begun, spare_s
from scheduler.plan_shape import shape_of
from scheduler.riding import Room, RowLimits, guest_models, riders, room_beside
from scheduler.step_time import LinearStepTime

LIMITS = RowLimits(all_rows=64, best_effort_beside_ls=16)
NUM_LAYERS = 8
times = st.floats(1e-3, 0.1)


def ls_step(ls_s: float, slack_s: float, budget_s: float = inf) -> StandingStep:
    """Of model `host`, at time 0, with `slack_s` to spare."""
    plan = replace(make_plan(ls_s=ls_s), budget_s=budget_s)
    return begun("host", plan, NUM_LAYERS, Claim(False, slack_s, step_s=ls_s))


def be_step(
    model: str, num_rows: int = 1, seconds: float = 0.0, beside_s: float | None = None
) -> StandingStep:
    rows = (PlannedRows("r", 0, BE, 0, num_rows, (1,) * num_rows, True, 0, ()),)
    step = begun(model, StepPlan(0, rows, predicted_s=seconds), NUM_LAYERS, None)
    step.beside_s = beside_s
    return step


guests = st.lists(st.builds(be_step, st.sampled_from("abc"), st.integers(1, 20), times), max_size=4)


@given(
    ls_s=times,
    slack_s=times,
    budget_s=times,
    others=st.lists(st.tuples(times, times), max_size=3),
    candidates=guests,
)
def test_nobody_comes_late_by_riders(
    ls_s: float,
    slack_s: float,
    budget_s: float,
    others: list[tuple[float, float]],
    candidates: list[StandingStep],
) -> None:
    """Neither the host's own requests nor those of models that come after it."""
    host = ls_step(ls_s, slack_s, ls_s + budget_s)
    claims = {f"other-{i}": Claim(False, by_s, step_s=s) for i, (by_s, s) in enumerate(others)}
    spare_at_first_s = spare_s([*claims.values(), host.as_claim(0.0)], 0.0)
    now_s = added_s = 0.0
    while host.next_layer < host.num_layers:
        chosen = riders(room_beside(host, LIMITS, claims, now_s), candidates)
        assert sum(step.plan.num_tokens for step in chosen) <= LIMITS.best_effort_beside_ls
        layer_s = sum(step.riding_layer_s for step in chosen)
        added_s += layer_s
        now_s += host.layer_s + layer_s
        host.next_layer += 1
    assert added_s <= max(0.0, spare_at_first_s) + 1e-9
    assert added_s <= budget_s + 1e-9
    assert now_s <= host.due_s + 1e-9


@given(times, times, guests)
def test_a_gap_is_not_overrun(gap_s: float, be_s: float, candidates: list[StandingStep]) -> None:
    host = be_step("host", 4, be_s)
    room = room_beside(host, LIMITS, {"ls": Claim(False, gap_s)}, 0.0)
    chosen = riders(room, candidates)
    if chosen:
        assert host.layer_s + sum(step.riding_layer_s for step in chosen) <= gap_s + 1e-9
    assert 4 + sum(step.plan.num_tokens for step in chosen) <= LIMITS.all_rows


@pytest.mark.parametrize("model", ["host", "other"])
def test_nobody_rides_while_a_first_token_is_awaited(model: str) -> None:
    claims = {model: Claim(True)}
    for host in (ls_step(0.01, 0.1), be_step("host")):
        assert room_beside(host, LIMITS, claims, 0.0).is_none


def test_where_nothing_is_known_of_times_rows_are_limited() -> None:
    plan = replace(make_plan(ls_s=1.0), predicted_s=0.0, urgent_s=0.0)
    host = begun("host", plan, NUM_LAYERS, Claim(False))
    assert room_beside(host, LIMITS, {"host": Claim(False)}, 0.0) == Room(16)
    steps = [be_step("a", 10), be_step("b", 7), be_step("c", 6)]
    chosen = riders(room_beside(host, LIMITS, {}, 0.0), steps)
    assert [step.model for step in chosen] == ["a", "c"]
    # A best-effort step is a small one then, too, and a full one where there is nobody else.
    claims = {"ls": Claim(False)}
    assert room_beside(be_step("host", 5), LIMITS, claims, 0.0) == Room(11)
    assert room_beside(be_step("host", 5), LIMITS, {}, 0.0) == Room(59)


def test_what_a_rider_adds_is_less_than_a_step_of_its_own() -> None:
    """Its rows are weighed as those that come on top; its attention is its own."""
    scheduler = Scheduler(SETTINGS, step_time=LinearStepTime(COSTS))
    scheduler.add(make_request("r", 40, 3))
    plan = scheduler.schedule()
    assert plan is not None
    alone_s = COSTS.step_s(shape_of(plan))
    assert scheduler.beside_s(plan, 0) == pytest.approx(alone_s)
    expected_s = alone_s - COSTS.dense_s(40) + COSTS.dense_s(48) - COSTS.dense_s(8)
    assert scheduler.beside_s(plan, 8) == pytest.approx(expected_s)
    assert expected_s < alone_s
    assert Scheduler(SETTINGS).beside_s(plan, 8) is None


def test_a_rider_pays_for_what_it_adds_and_keeps_its_turn() -> None:
    turns = ModelTurns()
    demands = {name: ModelDemand(None, True, 64, NUM_LAYERS) for name in ("a", "b")}
    rider = be_step("b", 4, 0.08, beside_s=0.02)
    first = turns.next(demands)
    assert first is not None and first.model == "a"
    turns.note_begun(be_step("a", 4, 0.08).plan, "a")
    turns.note_riding(rider, 6)
    # Six of its eight layers at a quarter of their time, two alone.
    assert turns.least_served_first(["a", "b"]) == ["b", "a"]
    for seconds in (0.044, 0.002):
        following = turns.next(demands)
        assert following is not None and following.model == "b"
        turns.note_begun(be_step("b", 1, seconds).plan, "b")
    following = turns.next(demands)
    assert following is not None and following.model == "a"


def test_all_steps_that_stand_go_on_before_new_ones_begin() -> None:
    turns = ModelTurns()
    demands = {name: ModelDemand(None, True, 64, NUM_LAYERS) for name in ("a", "b", "c")}
    parked = [be_step("b"), be_step("c")]
    for step in tuple(parked):
        assert turns.next(demands, parked) == Turn(step.model, step)
        parked.remove(step)
    following = turns.next(demands)
    assert following is not None and following.resumes is None


@pytest.mark.parametrize("is_beside_urgent", [False, True])
def test_requests_of_any_model_pass_its_step_that_stands(is_beside_urgent: bool) -> None:
    """The best-effort rows in flight are not planned again."""
    claim = Claim(True, step_s=1e-3, prompts_begin_by_s=0.0)
    demands = {
        "a": ModelDemand(None, True, 64, NUM_LAYERS),
        "b": ModelDemand(claim, True, 64, NUM_LAYERS),
        "host": ModelDemand(None, True, 64, NUM_LAYERS),
    }
    parked = [be_step("a", 1, 0.1), be_step("b", 1, 0.1)]
    if is_beside_urgent:
        parked.append(ls_step(0.01, 1.0))
    turn = ModelTurns().next(demands, parked, 0.0)
    assert turn is not None
    assert (turn.model, turn.latency_sensitive_only, turn.resumes) == ("b", True, None)


def test_guests_have_no_step_that_stands() -> None:
    assert guest_models(["a", "b", "c"], {"a", "b"}, [be_step("b")]) == ["a"]

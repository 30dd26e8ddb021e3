"""An engine that knows what its steps take: same tokens, within objectives, late ones refused."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from engine_builders import GREEDY, make_engine, make_model_settings, make_request, run_all

from omniserve.engine.core import Engine
from omniserve.errors import DeadlineExceeded, Overloaded
from omniserve.requests import EngineRequest, TierRules
from scheduler import Objectives
from scheduler.plan_shape import shape_of
from scheduler.step_time import LinearStepTime, StepCosts

PROMPT = list(range(30, 70))
ROW_S = 1e-3
SLOW = StepCosts(1e-4, ((1, ROW_S), (512, 512 * ROW_S)))
"""Far slower than the tiny model is: what is predicted decides, not what is measured."""


def controlled(path: Path, costs: StepCosts = SLOW) -> Engine:
    settings = make_model_settings(path, best_effort_tokens_beside_ls=64)
    return make_engine(replace(settings, step_time=LinearStepTime(costs)))


def chat(name: str, objectives: Objectives) -> EngineRequest:
    return replace(make_request(name, PROMPT), objectives=objectives)


@pytest.mark.parametrize("tpot_s", [1e-4, 0.02, 10.0])
def test_tokens_are_the_same_whatever_the_objective(tiny_checkpoint: Path, tpot_s: float) -> None:
    requests = [
        chat("ls", Objectives(100.0, tpot_s)),
        *(make_request(f"be{n}", range(n, n + 50), GREEDY, "best_effort") for n in range(4)),
    ]
    free = run_all(make_engine(make_model_settings(tiny_checkpoint)), requests)
    engine = controlled(tiny_checkpoint)
    held = run_all(engine, requests)
    assert {name: each.token_ids for name, each in held.items()} == {
        name: each.token_ids for name, each in free.items()
    }
    engine.check_integrity()


def test_best_effort_rows_are_those_that_time_is_left_for(tiny_checkpoint: Path) -> None:
    engine = controlled(tiny_checkpoint)
    runtime = engine.runtime("tiny")
    engine.add(chat("ls", Objectives(100.0, 8.5 * ROW_S)))
    while not any(output.token_ids for output in engine.step()):
        pass
    for number in range(32):
        engine.add(make_request(f"be{number}", [number], GREEDY, "best_effort"))
    engine.step()
    plan = runtime.last_plan
    assert plan is not None and plan.has_latency_sensitive
    # The objective leaves time for eight rows at most, one of which is the chat's own; how far the
    # tiny model is ahead of it by now may lend up to three times as many.
    assert 1 <= plan.num_tokens <= 3 * 8
    assert plan.predicted_s <= plan.budget_s


def test_a_request_that_would_be_late_is_refused_with_a_hint(tiny_checkpoint: Path) -> None:
    engine = controlled(tiny_checkpoint)
    # Forty rows take forty milliseconds.
    engine.add(chat("in time", Objectives(0.06, 1.0)))
    with pytest.raises(Overloaded, match="promises the first token within 60 ms") as caught:
        engine.add(chat("late", Objectives(0.06, 1.0)))
    # The queue is twenty milliseconds too long, but nobody is sent back for less than a tenth.
    assert caught.value.retry_after_s == 0.1
    # Nothing of it is left behind, and best-effort work waits for as long as it takes.
    engine.add(make_request("late", PROMPT, GREEDY, "best_effort"))
    ended = set()
    while engine.has_unfinished:
        ended |= {each.request_id for each in engine.step() if each.finish_reason == "length"}
    assert ended == {"in time", "late"}
    engine.check_integrity()


def test_a_late_request_is_served_by_the_fallback_and_says_so(tiny_checkpoint: Path) -> None:
    engine = controlled(tiny_checkpoint)
    rules = TierRules(fallback="batch")
    engine.add(replace(chat("in time", Objectives(0.06, 1.0)), rules=rules))
    engine.add(replace(chat("late", Objectives(0.06, 1.0)), rules=rules))
    (stats,) = engine.stats()
    assert stats.waiting == {"interactive": 1, "batch": 1}
    tiers: dict[str, set[str]] = {"in time": set(), "late": set()}
    while engine.has_unfinished:
        for output in engine.step():
            tiers[output.request_id].add(output.tier)
    assert tiers == {"in time": {""}, "late": {"batch"}}
    engine.check_integrity()


def test_a_straggler_goes_on_in_the_fallback(tiny_checkpoint: Path) -> None:
    request = chat("long", Objectives(100.0, 10.0))
    plain = run_all(controlled(tiny_checkpoint), [request])["long"].token_ids
    engine = controlled(tiny_checkpoint)
    engine.add(replace(request, rules=TierRules(fallback="batch", demote_after_tokens=5)))
    token_ids: list[int] = []
    tiers: list[str] = []
    while engine.has_unfinished:
        for output in engine.step():
            token_ids += output.token_ids
            tiers += [output.tier]
    assert token_ids == plain
    assert tiers == [""] * 4 + ["batch"] * (len(plain) - 4)
    engine.check_integrity()


def test_waiting_at_the_front_counts(tiny_checkpoint: Path) -> None:
    engine = controlled(tiny_checkpoint)
    request = chat("waited", Objectives(0.06, 1.0))
    with pytest.raises(Overloaded):
        engine.add(replace(request, arrival_s=time.monotonic() - 0.05))
    with pytest.raises(DeadlineExceeded):
        engine.add(replace(request, deadline_s=time.monotonic()))
    assert not engine.has_unfinished
    assert len(run_all(engine, [request])["waited"].token_ids) == 16


def test_steps_correct_what_is_predicted(tiny_checkpoint: Path) -> None:
    slower = StepCosts(5e-3, ((1, 0.05), (512, 25.6)))
    engine = controlled(tiny_checkpoint, slower)
    requests = [
        make_request(f"be{n}", PROMPT, replace(GREEDY, max_tokens=100), "best_effort")
        for n in range(2)
    ]
    for request in requests:
        run_all(engine, [request])
    last = engine.runtime("tiny").last_plan
    assert last is not None
    # A row of the tiny model takes about a millisecond; this is learnt within bounds.
    assert last.predicted_s < 0.9 * slower.step_s(shape_of(last))

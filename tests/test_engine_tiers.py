"""The engine goes by the tiers that it was told of last."""

from dataclasses import replace
from pathlib import Path

import pytest
from engine_builders import GREEDY, make_engine, make_model_settings, make_request
from test_engine_control import PROMPT, SLOW, chat

from omniserve.engine.core import Engine
from omniserve.errors import Overloaded
from omniserve.requests import TierRules, TierSettings
from scheduler import Objectives, Request
from scheduler.step_time import LinearStepTime

OLD, NEW = Objectives(100.0, 50.0), Objectives(80.0, 40.0)
RULES = TierRules(demote_after_tokens=4, fallback="batch")
TIERS = (
    TierSettings("interactive", "latency_sensitive", NEW, RULES),
    TierSettings("batch", "best_effort"),
)


def controlled(path: Path) -> Engine:
    return make_engine(replace(make_model_settings(path), step_time=LinearStepTime(SLOW)))


def state_of(engine: Engine, request_id: str) -> Request:
    return engine.runtime("tiny").scheduler._queues.by_id[request_id]


def test_requests_that_run_and_that_were_on_their_way_follow(tiny_checkpoint: Path) -> None:
    engine = controlled(tiny_checkpoint)
    engine.add(chat("running", OLD))
    outputs = engine.step()
    engine.set_tiers(TIERS)
    engine.add(chat("on its way", OLD))
    tiers: dict[str, list[str]] = {"running": [], "on its way": []}
    for name in tiers:
        assert state_of(engine, name).objectives == NEW
    while engine.has_unfinished:
        outputs += engine.step()
    for output in outputs:
        assert output.error is None
        tiers[output.request_id] += [output.tier] * len(output.token_ids)
    # Sixteen tokens each; from the fifth on as best-effort, whoever is served them.
    for served in tiers.values():
        assert len(served) == GREEDY.max_tokens
        assert served[-1] == "batch"
        assert served[0] == ""
    engine.check_integrity()


def test_admission_goes_by_the_objective_in_force(tiny_checkpoint: Path) -> None:
    engine = controlled(tiny_checkpoint)
    promised = Objectives(1e-4, 1.0)
    engine.set_tiers((TierSettings("interactive", "latency_sensitive", promised),))
    with pytest.raises(Overloaded, match="'interactive' promises the first token within 0 ms"):
        engine.add(chat("late", OLD))
    engine.set_tiers(TIERS)
    engine.add(chat("in time", promised))


def test_requests_of_a_tier_that_is_gone_go_on(tiny_checkpoint: Path) -> None:
    engine = controlled(tiny_checkpoint)
    engine.add(chat("running", OLD))
    engine.set_tiers(TIERS[1:])
    engine.add(chat("on its way", OLD))
    engine.add(make_request("best effort", PROMPT, GREEDY, "best_effort"))
    for name in ("running", "on its way"):
        assert state_of(engine, name).objectives == OLD


def test_requests_keep_their_class(tiny_checkpoint: Path) -> None:
    engine = controlled(tiny_checkpoint)
    engine.add(chat("running", OLD))
    engine.set_tiers((TierSettings("interactive", "best_effort"),))
    engine.add(chat("on its way", OLD))
    for name in ("running", "on its way"):
        state = state_of(engine, name)
        assert state.objectives == OLD
        assert state.service_class.value == "latency_sensitive"

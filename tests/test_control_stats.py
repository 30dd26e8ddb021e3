"""What an engine reports of how its steps are held to objectives."""

from dataclasses import replace
from pathlib import Path

import pytest
from engine_builders import GREEDY, make_engine, make_model_settings, make_request, run_all

from scheduler import Objectives
from scheduler.step_time import LinearStepTime, StepCosts

COSTS = StepCosts(1e-4, ((1, 1e-3), (512, 0.512)))
PROMPT = list(range(30, 70))


def test_an_engine_with_step_times_says_what_came_of_them(tiny_checkpoint: Path) -> None:
    settings = replace(make_model_settings(tiny_checkpoint), step_time=LinearStepTime(COSTS))
    engine = make_engine(settings)
    chat = replace(make_request("ls", PROMPT), objectives=Objectives(100.0, 10.0))
    run_all(engine, [chat, make_request("be", range(50), GREEDY, "best_effort")])
    (stats,) = engine.stats()
    control = stats.control
    assert control is not None
    assert control.num_steps == stats.num_steps
    assert sum(control.used_s.values()) == pytest.approx(control.predicted_s)
    assert (
        min(
            control.used_s[kind]
            for kind in (
                "overhead",
                "latency_sensitive_decode",
                "latency_sensitive_prefill",
                "best_effort_decode",
                "best_effort_prefill",
            )
        )
        > 0.0
    )
    assert control.measured_s > 0.0 and control.mean_error > 0.0 and control.budget_s > 0.0
    assert control.aims == {"interactive": pytest.approx(0.9, abs=0.05)}


def test_an_engine_without_them_says_nothing(tiny_checkpoint: Path) -> None:
    engine = make_engine(make_model_settings(tiny_checkpoint))
    run_all(engine, [make_request("be", PROMPT, GREEDY, "best_effort")])
    assert engine.stats()[0].control is None

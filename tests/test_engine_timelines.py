"""What an engine tells of requests: refusals and demotions with the reason, ids as clients know."""

from dataclasses import replace
from pathlib import Path

import pytest
from engine_builders import GREEDY, make_engine, make_model_settings, make_request, run_all

from omniserve.engine.core import Engine
from omniserve.errors import DeadlineExceeded, Overloaded
from omniserve.requests import EngineRequest, TierRules
from scheduler import Objectives
from scheduler.step_time import LinearStepTime, StepCosts

PROMPT = list(range(30, 70))
ROW_S = 1e-3
SLOW = LinearStepTime(StepCosts(1e-4, ((1, ROW_S), (512, 512 * ROW_S))))
"""Forty rows are reckoned to take forty milliseconds."""
IN_TIME = Objectives(0.06, 1.0)


def slow_engine(path: Path) -> Engine:
    return make_engine(replace(make_model_settings(path), step_time=SLOW))


def chat(name: str, rules: TierRules | None = None) -> EngineRequest:
    request = replace(make_request(name, PROMPT), objectives=IN_TIME)
    return request if rules is None else replace(request, rules=rules)


def told(engine: Engine, request_id: str) -> list[tuple[str, str]]:
    return [(each.event, each.reason) for each in engine.explain(request_id)]


def test_a_refusal_says_what_was_predicted(tiny_checkpoint: Path) -> None:
    engine = slow_engine(tiny_checkpoint)
    engine.add(chat("mine/1#0"))
    with pytest.raises(Overloaded) as caught:
        engine.add(chat("late/2#0"))
    (refusal,) = engine.explain("late")
    assert (refusal.event, refusal.reason) == ("refused", "its first token would be late")
    assert refusal.detail == str(caught.value)
    assert "within 60 ms, but it would take 80 ms now" in refusal.detail


def test_a_full_queue_and_a_deadline_refuse_too(tiny_checkpoint: Path) -> None:
    engine = slow_engine(tiny_checkpoint)
    rules = TierRules(max_waiting=0)
    with pytest.raises(Overloaded):
        engine.add(chat("full", rules))
    assert told(engine, "full") == [("refused", "as many of its tier wait as may")]
    with pytest.raises(DeadlineExceeded):
        engine.add(replace(chat("past"), deadline_s=1.0))
    assert told(engine, "past") == [("refused", "its deadline")]


def test_the_fallback_takes_it(tiny_checkpoint: Path) -> None:
    engine = slow_engine(tiny_checkpoint)
    rules = TierRules(fallback="batch")
    run_all(engine, [chat("mine", rules), chat("late", rules)])
    assert told(engine, "late")[:2] == [
        ("demoted", "its first token would be late"),
        ("queued", ""),
    ]
    demotion, queued = engine.explain("late")[:2]
    assert demotion.detail == "it is expected after 80 ms; tier 'batch' takes the request"
    assert queued.detail == "tier 'batch', 40 prompt tokens"
    assert told(engine, "late")[-1] == ("finished", "")


def test_ids_are_those_of_clients_and_the_newest_request_is_meant(tiny_checkpoint: Path) -> None:
    engine = make_engine(make_model_settings(tiny_checkpoint))
    short = replace(GREEDY, max_tokens=2)
    names = ("mine/9#0", "mine/10#0", "mine/10#1", "mine/8/11#0", "min/12#0", "mine")
    run_all(engine, [make_request(name, PROMPT[:4], short) for name in names])
    sequences = [each.sequence for each in engine.explain("mine") if each.event == "finished"]
    assert sorted(sequences) == [0, 1]
    for name in ("mine/8", "min"):
        assert [each.event for each in engine.explain(name)].count("finished") == 1
    assert engine.explain("mine/9#0") == engine.explain("nobody") == engine.explain("") == ()
    times = [each.at_s for each in engine.explain("mine")]
    assert times == sorted(times)


def test_all_models_are_asked(tiny_checkpoint: Path) -> None:
    models = [make_model_settings(tiny_checkpoint, name=name) for name in ("first", "second")]
    engine = make_engine(*models)
    short = replace(GREEDY, max_tokens=1)
    run_all(engine, [make_request("mine/3#0", PROMPT[:4], short, model="second")])
    run_all(engine, [make_request("mine/2#0", PROMPT[:4], short, model="first")])
    assert len(told(engine, "mine")) == len(set(told(engine, "mine")))
    engine.add(make_request("mine/4#0", PROMPT[:4], short, model="first"))
    assert told(engine, "mine") == [("queued", "")]
    engine.abort("mine/4#0")
    assert told(engine, "mine") == [("queued", ""), ("aborted", "")]

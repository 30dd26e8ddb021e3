"""Simulated requests get what the tiers of a configuration give them."""

from dataclasses import replace

import pytest
from simulate_builders import chats, make_profile, make_settings

from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.streams import TraceStream
from omniserve.bench.run_record import RunRecord
from omniserve.config import Config
from omniserve.requests import TierRules, TierSettings
from omniserve.settings import EngineSettings
from omniserve.simulate.resolve import resolve_streams, tiers_by_name
from omniserve.simulate.run import simulate
from scheduler import Objectives

BURST = [(0.0, 100, 10)] * 20
"""A prompt takes 23 ms."""


def run(tier: TierSettings, *, measures_step_time: bool = True) -> RunRecord:
    settings = make_settings()
    models = (replace(settings.models[0], measures_step_time=measures_step_time),)
    stream = chats(BURST)
    stream = replace(stream, info=replace(stream.info, tier=tier.name))
    options = LoadOptions(duration_s=5.0, warm_up_s=0.0, drain_s=60.0)
    return simulate(
        [stream],
        EngineSettings(settings.device, models),
        {"m": make_profile()},
        options,
        tiers={tier.name: tier},
    )


def outcomes(record: RunRecord) -> dict[str, int]:
    found = [request.outcome for request in record.requests]
    return {outcome: found.count(outcome) for outcome in ("done", "rejected")}


def test_late_requests_are_rejected_where_step_times_are_known() -> None:
    tier = TierSettings("chat", "latency_sensitive", Objectives(0.1, 1.0))
    held, free = run(tier), run(tier, measures_step_time=False)
    assert outcomes(free) == {"done": 20, "rejected": 0}
    assert outcomes(held)["rejected"] >= 14
    assert outcomes(held)["done"] >= 3
    assert all(
        (request.ttft_s or 0.0) <= 0.11 for request in held.requests if request.outcome == "done"
    )
    (error,) = {request.error[:45] for request in held.requests if request.error}
    assert error == "tier 'chat' promises the first token within 1"


@pytest.mark.parametrize(
    ("rules", "num_rejected"),
    [(TierRules(admission=False), 0), (TierRules(fallback="batch"), 0)],
)
def test_rules_of_the_tier_hold(rules: TierRules, num_rejected: int) -> None:
    tier = TierSettings("chat", "latency_sensitive", Objectives(0.1, 1.0), rules)
    assert outcomes(run(tier)) == {"done": 20 - num_rejected, "rejected": num_rejected}


def test_a_bounded_queue() -> None:
    tier = TierSettings("chat", "best_effort", None, TierRules(max_waiting=4))
    # One runs and four wait.
    assert outcomes(run(tier)) == {"done": 5, "rejected": 15}


def test_streams_without_a_tier_have_the_default_of_their_model() -> None:
    config = Config.model_validate(
        {
            "models": [{"name": "m", "path": "/m"}],
            "tiers": [
                {"name": "slow", "class": "best_effort", "max_waiting": 2},
                {
                    "name": "quick",
                    "class": "latency_sensitive",
                    "ttft_ms": 60,
                    "tpot_ms": 25,
                    "fallback": "slow",
                },
            ],
        },
        by_name=False,
    )
    stream = chats(BURST)
    (resolved,) = resolve_streams([stream], config)
    assert isinstance(resolved, TraceStream)
    assert (resolved.info.tier, resolved.info.service_class) == ("slow", "best_effort")
    tiers = tiers_by_name(config)
    assert tiers["quick"].rules == TierRules(fallback="slow", fallback_max_waiting=2)

"""Two simulated models on one device: layers interleaved, objectives kept, gaps filled."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import TypeVar

import pytest
from simulate_builders import (
    COSTS,
    backlog,
    chats,
    make_profile,
    make_settings,
    of_stream,
    tokens_per_s,
)

from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.streams import BacklogStream, Stream, TraceStream
from omniserve.bench.run_record import RunRecord
from omniserve.settings import EngineSettings
from omniserve.simulate.run import simulate
from scheduler.step_time import LinearStepTime, StepCosts

_Stream = TypeVar("_Stream", TraceStream, BacklogStream)
FLAT = StepCosts(overhead_s=0.0, dense_ladder=((1, 0.8),))
"""Every step takes 0.8 s, 0.1 s a layer."""


def of_model(stream: _Stream, model: str, name: str) -> _Stream:
    return replace(stream, info=replace(stream.info, model=model, name=name))


def run(
    streams: Sequence[Stream],
    names: Sequence[str] = ("m", "two"),
    *,
    costs: StepCosts = COSTS,
    is_timed: bool = True,
    duration_s: float = 8.0,
) -> RunRecord:
    (model,) = make_settings().models
    step_time = LinearStepTime(costs) if is_timed else None
    models = tuple(replace(model, name=name, step_time=step_time) for name in names)
    settings = EngineSettings(make_settings().device, models)
    profile = make_profile(costs, host=None)
    options = LoadOptions(duration_s=duration_s, warm_up_s=0.0, drain_s=60.0)
    return simulate(streams, settings, dict.fromkeys(names, profile), options)


@pytest.mark.parametrize(("arrival_s", "boundary_s"), [(1.05, 1.1), (1.1, 1.1), (1.45, 1.5)])
def test_a_first_token_waits_for_one_layer_of_another_models_mixed_step(
    arrival_s: float, boundary_s: float
) -> None:
    """The step from 0.8 s on carries a best-effort prompt beside the decode."""
    record = run(
        [
            chats([(0.0, 10, 4)]),
            backlog(1, [(100, 3)]),
            of_model(chats([(arrival_s, 10, 1)]), "two", "late"),
        ],
        costs=FLAT,
        is_timed=False,
        duration_s=4.0,
    )
    (late,), (chat,) = of_stream(record, "late"), of_stream(record, "chat")
    assert late.token_times_s == pytest.approx([boundary_s + 0.8])
    # It took its step's time from the other, and nothing of that is computed twice.
    assert chat.token_times_s[:2] == pytest.approx([0.8, 2.4])


def test_best_effort_layers_of_another_model_fill_what_decodes_leave() -> None:
    """Decodes of 9 ms are due every 22.5 ms: more than half of the device is left."""
    chat = chats([(0.1 * number, 20, 600) for number in range(2)])
    batch = of_model(backlog(6, [(200, 60)]), "two", "batch")
    alone, beside = run([batch]), run([chat, batch])
    for each in of_stream(beside, "chat"):
        assert each.outcome == "done"
        assert each.tpot_s is not None and each.tpot_s <= 0.025
    undisturbed = of_stream(run([chat]), "chat")
    assert mean(each.tpot_s or 0.0 for each in undisturbed) < 0.0125
    assert tokens_per_s(beside) > 0.4 * tokens_per_s(alone)


def test_two_latency_sensitive_models_and_a_backlog_keep_their_objectives() -> None:
    requests = [(0.4 * number, 60, 40) for number in range(20)]
    later = [(at_s + 0.13, num_prompt, num_output) for at_s, num_prompt, num_output in requests]
    streams: list[Stream] = [
        of_model(chats(requests), "m", "first"),
        of_model(chats(later), "two", "second"),
        of_model(backlog(4, [(200, 60)]), "three", "batch"),
    ]
    record = run(streams, ("m", "two", "three"))
    for name in ("first", "second"):
        found = of_stream(record, name)
        met = [
            each.ttft_s is not None
            and each.ttft_s <= 0.06
            and each.tpot_s is not None
            and each.tpot_s <= 0.025
            for each in found
        ]
        assert mean(met) >= 0.9, name
    assert tokens_per_s(record) > 20.0

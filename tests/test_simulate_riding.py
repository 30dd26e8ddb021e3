"""Simulated models that share layers: rows of several in one batch, and which layers those are."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from simulate_builders import (
    COSTS,
    NUM_LAYERS,
    backlog,
    chats,
    make_profile,
    make_settings,
    of_stream,
    tokens_per_s,
)

from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.streams import Stream
from omniserve.bench.run_record import RunRecord
from omniserve.errors import CheckpointError, ConfigError
from omniserve.profiling.profile import Profile
from omniserve.settings import EngineSettings, ModelSettings
from omniserve.simulate.run import Simulation
from omniserve.simulate.shared_layers import layer_keys
from omniserve.synthetic.create import write_checkpoint
from omniserve.synthetic.finetune import write_finetune
from scheduler.step_time import LinearStepTime, StepCosts

FLAT = StepCosts(overhead_s=0.0, dense_ladder=((1, 0.8),))
"""Every step takes 0.8 s, 0.1 s a layer, however many rows it has."""
NAMES = ("m", "two")


def run(
    streams: Sequence[Stream],
    *shared: str,
    costs: StepCosts = COSTS,
    is_timed: bool = False,
    duration_s: float = 8.0,
) -> RunRecord:
    (model,) = make_settings().models
    step_time = LinearStepTime(costs) if is_timed else None
    models = tuple(replace(model, name=name, step_time=step_time) for name in NAMES)
    settings = EngineSettings(make_settings().device, models)
    profiles = dict.fromkeys(NAMES, make_profile(costs, host=None))
    options = LoadOptions(duration_s=duration_s, warm_up_s=0.0, drain_s=60.0)
    keys = layer_keys(shared, models, profiles)
    simulation = Simulation(streams, settings, profiles, options, layer_keys=keys)
    simulation.run()
    simulation.fleet.check_integrity()
    (engine,) = simulation.fleet.engines
    for name in NAMES:
        assert bool(engine.joint_layers(name).num_rows) == bool(shared)
    return simulation.record()


def of_two(stream: Stream, name: str) -> Stream:
    return replace(stream, info=replace(stream.info, model="two", name=name))


@pytest.mark.parametrize(
    ("shared", "times_s"),
    [((), {0.8, 1.6}), (("m,two=8",), {0.8}), (("m,two=4",), {0.8, 1.2})],
)
def test_layers_that_are_shared_run_once_for_both(
    shared: tuple[str, ...], times_s: set[float]
) -> None:
    """Of two steps that begin together; what they do not share runs one after the other."""
    both: list[Stream] = [
        chats([(1.0, 10, 1)], "best_effort"),
        of_two(chats([(1.0, 10, 1)], "best_effort"), "two"),
    ]
    record = run(both, *shared, costs=FLAT, duration_s=4.0)
    found = {round(time - 1.0, 9) for each in record.requests for time in each.token_times_s}
    assert found == times_s


@pytest.mark.parametrize("is_timed", [False, True])
def test_backlogs_of_models_that_share_layers_get_more_done(is_timed: bool) -> None:
    streams: list[Stream] = [backlog(4), of_two(backlog(4), "other")]
    alone = run(streams, is_timed=is_timed)
    joint = run(streams, f"m,two={NUM_LAYERS}", is_timed=is_timed)
    for name in ("batch", "other"):
        assert tokens_per_s(joint, name) > 1.2 * tokens_per_s(alone, name)


def test_nobody_is_late_by_those_that_ride() -> None:
    requests = [(0.4 * number, 60, 40) for number in range(18)]
    streams: list[Stream] = [chats(requests), of_two(backlog(4), "other")]
    alone = run(streams, is_timed=True)
    joint = run(streams, f"m,two={NUM_LAYERS}", is_timed=True)
    for each in of_stream(joint, "chat"):
        assert each.ttft_s is not None and each.ttft_s <= 0.06
        assert each.tpot_s is not None and each.tpot_s <= 0.025
    assert tokens_per_s(joint, "other") > 0.8 * tokens_per_s(alone, "other")


def test_what_two_have_in_common_with_a_third_they_share() -> None:
    (model,) = make_settings().models
    models = [replace(model, name=name) for name in ("a", "b", "c")]
    profiles = dict.fromkeys(("a", "b", "c"), make_profile())
    keys = layer_keys(["a,b=6", "b,c=3"], models, profiles)
    assert keys["a"][:3] == keys["c"][:3] and keys["a"][:6] == keys["b"][:6]
    assert not set(keys["a"][3:]) & set(keys["c"]) and not set(keys["a"][6:]) & set(keys["b"])
    assert all(len(set(each)) == NUM_LAYERS for each in keys.values())


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("m,two", "must be checkpoints, or MODEL,MODEL"),
        ("m=3", "must be checkpoints"),
        ("m,m=3", "must be checkpoints"),
        ("m,three=3", "with models of m, two"),
        ("m,two=0", "allowed are 1 to 8 layers"),
        ("m,two=9", "allowed are 1 to 8 layers"),
        ("m,two=²", "allowed are 1 to 8 layers"),
        ("=", "must be checkpoints"),
    ],
)
def test_what_cannot_be_shared_is_refused(value: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run([], value)
    assert problem in str(refused.value) and repr(value) in str(refused.value)


def _profiles(models: Sequence[ModelSettings], num_layers: int) -> dict[str, Profile]:
    profile = replace(make_profile(), num_layers=num_layers)
    return {model.name: profile for model in models}


def test_checkpoints_tell_by_their_bytes_what_is_shared(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", arch="qwen3", preset="tiny", seed=1)
    tuned = write_finetune(base, tmp_path / "tuned", layers_from=0.5, seed=1)
    other = write_checkpoint(tmp_path / "other", arch="qwen3", preset="tiny", seed=2)
    (model,) = make_settings().models
    models = [replace(model, name=path.name, path=str(path)) for path in (base, tuned, other)]
    models.append(replace(models[0], name="wide", dtype="float32"))
    keys = layer_keys(["checkpoints"], models, _profiles(models, 3))
    assert keys["base"][0] == keys["tuned"][0] and keys["base"][-1] != keys["tuned"][-1]
    assert not set(keys["base"]) & {*keys["other"], *keys["wide"]}
    with pytest.raises(ConfigError, match=r"base has 3 layers, and its profile 8"):
        layer_keys(["checkpoints"], models, _profiles(models, 8))
    with pytest.raises(ConfigError, match="stands for all models"):
        layer_keys(["checkpoints", "base,tuned=1"], models, _profiles(models, 3))
    with pytest.raises(CheckpointError, match="no such directory"):
        layer_keys(["checkpoints"], [model], {"m": make_profile()})

"""Fine-tunes of one base in one engine: their rows share batches, and no token changes by it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from engine_builders import GREEDY, make_engine, make_model_settings, make_request
from oracle import Oracle
from piggyback_builders import ARCHITECTURES, running_fleet, settings_of
from piggyback_trials import Trials
from test_model_changes import Run
from weight_builders import write_family

from omniserve.engine.begun_step import BegunStep
from omniserve.engine.core import Engine
from omniserve.models.decoder import DecoderLayer
from omniserve.models.lora import RowDelta
from omniserve.requests import EngineRequest, RequestOutput
from scheduler import Objectives
from scheduler.step_time import LinearStepTime, StepCosts

NAMES = ("base", "finetune-1", "finetune-2")
NUM_LAYERS, NUM_SHARED = 4, 3
COSTS = StepCosts(overhead_s=1e-4, dense_ladder=((1, 2e-3),), prefill_token_s=1e-5)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and two fine-tunes that differ in the last of four layers."""
    paths = write_family(tmp_path_factory.mktemp("family"), "llama", seed=7)
    return {path.name: path for path in paths}


@pytest.fixture(scope="module")
def oracles(family: dict[str, Path]) -> dict[str, Oracle]:
    return {name: Oracle(path) for name, path in family.items()}


@dataclass(frozen=True)
class JointLayer:
    """A layer that was run once for so many rows."""

    layer: DecoderLayer
    num_rows: int


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[JointLayer]:
    """Every layer that is run, of any model."""
    layers: list[JointLayer] = []
    pre = DecoderLayer.pre

    def noting(
        self: DecoderLayer,
        residual: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        deltas: Sequence[RowDelta] = (),
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        layers.append(JointLayer(self, len(residual)))
        return pre(self, residual, rotary, deltas)

    monkeypatch.setattr(DecoderLayer, "pre", noting)
    return layers


def engine_of(
    family: dict[str, Path],
    pipeline_depth: int = 1,
    costs: StepCosts | None = None,
) -> Engine:
    step_time = None if costs is None else LinearStepTime(costs)
    models = [
        replace(make_model_settings(path, name=name), step_time=step_time)
        for name, path in family.items()
    ]
    return make_engine(*models, poll_arrivals=lambda: None, pipeline_depth=pipeline_depth)


def ask(name: str, model: str, num_prompt: int, num_tokens: int, is_ls: bool) -> EngineRequest:
    prompt = [5 + (7 * len(name) + 3 * place) % 490 for place in range(num_prompt)]
    sampling = replace(GREEDY, max_tokens=num_tokens)
    return make_request(
        name, prompt, sampling, "latency_sensitive" if is_ls else "best_effort", model
    )


def num_rode(engine: Engine) -> dict[str, int]:
    """Rows that shared a batch, counted at every layer."""
    return {
        stats.name: stats.joint_layers.num_rows
        for stats in engine.stats()
        if stats.joint_layers is not None
    }


@pytest.mark.parametrize("pipeline_depth", [1, 2])
@pytest.mark.parametrize("costs", [None, COSTS])
def test_three_fine_tunes_under_mixed_load_equal_transformers(
    family: dict[str, Path],
    oracles: dict[str, Oracle],
    pipeline_depth: int,
    costs: StepCosts | None,
) -> None:
    run = Run(engine_of(family, pipeline_depth, costs))
    for index in range(36):
        is_ls = index % 4 == 1
        run.add(NAMES[index % 3], "latency_sensitive" if is_ls else "best_effort", 4 + index % 9)
        for _ in range(2):
            run.step()
            run.engine.check_integrity()
    run.settle()
    assert len(run.ended) == len(run.requests)
    run.check(oracles)
    assert all(num_rows > 0 for num_rows in num_rode(run.engine).values())
    assert all(stats.kv_used_bytes == 0 for stats in run.engine.stats())


def test_a_shared_layer_runs_one_batch_for_all(
    family: dict[str, Path], ran: list[JointLayer]
) -> None:
    engine = engine_of(family)
    for name in NAMES:
        engine.add(ask("r" + name, name, 10, 3, is_ls=False))
    while engine.has_unfinished:
        engine.step()
    shared = {id(layer) for layer in engine.runtime("base")._executor.layers[:NUM_SHARED]}
    # A prompt and two decodes of each model.
    for num_rows in (10, 1, 1):
        together, ran = ran[:NUM_SHARED], ran[NUM_SHARED:]
        assert [each.num_rows for each in together] == [3 * num_rows] * NUM_SHARED
        assert {id(each.layer) for each in together} == shared
        alone, ran = ran[: len(NAMES)], ran[len(NAMES) :]
        assert [each.num_rows for each in alone] == [num_rows] * len(NAMES)
        assert len({id(each.layer) for each in alone} - shared) == len(NAMES)
    assert not ran
    assert num_rode(engine) == dict.fromkeys(NAMES, NUM_SHARED * 12)
    for stats in engine.stats():
        assert stats.joint_layers is not None
        assert stats.joint_layers.num_layers == NUM_SHARED * 3


def test_some_steps_go_alone_so_that_their_times_are_learnt(family: dict[str, Path]) -> None:
    engine = engine_of(family, costs=COSTS)
    for name in NAMES:
        engine.add(ask("r" + name, name, 10, 60, is_ls=False))
    while engine.has_unfinished:
        engine.step()
    for stats in engine.stats():
        assert stats.control is not None and stats.joint_layers is not None
        assert 1 <= stats.control.num_steps < 20
        assert stats.joint_layers.num_layers > 40 * NUM_SHARED


def test_switched_off_every_model_goes_alone(family: dict[str, Path]) -> None:
    engine = engine_of(family)
    engine._stepping.riding.is_on = False
    for name in NAMES:
        engine.add(ask("r" + name, name, 10, 3, is_ls=False))
    while engine.has_unfinished:
        engine.step()
    assert num_rode(engine) == dict.fromkeys(NAMES, 0)


def test_models_without_common_layers_go_alone(
    tiny_checkpoint: Path, family: dict[str, Path]
) -> None:
    engine = engine_of({"tiny": tiny_checkpoint, "base": family["base"]})
    for name in ("tiny", "base"):
        engine.add(ask(name, name, 10, 3, is_ls=False))
    while engine.has_unfinished:
        engine.step()
    assert num_rode(engine) == {"tiny": 0, "base": 0}


def decoding(engine: Engine, *requests: EngineRequest) -> None:
    """Until all of them have had their first token."""
    for request in requests:
        engine.add(request)
    awaited = {request.request_id for request in requests}
    while awaited:
        awaited -= {output.request_id for output in engine.step()}


def test_prompts_ride_with_latency_sensitive_decodes_within_the_limit_of_rows(
    family: dict[str, Path], ran: list[JointLayer]
) -> None:
    """Where nothing is known of times."""
    engine = engine_of(family)
    decoding(engine, ask("chat", "base", 20, 30, is_ls=True))
    limit = engine.runtime("base").scheduler.settings.best_effort_tokens_beside_ls
    for name in NAMES[1:]:
        engine.add(ask(name, name, 150, 2, is_ls=False))
    ran.clear()
    while num_rode(engine)["base"] == 0:
        engine.step()
    assert max(each.num_rows for each in ran) == 1 + limit


def test_rows_that_ride_are_those_that_time_is_left_for(family: dict[str, Path]) -> None:
    """Far slower than they are, so that what is predicted decides: the objective leaves time for
    eight rows, and what the chat is ahead of it may lend three times as many."""
    row_s = 1e-2
    engine = engine_of(family, costs=StepCosts(1e-4, ((1, row_s), (512, 512 * row_s))))
    chat = ask("chat", "base", 2, 40, is_ls=True)
    decoding(engine, replace(chat, objectives=Objectives(100.0, 8.5 * row_s)))
    beside: list[int] = []
    riding = engine._stepping.riding
    advance = riding.advance

    def noting(host: BegunStep, guests: Sequence[BegunStep]) -> None:
        if host.standing.is_urgent:
            beside.append(sum(each.step.plan.num_tokens for each in (host, *guests)))
        advance(host, guests)

    riding.advance = noting  # type: ignore[method-assign]
    for name in NAMES[1:]:
        for number in range(32):
            request = ask(f"{name}-{number}", name, 1, 2, is_ls=False)
            engine.add(request)
    while engine.has_unfinished:
        engine.step()
    assert beside
    assert 2 <= min(beside) and max(beside) <= 3 * 8


def test_a_first_token_does_not_wait_for_riders(
    family: dict[str, Path], ran: list[JointLayer]
) -> None:
    """It comes amid a joint layer of best-effort steps: the layers after that are its own."""
    engine = engine_of(family)
    late = ask("chat", "finetune-1", 20, 2, is_ls=True)
    arrived_at: list[int] = []

    def poll() -> None:
        if not arrived_at and ran:
            arrived_at.append(len(ran))
            engine.add(late)

    engine._stepping._poll_arrivals = poll
    for name in NAMES:
        engine.add(ask(name, name, 10, 3, is_ls=False))
    while not any(output.request_id == "chat" for output in engine.step()):
        pass
    assert arrived_at == [1]
    assert ran[0].num_rows == 30
    # It is in the way of no one who could ride: 20 rows and those that stood at layer 1.
    assert ran[1].num_rows == 20
    while engine.has_unfinished:
        engine.step()


@pytest.mark.parametrize("when", ["parked", "riding"])
def test_the_model_of_a_rider_is_unloaded(
    family: dict[str, Path], oracles: dict[str, Oracle], when: str
) -> None:
    run = Run(engine_of(family))
    engine = run.engine
    asked: list[str] = []

    def unload() -> None:
        parked = {each.model: each.standing for each in engine._stepping._parked}
        standing = parked.get("finetune-1")
        if not asked and standing is not None:
            layer = standing.next_layer
            if layer == NUM_SHARED if when == "parked" else 0 < layer < NUM_SHARED:
                asked.append("finetune-1")
                engine.begin_unload(2, "finetune-1")

    engine._stepping._poll_arrivals = unload
    for index in range(9):
        run.add(NAMES[index % 3], "best_effort")
    run.settle()
    assert asked
    assert [stats.name for stats in engine.stats()] == ["base", "finetune-2"]
    assert {run.requests[each].model for each in run.errors} == {"finetune-1"}
    before = num_rode(engine)["base"]
    for index in range(4):
        run.add(("base", "finetune-2")[index % 2], "best_effort")
    run.settle()
    assert num_rode(engine)["base"] > before
    run.check(oracles)


@pytest.mark.parametrize("gone", ["finetune-1", "finetune-2"])
def test_a_rider_is_forgotten_where_it_stands(family: dict[str, Path], gone: str) -> None:
    """The others go on from where they stand."""
    engine = engine_of(family)
    for name in NAMES:
        engine.add(ask("r" + name, name, 10, 3, is_ls=False))
    assert len(tokens_of(engine.step())) == 1 and engine.is_parked
    del engine._runtimes[gone]
    engine._stepping.forget(gone)
    num_tokens = 1
    while engine.has_unfinished:
        num_tokens += len(tokens_of(engine.step()))
    assert num_tokens == 6


def tokens_of(outputs: list[RequestOutput]) -> list[int]:
    """All tokens."""
    return [token for output in outputs for token in output.token_ids]


@pytest.fixture(scope="module")
def lane_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same, for host attention."""
    overrides = ARCHITECTURES["llama"] | {"num_hidden_layers": NUM_LAYERS}
    paths = write_family(tmp_path_factory.mktemp("lanes"), "llama", seed=7, overrides=overrides)
    return {path.name: path for path in paths}


@pytest.mark.parametrize("pipeline_depth", [1, 2])
def test_rows_of_lanes_ride_and_every_token_is_right(
    lane_family: dict[str, Path], pipeline_depth: int
) -> None:
    regimes = ["forced", "mixed"]
    with running_fleet(lane_family, regimes, pipeline_depth=pipeline_depth) as fleet:
        trials = Trials(fleet, prompts_seed=1)
        for seed in range(3):
            trials.run([(name, regimes[seed % 2]) for name in NAMES], seed)
        assert trials.num_piggybacked > 0
        rode = num_rode(fleet.engine)
        assert all(rode[f"{name}.forced"] > 0 for name in NAMES)


@pytest.fixture
def lane_run(lane_family: dict[str, Path]) -> Iterator[Run]:
    models = [settings_of(name, path, "forced") for name, path in lane_family.items()]
    run = Run(make_engine(*models, poll_arrivals=lambda: None))
    yield run
    run.engine.close()


def test_a_model_with_lanes_is_unloaded_while_it_rides(
    lane_run: Run, lane_family: dict[str, Path]
) -> None:
    run, gone = lane_run, "finetune-1.forced"
    host = run.engine._host
    assert host is not None
    host.await_ready()
    asked: list[str] = []

    def unload() -> None:
        parked = {each.model: each for each in run.engine._stepping._parked}
        rider = parked.get(gone)
        if not asked and rider is not None and rider.step.cursor.lanes is not None:
            if rider.step.num_lane_rows and rider.standing.next_layer < NUM_LAYERS:
                asked.append(gone)
                run.engine.begin_unload(2, gone)

    run.engine._stepping._poll_arrivals = unload
    for index in range(12):
        run.add(f"{NAMES[index % 3]}.forced", "best_effort", 30)
    run.settle()
    assert asked == [gone]
    assert len(run.engine.stats()) == 2
    run.check({f"{name}.forced": Oracle(path) for name, path in lane_family.items()})

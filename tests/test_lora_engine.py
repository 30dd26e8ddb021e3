"""Adapters beside their base in one engine: one batch for all, and every token is right."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from engine_builders import make_engine, make_model_settings
from joint_builders import RandomRides
from lora_builders import adapter_settings, edit_weights, merged, write_adapted
from oracle import Oracle
from piggyback_builders import ARCHITECTURES, settings_of
from step_graph_builders import TapedCapture, make_capturing_engine
from test_model_changes import Run, news_of

from omniserve.engine.core import Engine
from omniserve.engine.model_news import Loaded, Refused
from omniserve.models.decoder import DecoderLayer
from omniserve.models.lora import RowDelta
from omniserve.settings import ModelSettings
from scheduler.step_time import LinearStepTime, StepCosts

NAMES = ("base", "adapter-1", "adapter-2")
COSTS = StepCosts(overhead_s=1e-4, dense_ladder=((1, 2e-3),), prefill_token_s=1e-5)


@dataclass(frozen=True)
class Family:
    """A base, two adapters of it, and what each of them is to answer."""

    base: Path
    adapters: dict[str, Path]
    oracles: dict[str, Oracle]

    def settings(self, name: str) -> ModelSettings:
        if name == "base":
            return make_model_settings(self.base, name=name)
        return adapter_settings(self.adapters[name], self.base)

    def engine(self, *names: str, pipeline_depth: int = 1) -> Engine:
        models = [self.settings(name) for name in names or NAMES]
        return make_engine(*models, poll_arrivals=lambda: None, pipeline_depth=pipeline_depth)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Of llama, with heads as host attention takes them."""
    directory = tmp_path_factory.mktemp("lora")
    overrides = ARCHITECTURES["llama"] | {"num_hidden_layers": 3}
    base, adapters = write_adapted(directory, "llama", seed=7, overrides=overrides)
    oracles = {"base": Oracle(base)}
    for path in adapters:
        oracles[path.name] = Oracle(merged(base, path, directory / f"merged-{path.name}"))
    return Family(base, {path.name: path for path in adapters}, oracles)


@dataclass(frozen=True)
class LayerCall:
    """`pre` of a layer, and how many of its rows belong to adapters."""

    layer: DecoderLayer
    num_rows: int
    adapted: tuple[int, ...]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[LayerCall]:
    calls: list[LayerCall] = []
    pre = DecoderLayer.pre

    def noting(
        self: DecoderLayer,
        residual: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        deltas: Sequence[RowDelta] = (),
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        counts = tuple(len(residual[each.rows]) for each in deltas)
        calls.append(LayerCall(self, len(residual), counts))
        return pre(self, residual, rotary, deltas)

    monkeypatch.setattr(DecoderLayer, "pre", noting)
    return calls


def add_mixed(run: Run, names: Sequence[str], count: int) -> None:
    for index in range(count):
        is_ls = index % 4 == 1
        name = names[index % len(names)]
        run.add(name, "latency_sensitive" if is_ls else "best_effort", 4 + index % 9)


def rows_together(engine: Engine) -> dict[str, int]:
    """Rows that shared a batch with another model's, counted at every layer."""
    return {
        stats.name: stats.joint_layers.num_rows
        for stats in engine.stats()
        if stats.joint_layers is not None
    }


@pytest.mark.parametrize(("pipeline_depth", "costs"), [(1, None), (2, None), (1, COSTS)])
def test_a_base_and_adapters_under_mixed_load_equal_merged_models(
    family: Family, pipeline_depth: int, costs: StepCosts | None
) -> None:
    step_time = None if costs is None else LinearStepTime(costs)
    models = [replace(family.settings(name), step_time=step_time) for name in NAMES]
    run = Run(make_engine(*models, poll_arrivals=lambda: None, pipeline_depth=pipeline_depth))
    for index in range(30):
        is_ls = index % 4 == 1
        run.add(NAMES[index % 3], "latency_sensitive" if is_ls else "best_effort", 4 + index % 9)
        for _ in range(2):
            run.step()
            run.engine.check_integrity()
    run.settle()
    assert len(run.ended) == len(run.requests)
    run.check(family.oracles)
    assert all(rows > 0 for rows in rows_together(run.engine).values())
    # Answers of the three differ, so that none can be another's.
    (prompt, tokens), *_ = (
        (run.requests[name].prompt_token_ids, run.tokens[name]) for name in run.requests
    )
    others = [family.oracles[name].generate(prompt, len(tokens)) for name in NAMES]
    assert len({tuple(each) for each in others}) == 3


def test_one_batch_of_the_base_serves_rows_of_all(family: Family, ran: list[LayerCall]) -> None:
    models = [replace(family.settings(name), max_step_tokens=128) for name in NAMES]
    run = Run(make_engine(*models, poll_arrivals=lambda: None))
    for name in NAMES:
        run.add(name, "best_effort", 2)
    num_prompt = [len(request.prompt_token_ids) for request in run.requests.values()]
    ran.clear()
    while run.engine.has_unfinished:
        run.step()
    layers = list(run.engine.runtime("base")._executor.layers)
    assert len(ran) == 2 * len(layers), "each layer runs once for the prompts, once for the decodes"
    for call, layer in zip(ran, 2 * layers, strict=True):
        assert call.layer is layer
    for call in ran[: len(layers)]:
        assert call.num_rows == sum(num_prompt)
        assert sorted(call.adapted) == sorted(num_prompt[1:])
    for call in ran[len(layers) :]:
        assert (call.num_rows, call.adapted) == (3, (1, 1))
    run.check(family.oracles)


def test_best_effort_rows_of_adapters_ride_beside_a_latency_sensitive_step_of_the_base(
    family: Family, ran: list[LayerCall]
) -> None:
    run = Run(family.engine())
    run.add("base", "latency_sensitive", 20)
    for _ in range(2):
        run.step()
    ran.clear()
    for name in NAMES[1:]:
        run.add(name, "best_effort", 12)
    run.settle()
    assert max(len(call.adapted) for call in ran) == 2
    assert any(call.num_rows > sum(call.adapted) > 0 for call in ran)
    run.check(family.oracles)


def test_rows_on_the_host_are_right_and_ride(family: Family) -> None:
    """Piggybacked decodes of base and adapters, in random order, alone and together."""
    models = [
        replace(
            settings_of(name, family.base, regime),
            path=str(family.base if name == "base" else family.adapters[name]),
            base=None if name == "base" else str(family.base),
        )
        for name in NAMES
        for regime in ("forced", "mixed")
    ]
    oracles = {model.name: family.oracles[model.name.partition(".")[0]] for model in models}
    names = [model.name for model in models]
    engine = make_engine(*models, poll_arrivals=lambda: None)
    try:
        assert engine._host is not None
        engine._host.await_ready()
        run = Run(engine)
        add_mixed(run, names, 18)
        run.settle()
        rides = RandomRides.of(engine, lambda: None)
        add_mixed(run, names, 18)
        run.settle()
        run.check(oracles)
        assert rides.joint.num_rows > rides.joint.num_batches > 0
        for stats in engine.stats():
            assert stats.piggyback is not None
            if stats.name.endswith("forced"):
                assert stats.piggyback.num_tokens > 0
    finally:
        engine.close()


def test_steps_that_are_captured_add_what_they_should(family: Family) -> None:
    """As graphs of an accelerator are; the tape knows nothing but the memory it was recorded on."""
    capture = TapedCapture()
    run = Run(make_capturing_engine(capture, *(family.settings(name) for name in NAMES)))
    for name in NAMES:
        run.add(name, "latency_sensitive", 10)
    run.settle()
    assert capture.num_replays > 0
    run.check(family.oracles)


def test_adapters_come_and_go_under_load_and_the_base_goes_first(family: Family) -> None:
    run = Run(family.engine("base"))
    for name in NAMES[1:]:
        run.engine.begin_load(1, family.settings(name))
    while run.engine.is_changing:
        if len(run.requests) - len(run.ended) < 3:
            run.add("base", "latency_sensitive")
        run.step()
    assert len(news_of(run, Loaded)) == 2
    stats = {each.name: each for each in run.engine.stats()}
    for name in NAMES[1:]:
        weights = stats[name].weights
        assert weights is not None
        num_own = weights.own_bytes
        assert 0 < num_own < weights.shared_bytes / 5
        assert weights.shared_with["base"] == weights.shared_bytes
    add_mixed(run, NAMES, 9)
    for _ in range(4):
        run.step()
    run.engine.begin_unload(2, "base")
    run.settle()
    assert [each.name for each in run.engine.stats()] == list(NAMES[1:])
    assert {run.requests[each].model for each in run.errors} <= {"base"}
    add_mixed(run, NAMES[1:], 6)
    run.settle()
    run.unload("adapter-1")
    add_mixed(run, NAMES[2:], 3)
    run.settle()
    assert isinstance(run.load(family.settings("base")), Loaded)
    add_mixed(run, ("base", "adapter-2"), 6)
    run.settle()
    run.check(family.oracles)
    assert rows_together(run.engine)["base"] > 0


def test_one_that_cannot_be_loaded_disturbs_nobody(family: Family, tmp_path: Path) -> None:
    import shutil

    run = Run(family.engine("base", "adapter-1"))
    broken = tmp_path / "broken"
    shutil.copytree(family.adapters["adapter-1"], broken)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        next(iter(tensors.values()))[0] = float("nan")

    before = run.engine._changes._store.num_bytes
    for change, problem in (
        (spoil, "not finite"),
        (lambda tensors: tensors.popitem() and None, "holds no"),
    ):
        edit_weights(broken, change)
        add_mixed(run, ("base", "adapter-1"), 4)
        refused = run.load(adapter_settings(broken, family.base))
        assert isinstance(refused, Refused) and problem in refused.message
    run.settle()
    assert run.engine._changes._store.num_bytes == before
    run.check(family.oracles)

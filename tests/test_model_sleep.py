"""Models of an engine that fall asleep and wake while others run, in this process."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from engine_builders import make_engine, make_model_settings
from oracle import Oracle
from test_model_changes import Run, news_of

from omniserve.engine.core import Engine
from omniserve.engine.model_news import Loaded, Refused, Unloaded
from omniserve.errors import ConfigError
from omniserve.settings import (
    AsleepModel,
    DeviceSettings,
    EngineSettings,
    ModelInfo,
    ModelSettings,
)
from omniserve.synthetic.adapter import write_adapter
from omniserve.synthetic.create import write_checkpoint
from omniserve.synthetic.finetune import write_finetune

KV_BYTES = 700_000


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("sleepers")
    paths = {
        arch: write_checkpoint(directory / arch, arch=arch, preset="tiny", seed=index)
        for index, arch in enumerate(("llama", "qwen3", "qwen3_moe"))
    }
    paths["finetune"] = write_finetune(paths["qwen3"], directory / "finetune", layers_from=0.5)
    return paths


@pytest.fixture(scope="module")
def oracles(checkpoints: dict[str, Path]) -> dict[str, Oracle]:
    return {name: Oracle(path) for name, path in checkpoints.items()}


def settings_of(checkpoints: dict[str, Path], name: str) -> ModelSettings:
    return make_model_settings(checkpoints[name], name=name, device_kv_bytes=600_000)


def info_of(run: Run, name: str) -> ModelInfo:
    (info,) = (info for info in run.engine.models if info.name == name)
    return info


def sleep(run: Run, name: str) -> ModelInfo:
    """What it was before."""
    info = info_of(run, name)
    run.engine.begin_sleep(7, name)
    run.until(lambda: not run.engine.is_changing)
    assert run.news[-1] == Unloaded(7)
    assert name not in [each.name for each in run.engine.models]
    return info


def wake(run: Run, settings: ModelSettings, digest: str) -> Loaded | Refused:
    run.engine.begin_load(8, settings, digest=digest)
    run.until(lambda: not run.engine.is_changing)
    news = run.news[-1]
    assert isinstance(news, Loaded | Refused)
    return news


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe"])
def test_a_model_that_woke_is_the_one_that_fell_asleep(
    name: str, checkpoints: dict[str, Path], oracles: dict[str, Oracle]
) -> None:
    settings = settings_of(checkpoints, name)
    run = Run(make_engine(settings, poll_arrivals=lambda: None))
    for _ in range(3):
        for service_class in ("latency_sensitive", "best_effort"):
            run.add(name, service_class)
        run.settle()
        info = sleep(run, name)
        woken = wake(run, settings, info.digest)
        assert isinstance(woken, Loaded) and woken.info == info and info.digest
    run.check(oracles)


def ask_meanwhile(run: Run, name: str) -> None:
    """Requests for a model until others have come or gone."""
    while run.engine.is_changing:
        if len(run.requests) - len(run.ended) < 3:
            run.add(name, "latency_sensitive")
        run.step()


def test_others_go_on_while_a_model_sleeps_and_wakes(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle]
) -> None:
    models = [settings_of(checkpoints, name) for name in ("llama", "qwen3")]
    run = Run(make_engine(*models, poll_arrivals=lambda: None))
    digest = info_of(run, "qwen3").digest
    for _ in range(3):
        run.engine.begin_sleep(1, "qwen3")
        ask_meanwhile(run, "llama")
        run.engine.begin_load(2, models[1], digest=digest)
        ask_meanwhile(run, "llama")
        run.add("qwen3", "best_effort")
        run.settle()
    assert len(news_of(run, Loaded)) == 3 and not run.errors
    run.check(oracles)


def test_weights_of_a_model_that_is_awake_stay(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle]
) -> None:
    models = {name: settings_of(checkpoints, name) for name in ("qwen3", "finetune")}
    run = Run(make_engine(*models.values(), poll_arrivals=lambda: None))
    store = run.engine._changes._store
    both = store.num_bytes
    stats = {each.name: each.weights for each in run.engine.stats()}
    own = {name: weights.own_bytes for name, weights in stats.items() if weights is not None}
    assert own["finetune"] > 0 and stats["finetune"] is not None
    assert stats["finetune"].shared_bytes > 0
    digests = {name: sleep(run, name).digest for name in ("finetune",)}
    assert store.num_bytes == both - own["finetune"]
    run.add("qwen3", "best_effort")
    run.settle()
    digests["qwen3"] = sleep(run, "qwen3").digest
    assert store.num_bytes == 0
    for name in ("finetune", "qwen3"):
        assert isinstance(wake(run, models[name], digests[name]), Loaded)
        run.add(name, "best_effort")
        run.settle()
    assert store.num_bytes == both
    run.check(oracles)


def test_a_model_that_changed_on_disk_is_refused_and_nothing_is_left_of_it(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(checkpoints["llama"], tmp_path / "llama"))
    settings = make_model_settings(path, name="guest")
    other = write_checkpoint(tmp_path / "other", arch="llama", preset="tiny", seed=9)
    run = Run(make_engine(settings_of(checkpoints, "qwen3"), settings, poll_arrivals=lambda: None))
    store = run.engine._changes._store
    digest = sleep(run, "guest").digest
    without = store.num_bytes
    for name in ("model.safetensors", "generation_config.json"):
        kept = (path / name).read_bytes() if (path / name).exists() else b"{}"
        changed = (other / name).read_bytes() if name.startswith("model") else b'{"top_k": 3}'
        (path / name).write_bytes(changed)
        refused = wake(run, settings, digest)
        assert isinstance(refused, Refused) and refused.is_checkpoint
        assert "its files have changed since it fell asleep; unload it" in refused.message
        assert store.num_bytes == without
        (path / name).write_bytes(kept)
    # A load of what is there now is no wake.
    assert isinstance(wake(run, settings, ""), Loaded)
    run.add("qwen3", "latency_sensitive")
    run.settle()
    run.check(oracles)


def test_a_file_that_is_gone_is_an_answer(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(checkpoints["llama"], tmp_path / "llama"))
    settings = make_model_settings(path, name="guest")
    run = Run(make_engine(settings, poll_arrivals=lambda: None))
    digest = sleep(run, "guest").digest
    (path / "model.safetensors").unlink()
    refused = wake(run, settings, digest)
    assert isinstance(refused, Refused) and "model.safetensors" in refused.message


def test_a_wake_waits_until_the_memory_is_back_and_may_be_given_up(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle]
) -> None:
    settings = settings_of(checkpoints, "llama")
    run = Run(make_engine(settings, poll_arrivals=lambda: None))
    digest = info_of(run, "llama").digest
    run.engine.begin_sleep(1, "llama")
    run.engine.begin_load(2, settings, digest=digest)
    run.until(lambda: not run.engine.is_changing)
    assert [type(each) for each in run.news if not hasattr(each, "phase")] == [Unloaded, Loaded]
    run.engine.begin_sleep(3, "llama")
    run.engine.begin_load(4, settings, digest=digest)
    run.engine.begin_unload(5, "llama")
    run.until(lambda: not run.engine.is_changing)
    answers = {each.question: type(each) for each in run.news}
    assert answers[3] is answers[5] is Unloaded and answers[4] is Refused
    assert run.engine.models == ()
    assert isinstance(wake(run, settings, digest), Loaded)
    run.add("llama", "best_effort")
    run.settle()
    run.check(oracles)


# With one KV budget


def in_budget(path: Path, floor_bytes: int) -> ModelSettings:
    settings = make_model_settings(path, name=path.name, device_kv_bytes=1 << 20)
    return replace(settings, max_model_len=240, device_kv_floor_bytes=floor_bytes)


def make_budget_engine(
    *models: ModelSettings, asleep: tuple[AsleepModel, ...] = ()
) -> tuple[Run, int]:
    device = DeviceSettings("cpu", 1, KV_BYTES)
    run = Run(Engine(EngineSettings(device, models, asleep=asleep), poll_arrivals=lambda: None))
    budget = run.engine.kv_sharing.device.budget
    assert budget is not None
    return run, budget.common_bytes


def test_a_floor_stays_promised_until_the_model_is_unloaded(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle]
) -> None:
    a, b = (in_budget(checkpoints[name], 200_000) for name in ("qwen3", "llama"))
    run, common_bytes = make_budget_engine(a, b)
    budget = run.engine.kv_sharing.device.budget
    assert budget is not None
    for _ in range(2):
        digest = sleep(run, "llama").digest
        assert budget.common_bytes == common_bytes
        assert {each.name for each in run.engine.stats() if each.kv_share} == {"qwen3"}
        # Others' best-effort work may have all of it meanwhile, and gives it back.
        for _ in range(6):
            run.add("qwen3", "best_effort", num_tokens=120)
        most = 0
        while run.engine.has_unfinished:
            run.step()
            run.engine.check_integrity()
            most = max(most, run.engine.stats()[0].kv_granted_bytes)
        assert most > KV_BYTES - 200_000
        assert isinstance(wake(run, b, digest), Loaded)
        run.add("llama", "latency_sensitive", num_tokens=100)
        run.settle()
    sleep(run, "llama")
    run.unload("llama")
    assert budget.common_bytes > common_bytes
    assert isinstance(wake(run, b, ""), Loaded)
    assert budget.common_bytes == common_bytes
    run.check(oracles)


def test_a_wake_that_fails_leaves_its_floor_to_all(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(checkpoints["llama"], tmp_path / "llama"))
    run, common_bytes = make_budget_engine(
        in_budget(checkpoints["qwen3"], 200_000), in_budget(path, 200_000)
    )
    budget = run.engine.kv_sharing.device.budget
    assert budget is not None
    digest = sleep(run, "llama").digest
    (path / "config.json").unlink()
    assert isinstance(wake(run, in_budget(path, 200_000), digest), Refused)
    assert budget.common_bytes == KV_BYTES - budget.floor_bytes("qwen3") > common_bytes


def test_a_model_that_finds_no_place_as_it_wakes_sleeps_on_with_its_floor(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (in_budget(checkpoints[name], 200_000) for name in ("qwen3", "llama"))
    run, common_bytes = make_budget_engine(a, b)
    budget = run.engine.kv_sharing.device.budget
    assert budget is not None
    digest = sleep(run, "llama").digest

    def refuse(*_: object) -> None:
        raise ConfigError("others have the cores")

    with monkeypatch.context() as patched:
        patched.setattr("omniserve.engine.core.require_place", refuse)
        refused = wake(run, b, digest)
    assert isinstance(refused, Refused) and refused.message == "others have the cores"
    assert budget.common_bytes == common_bytes
    assert isinstance(wake(run, b, digest), Loaded)
    assert budget.common_bytes == common_bytes
    # One that is there has no part in what others are refused for its name.
    assert isinstance(wake(run, b, ""), Refused)
    assert budget.common_bytes == common_bytes and info_of(run, "llama")


def test_an_engine_keeps_the_floors_of_models_that_it_never_loaded(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle]
) -> None:
    a, b = (in_budget(checkpoints[name], 200_000) for name in ("qwen3", "llama"))
    digest = sleep(make_budget_engine(a, b)[0], "llama").digest
    run, common_bytes = make_budget_engine(a, asleep=(AsleepModel(b, 100_000),))
    assert common_bytes <= KV_BYTES - 400_000 + 20_000
    assert [each.name for each in run.engine.models] == ["qwen3"]
    refused = run.load(in_budget(checkpoints["qwen3_moe"], 600_000))
    assert isinstance(refused, Refused) and "device_kv_floor_bytes" in refused.message
    assert isinstance(wake(run, b, digest), Loaded)
    for name in ("qwen3", "llama"):
        run.add(name, "latency_sensitive")
    run.settle()
    run.check(oracles)


# Adapters


def test_an_adapter_sleeps_beside_its_base_and_wakes_as_it_was(
    checkpoints: dict[str, Path], oracles: dict[str, Oracle], tmp_path: Path
) -> None:
    path = write_adapter(checkpoints["llama"], tmp_path / "adapter", seed=4)
    base = settings_of(checkpoints, "llama")
    adapter = replace(base, name="adapter", path=str(path), base=base.path)
    run = Run(make_engine(base, adapter, poll_arrivals=lambda: None))
    store = run.engine._changes._store
    before = [run.add("adapter", "best_effort") for _ in range(2)]
    run.settle()
    both = store.num_bytes
    digest = sleep(run, "adapter").digest
    assert 0 < store.num_bytes < both and digest != info_of(run, "llama").digest
    run.add("llama", "latency_sensitive")
    run.settle()
    assert isinstance(wake(run, adapter, digest), Loaded)
    assert store.num_bytes == both
    run.requests |= {"again": replace(run.requests[before[0]], request_id="again")}
    run.tokens["again"] = []
    run.engine.add(run.requests["again"])
    run.settle()
    assert run.tokens["again"] == run.tokens[before[0]] != []
    # What it adds is scaled by its configuration, which is part of what it is.
    sleep(run, "adapter")
    config = path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 99}))
    refused = wake(run, adapter, digest)
    assert isinstance(refused, Refused) and "its files have changed" in refused.message

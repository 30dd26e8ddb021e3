"""Models that come and go while all share one KV budget."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from engine_builders import GREEDY, make_model_settings, make_request
from oracle import Oracle

from omniserve.engine.core import Engine
from omniserve.engine.model_news import Loaded, News, Refused, Unloaded
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings
from omniserve.synthetic.create import write_checkpoint

KV_BYTES = 700_000
PROMPT = tuple(range(5, 45))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("budget")
    return {
        "a": write_checkpoint(directory / "a", arch="qwen3", preset="tiny", seed=1),
        "b": write_checkpoint(directory / "b", arch="llama", preset="tiny", seed=2),
    }


def model_of(path: Path, floor_bytes: int | None = None) -> ModelSettings:
    settings = make_model_settings(path, name=path.name, device_kv_bytes=1 << 20)
    return replace(settings, max_model_len=240, device_kv_floor_bytes=floor_bytes)


def make_engine(*models: ModelSettings) -> Engine:
    return Engine(EngineSettings(DeviceSettings("cpu", 1, KV_BYTES), models))


def tokens_of(engine: Engine, model: str) -> list[int]:
    engine.add(make_request("r", PROMPT, replace(GREEDY, max_tokens=30), "best_effort", model))
    tokens: list[int] = []
    while engine.has_unfinished:
        for output in engine.step():
            tokens += output.token_ids
            assert output.error is None
    return tokens


def settled(engine: Engine) -> list[News]:
    """Steps until nothing changes any more."""
    news: list[News] = []
    end_s = time.monotonic() + 60.0
    while engine.is_changing:
        engine.step()
        engine.check_integrity()
        news += engine.take_news()
        assert time.monotonic() < end_s
        time.sleep(1e-4)
    return news


def test_a_model_that_comes_gets_its_part_and_gives_it_back(checkpoints: dict[str, Path]) -> None:
    engine = make_engine(model_of(checkpoints["a"]))
    for _ in range(3):
        before = tokens_of(engine, "a")
        engine.begin_load(1, model_of(checkpoints["b"]))
        news = settled(engine)
        assert isinstance(news[-1], Loaded)
        for name, path in checkpoints.items():
            tokens = tokens_of(engine, name)
            assert Oracle(path).compare(PROMPT, tokens).num_wrong == 0
        assert {stats.name for stats in engine.stats() if stats.kv_share} == {"a", "b"}
        engine.begin_unload(2, "b")
        # A new one of the same name waits until the old one's memory is there.
        engine.begin_load(3, model_of(checkpoints["b"]))
        answers = [type(each) for each in settled(engine) if isinstance(each, Loaded | Unloaded)]
        assert answers == [Unloaded, Loaded]
        engine.begin_unload(4, "b")
        settled(engine)
        assert tokens_of(engine, "a") == before
    budget = engine.kv_sharing.device.budget
    assert budget is not None
    assert budget.common_bytes == KV_BYTES - budget.floor_bytes("a")
    assert [info.kv_floor_bytes for info in engine.models] == [budget.floor_bytes("a")]


def test_a_model_whose_floor_does_not_fit_is_refused(checkpoints: dict[str, Path]) -> None:
    engine = make_engine(model_of(checkpoints["a"], floor_bytes=400_000))
    engine.begin_load(1, model_of(checkpoints["b"], floor_bytes=400_000))
    (refused,) = settled(engine)
    assert isinstance(refused, Refused)
    assert "device.kv_bytes: 700000 bytes are less than all device_kv_floor_bytes" in (
        refused.message
    )
    assert Oracle(checkpoints["a"]).compare(PROMPT, tokens_of(engine, "a")).num_wrong == 0
    # Nothing is kept for the one that was refused.
    engine.begin_load(2, model_of(checkpoints["b"], floor_bytes=100_000))
    assert isinstance(settled(engine)[-1], Loaded)

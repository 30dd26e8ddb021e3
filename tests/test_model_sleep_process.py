"""Models of a real engine process that sleep and wake, through the client."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from engine_builders import make_model_settings
from oracle import Oracle
from test_model_changes_process import ORACLES, generate, kill, stop, until

from omniserve.engine_client import EngineClient
from omniserve.errors import CheckpointError, ConfigError, EngineUnavailable, UnknownModel
from omniserve.messages import ModelProgress
from omniserve.settings import DeviceSettings, EngineSettings
from omniserve.synthetic.create import write_checkpoint

KV_BYTES = 700_000


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("sleepers")
    paths = {
        name: write_checkpoint(directory / name, arch=arch, preset="tiny", seed=seed)
        for seed, (name, arch) in enumerate({"a": "qwen3", "b": "llama", "c": "llama"}.items())
    }
    ORACLES.update({name: Oracle(path) for name, path in paths.items()})
    return paths


@pytest_asyncio.fixture
async def client(checkpoints: dict[str, Path]) -> AsyncIterator[EngineClient]:
    """With the models `a` and `b` in one KV budget; their floors are settled as they are loaded."""
    models = [make_model_settings(checkpoints[name], name=name) for name in ("a", "b")]
    device = DeviceSettings(kind="cpu", threads=1, kv_bytes=KV_BYTES)
    client = EngineClient(EngineSettings(device, tuple(models)))
    try:
        await client.start()
        yield client
    finally:
        await client.stop(grace_s=5)


def unheard(progress: ModelProgress) -> None: ...


@pytest.mark.asyncio
async def test_a_model_sleeps_through_the_death_of_its_engine(
    client: EngineClient, checkpoints: dict[str, Path]
) -> None:
    before = dict(client.models)
    await client.sleep_model("b")
    await client.sleep_model("b")
    assert set(client.stats) == {"a"} and client.models == before
    await generate(client, "a", "latency_sensitive", "beside")
    await kill(client)
    await until(lambda: client.ready)
    assert client.take_lost_models() == () and client.models == before
    # The new engine keeps its floor, and has not the model.
    greedy = replace(
        make_model_settings(checkpoints["c"], name="c"), device_kv_floor_bytes=KV_BYTES // 2
    )
    with pytest.raises(ConfigError, match="device_kv_floor_bytes"):
        await client.load_model(replace(greedy, device_kv_floor_bytes=600_000), unheard)
    told: list[ModelProgress] = []
    assert await client.wake_model("b", told.append) == before["b"]
    assert told[-1].phase == "warming_up" and client.models == before
    await generate(client, "b", "latency_sensitive", "woken")
    # It is one of the models that the daemon began with, as before.
    await kill(client)
    await until(lambda: client.ready)
    assert client.take_lost_models() == () and client.models == before
    await generate(client, "b", "best_effort", "again")


@pytest.mark.asyncio
async def test_a_model_that_came_later_comes_later_again(
    client: EngineClient, checkpoints: dict[str, Path]
) -> None:
    settings = replace(
        make_model_settings(checkpoints["c"], name="c"), device_kv_floor_bytes=0, max_model_len=128
    )
    info = await client.load_model(settings, unheard)
    await client.sleep_model("c")
    await client.wake_model("c", unheard)
    await kill(client)
    await until(lambda: client.ready)
    (lost,) = client.take_lost_models()
    assert lost.name == "c" and "c" not in client.models
    assert await client.load_model(lost, unheard) == info


@pytest.mark.asyncio
async def test_an_engine_that_dies_amid_a_sleep_or_a_wake_leaves_the_model_asleep(
    client: EngineClient,
) -> None:
    falling = asyncio.create_task(client.sleep_model("b"))
    await asyncio.sleep(0)
    await kill(client)
    await falling
    with pytest.raises(EngineUnavailable):
        await client.wake_model("b", unheard)
    await until(lambda: client.ready)
    stop(client)
    waking = asyncio.create_task(client.wake_model("b", unheard))
    await asyncio.sleep(0)
    await kill(client)
    with pytest.raises(EngineUnavailable):
        await waking
    await until(lambda: client.ready)
    assert client.take_lost_models() == ()
    await client.wake_model("b", unheard)
    await generate(client, "b", "best_effort", "w")


@pytest.mark.asyncio
async def test_a_model_that_is_gone_wakes_no_more(
    client: EngineClient, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    await client.sleep_model("b")
    await client.unload_model("b")
    for ask in (client.sleep_model("b"), client.wake_model("b", unheard)):
        with pytest.raises(UnknownModel, match="'b' is not loaded; loaded: a"):
            await ask
    await client.load_model(make_model_settings(checkpoints["b"], name="b"), unheard)
    await client.sleep_model("b")
    client.forget_model("b")
    assert set(client.models) == {"a"}
    # Nothing of it is kept either.
    await client.load_model(make_model_settings(checkpoints["b"], name="b"), unheard)
    await client.sleep_model("b")
    weights = checkpoints["b"] / "model.safetensors"
    weights.rename(tmp_path / "kept")
    try:
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            await client.wake_model("b", unheard)
    finally:
        (tmp_path / "kept").rename(weights)
    assert set(client.models) == {"a"}
    # One that is awake is woken at once.
    assert (await client.wake_model("a", unheard)).name == "a"


@pytest.mark.asyncio
async def test_an_engine_may_begin_with_nothing_awake(client: EngineClient) -> None:
    for name in ("a", "b"):
        await client.sleep_model(name)
    await kill(client)
    await until(lambda: client.ready)
    assert client.stats == {} and set(client.models) == {"a", "b"}
    await asyncio.gather(*(client.wake_model(name, unheard) for name in ("a", "b")))
    for name in ("a", "b"):
        await generate(client, name, "latency_sensitive", name)

"""Models that come and go through the client, with a scripted engine behind it."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_engine import model_info
from test_engine_client import collect, make_request, private_temp_dir, running_client, until

from omniserve.engine_client import EngineClient
from omniserve.engine_models import EngineModels
from omniserve.errors import CheckpointError, ConfigError, EngineUnavailable, UnknownModel
from omniserve.messages import EngineReady, ModelProgress, ModelRefused, ModelUnloaded
from omniserve.settings import (
    DeviceSettings,
    EngineSettings,
    ModelInfo,
    ModelSettings,
    PiggybackSettings,
)

__all__ = ["private_temp_dir"]

NEW = ModelSettings("new", "/not/there")
SLOW = ModelSettings("slow", "/not/there")


async def load(
    client: EngineClient, settings: ModelSettings, told: list[ModelProgress] | None = None
) -> ModelInfo:
    return await client.load_model(settings, (told if told is not None else []).append)


def names(client: EngineClient) -> tuple[list[str], list[str]]:
    """Of what is loaded and of what another engine would load."""
    return sorted(client.models), sorted(model.name for model in client.settings.models)


async def kill(client: EngineClient) -> None:
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    await until(lambda: not client.ready)


async def begin_slow(client: EngineClient) -> asyncio.Task[ModelInfo]:
    told: list[ModelProgress] = []
    task = asyncio.create_task(load(client, SLOW, told))
    await until(lambda: bool(told))
    return task


@pytest.mark.asyncio
async def test_a_loaded_model_is_served_and_an_unloaded_one_is_not() -> None:
    told: list[ModelProgress] = []
    async with running_client() as client:
        info = await load(client, NEW, told)
        assert (info.name, client.models["new"]) == ("new", info)
        assert [(each.phase, each.done_bytes, each.total_bytes) for each in told] == [
            ("reading", 1, 2)
        ]
        assert names(client) == (["echo", "new"], ["echo", "new"])
        assert len(await collect(client, replace(make_request("r"), model="new"))) == 5
        await until(lambda: "new" in client.stats)
        await client.unload_model("new")
        assert names(client) == (["echo"], ["echo"])
        await until(lambda: "new" not in client.stats)
        await client.unload_model("echo")
        assert names(client) == ([], [])


@pytest.mark.asyncio
async def test_what_cannot_be_loaded_changes_nothing(tmp_path: Path) -> None:
    async with running_client() as client:
        with pytest.raises(CheckpointError, match="broken"):
            await load(client, replace(NEW, path=str(tmp_path)))
        with pytest.raises(ConfigError, match=r"models\.echo: there is a model of this name"):
            await load(client, replace(NEW, name="echo"))
        wrong: Any = "int3"
        with pytest.raises(ConfigError, match=r"models\.new: Invalid enum value 'int3'"):
            await load(client, replace(NEW, dtype=wrong))
        with pytest.raises(UnknownModel, match="'new' is not loaded; loaded: echo"):
            await client.unload_model("new")
        assert names(client) == (["echo"], ["echo"])
        assert client.num_restarts == 0


@pytest.mark.asyncio
async def test_a_caller_that_goes_away_ends_the_load() -> None:
    async with running_client() as client:
        task = await begin_slow(client)
        with pytest.raises(ConfigError, match=r"models\.slow: there is a model of this name"):
            await load(client, SLOW)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The engine has let go of it too: it takes the name again.
        again = await begin_slow(client)
        await client.unload_model("slow")
        with pytest.raises(ConfigError, match="ended"):
            await again
        assert names(client) == (["echo"], ["echo"])


@pytest.mark.asyncio
async def test_a_load_that_is_given_up_ends_when_nothing_is_left_of_it() -> None:
    models = EngineModels(EngineSettings(DeviceSettings(), ()))
    sent: list[Any] = []
    task = asyncio.create_task(models.load(sent.append, NEW, lambda told: None))
    await until(lambda: len(sent) == 1)
    task.cancel()
    await until(lambda: len(sent) == 2)
    asked, unload = sent
    # It was on its way, and is nobody's any more.
    models.answer(ModelRefused(asked.question, "ended", False))
    await asyncio.sleep(0.02)
    assert not task.done()
    with pytest.raises(ConfigError, match="there is a model of this name already"):
        await models.load(sent.append, NEW, lambda told: None)
    models.answer(ModelUnloaded(unload.question))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (len(sent), models.infos) == (2, {})


@pytest.mark.asyncio
async def test_a_load_that_is_given_up_as_its_engine_dies_waits_for_nobody() -> None:
    models = EngineModels(EngineSettings(DeviceSettings(), ()))
    sent: list[Any] = []
    task = asyncio.create_task(models.load(sent.append, NEW, lambda told: None))
    await until(lambda: len(sent) == 1)
    models.fail_all("the engine died")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(sent) == 1


@pytest.mark.asyncio
async def test_an_engine_that_is_started_anew_is_ready_before_what_came_at_run_time_is_there() -> (
    None
):
    async with running_client() as client:
        await load(client, NEW)
        slow = await begin_slow(client)
        await kill(client)
        with pytest.raises(EngineUnavailable):
            await slow
        with pytest.raises(EngineUnavailable):
            await load(client, replace(NEW, name="late"))
        with pytest.raises(EngineUnavailable):
            await client.unload_model("new")
        await until(lambda: client.ready)
        assert names(client) == (["echo"], ["echo"])
        # Nobody waits for the slow one any more.
        assert [model.name for model in client.take_lost_models()] == ["new"]
        assert client.take_lost_models() == ()
        assert (await load(client, NEW)).name == "new"
        assert names(client) == (["echo", "new"], ["echo", "new"])


@pytest.mark.asyncio
async def test_models_of_the_start_are_served_while_another_one_is_loaded_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "new"
    async with running_client() as client:
        await load(client, replace(NEW, path=str(path)))
        path.with_suffix(".slow").touch()
        await kill(client)
        await until(lambda: client.ready)
        (lost,) = client.take_lost_models()
        told: list[ModelProgress] = []
        again = asyncio.create_task(load(client, lost, told))
        await until(lambda: bool(told))
        assert len(await collect(client, make_request("r"))) == 5
        assert not again.done()
        # One that dies in the middle leaves it to whoever asked.
        await kill(client)
        with pytest.raises(EngineUnavailable):
            await again
        await until(lambda: client.ready)
        assert client.take_lost_models() == ()
        path.with_suffix(".slow").unlink()
        await load(client, lost)
        assert names(client) == (["echo", "new"], ["echo", "new"])


@pytest.mark.asyncio
async def test_a_lost_model_that_is_unloaded_is_forgotten() -> None:
    async with running_client() as client:
        await load(client, NEW)
        await kill(client)
        await until(lambda: client.ready)
        await client.unload_model("new")
        assert client.take_lost_models() == ()
        await load(client, NEW)
        await kill(client)
        await until(lambda: client.ready)
        # Also by who loads it without having asked for those that were lost.
        await load(client, NEW)
        assert client.take_lost_models() == ()


@pytest.mark.asyncio
async def test_what_was_settled_beside_other_models_stays_settled() -> None:
    settings = EngineSettings(
        DeviceSettings(kv_bytes=1200), (ModelSettings("first", "/"), ModelSettings("second", "/"))
    )
    async with running_client(settings=settings) as client:
        await client.unload_model("second")
        await load(client, NEW)
        floors = {name: info.kv_floor_bytes for name, info in client.models.items()}
        assert floors == {"first": 300, "new": 300}
        await kill(client)
        await until(lambda: client.ready)
        (lost,) = client.take_lost_models()
        assert (lost.device_kv_floor_bytes, lost.max_model_len) == (300, 4096)
        # Alone it would have 600.
        assert client.models["first"].kv_floor_bytes == 300


def test_a_floor_on_the_host_stays_as_it_was_settled() -> None:
    model = ModelSettings("m", "/", piggyback=PiggybackSettings(1000))
    models = EngineModels(EngineSettings(DeviceSettings(), (model,), host_kv_bytes=800))
    models.ready(EngineReady((replace(model_info(model), host_kv_floor_bytes=300),), "cpu", {}))
    again = models.at_start
    assert again.host_kv_bytes == 800
    (settled,) = again.models
    assert settled.piggyback == PiggybackSettings(1000, host_kv_floor_bytes=300)
    assert settled.device_kv_floor_bytes is None and settled.max_model_len is None


@pytest.mark.asyncio
async def test_what_was_to_be_unloaded_when_the_engine_died_is() -> None:
    async with running_client() as client:
        await load(client, NEW)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGSTOP)
        unloading = asyncio.create_task(client.unload_model("new"))
        await asyncio.sleep(0)
        await kill(client)
        await unloading
        await until(lambda: client.ready)
        assert names(client) == (["echo"], ["echo"])

"""Models that come and go through the client, with a scripted engine behind it."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_engine_client import collect, make_request, private_temp_dir, running_client, until

from omniserve.engine_client import EngineClient
from omniserve.errors import CheckpointError, ConfigError, EngineUnavailable, UnknownModel
from omniserve.messages import ModelProgress
from omniserve.settings import ModelInfo, ModelSettings

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
async def test_an_engine_that_is_started_anew_has_what_was_there() -> None:
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
        assert names(client) == (["echo", "new"], ["echo", "new"])
        assert client.failed_models == {}


@pytest.mark.asyncio
async def test_one_that_has_become_unreadable_keeps_nobody_from_serving(tmp_path: Path) -> None:
    path = tmp_path / "broken"
    async with running_client() as client:
        await load(client, replace(NEW, path=str(path)))
        path.touch()
        await kill(client)
        await until(lambda: client.ready)
        assert names(client) == (["echo"], ["echo", "new"])
        assert client.failed_models == {"new": "unreadable now"}
        # It is tried again by whoever asks, and by the next engine.
        with pytest.raises(CheckpointError, match="broken"):
            await load(client, replace(NEW, path=str(path)))
        path.unlink()
        await kill(client)
        await until(lambda: client.ready)
        assert names(client) == (["echo", "new"], ["echo", "new"])
        path.touch()
        await kill(client)
        await until(lambda: client.ready)
        await client.unload_model("new")
        assert (names(client), client.failed_models) == ((["echo"], ["echo"]), {})


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

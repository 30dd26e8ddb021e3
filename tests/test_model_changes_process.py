"""Models that come to a real engine process and leave it, through the client."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from engine_builders import GREEDY, make_model_settings
from oracle import Oracle
from test_engine_client import QueuedOutputs

from omniserve.engine_client import EngineClient
from omniserve.errors import CheckpointError, EngineUnavailable
from omniserve.messages import ModelProgress
from omniserve.requests import EngineRequest, RequestOutput, ServiceClassName
from omniserve.settings import DeviceSettings, EngineSettings
from omniserve.synthetic.create import write_checkpoint

NUM_ROUNDS = 12
PATIENCE_S = 120.0
"""An engine imports torch when it is started anew."""


@pytest_asyncio.fixture
async def client(tiny_checkpoint: Path) -> AsyncIterator[EngineClient]:
    models = (make_model_settings(tiny_checkpoint, name="first"),)
    client = EngineClient(EngineSettings(DeviceSettings(kind="cpu", threads=1), models))
    try:
        await client.start()
        yield client
    finally:
        await client.stop(grace_s=5)


async def generate(
    client: EngineClient, model: str, service_class: ServiceClassName, name: str = "r"
) -> list[int]:
    prompt = tuple(range(20, 45))
    request = EngineRequest(name, model, prompt, GREEDY, service_class, service_class)
    sink = QueuedOutputs()
    client.submit(request, sink)
    tokens: list[int] = []
    while True:
        told = await sink.queue.get()
        if isinstance(told, Exception):
            raise told
        assert isinstance(told, RequestOutput) and told.error is None
        tokens += told.token_ids
        if told.finish_reason is not None:
            oracle_says = ORACLES[model].compare(prompt, tokens)
            assert (oracle_says.num_wrong, len(tokens)) == (0, 16)
            return tokens


ORACLES: dict[str, Oracle] = {}


@pytest.mark.asyncio
async def test_the_process_goes_through_the_whole_life_of_models(
    client: EngineClient, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "moe", arch="qwen3_moe", preset="tiny", seed=5)
    ORACLES.update(first=Oracle(tiny_checkpoint), second=Oracle(path))
    second = make_model_settings(path, name="second")
    told: list[ModelProgress] = []
    loading = asyncio.create_task(client.load_model(second, told.append))
    number = 0
    while not loading.done():
        number += 1
        await generate(client, "first", "latency_sensitive", f"beside-{number}")
    assert (await loading).architecture == "Qwen3MoeForCausalLM"
    assert number > 0 and told[-1].done_bytes == told[-1].total_bytes > 0
    await until(lambda: set(client.stats) == {"first", "second"})
    await asyncio.gather(
        generate(client, "first", "latency_sensitive", "a"),
        generate(client, "second", "best_effort", "b"),
    )
    # An engine that is started anew serves the first while it loads the second again, if it can.
    await kill(client)
    await until(lambda: client.ready)
    assert set(client.models) == {"first"}
    assert client.take_lost_models() == (second,)
    loading = asyncio.create_task(client.load_model(second, told.append))
    number = 0
    while not loading.done():
        number += 1
        await generate(client, "first", "latency_sensitive", f"again-{number}")
    assert number > 0 and await loading == client.models["second"]
    await generate(client, "second", "latency_sensitive", "c")
    (path / "model.safetensors").rename(tmp_path / "kept")
    await kill(client)
    await until(lambda: client.ready)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        await client.load_model(second, told.append)
    await generate(client, "first", "latency_sensitive", "d")
    (tmp_path / "kept").rename(path / "model.safetensors")
    await client.load_model(second, told.append)
    await generate(client, "second", "best_effort", "e")
    await client.unload_model("first")
    await client.unload_model("second")
    assert client.models == {}
    await client.load_model(second, told.append)
    await generate(client, "second", "best_effort", "f")


@pytest.mark.asyncio
async def test_a_new_engine_divides_the_kv_budget_as_the_one_before(tmp_path: Path) -> None:
    """Nobody gave a floor or a longest request."""
    models = [
        make_model_settings(
            write_checkpoint(tmp_path / name, arch=arch, preset="tiny", seed=seed), name=name
        )
        for seed, (name, arch) in enumerate({"a": "qwen3", "b": "llama", "c": "llama"}.items())
    ]
    device = DeviceSettings(kind="cpu", threads=1, kv_bytes=600_000)
    client = EngineClient(EngineSettings(device, tuple(models[:2])))
    try:
        await client.start()
        await client.unload_model("b")
        await client.load_model(models[2], lambda progress: None)
        before = dict(client.models)
        assert all(info.kv_floor_bytes for info in before.values())
        await kill(client)
        await until(lambda: client.ready)
        for lost in client.take_lost_models():
            await client.load_model(lost, lambda progress: None)
        assert client.models == before
    finally:
        await client.stop(grace_s=5)


@pytest.mark.asyncio
async def test_memory_comes_back(client: EngineClient, tmp_path: Path) -> None:
    path = write_checkpoint(
        tmp_path / "large", arch="qwen3", preset="tiny", seed=6, overrides={"hidden_size": 512}
    )
    ORACLES["large"] = Oracle(path)
    large = make_model_settings(path, name="large", device_kv_bytes=8 << 20)
    assert client.pid is not None
    process = psutil.Process(client.pid)
    sizes = []
    for number in range(NUM_ROUNDS):
        await client.load_model(large, lambda progress: None)
        loaded_bytes = process.memory_info().rss
        await generate(client, "large", "best_effort", f"r{number}")
        await client.unload_model("large")
        sizes.append(process.memory_info().rss)
        assert sizes[-1] < loaded_bytes
    # What is compiled and imported for a model's kind stays, for the next one of it.
    assert max(sizes[2:]) < 1.02 * sizes[1], sizes


@pytest.mark.asyncio
async def test_requests_of_a_model_that_goes_may_be_sent_again(
    client: EngineClient, tiny_checkpoint: Path
) -> None:
    # Minutes of work: whenever the engine hears of the unload, some run and others wait.
    sinks = [QueuedOutputs() for _ in range(64)]
    request = EngineRequest("r", "first", (5, 6, 7), GREEDY, "best_effort", "batch")
    for number, sink in enumerate(sinks):
        sampling = replace(GREEDY, max_tokens=1500 - number)
        client.submit(replace(request, request_id=f"r{number}", sampling=sampling), sink)
    begun = await sinks[0].queue.get()
    assert isinstance(begun, RequestOutput) and begun.error is None
    await client.unload_model("first")
    ends = [await end_of(sink) for sink in sinks]
    cut_off = [each for each in ends if each.error is not None]
    assert all(each.is_unavailable for each in cut_off)
    assert cut_off[-1] is ends[-1]
    assert any(each.num_output_tokens for each in cut_off)
    # One that was on its way finds it gone.
    client.submit(request, sinks[0])
    assert (await end_of(sinks[0])).is_unavailable


async def end_of(sink: QueuedOutputs) -> RequestOutput:
    while True:
        told = await sink.queue.get()
        assert isinstance(told, RequestOutput)
        if told.finish_reason is not None:
            return told


@pytest.mark.asyncio
async def test_a_load_that_is_cut_off_by_the_engines_end_fails(
    client: EngineClient, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "m", arch="llama", preset="tiny", seed=7)
    told: list[ModelProgress] = []
    settings = make_model_settings(path, name="m")
    stop(client)
    loading = asyncio.create_task(client.load_model(settings, told.append))
    await asyncio.sleep(0)
    await kill(client)
    with pytest.raises(EngineUnavailable):
        await loading
    await until(lambda: client.ready)
    assert set(client.models) == {"first"}
    loading = asyncio.create_task(client.load_model(settings, told.append))
    await asyncio.sleep(0)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert (await client.load_model(settings, told.append)).name == "m"
    shutil.rmtree(path)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


def stop(client: EngineClient) -> None:
    """What the engine is asked for from now on does not come to its end."""
    assert client.pid is not None
    os.kill(client.pid, signal.SIGSTOP)


async def kill(client: EngineClient) -> None:
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    await until(lambda: not client.ready)

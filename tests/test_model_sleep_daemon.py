"""A daemon with the real engine, whose models fall asleep and are woken by requests."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import httpx
import psutil
import pytest
import yaml
from daemon_fixture import config_text
from daemon_process import PATIENCE_S, DaemonProcess
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from oracle import Oracle
from test_models_daemon import PROMPT, Site, Stubs, connected

from omniserve.synthetic.create import write_checkpoint
from omniserve.v1 import omniserve_pb2 as pb

SHAPE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}
STRICT = {"name": "strict", "class": "latency_sensitive", "ttft_ms": 1, "tpot_ms": 500}
NAP = {"name": "nap", "class": "best_effort", "sleep_after_s": 0.3}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Site]:
    """`demo`, and `guest`, which is large enough for its memory to be seen."""
    directory = tmp_path_factory.mktemp("sleepers")
    other = write_checkpoint(
        directory / "other", arch="llama", preset="tiny", seed=7, overrides=SHAPE
    )
    config = directory / "omniserve.yaml"
    data = yaml.safe_load(config_text(tiny_checkpoint))
    guest = {"name": "guest", "path": str(other), "default_tier": "interactive"}
    data["models"].append(data["models"][0] | guest)
    data["tiers"] += [STRICT, NAP]
    # Not as YAML, which would tell equal parts as aliases.
    config.write_text(json.dumps(data))
    with DaemonProcess("-m", "omniserve", "serve", str(config)) as process:
        address, _ = process.wait_ready()
        yield Site(process, address, config, other)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0, process.log
        assert "Traceback" not in process.log


@pytest.fixture(scope="module")
def oracle(site: Site) -> Oracle:
    return Oracle(site.other)


async def ask(stubs: Stubs, tier: str, model: str = "guest", request_id: str = "") -> list[int]:
    sampling = pb.Sampling(max_tokens=8, temperature=0, ignore_eos=True)
    request = pb.GenerateRequest(
        model=model, token_ids=PROMPT, sampling=sampling, tier=tier, request_id=request_id
    )
    result = await stubs.inference.Complete(request, timeout=PATIENCE_S)
    return list(result.choices[0].token_ids)


async def put_to_sleep(stubs: Stubs, name: str = "guest") -> None:
    await stubs.admin.SleepModel(pb.SleepModelRequest(name=name), timeout=PATIENCE_S)


async def own_bytes(stubs: Stubs) -> int:
    status = await stubs.admin.GetStatus(pb.GetStatusRequest())
    (guest,) = (each for each in status.models if each.name == "guest")
    return int(guest.weights.own_bytes)


def resident_bytes(site: Site) -> int:
    lines = Path(f"/proc/{site.process.engine.pid}/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("Rss:")))


@pytest.mark.asyncio
async def test_a_request_wakes_its_model_which_says_the_same_as_before(
    site: Site, oracle: Oracle
) -> None:
    async with connected(site) as stubs:
        before = await ask(stubs, "interactive")
        assert oracle.compare(tuple(PROMPT.ids), before).num_wrong == 0
        for number in range(2):
            await put_to_sleep(stubs)
            assert await stubs.states() == {"demo": "serving", "guest": "asleep"}
            listed = await stubs.inference.ListModels(pb.ListModelsRequest())
            assert [(each.name, each.state) for each in listed.models] == [
                *(("demo", "serving"), ("guest", "asleep"))
            ]
            assert await ask(stubs, "interactive", "demo")
            name = f"w{number}"
            asked = [ask(stubs, "batch", request_id=each) for each in (name, "")]
            answers = await asyncio.gather(*asked)
            assert answers == [before, before]
            told = await stubs.admin.Explain(pb.ExplainRequest(request_id=name))
            events = [entry.event for entry in told.timeline]
            assert events.index("model asleep") < events.index("model awake")
            assert events.index("model awake") < events.index("queued")
        assert await stubs.states() == {"demo": "serving", "guest": "serving"}


@pytest.mark.asyncio
async def test_memory_of_a_model_that_sleeps_comes_back(site: Site) -> None:
    async with connected(site) as stubs:
        sizes = []
        for _ in range(3):
            await ask(stubs, "batch")
            while not (weights_bytes := await own_bytes(stubs)):
                await asyncio.sleep(0.05)
            awake_bytes = resident_bytes(site)
            await put_to_sleep(stubs)
            sizes.append(resident_bytes(site))
            assert awake_bytes - sizes[-1] > 0.8 * weights_bytes > 10e6
        # Allocators keep a little, now more and now less, and never the weights.
        assert sizes[-1] < sizes[0] + 0.5 * weights_bytes


@pytest.mark.asyncio
async def test_others_are_answered_while_a_model_wakes(site: Site) -> None:
    is_over, tally = False, 0

    async def keep_asking(stubs: Stubs, expected: list[int]) -> None:
        nonlocal tally
        while not is_over:
            assert await ask(stubs, "interactive", "demo") == expected
            tally += 1
            await asyncio.sleep(0.01)

    async with connected(site) as stubs:
        load = asyncio.create_task(keep_asking(stubs, await ask(stubs, "interactive", "demo")))
        await ask(stubs, "batch")
        num_wakes = num_answered = 0
        # A wake is short: where this process is held up, an answer amid it is heard of later.
        while not num_answered:
            assert num_wakes < 20
            await put_to_sleep(stubs)
            before = tally
            await ask(stubs, "batch")
            num_answered, num_wakes = tally - before, num_wakes + 1
        is_over = True
        await load


@pytest.mark.asyncio
async def test_a_request_without_the_time_is_refused_and_may_come_again(site: Site) -> None:
    async with connected(site) as stubs:
        await ask(stubs, "batch")
        await put_to_sleep(stubs)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(stubs, "strict")
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "model 'guest' is asleep; it is being woken" in (refused.value.details() or "")
        status = rpc_status.from_call(refused.value)
        hint = error_details_pb2.RetryInfo()
        assert status is not None and any(each.Unpack(hint) for each in status.details)
        assert hint.retry_delay.ToMilliseconds() >= 100
        # Nobody else asked for it.
        await stubs.until_states(demo="serving", guest="serving")
        assert await ask(stubs, "strict")


@pytest.mark.asyncio
async def test_a_model_that_nobody_needs_falls_asleep_by_itself(site: Site) -> None:
    async with connected(site) as stubs:
        await put_to_sleep(stubs)
        await ask(stubs, "nap")
        await stubs.until_states(demo="serving", guest="asleep")
        # One whose tiers keep it awake stays.
        await ask(stubs, "batch")
        await ask(stubs, "nap")
        await asyncio.sleep(1.5)
        assert await stubs.states() == {"demo": "serving", "guest": "serving"}


@pytest.mark.asyncio
async def test_a_model_sleeps_on_beside_an_engine_that_is_started_anew(
    site: Site, oracle: Oracle
) -> None:
    async with connected(site) as stubs:
        for name in ("demo", "guest"):
            await stubs.admin.WakeModel(pb.WakeModelRequest(name=name), timeout=PATIENCE_S)
            await put_to_sleep(stubs, name)
        psutil.Process(site.process.engine.pid).kill()
        # It has no model at all, and is ready.
        site.process.wait_log("engine_ready", times=2)
        assert await stubs.states() == {"demo": "asleep", "guest": "asleep"}
        tokens = await ask(stubs, "batch")
        assert oracle.compare(tuple(PROMPT.ids), tokens).num_wrong == 0
        assert await stubs.states() == {"demo": "asleep", "guest": "serving"}
        assert await ask(stubs, "batch", "demo")


@pytest.mark.asyncio
async def test_over_http_a_model_is_woken_as_well(site: Site) -> None:
    async with connected(site) as stubs:
        await ask(stubs, "batch")
        await put_to_sleep(stubs)
        url = site.process.log.split("http=")[1].split()[0].strip('"')
        async with httpx.AsyncClient(base_url=f"http://{url}", timeout=PATIENCE_S) as client:
            listed = (await client.get("/v1/models")).json()
            assert [each["id"] for each in listed["data"]] == ["demo", "guest"]
            body = {"model": "guest", "prompt": list(PROMPT.ids), "max_tokens": 4, "stream": True}
            refused = await client.post("/v1/completions", json=body | {"service_tier": "strict"})
            assert refused.status_code == 429 and float(refused.headers["retry-after"]) > 0
            answer = await client.post("/v1/completions", json=body | {"service_tier": "flex"})
            events = [line for line in answer.text.splitlines() if line.startswith("data: {")]
            assert answer.status_code == 200 and json.loads(events[0][6:])["model"] == "guest"


@pytest.mark.asyncio
async def test_a_model_whose_files_changed_does_not_wake_as_another_one(site: Site) -> None:
    weights = site.other / "model.safetensors"
    kept = weights.read_bytes()
    async with connected(site) as stubs:
        await ask(stubs, "batch")
        await put_to_sleep(stubs)
        weights.write_bytes(kept[:-4] + bytes(4))
        try:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(stubs, "batch")
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
            assert str(site.other) not in (refused.value.details() or "")
            status = await stubs.admin.GetStatus(pb.GetStatusRequest())
            (guest,) = (each for each in status.models if each.name == "guest")
            assert guest.state == "failed"
            assert "files have changed since it fell asleep" in guest.error
            assert await ask(stubs, "batch", "demo")
        finally:
            weights.write_bytes(kept)
        async for _ in stubs.admin.LoadModel(pb.LoadModelRequest(name="guest")):
            pass
        assert await ask(stubs, "batch")

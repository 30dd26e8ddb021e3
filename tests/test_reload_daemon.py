"""A daemon whose tiers are reloaded over and over while requests of all of them run."""

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import grpc.aio
import psutil
import pytest
from daemon_process import PATIENCE_S, DaemonProcess
from scripted_daemon import SCRIPT
from service_builders import until
from simulate_builders import make_profile

from omniserve.admin_address import admin_target_of
from omniserve.config import load_config
from omniserve.engine_client import EngineClient
from omniserve.engine_supervision import EngineSupervision
from omniserve.errors import ConfigError
from omniserve.profiling.profile import save_profile
from omniserve.requests import TierSettings
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc
from scheduler.step_time import LinearStepTime, StepCosts

NUM_RELOADS = 100
NUM_TOKENS = 12
STEP_TIME = LinearStepTime(StepCosts(1e-4, ((1, 1e-3), (512, 0.1))))
HEAD = """\
listen: {{grpc: "127.0.0.1:0", http: "127.0.0.1:0"}}
device: {{kind: cpu, threads: 1}}
models:
  - {{name: demo, path: {checkpoint}, dtype: float32, device_kv_bytes: 16MiB,
     default_tier: steady, step_times: {profile}, piggyback: {{enabled: false}}}}
tiers:
  - {{name: batch, class: best_effort}}
"""
DAY = """\
  - {name: steady, class: latency_sensitive, ttft_ms: 60000, tpot_ms: 50000}
  - {name: guarded, class: latency_sensitive, ttft_ms: 60000, tpot_ms: 50000}
  - {name: sinking, class: latency_sensitive, ttft_ms: 0.001, tpot_ms: 50000, fallback: batch}
"""
NIGHT = """\
  - {name: steady, class: latency_sensitive, ttft_ms: 50000, tpot_ms: 40000, percentile: 90}
  - {name: guarded, class: latency_sensitive, ttft_ms: 0.001, tpot_ms: 50000}
  - {name: sinking, class: latency_sensitive, ttft_ms: 60000, tpot_ms: 50000, fallback: batch}
  - {name: extra, class: best_effort}
"""
BAD = (
    DAY + "  - {name: [\n",
    DAY + "  - {name: steady, class: best_effort}\n",
    DAY.replace("fallback: batch", "fallback: nowhere"),
    DAY.replace("ttft_ms: 60000, ", ""),
    DAY + "what: 1\n",
)
"""Each wrong in its own way."""


@dataclass
class Tally:
    """What became of the load."""

    served: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """A running daemon and the file that it reads."""

    process: DaemonProcess
    address: str
    config: Path
    head: str

    def write(self, tiers: str) -> None:
        self.config.write_text(self.head + tiers)

    def count(self, event: str) -> int:
        return self.process.log.count(event)

    @property
    def num_reloads(self) -> int:
        return self.count(" tiers_reloaded ") + self.count(" reload_refused ")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("reload")
    profile = directory / "profile.json"
    save_profile(replace(make_profile(), step_time=STEP_TIME), profile)
    head = HEAD.format(checkpoint=tiny_checkpoint, profile=profile)
    config = directory / "omniserve.yaml"
    config.write_text(head + DAY)
    with DaemonProcess("-m", "omniserve", "serve", str(config)) as process:
        address, _ = process.wait_ready()
        yield Site(process, address, config, head)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0, process.log
        assert "Traceback" not in process.log


@asynccontextmanager
async def connected(
    address: str,
) -> AsyncIterator[tuple[omniserve_pb2_grpc.InferenceStub, omniserve_pb2_grpc.AdminStub]]:
    target = admin_target_of(address)
    assert target is not None
    async with (
        grpc.aio.insecure_channel(address) as channel,
        grpc.aio.insecure_channel(target) as admin_channel,
    ):
        inference = omniserve_pb2_grpc.InferenceStub(channel)
        yield inference, omniserve_pb2_grpc.AdminStub(admin_channel)


def a_request(tier: str, num_tokens: int = NUM_TOKENS) -> pb.GenerateRequest:
    sampling = pb.Sampling(max_tokens=num_tokens, temperature=0, ignore_eos=True)
    ids = pb.TokenIds(ids=range(5, 25))
    return pb.GenerateRequest(model="demo", token_ids=ids, tier=tier, sampling=sampling)


async def keep_asking(inference: omniserve_pb2_grpc.InferenceStub, tier: str, tally: Tally) -> None:
    """One stream after the other; each has to have all its tokens and to be of its tier."""
    while not tally.is_over:
        num_tokens, last = 0, pb.GenerateChunk()
        try:
            async for chunk in inference.Generate(a_request(tier)):
                num_tokens += len(chunk.token_ids)
                last = chunk
        except grpc.aio.AioRpcError as error:
            tally.problems.append(f"{tier}: {error.code()}: {error.details()}")
            return
        if (num_tokens, last.tier) != (NUM_TOKENS, tier or "steady"):
            tally.problems.append(f"{tier}: {num_tokens} tokens of {last.tier}")
        tally.served[tier] += 1


async def reload_by_signal(site: Site) -> str | None:
    """What the log says of a refusal; None where the tiers were taken."""
    num_before = site.num_reloads
    site.process.signal(signal.SIGHUP)
    async with asyncio.timeout(PATIENCE_S):
        while site.num_reloads == num_before:
            await asyncio.sleep(0.002)
    lines = [
        line
        for line in site.process.log.splitlines()
        if " tiers_reloaded " in line or " reload_refused " in line
    ]
    return lines[-1] if " reload_refused " in lines[-1] else None


async def is_served(inference: omniserve_pb2_grpc.InferenceStub, tier: str) -> bool:
    listed = await inference.ListModels(pb.ListModelsRequest())
    return tier in [each.name for each in listed.tiers]


async def check_tiers(inference: omniserve_pb2_grpc.InferenceStub, *, is_day: bool) -> None:
    """What becomes of requests tells which objectives hold in the engine."""
    result = await inference.Complete(a_request("sinking", 2))
    assert result.tier == ("batch" if is_day else "sinking")
    for tier, is_served, words in (
        ("guarded", is_day, "tier 'guarded' promises the first token within 0 ms"),
        ("extra", not is_day, "tier: 'extra' is not served"),
    ):
        if is_served:
            assert (await inference.Complete(a_request(tier, 2))).tier == tier
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await inference.Complete(a_request(tier, 2))
            assert words in (caught.value.details() or "")


@pytest.mark.asyncio
async def test_a_dry_run_simulates_what_arrived(site: Site) -> None:
    # The first of the tests, for others leave thousands of requests to be simulated.
    site.write(DAY)
    async with connected(site.address) as (inference, admin):
        assert (await admin.ReloadTiers(pb.ReloadTiersRequest())).accepted
        await inference.Complete(a_request("guarded", 2))
        site.write(NIGHT)
        answer = await admin.ReloadTiers(pb.ReloadTiersRequest(dry_run=True))
        await check_tiers(inference, is_day=True)
    assert answer.accepted
    assert answer.num_arrivals > 0
    by_tier = {each.tier: each for each in answer.forecast}
    guarded = by_tier["guarded"]
    assert guarded.before.num_requests == guarded.after.num_requests > 0
    assert (guarded.before.num_refused, guarded.before.ttft_attainment) == (0, 1.0)
    assert guarded.after.num_refused == guarded.after.num_requests
    assert not by_tier["extra"].HasField("before")


@pytest.mark.asyncio
async def test_a_hundred_reloads_lose_no_request(site: Site) -> None:
    tally, is_day = Tally(), True
    taken, refused = site.count(" tiers_reloaded "), site.count(" reload_refused ")
    async with connected(site.address) as (inference, admin):
        load = [
            asyncio.create_task(keep_asking(inference, tier, tally))
            for tier in ("steady", "", "batch", "batch")
        ]
        for number in range(NUM_RELOADS):
            is_good = number % 2 == 0
            tiers = (NIGHT if is_day else DAY) if is_good else BAD[number // 2 % len(BAD)]
            site.write(tiers)
            if number % 4 < 2:
                answer = await admin.ReloadTiers(pb.ReloadTiersRequest())
                assert answer.accepted is is_good, answer
                refusal = answer.error
            else:
                refusal = await reload_by_signal(site) or ""
            if is_good:
                assert not refusal
                is_day = not is_day
            else:
                with pytest.raises(ConfigError) as caught:
                    load_config(site.config)
                for problem in str(caught.value).splitlines():
                    # The log writes quotes as JSON does.
                    assert problem in refusal.replace('\\"', '"'), refusal
            await check_tiers(inference, is_day=is_day)
        tally.is_over = True
        await asyncio.gather(*load)
    assert not tally.problems
    assert set(tally.served) == {"steady", "", "batch"}
    assert min(tally.served.values()) >= 3
    assert site.count(" tiers_reloaded ") - taken == NUM_RELOADS // 2
    assert site.count(" reload_refused ") - refused == NUM_RELOADS // 2


@pytest.mark.asyncio
async def test_signals_in_a_row_end_with_the_last_file(site: Site) -> None:
    async with connected(site.address) as (inference, _):
        for number in range(5):
            another_night = NIGHT + f"  - {{name: night-{number}, class: best_effort}}\n"
            for tiers in (DAY, BAD[0], another_night):
                site.write(tiers)
                site.process.signal(signal.SIGHUP)
        # Reloads of the files before may still be seen to end; after the last file's none is.
        async with asyncio.timeout(PATIENCE_S):
            while not await is_served(inference, "night-4"):
                await asyncio.sleep(0.01)
        await check_tiers(inference, is_day=False)


@pytest.mark.asyncio
async def test_a_restarted_engine_is_told_the_tiers_in_force() -> None:
    """The scripted engine shows in its statistics the tiers that it knows."""
    supervision = EngineSupervision(command=(sys.executable, SCRIPT))
    settings = EngineSettings(DeviceSettings("cpu"), (ModelSettings("echo", "/echo"),))
    first, other = (TierSettings(name, "best_effort") for name in ("first", "other"))
    client = EngineClient(settings, supervision, (first,))

    def knows(*names: str) -> bool:
        stats = client.stats.get("echo")
        return stats is not None and tuple(stats.waiting) == names

    try:
        await client.start()
        await until(lambda: knows("first"))
        client.set_tiers((first, other))
        await until(lambda: knows("first", "other"))
        assert client.pid is not None
        psutil.Process(client.pid).kill()
        await until(lambda: client.num_restarts == 1 and client.ready)
        await until(lambda: knows("first", "other"))
    finally:
        await client.stop(5.0)

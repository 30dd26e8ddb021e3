"""A daemon with the real engine, whose models are loaded and unloaded while requests run."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import psutil
import pytest
import yaml
from daemon_fixture import config_text
from daemon_process import PATIENCE_S, DaemonProcess

from omniserve.admin_address import admin_target_of
from omniserve.synthetic.create import write_checkpoint
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

LOAD_S = 2 * PATIENCE_S
"""A load takes what other work of the machine leaves."""
PROMPT = pb.TokenIds(ids=range(5, 25))


@dataclass(frozen=True, slots=True)
class Site:
    """A running daemon, the file that it reads, and another checkpoint."""

    process: DaemonProcess
    address: str
    config: Path
    other: Path

    async def restart_engine(self) -> None:
        """Returns once there is another one, which may still have to load what came later."""
        num_engines = self.process.log.count("engine_ready")
        psutil.Process(self.process.engine.pid).kill()
        await asyncio.to_thread(self.process.wait_log, "engine_ready", num_engines + 1)

    def entry(self, name: str) -> str:
        keys = f"dtype: float32, device_kv_bytes: 4MiB, step_times: none, path: {self.other}"
        return f"{{name: {name}, {keys}, piggyback: {{enabled: false}}}}"

    def write(self, *names: str) -> None:
        """The file has these models besides."""
        data = yaml.safe_load(self.config.read_text())
        others = [yaml.safe_load(self.entry(name)) for name in names]
        data["models"] = [data["models"][0], *others]
        self.config.write_text(yaml.safe_dump(data))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("models")
    other = write_checkpoint(directory / "other", arch="llama", preset="tiny", seed=7)
    config = directory / "omniserve.yaml"
    config.write_text(config_text(tiny_checkpoint))
    with DaemonProcess("-m", "omniserve", "serve", str(config)) as process:
        address, _ = process.wait_ready()
        yield Site(process, address, config, other)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0, process.log
        assert "Traceback" not in process.log


@dataclass(frozen=True, slots=True)
class Stubs:
    inference: omniserve_pb2_grpc.InferenceStub
    admin: omniserve_pb2_grpc.AdminStub

    async def load(self, entry: str) -> list[pb.ModelEvent]:
        request = pb.LoadModelRequest(entry=entry)
        return [event async for event in self.admin.LoadModel(request, timeout=LOAD_S)]

    async def complete(self, model: str, num_tokens: int = 8) -> list[int]:
        sampling = pb.Sampling(max_tokens=num_tokens, temperature=0, ignore_eos=True)
        request = pb.GenerateRequest(model=model, token_ids=PROMPT, sampling=sampling)
        result = await self.inference.Complete(request, timeout=PATIENCE_S)
        return list(result.choices[0].token_ids)

    async def states(self) -> dict[str, str]:
        status = await self.admin.GetStatus(pb.GetStatusRequest())
        return {model.name: model.state for model in status.models}

    async def until_states(self, **wanted: str) -> None:
        async with asyncio.timeout(LOAD_S):
            while await self.states() != wanted:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def connected(site: Site) -> AsyncIterator[Stubs]:
    target = admin_target_of(site.address)
    assert target is not None
    async with (
        grpc.aio.insecure_channel(site.address) as channel,
        grpc.aio.insecure_channel(target) as admin_channel,
    ):
        yield Stubs(
            omniserve_pb2_grpc.InferenceStub(channel), omniserve_pb2_grpc.AdminStub(admin_channel)
        )


@pytest.mark.asyncio
async def test_a_model_comes_and_goes_while_another_one_streams(site: Site) -> None:
    is_over, tally = False, 0

    async def keep_asking(stubs: Stubs, expected: list[int]) -> None:
        nonlocal tally
        while not is_over:
            assert await stubs.complete("demo") == expected
            tally += 1
            # A load has a low priority: it comes to its end where steps leave it some time.
            await asyncio.sleep(0.02)

    async with connected(site) as stubs:
        expected = await stubs.complete("demo")
        load = asyncio.create_task(keep_asking(stubs, expected))
        answers: list[list[int]] = []
        num_answered = 0
        # A load is short: where this process is held up, an answer amid it is heard of later.
        while len(answers) < 2 or not num_answered:
            assert len(answers) < 20
            before = tally
            events = await stubs.load(site.entry("guest"))
            num_answered += tally - before
            assert events[-1].loaded.architecture == "LlamaForCausalLM"
            assert {event.progress.phase for event in events[:-1]} >= {"checking"}
            answers.append(await stubs.complete("guest"))
            listed = await stubs.inference.ListModels(pb.ListModelsRequest())
            assert [model.name for model in listed.models] == ["demo", "guest"]
            await stubs.admin.UnloadModel(pb.UnloadModelRequest(name="guest"))
            assert await stubs.states() == {"demo": "serving"}
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stubs.complete("guest")
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        is_over = True
        await load
    assert answers[0] == answers[1] != expected


@pytest.mark.asyncio
async def test_requests_that_run_too_long_are_cut_off_and_the_rest_go_on(site: Site) -> None:
    async with connected(site) as stubs:
        await stubs.load(site.entry("guest"))
        sampling = pb.Sampling(max_tokens=100, temperature=0, ignore_eos=True)
        request = pb.GenerateRequest(model="guest", token_ids=PROMPT, sampling=sampling)
        calls = [stubs.inference.Generate(request) for _ in range(8)]
        for call in calls:
            assert (await call.read()).token_ids
        answer = await stubs.admin.UnloadModel(pb.UnloadModelRequest(name="guest", drain_s=0))
        assert answer.num_finished + answer.num_ended <= 8
        num_cut = 0
        for call in calls:
            try:
                while await call.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                assert "'guest' was unloaded before the request had ended" in (
                    error.details() or ""
                )
                num_cut += 1
        assert num_cut == answer.num_ended
        assert len(await stubs.complete("demo")) == 8


@pytest.mark.asyncio
async def test_what_cannot_be_loaded_disturbs_nobody(site: Site, tmp_path: Path) -> None:
    broken = write_checkpoint(tmp_path / "broken", arch="llama", preset="tiny")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    async with connected(site) as stubs:
        for text, problem in (
            (site.entry("guest").replace(str(site.other), str(broken)), "truncated: 100 of"),
            (site.entry("guest").replace("4MiB", "1KiB"), "device_kv_bytes"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stubs.load(text)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert problem in (refused.value.details() or "")
            assert await stubs.states() == {"demo": "serving", "guest": "failed"}
            await stubs.complete("demo")
        await stubs.admin.UnloadModel(pb.UnloadModelRequest(name="guest"))
        assert await stubs.states() == {"demo": "serving"}


@pytest.mark.asyncio
async def test_a_client_that_goes_leaves_nothing_and_the_name_is_free_again(site: Site) -> None:
    async with connected(site) as stubs:
        # Stopped, it has not loaded the model before it hears that nobody wants it.
        engine = site.process.engine
        engine.suspend()
        try:
            call = stubs.admin.LoadModel(pb.LoadModelRequest(entry=site.entry("guest")))
            assert (await call.read()).HasField("progress")
            call.cancel()
            async with asyncio.timeout(PATIENCE_S):
                while (await stubs.states()).get("guest") == "loading":
                    await asyncio.sleep(0.02)
        finally:
            engine.resume()
        await stubs.until_states(demo="serving")
        await stubs.load(site.entry("guest"))
        await stubs.complete("guest")
        await stubs.admin.UnloadModel(pb.UnloadModelRequest(name="guest"))


@pytest.mark.asyncio
async def test_a_reload_brings_and_takes_models(site: Site) -> None:
    async with connected(site) as stubs:
        site.write("late", "later")
        dry = await stubs.admin.ReloadTiers(pb.ReloadTiersRequest(dry_run=True))
        assert [change.key for change in dry.changes] == ["models.late", "models.later"]
        assert await stubs.states() == {"demo": "serving"}
        site.process.signal(signal.SIGHUP)
        await stubs.until_states(demo="serving", late="serving", later="serving")
        assert await stubs.complete("late") == await stubs.complete("later")
        site.write("later")
        assert (await stubs.admin.ReloadTiers(pb.ReloadTiersRequest())).accepted
        await stubs.until_states(demo="serving", later="serving")
        site.write()
        assert (await stubs.admin.ReloadTiers(pb.ReloadTiersRequest())).accepted
        await stubs.until_states(demo="serving")


@pytest.mark.asyncio
async def test_an_engine_that_is_started_anew_has_the_models_that_were_loaded(site: Site) -> None:
    async with connected(site) as stubs:
        await stubs.load(site.entry("guest"))
        before = await stubs.complete("guest")
        await site.restart_engine()
        await stubs.until_states(demo="serving", guest="serving")
        assert await stubs.complete("guest") == before
        await stubs.admin.UnloadModel(pb.UnloadModelRequest(name="guest"))
        assert await stubs.states() == {"demo": "serving"}

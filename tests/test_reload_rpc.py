"""Reloading over gRPC, and what the command line makes of the answer."""

import asyncio
from pathlib import Path

import pytest
import yaml
from api_servers import Servers, make_manager, make_reloader, serving
from forecast_children import forecast_processes
from service_builders import ScriptedEngine, make_config, make_service, until

from omniserve.cli import main
from omniserve.commands.exit_status import EXIT_OK, EXIT_UNAVAILABLE, EXIT_USAGE
from omniserve.config import load_config
from omniserve.errors import ConfigError
from omniserve.model_life.entries import WantedEntry
from omniserve.requests import EngineRequest, SamplingParams
from omniserve.service import GenerationService
from omniserve.v1 import omniserve_pb2 as pb
from scheduler import Objectives
from scheduler.step_time import LinearStepTime, StepCosts

STEP_TIME = LinearStepTime(StepCosts(1e-3, ((1, 8e-3), (101, 18e-3))))


def write_config(path: Path, checkpoint: Path, **changes: object) -> Path:
    """What the service was started with; `changes` are for its first tier."""
    data = make_config(checkpoint).model_dump(mode="json", exclude_none=True)
    data["tiers"][0] |= changes
    path.write_text(yaml.safe_dump(data))
    return path


async def reload(servers: Servers, *, dry_run: bool = False) -> pb.ReloadTiersResponse:
    request = pb.ReloadTiersRequest(dry_run=dry_run)
    answer: pb.ReloadTiersResponse = await servers.admin.ReloadTiers(request)
    return answer


@pytest.fixture
def config_path(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    return write_config(tmp_path / "omniserve.yaml", tiny_checkpoint)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(step_times={"demo": STEP_TIME})


@pytest.fixture
def service(tiny_checkpoint: Path, engine: ScriptedEngine) -> GenerationService:
    return make_service(tiny_checkpoint, engine)


@pytest.mark.asyncio
async def test_changed_tiers_are_in_force_everywhere(
    service: GenerationService, engine: ScriptedEngine, config_path: Path, tiny_checkpoint: Path
) -> None:
    async with serving(service, config_path) as servers:
        assert await reload(servers) == pb.ReloadTiersResponse(accepted=True)
        write_config(config_path, tiny_checkpoint, ttft_ms=250)
        answer = await reload(servers)
        change = pb.TierChange(tier="interactive", key="ttft_ms", before="500", after="250")
        assert answer == pb.ReloadTiersResponse(accepted=True, changes=[change])
        listed = await servers.inference.ListModels(pb.ListModelsRequest())
    assert listed.tiers[0].ttft_ms == 250
    assert engine.tiers[0].objectives == Objectives(0.25, 0.1, 0.99)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tiers: [", "expected the node content"),
        ("tiers: []\nmodels: []\n", "must hold at least one entry"),
        ("models: [{name: demo, path: x}]\ntiers: [{name: a, class: best}]\n", "= 'best': must be"),
    ],
)
async def test_refused_files_change_nothing_and_are_told_as_by_config_check(
    service: GenerationService,
    engine: ScriptedEngine,
    config_path: Path,
    text: str,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = service.tiers
    config_path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(config_path)
    async with serving(service, config_path) as servers:
        answer = await reload(servers)
        assert answer == pb.ReloadTiersResponse(error=str(caught.value))
        assert words in answer.error
        assert await reload(servers, dry_run=True) == pb.ReloadTiersResponse(
            error=answer.error, no_forecast="the file is refused"
        )
    assert service.tiers is before
    assert engine.tiers == ()
    assert [record.message for record in caplog.records] == ["reload_refused"]


@pytest.mark.asyncio
async def test_the_log_tells_calls_that_were_refused_from_those_that_were_not(
    service: GenerationService, config_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "omniserve")
    right = config_path.read_text()
    async with serving(service, config_path) as servers:
        for text in (right, "tiers: ["):
            config_path.write_text(text)
            for dry_run in (False, True):
                await reload(servers, dry_run=dry_run)
    calls = [vars(each)["omniserve_fields"] for each in caplog.records if each.message == "request"]
    found = [(each["method"], each["status"], each["outcome"]) for each in calls]
    method = "Admin.ReloadTiers"
    assert found == [(method, "OK", "ok")] * 2 + [(method, "OK", "refused")] * 2


@pytest.mark.asyncio
async def test_a_file_that_is_gone_and_one_that_breaks_the_reader(
    service: GenerationService, config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reloader = make_reloader(service, config_path)
    config_path.rename(config_path.with_suffix(".gone"))
    assert (
        await reloader.reload()
    ).error == f"cannot read {config_path}: No such file or directory"

    def fail(path: Path) -> None:
        raise RecursionError

    monkeypatch.setattr("omniserve.reload.reloader.load_config", fail)
    assert (await reloader.reload()).error == f"{config_path}: reading it failed: RecursionError"


@pytest.mark.asyncio
async def test_the_default_tier_of_a_model_that_is_not_of_the_file_stays(
    service: GenerationService, tiny_checkpoint: Path, config_path: Path, engine: ScriptedEngine
) -> None:
    models = make_manager(service, config_path)
    entry = f"{{name: guest, path: {tiny_checkpoint}, default_tier: voice}}"
    await models.load(WantedEntry(entry))
    data = yaml.safe_load(config_path.read_text())
    data["tiers"] = [tier for tier in data["tiers"] if tier["name"] != "voice"]
    config_path.write_text(yaml.safe_dump(data))
    reloader = make_reloader(service, config_path, models=models)
    answer = await reloader.reload()
    assert "'voice' must stay: model 'guest'" in answer.error
    assert engine.tiers == ()
    await models.unload("guest", 0.0, force=False)
    assert (await reloader.reload()).is_accepted
    assert [tier.name for tier in service.tiers.tiers] == ["interactive", "batch"]


@pytest.mark.asyncio
async def test_reloads_come_one_after_the_other(
    service: GenerationService, engine: ScriptedEngine, config_path: Path, tiny_checkpoint: Path
) -> None:
    reloader = make_reloader(service, config_path)
    pending = [asyncio.create_task(reloader.reload()) for _ in range(5)]
    await asyncio.sleep(0)
    write_config(config_path, tiny_checkpoint, ttft_ms=100)
    pending.append(asyncio.create_task(reloader.reload()))
    assert all(result.is_accepted for result in await asyncio.gather(*pending))
    assert engine.tiers[0].objectives == Objectives(0.1, 0.1, 0.99)


@pytest.mark.asyncio
async def test_the_command_tells_changes_and_a_dry_run_with_its_forecast(
    service: GenerationService,
    config_path: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_config(config_path, tiny_checkpoint, ttft_ms=5, max_waiting=3)
    async with serving(service, config_path) as servers:
        ask = ("reload", "--admin", servers.admin_address)
        assert await asyncio.to_thread(main, [*ask, "--dry-run"]) == EXIT_OK
        assert "no forecast: no request arrived" in capsys.readouterr().out
        prompt = pb.TokenIds(ids=range(20))
        sampling = pb.Sampling(max_tokens=4)
        for tier in ("interactive", "", "batch"):
            request = pb.GenerateRequest(
                model="demo", token_ids=prompt, sampling=sampling, tier=tier
            )
            await servers.inference.Complete(request)
        assert await asyncio.to_thread(main, [*ask, "--dry-run"]) == EXIT_OK
        said = capsys.readouterr().out
        assert "would be taken over:\n  interactive: ttft_ms 500 -> 5\n" in said
        assert "interactive: max_waiting - -> 3" in said
        rows = [line.split() for line in said.splitlines()]
        # A step of 20 rows takes 11 ms, so that the file's tier takes nobody.
        (before,) = (row for row in rows if row[:3] == ["interactive", "in", "force"])
        (after,) = (row for row in rows if row[:2] == ["interactive", "file"])
        assert before[3:9] == ["2", "0", "100.0", "%", "100.0", "%"]
        assert after[2:8] == ["2", "2", "0.0", "%", "0.0", "%"]
        assert service.tiers.tiers[0].ttft_ms == 500

        assert await asyncio.to_thread(main, [*ask]) == EXIT_OK
        told = "  interactive: ttft_ms 500 -> 5\n  interactive: max_waiting - -> 3\n"
        assert capsys.readouterr().out == "taken over:\n" + told
        assert service.tiers.tiers[0].ttft_ms == 5
        assert await asyncio.to_thread(main, [*ask]) == EXIT_OK
        assert capsys.readouterr().out.startswith("tiers, tenants and models are as they were; ")
        assert await asyncio.to_thread(main, [*ask, "--dry-run"]) == EXIT_OK
        assert capsys.readouterr().out.startswith(
            "tiers, tenants and models would stay as they are\n"
        )


@pytest.mark.asyncio
async def test_a_client_that_leaves_ends_its_dry_run(
    service: GenerationService, config_path: Path
) -> None:
    # So much to simulate that the process is seen, whenever that is looked for.
    sampling = SamplingParams(max_tokens=200)
    arrived = EngineRequest("r", "demo", (1,) * 20, sampling, "best_effort", "batch")
    service.arrivals.note("batch", service.clock(), [arrived] * 20_000)
    async with serving(service, config_path) as servers:
        call = servers.admin.ReloadTiers(pb.ReloadTiersRequest(dry_run=True))
        await until(lambda: bool(forecast_processes()))
        call.cancel()
        await until(lambda: not forecast_processes())


@pytest.mark.asyncio
async def test_the_command_tells_what_needs_a_restart_and_what_is_wrong(
    service: GenerationService, config_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = yaml.safe_load(config_path.read_text())
    data["listen"]["grpc"] = "127.0.0.1:1"
    data["models"][0]["block_size"] = 16
    config_path.write_text(yaml.safe_dump(data))
    async with serving(service, config_path) as servers:
        ask = ["reload", "--admin", servers.admin_address]
        assert await asyncio.to_thread(main, ask) == EXIT_OK
        said = capsys.readouterr().out
        assert said.endswith("need a restart:\n  listen.grpc\n  models.demo.block_size\n")
        data["tiers"][0]["ttft_ms"] = -1
        data["tiers"][1]["what"] = 1
        config_path.write_text(yaml.safe_dump(data))
        assert await asyncio.to_thread(main, ask) == EXIT_USAGE
        lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"omniserve: {config_path}:") for line in lines)
    assert main(ask) == EXIT_UNAVAILABLE
    assert "does not answer: gRPC UNAVAILABLE" in capsys.readouterr().err
    assert main(["reload", "--admin", "nowhere"]) == EXIT_USAGE

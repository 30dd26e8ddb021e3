"""`omniserve model load`, `unload`, `pin` and `unpin`, over the Admin service they speak to."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest
from api_servers import Servers, serving
from http_client import make_client
from model_builders import HeldLoads, ModelSite
from service_builders import until

from omniserve.cli import main
from omniserve.commands.exit_status import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
)
from omniserve.v1 import omniserve_pb2 as pb


@dataclass(frozen=True, slots=True)
class Console:
    """A daemon's front, and the commands that change its models."""

    site: ModelSite
    servers: Servers

    async def run(self, *words: str) -> int:
        command = ["model", *words, "--admin", self.servers.admin_address]
        return await asyncio.to_thread(main, command)


@pytest.fixture
def site(tmp_path: Path, tiny_checkpoint: Path) -> ModelSite:
    return ModelSite(tmp_path, tiny_checkpoint)


@asynccontextmanager
async def console_of(site: ModelSite) -> AsyncIterator[Console]:
    async with serving(site.service, site.path) as servers:
        yield Console(site, servers)


def write_entry(site: ModelSite, text: str) -> str:
    path = site.path.parent / "entry.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.asyncio
async def test_a_model_is_loaded_listed_and_unloaded(
    site: ModelSite, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = write_entry(site, site.text("guest", aliases=["visitor"]))
    async with console_of(site) as console:
        assert await console.run("load", "--entry", entry) == EXIT_OK
        assert capsys.readouterr() == ("guest is served: 1 parameters, context 256\n", "")
        listed = await console.servers.inference.ListModels(pb.ListModelsRequest())
        names = [(each.name, list(each.aliases)) for each in listed.models]
        assert names == [("demo", []), ("guest", ["visitor"])]
        assert await console.run("pin", "guest") == EXIT_OK
        assert await console.run("unload", "guest") == EXIT_FAILURE
        assert "model 'guest' is pinned; unpin it first" in capsys.readouterr().err
        assert await console.run("unpin", "guest") == EXIT_OK
        assert await console.run("unload", "guest", "--drain-s", "0") == EXIT_OK
        said = capsys.readouterr().out
        assert said == "guest: not pinned\nguest: unloaded; requests that ended: 0, cut off: 0\n"
        assert await console.run("unload", "guest") == EXIT_FAILURE
        assert "model 'guest' is not loaded; there: demo" in capsys.readouterr().err


@pytest.mark.asyncio
async def test_answers_as_json(site: ModelSite, capsys: pytest.CaptureFixture[str]) -> None:
    entry = write_entry(site, json.dumps(site.entry("guest")))
    async with console_of(site) as console:
        for words in (
            ("load", "--entry", entry),
            ("pin", "guest"),
            ("unload", "guest", "--force"),
        ):
            assert await console.run(*words, "--json") == EXIT_OK
    decoder, said, found = json.JSONDecoder(), capsys.readouterr().out, []
    while said.strip():
        value, end = decoder.raw_decode(said.lstrip())
        said = said.lstrip()[end:]
        found.append(value)
    loaded, pinned, unloaded = found
    assert (loaded["name"], loaded["default_tier"]) == ("guest", "interactive")
    assert pinned == {"name": "guest", "pinned": True}
    assert unloaded == {"num_finished": 0, "num_ended": 0, "state": "serving"}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{name: guest}", "entry:1: the required key 'path' is missing"),
        ("{name: guest, path: nowhere}", "nowhere: no such directory"),
        ("{name: guest, path: x, device_kv_bytes: 64MB}", "device_kv_bytes = '64MB': must be"),
    ],
)
async def test_an_entry_that_is_wrong_is_told_as_in_a_file(
    site: ModelSite, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with console_of(site) as console:
        assert await console.run("load", "--entry", write_entry(site, text)) == EXIT_USAGE
    assert words in capsys.readouterr().err


@pytest.mark.asyncio
async def test_what_is_wrong_with_a_command_is_told(
    site: ModelSite, capsys: pytest.CaptureFixture[str]
) -> None:
    async with console_of(site) as console:
        for words, status, said in (
            (("load", "demo"), EXIT_FAILURE, "'demo' is a name of model 'demo' already"),
            (("load", "--entry", "/dev/zero"), EXIT_USAGE, "cannot read /dev/zero"),
            (("load", "--entry", "/nowhere"), EXIT_USAGE, "cannot read /nowhere"),
            (("unload", "demo", "--drain-s", "nan"), EXIT_USAGE, "drain_s: nan is not allowed"),
            (("unload", "demo", "--drain-s", "-1"), EXIT_USAGE, "drain_s: -1 is not allowed"),
        ):
            assert await console.run(*words) == status, words
            assert said in capsys.readouterr().err
    assert main(["model", "pin", "demo", "--admin", "127.0.0.1:9"]) == EXIT_UNAVAILABLE


@pytest.mark.asyncio
async def test_what_goes_on_is_shown_while_it_loads(
    site: ModelSite, capsys: pytest.CaptureFixture[str]
) -> None:
    held = site.engine.load_script = HeldLoads()
    entry = write_entry(site, site.text("guest"))
    async with console_of(site) as console:
        load = asyncio.create_task(console.run("load", "--watch", "--entry", entry))
        await until(lambda: bool(held.begun))
        status = await console.servers.admin.GetStatus(pb.GetStatusRequest())
        (guest,) = (each for each in status.models if each.name == "guest")
        assert (guest.state, guest.origin) == ("loading", "operator")
        assert guest.progress == pb.ModelProgress(phase="reading", done_bytes=30, total_bytes=120)
        assert [each.model for each in status.tiers] == ["demo"] * 3
        address = console.servers.admin_address
        assert await asyncio.to_thread(main, ["status", "--admin", address]) == EXIT_OK
        seen = capsys.readouterr()
        assert "loading: reading 25%" in seen.out
        held.release.set()
        assert await load == EXIT_OK
    assert "reading: 25%" in seen.err + capsys.readouterr().err


@pytest.mark.asyncio
async def test_a_client_that_goes_away_leaves_no_load_behind(site: ModelSite) -> None:
    held = site.engine.load_script = HeldLoads()
    async with console_of(site) as console:
        request = pb.LoadModelRequest(entry=site.text("guest"))
        call = console.servers.admin.LoadModel(request)
        await until(lambda: bool(held.begun))
        call.cancel()
        await until(lambda: site.states() == {"demo": "serving"})
    assert site.engine.cancelled_loads == ["guest"]


@pytest.mark.asyncio
async def test_an_interrupted_command_leaves_no_load_behind(site: ModelSite) -> None:
    held = site.engine.load_script = HeldLoads()
    entry = write_entry(site, site.text("guest"))
    async with console_of(site) as console:
        address = console.servers.admin_address
        words = ("-m", "omniserve", "model", "load", "--entry", entry, "--admin", address)
        process = await asyncio.create_subprocess_exec(
            sys.executable, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        await until(lambda: bool(held.begun))
        process.send_signal(signal.SIGINT)
        said = await process.communicate()
        assert (process.returncode, *said) == (EXIT_INTERRUPTED, b"", b"")
        await until(lambda: site.states() == {"demo": "serving"})


@pytest.mark.asyncio
async def test_errors_have_their_statuses(site: ModelSite) -> None:
    async with serving(site.service, site.path) as servers:
        codes = grpc.StatusCode
        for request, code in (
            (pb.LoadModelRequest(), codes.INVALID_ARGUMENT),
            (pb.LoadModelRequest(name=""), codes.INVALID_ARGUMENT),
            (pb.LoadModelRequest(name="demo"), codes.ALREADY_EXISTS),
            (pb.LoadModelRequest(name="nowhere"), codes.NOT_FOUND),
            (pb.LoadModelRequest(entry=""), codes.INVALID_ARGUMENT),
            (pb.LoadModelRequest(name="x" * (10 << 20)), codes.RESOURCE_EXHAUSTED),
            (pb.LoadModelRequest(name="x" * (1 << 20)), codes.NOT_FOUND),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async for _ in servers.admin.LoadModel(request):
                    pass
            assert refused.value.code() is code
        for drain_s in (-1.0, float("nan")):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await servers.admin.UnloadModel(pb.UnloadModelRequest(name="demo", drain_s=drain_s))
            assert refused.value.code() is codes.INVALID_ARGUMENT
        site.models.pin("demo", True)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await servers.admin.UnloadModel(pb.UnloadModelRequest(name="demo"))
        assert refused.value.code() is codes.FAILED_PRECONDITION


@pytest.mark.asyncio
async def test_http_clients_are_told_when_to_come_again_and_later_that_it_is_gone(
    site: ModelSite,
) -> None:
    body = {"model": "guest", "prompt": [1, 2], "max_tokens": 2}
    held = site.engine.load_script = HeldLoads()
    async with serving(site.service, site.path) as servers, make_client(servers.url) as http:
        call = servers.admin.LoadModel(pb.LoadModelRequest(entry=site.text("guest")))
        await until(lambda: bool(held.begun))
        answer = await http.post("/v1/completions", json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert [each["id"] for each in (await http.get("/v1/models")).json()["data"]] == ["demo"]
        held.release.set()
        events = [event async for event in call]
        assert events[-1].loaded.name == "guest"
        assert (await http.post("/v1/completions", json=body)).status_code == 200
        await servers.admin.UnloadModel(pb.UnloadModelRequest(name="guest"))
        answer = await http.post("/v1/completions", json=body)
        assert answer.status_code == 404
        assert "retry-after" not in answer.headers


@pytest.mark.asyncio
async def test_a_model_is_put_to_sleep_woken_and_unloaded_in_its_sleep(
    site: ModelSite, capsys: pytest.CaptureFixture[str]
) -> None:
    async with console_of(site) as console:
        assert await console.run("wake", "demo") == EXIT_OK
        assert capsys.readouterr().out == "demo was awake\n"
        assert await console.run("sleep", "demo") == EXIT_OK
        assert capsys.readouterr().out == "demo is asleep\n"
        listed = await console.servers.inference.ListModels(pb.ListModelsRequest())
        assert [(each.name, each.state) for each in listed.models] == [("demo", "asleep")]
        address = console.servers.admin_address
        assert await asyncio.to_thread(main, ["status", "--admin", address]) == EXIT_OK
        seen = capsys.readouterr().out
        assert "asleep" in seen and "interactive" in seen
        assert await console.run("wake", "demo") == EXIT_OK
        assert re.fullmatch(r"demo woke in \d+\.\d s\n", capsys.readouterr().out)
        assert await console.run("sleep", "demo", "--json") == EXIT_OK
        assert json.loads(capsys.readouterr().out) == {"name": "demo", "state": "asleep"}
        assert await console.run("wake", "demo", "--json") == EXIT_OK
        woken = json.loads(capsys.readouterr().out)
        assert woken["state"] == "serving" and woken["wake_s"] > 0
        for verb in ("sleep", "wake"):
            assert await console.run(verb, "nowhere") == EXIT_FAILURE
            assert "model 'nowhere' is not loaded; there: demo" in capsys.readouterr().err
        await console.run("sleep", "demo")
        assert await console.run("unload", "demo") == EXIT_OK
        assert "demo: unloaded; it was asleep" in capsys.readouterr().out
        assert await console.run("sleep", "demo") == EXIT_FAILURE


@pytest.mark.parametrize(
    "words",
    [[], ["load"], ["load", "x", "--entry", "y"], ["unload"], ["sleep"], ["wake", "a", "b"]],
)
def test_what_is_meant_has_to_be_said(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["model", *words])
    assert ended.value.code == EXIT_USAGE

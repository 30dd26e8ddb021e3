"""Adapters in a daemon: of its file, loaded besides, over gRPC and HTTP, in a new engine."""

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
import yaml
from daemon_fixture import config_text
from daemon_process import PATIENCE_S, DaemonProcess
from lora_builders import merged, write_adapted
from oracle import Oracle
from test_models_daemon import PROMPT, Site, Stubs, connected

from omniserve.commands.sharing import sharing_fields
from omniserve.v1 import omniserve_pb2 as pb

NUM_TOKENS = 8


@dataclass(frozen=True, slots=True)
class AdapterSite:
    """A running daemon with a base and an adapter of it, and another adapter on disk."""

    site: Site
    http_url: str
    base: Path
    adapters: list[Path]
    expected: dict[str, list[int]]
    """What base and adapters answer to PROMPT."""

    def entry(self, index: int, **keys: object) -> dict[str, object]:
        return {
            "name": f"adapter-{index}",
            "path": str(self.adapters[index - 1]),
            "base": str(self.base),
            "dtype": "float32",
            "device_kv_bytes": "16MiB",
            "step_times": "none",
            "piggyback": {"enabled": False},
        } | keys


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterSite]:
    directory = tmp_path_factory.mktemp("lora")
    base, adapters = write_adapted(directory, "qwen3")
    paths = {"base": base} | {
        path.name: merged(base, path, directory / f"merged-{path.name}") for path in adapters
    }
    prompt = list(PROMPT.ids)
    expected = {name: Oracle(path).generate(prompt, NUM_TOKENS) for name, path in paths.items()}
    config = directory / "omniserve.yaml"
    config.write_text(config_text(base, "{enabled: false}").replace("name: demo", "name: base"))
    with DaemonProcess("-m", "omniserve", "serve", str(config)) as process:
        address, http_url = process.wait_ready()
        site = Site(process, address, config, base)
        yield AdapterSite(site, http_url, base, adapters, expected)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0, process.log
        assert "Traceback" not in process.log


@asynccontextmanager
async def stubs_of(adapted: AdapterSite) -> AsyncIterator[Stubs]:
    async with connected(adapted.site) as stubs:
        yield stubs


@pytest.mark.asyncio
async def test_adapters_are_models_like_any_other(adapted: AdapterSite) -> None:
    site = adapted.site
    data = yaml.safe_load(site.config.read_text())
    data["models"].append(adapted.entry(1, aliases=["support"], default_tier="batch"))
    async with stubs_of(adapted) as stubs:
        # Of the changed file, by an alias, over both protocols.
        site.config.write_text(yaml.safe_dump(data))
        assert (await stubs.admin.ReloadTiers(pb.ReloadTiersRequest())).accepted
        await stubs.until_states(**{"base": "serving", "adapter-1": "serving"})
        assert await stubs.complete("support") == adapted.expected["adapter-1"]
        body = {
            "model": "support",
            "prompt": list(PROMPT.ids),
            "max_tokens": NUM_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = httpx.post(f"{adapted.http_url}/v1/completions", json=body, timeout=PATIENCE_S)
        assert answer.is_success and answer.json()["model"] == "adapter-1"
        listed = httpx.get(f"{adapted.http_url}/v1/models", timeout=PATIENCE_S).json()["data"]
        assert [each["id"] for each in listed] == ["base", "adapter-1", "support"]
        # By an entry of one's own.
        await stubs.load(yaml.safe_dump(adapted.entry(2)))
        for name, tokens in adapted.expected.items():
            assert await stubs.complete(name) == tokens
        assert len({tuple(each) for each in adapted.expected.values()}) == 3
        # An adapter's own weights are its deltas.
        status = await stubs.admin.GetStatus(pb.GetStatusRequest())
        shares = {each["name"]: each for each in sharing_fields(list(status.models))["models"]}
        assert shares["base"]["own_bytes"] == 0
        for path in adapted.adapters:
            file_bytes = (path / "adapter_model.safetensors").stat().st_size
            assert 0.8 * file_bytes < shares[path.name]["own_bytes"] < file_bytes
        # Without its base, and in an engine that is started anew.
        await stubs.admin.UnloadModel(pb.UnloadModelRequest(name="base"))
        await site.restart_engine()
        await stubs.until_states(**{"adapter-1": "serving", "adapter-2": "serving"})
        for path in adapted.adapters:
            assert await stubs.complete(path.name) == adapted.expected[path.name]


@pytest.mark.asyncio
async def test_an_entry_that_cannot_be_is_refused_and_nobody_is_disturbed(
    adapted: AdapterSite, tmp_path: Path
) -> None:
    name = str(tmp_path / "nothing")
    async with stubs_of(adapted) as stubs:
        before = await stubs.states()
        for keys, problem in (
            ({"base": None}, "holds an adapter, not a model; `base` of the entry"),
            ({"base": name}, "nothing: no such directory"),
            ({"path": str(adapted.base)}, "adapter_config.json is missing"),
            ({"base": str(adapted.adapters[0])}, "holds an adapter, not a model"),
            ({"base": ""}, "base = '': must be the path of a directory"),
            ({"bases": name}, "unknown key 'bases'"),
        ):
            entry = adapted.entry(2, name="wrong", **keys)
            text = yaml.safe_dump({key: each for key, each in entry.items() if each is not None})
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stubs.load(text)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert problem in (refused.value.details() or "")
        after = await stubs.states()
        assert after.pop("wrong") == "failed"
        assert after == before

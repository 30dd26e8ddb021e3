"""A daemon with tenants as a real process: floods, tokens that are replaced, and its log."""

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import httpx
import pytest
from daemon_process import PATIENCE_S, ROOT, DaemonProcess

from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

SCRIPT = str(Path(__file__).parent / "scripted_daemon.py")
TOKEN_S = 0.04
NUM_TOKENS = 20
LONG_TOKENS = 2000
"""More than a minute's: such a request runs until it is cancelled."""
CONCURRENT = 4
NUM_FLOOD = 120
HEAD = """\
listen: {{grpc: "127.0.0.1:0", http: "127.0.0.1:0", status: "127.0.0.1:0",
          admin: "unix:{directory}/admin.sock"}}
models: [{{name: echo, path: {checkpoint}}}]
tiers:
  - {{name: chat, class: latency_sensitive, ttft_ms: 500, tpot_ms: 100}}
  - {{name: batch, class: best_effort}}
tenants:
  - {{name: greedy, token_sha256: {greedy}, quota: {{concurrent: {concurrent}}}}}
  - {{name: modest, token_sha256: {modest}, tiers: [batch]}}
"""


@dataclass(frozen=True, slots=True)
class Site:
    """A running daemon, the file that it reads, and tokens with their hashes."""

    process: DaemonProcess
    grpc_address: str
    http_url: str
    config: Path
    text: str
    tokens: dict[str, str]
    hashes: dict[str, str]

    def reload(self, text: str) -> None:
        num_before = self.process.log.count(" tiers_reloaded ")
        self.config.write_text(text)
        self.process.signal(signal.SIGHUP)
        self.process.wait_log(" tiers_reloaded ", num_before + 1)

    def status_of(self, token: str) -> int:
        """Of a request with this token over HTTP."""
        body = {"model": "echo", "prompt": [5, 6, 7], "max_tokens": 2}
        headers = {"authorization": f"Bearer {self.tokens[token]}"}
        url = f"{self.http_url}/v1/completions"
        return httpx.post(url, json=body, headers=headers, timeout=PATIENCE_S).status_code


def new_token() -> tuple[str, str]:
    command = [sys.executable, "-m", "omniserve", "token", "new", "--json"]
    told = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)
    return told["token"], told["token_sha256"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Site]:
    made = {name: new_token() for name in ("greedy", "modest", "next", "stranger")}
    tokens = {name: token for name, (token, _) in made.items()}
    hashes = {name: token_hash for name, (_, token_hash) in made.items()}
    config = tmp_path_factory.mktemp("tenants") / "omniserve.yaml"
    text = HEAD.format(
        directory=tmp_path_factory.mktemp("s"),
        checkpoint=tiny_checkpoint,
        greedy=hashes["greedy"],
        modest=hashes["modest"],
        concurrent=CONCURRENT,
    )
    config.write_text(text)
    options = ("--token-s", str(TOKEN_S), "--", "--log-level", "debug")
    with DaemonProcess(SCRIPT, str(config), *options) as process:
        grpc_address, http_url = process.wait_ready()
        yield Site(process, grpc_address, http_url, config, text, tokens, hashes)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0, process.log
        assert "Traceback" not in process.log
        assert process.log.count(" tenant=greedy ") >= NUM_FLOOD
        for token in tokens.values():
            assert token[5:] not in process.log
            assert token[10:30] not in process.log


def request_of(num_tokens: int) -> pb.GenerateRequest:
    ids = pb.TokenIds(ids=range(5, 5 + num_tokens))
    sampling = pb.Sampling(max_tokens=num_tokens)
    return pb.GenerateRequest(model="echo", token_ids=ids, sampling=sampling)


def metadata(site: Site, tenant: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {site.tokens[tenant]}"),)


async def ask(
    site: Site, stub: omniserve_pb2_grpc.InferenceStub, tenant: str, num_tokens: int = NUM_TOKENS
) -> str:
    """The status of one request; its answer has to be whole."""
    call = stub.Complete(
        request_of(num_tokens), metadata=metadata(site, tenant), timeout=2 * PATIENCE_S
    )
    try:
        result = await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    assert result.usage.output_tokens == num_tokens
    return "OK"


@pytest.mark.asyncio
async def test_a_flood_is_refused_and_the_other_tenant_is_not(site: Site) -> None:
    async with grpc.aio.insecure_channel(site.grpc_address) as channel:
        stub = omniserve_pb2_grpc.InferenceStub(channel)
        flood = {
            asyncio.create_task(ask(site, stub, "greedy", LONG_TOKENS)) for _ in range(NUM_FLOOD)
        }
        modest = [await ask(site, stub, "modest") for _ in range(3)]
        told: Counter[str] = Counter()
        while len(flood) > CONCURRENT:
            refused, flood = await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
            told.update(each.result() for each in refused)
        # All but as many as it may have at once.
        assert told == {"RESOURCE_EXHAUSTED": NUM_FLOOD - CONCURRENT}
        assert modest == ["OK"] * 3
        for running in flood:
            running.cancel()
        await asyncio.wait(flood)
        # The daemon hears of it a little later.
        async with asyncio.timeout(PATIENCE_S):
            while (told_now := await ask(site, stub, "greedy")) == "RESOURCE_EXHAUSTED":
                await asyncio.sleep(TOKEN_S)
        assert told_now == "OK"
        assert await ask(site, stub, "stranger") == "UNAUTHENTICATED"


def test_strangers_get_401_and_metrics_are_not_theirs(site: Site) -> None:
    assert site.status_of("stranger") == 401
    assert httpx.get(f"{site.http_url}/health").status_code == 200
    assert httpx.get(f"{site.http_url}/metrics").status_code == 401
    headers = {"authorization": f"Bearer {site.tokens['modest']}"}
    assert httpx.get(f"{site.http_url}/metrics", headers=headers).status_code == 404


@pytest.mark.asyncio
async def test_a_token_is_replaced_while_streams_of_it_go_on(site: Site) -> None:
    async with grpc.aio.insecure_channel(site.grpc_address) as channel:
        stub = omniserve_pb2_grpc.InferenceStub(channel)
        num_tokens = 5 * NUM_TOKENS
        call = stub.Generate(
            request_of(num_tokens), metadata=metadata(site, "modest"), timeout=2 * PATIENCE_S
        )
        chunks = aiter(call)
        num_received = len((await anext(chunks)).token_ids)
        text = site.text.replace(site.hashes["modest"], site.hashes["next"])
        await asyncio.to_thread(site.reload, text)
        async for chunk in chunks:
            num_received += len(chunk.token_ids)
        assert num_received == num_tokens
        assert await ask(site, stub, "modest") == "UNAUTHENTICATED"
        assert await ask(site, stub, "next") == "OK"
    assert (site.status_of("modest"), site.status_of("next")) == (401, 200)
    assert "tenants.modest.token_sha256: 1 -> 1, 1 of them new" in site.process.log
    site.reload(site.text)
    assert (site.status_of("modest"), site.status_of("next")) == (200, 401)


def test_a_token_in_the_file_is_refused_and_not_logged(site: Site) -> None:
    num_before = site.process.log.count(" reload_refused ")
    site.config.write_text(site.text.replace(site.hashes["modest"], site.tokens["modest"]))
    site.process.signal(signal.SIGHUP)
    site.process.wait_log(" reload_refused ", num_before + 1)
    assert site.status_of("modest") == 200
    site.reload(site.text)

"""A daemon with TLS as a real process: its start, and rotation while requests run."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import httpx2
import pytest
import trustme
from daemon_process import PATIENCE_S, DaemonProcess
from listen_builders import CertificateFiles, TlsClient

from omniserve.admin_address import admin_target_of
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

SCRIPT = str(Path(__file__).parent / "scripted_daemon.py")
NUM_TOKENS = 40
AUTHORITY = trustme.CA()
CLIENT = TlsClient(AUTHORITY, AUTHORITY.issue_cert("someone@example.org"))
CONFIG = """\
listen: {{grpc: "127.0.0.1:0", http: "127.0.0.1:0"}}
tls: {{certificate: server.pem, key: server.key, client_ca: client-ca.pem}}
models: [{{name: echo, path: {checkpoint}, step_times: none}}]
tiers:
  - {{name: chat, class: latency_sensitive, ttft_ms: 60000, tpot_ms: 60000}}
"""


@dataclass
class Tally:
    num_served: int = 0
    problems: list[str] = field(default_factory=list)
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    process: DaemonProcess
    files: CertificateFiles
    grpc: str
    http: str

    async def reload(self) -> None:
        before = self._num_reloads
        self.process.signal(signal.SIGHUP)
        async with asyncio.timeout(PATIENCE_S):
            while self._num_reloads == before:
                await asyncio.sleep(0.005)

    @property
    def _num_reloads(self) -> int:
        log = self.process.log
        return log.count(" tiers_reloaded ") + log.count(" reload_refused ")

    async def shown(self) -> tuple[bytes, bytes]:
        """By new connections to gRPC and to HTTP."""
        grpc_shown = await asyncio.to_thread(CLIENT.shown_certificate, self.grpc)
        return grpc_shown, await asyncio.to_thread(CLIENT.shown_certificate, self.http)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Site]:
    files = CertificateFiles(tmp_path_factory.mktemp("tls"), with_clients=True)
    files.write(AUTHORITY)
    files.config_path.write_text(CONFIG.format(checkpoint=tiny_checkpoint))
    with DaemonProcess(SCRIPT, str(files.config_path)) as process:
        assert process.process.stdout is not None
        line = process.process.stdout.readline()
        assert line.startswith("omniserve ready: grpc 127.0.0.1:"), process.log
        words = line.replace(",", "").split()
        assert words[5].startswith("https://")
        yield Site(process, files, words[3], words[5].removeprefix("https://"))
        process.signal(signal.SIGTERM)
        assert process.wait() == 0, process.log
        assert "Traceback" not in process.log
        assert "PRIVATE" not in process.log


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[omniserve_pb2_grpc.InferenceStub]:
    credentials = grpc.ssl_channel_credentials(*CLIENT.grpc_parts)
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(address, credentials, options) as channel:
        yield omniserve_pb2_grpc.InferenceStub(channel)


async def ask_over_grpc(site: Site, tally: Tally) -> None:
    """New connections all the time; each stream has to be whole."""
    prompt = pb.TokenIds(ids=range(NUM_TOKENS))
    request = pb.GenerateRequest(model="echo", token_ids=prompt)
    while not tally.is_over:
        try:
            async with connected(site.grpc) as stub:
                chunks = [chunk async for chunk in stub.Generate(request)]
        except grpc.aio.AioRpcError as error:
            tally.problems.append(f"{error.code()}: {error.details()}")
            return
        num_tokens = sum(len(chunk.token_ids) for chunk in chunks)
        if num_tokens != NUM_TOKENS:
            tally.problems.append(f"{num_tokens} tokens")
        tally.num_served += 1


async def ask_over_http(site: Site, tally: Tally) -> None:
    body = {"model": "echo", "prompt": list(range(NUM_TOKENS)), "stream": True}
    context = CLIENT.context
    while not tally.is_over:
        try:
            async with httpx2.AsyncClient(verify=context, timeout=PATIENCE_S) as http:
                answer = await http.post(f"https://{site.http}/v1/completions", json=body)
        except httpx2.HTTPError as error:
            tally.problems.append(repr(error))
            return
        if not answer.text.endswith("data: [DONE]\n\n"):
            tally.problems.append(answer.text[-200:])
        tally.num_served += 1


@pytest.mark.asyncio
async def test_rotations_under_load_lose_nothing(site: Site) -> None:
    tallies = Tally(), Tally()
    load = [
        asyncio.create_task(ask(site, tally))
        for ask, tally in zip((ask_over_grpc, ask_over_http), tallies, strict=True)
    ]
    for _ in range(4):
        expected = site.files.write(AUTHORITY)
        await site.reload()
        assert await site.shown() == (expected, expected)
        # A key that is not the certificate's changes nothing.
        key = site.files.directory / "server.key"
        good = key.read_bytes()
        key.write_bytes(AUTHORITY.issue_cert("localhost").private_key_pem.bytes())
        await site.reload()
        assert await site.shown() == (expected, expected)
        key.write_bytes(good)
    before = [tally.num_served for tally in tallies]
    async with asyncio.timeout(PATIENCE_S):
        while any(
            tally.num_served < num + 2 and not tally.problems
            for tally, num in zip(tallies, before, strict=True)
        ):
            await asyncio.sleep(0.01)
    for tally in tallies:
        tally.is_over = True
    await asyncio.gather(*load)
    assert not tallies[0].problems + tallies[1].problems
    assert site.process.log.count("tls.key: the key is not that of tls.certificate") == 4
    assert site.process.log.count(" tls_reloaded ") == 4


def test_a_client_without_certificate_leaves_no_trace(site: Site) -> None:
    stranger = TlsClient(AUTHORITY)
    credentials = grpc.ssl_channel_credentials(*stranger.grpc_parts)
    with grpc.secure_channel(site.grpc, credentials) as channel:
        stub = omniserve_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.RpcError):
            stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S)
    with httpx2.Client(verify=stranger.context) as http, pytest.raises(httpx2.TransportError):
        http.get(f"https://{site.http}/health")
    num_before = site.process.log.count(" tiers_reloaded ")
    site.process.signal(signal.SIGHUP)
    site.process.wait_log(" tiers_reloaded ", num_before + 1)
    assert "andshake" not in site.process.log


def test_operators_need_no_certificate(site: Site) -> None:
    target = admin_target_of(site.grpc)
    assert target is not None
    with grpc.insecure_channel(target) as channel:
        answer = omniserve_pb2_grpc.AdminStub(channel).ReloadTiers(
            pb.ReloadTiersRequest(dry_run=True), timeout=PATIENCE_S
        )
    assert answer.accepted


def test_files_that_do_not_fit_end_the_start(tmp_path: Path, tiny_checkpoint: Path) -> None:
    files = CertificateFiles(tmp_path, with_clients=True)
    files.write(AUTHORITY)
    (tmp_path / "server.key").unlink()
    files.config_path.write_text(CONFIG.format(checkpoint=tiny_checkpoint))
    with DaemonProcess(SCRIPT, str(files.config_path)) as process:
        assert process.wait() == 2
        last = process.log.splitlines()[-1]
    assert last.startswith(f"omniserve: tls.key: cannot read {tmp_path}/server.key: No such file")
    assert "Traceback" not in process.log

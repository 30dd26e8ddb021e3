"""Storms of reloads, by signal and by call, of a file that is being written meanwhile."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml
from fault_daemon import TIERS, FaultDaemon, fault_daemon, make_request, write_config

from omniserve.api.grpc_admin_server import MAX_CALLS
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

NUM_ROUNDS = 60
NUM_TOKENS = 100
SLACK = 8


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    return write_config(tmp_path_factory.mktemp("f"), tiny_checkpoint)


@pytest.fixture(scope="module")
def daemon(config: Path) -> Iterator[FaultDaemon]:
    with fault_daemon(config) as running:
        yield running


def with_tiers(config: Path, number: int) -> str:
    """The file with other objectives, and every other time one tier more."""
    data: dict[str, Any] = yaml.safe_load(config.read_text())
    tiers = [{**TIERS[0], "ttft_ms": 500 + number}, TIERS[1]]
    if number % 2:
        tiers.append({"name": "extra", "class": "best_effort"})
    return yaml.safe_dump(data | {"tiers": tiers})


def tiers_of(daemon: FaultDaemon) -> str:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        stub = omniserve_pb2_grpc.InferenceStub(channel)
        return str(stub.ListModels(pb.ListModelsRequest()).tiers)


async def reload(
    admin: omniserve_pb2_grpc.AdminStub, places: asyncio.Semaphore
) -> pb.ReloadTiersResponse:
    async with places:
        answer: pb.ReloadTiersResponse = await admin.ReloadTiers(pb.ReloadTiersRequest())
        return answer


async def keep_asking(stub: omniserve_pb2_grpc.InferenceStub, is_over: asyncio.Event) -> int:
    """One whole stream after the other; returns how many they were."""
    num_served = 0
    while not is_over.is_set():
        num_tokens = 0
        async for chunk in stub.Generate(make_request(NUM_TOKENS, tier="batch")):
            num_tokens += len(chunk.token_ids)
        assert num_tokens == NUM_TOKENS
        num_served += 1
    return num_served


@pytest.mark.asyncio
async def test_a_storm_of_reloads_ends_with_the_last_file(
    config: Path, daemon: FaultDaemon
) -> None:
    before = daemon.front.num_fds()
    files = [with_tiers(config, number) for number in range(NUM_ROUNDS)]
    is_over = asyncio.Event()
    async with (
        grpc.aio.insecure_channel(daemon.grpc_address) as channel,
        grpc.aio.insecure_channel(daemon.admin) as admin_channel,
    ):
        stub = omniserve_pb2_grpc.InferenceStub(channel)
        admin = omniserve_pb2_grpc.AdminStub(admin_channel)
        load = [asyncio.create_task(keep_asking(stub, is_over)) for _ in range(4)]
        # Fewer than there are places: one is free again a little after its caller has the answer.
        calls, places = [], asyncio.Semaphore(MAX_CALLS // 2)
        for number, text in enumerate(files):
            # In parts, as an editor may: whoever reads now sees half of it.
            config.write_text(text[: number * 7 % len(text)])
            daemon.process.signal(signal.SIGHUP)
            calls += [asyncio.create_task(reload(admin, places)) for _ in range(3)]
            await asyncio.sleep(0)
            config.write_text(text)
            daemon.process.signal(signal.SIGHUP)
        answers = await asyncio.gather(*calls)
        assert (await admin.ReloadTiers(pb.ReloadTiersRequest())).accepted
        listed = await stub.ListModels(pb.ListModelsRequest())
        is_over.set()
        assert min(await asyncio.gather(*load)) > 0
    assert all(answer.accepted == (not answer.error) for answer in answers)
    assert [tier.name for tier in listed.tiers] == ["chat", "batch", "extra"]
    assert listed.tiers[0].ttft_ms == 500 + NUM_ROUNDS - 1
    daemon.check_well()
    daemon.wait_descriptors(before + SLACK)


@pytest.mark.parametrize("kind", ["missing", "directory", "empty", "huge", "binary", "unreadable"])
def test_a_file_that_is_no_configuration_changes_nothing(
    config: Path, daemon: FaultDaemon, kind: str
) -> None:
    good = config.read_text()
    num_before = daemon.process.log.count("reload_refused")
    listed_before = tiers_of(daemon)
    config.unlink()
    if kind == "directory":
        config.mkdir()
    elif kind == "unreadable":
        config.symlink_to(config)
    elif kind != "missing":
        content = {"empty": b"", "huge": b"#" * (1 << 20), "binary": bytes(range(256))}
        config.write_bytes(content[kind])
    daemon.process.signal(signal.SIGHUP)
    daemon.process.wait_log("reload_refused", num_before + 1)
    if kind == "directory":
        config.rmdir()
    else:
        config.unlink(missing_ok=True)
    config.write_text(good)
    daemon.check_well()
    assert tiers_of(daemon) == listed_before

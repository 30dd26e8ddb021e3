"""The daemon with all best-effort decodes on the host: what clients and operators see of it."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from daemon_fixture import RunningDaemon, running_daemon
from prometheus_client.parser import text_string_to_metric_families

from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

PATIENCE_S = 60.0
ALL_ON_THE_HOST = "{host_kv_bytes: 16MiB, max_resident_decodes: 0, when: always}"
PROMPTS = ("Once upon a time", "Two", "A", "The end of all things is")
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def daemon(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDaemon]:
    directory = tmp_path_factory.mktemp("piggyback-daemon")
    with running_daemon(tiny_checkpoint, directory, ALL_ON_THE_HOST) as running:
        yield running


@pytest.fixture
def channel(daemon: RunningDaemon) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        yield channel


def complete_all(channel: grpc.Channel, tier: str) -> list[pb.GenerateResult]:
    """All prompts at the same time."""
    stub: Any = omniserve_pb2_grpc.InferenceStub(channel)
    sampling = pb.Sampling(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    requests = [
        pb.GenerateRequest(model="demo", text=text, tier=tier, sampling=sampling)
        for text in PROMPTS
    ]
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda each: stub.Complete(each, timeout=PATIENCE_S), requests))


def idle_status(daemon: RunningDaemon) -> pb.ModelStatus:
    """The first status that shows nobody running, waiting or offloaded."""
    with grpc.insecure_channel(daemon.admin_target) as channel:
        stub: Any = omniserve_pb2_grpc.AdminStub(channel)
        watch = stub.WatchStatus(pb.WatchStatusRequest(interval_ms=100), timeout=PATIENCE_S)
        for status in watch:
            (model,) = status.models
            busy = sum(model.running.values()) + sum(model.waiting.values())
            if not busy and not model.piggyback.num_offloaded:
                watch.cancel()
                assert isinstance(model, pb.ModelStatus)
                return model
    raise AssertionError("the status was watched in vain")


def metric(daemon: RunningDaemon, name: str, **labels: str) -> float:
    """The sum of all samples of this name that have these labels."""
    text = httpx2.get(f"{daemon.http_url}/metrics", timeout=PATIENCE_S).text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    found = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
    assert found, name
    return sum(found)


def test_best_effort_tokens_are_the_same_and_tell_that_they_piggybacked(
    channel: grpc.Channel,
) -> None:
    resident = complete_all(channel, "interactive")
    offloaded = complete_all(channel, "batch")
    for here, there in zip(resident, offloaded, strict=True):
        assert list(here.choices[0].token_ids) == list(there.choices[0].token_ids)
        assert here.usage.piggybacked_tokens == 0
        assert there.usage.output_tokens == NUM_TOKENS
        # The prompt's own step gives the first token; no decode but a first may stay.
        assert NUM_TOKENS - 2 <= there.usage.piggybacked_tokens <= NUM_TOKENS - 1


def test_every_layer_of_every_token_is_counted(
    daemon: RunningDaemon, channel: grpc.Channel, tiny_checkpoint: Path
) -> None:
    num_layers = json.loads((tiny_checkpoint / "config.json").read_text())["num_hidden_layers"]
    # What came before has been told of.
    idle_status(daemon)
    num_rows = metric(daemon, "omniserve_lane_rows_joined_total", model="demo")
    num_swaps = metric(daemon, "omniserve_kv_swaps_total", direction="out")
    results = complete_all(channel, "batch")
    num_tokens = sum(each.usage.piggybacked_tokens for each in results)
    status = idle_status(daemon).piggyback
    assert status.num_rows_joined == num_rows + num_tokens * num_layers
    assert status.num_rows_joined == status.num_tokens * num_layers
    for name in ("omniserve_lane_rows_joined_total", "omniserve_lane_hop_steps_count"):
        assert metric(daemon, name, model="demo") == status.num_rows_joined
    tokens = metric(daemon, "omniserve_tokens_total", tier="batch", kind="piggybacked")
    assert num_tokens <= tokens <= status.num_tokens
    assert metric(daemon, "omniserve_kv_swaps_total", direction="out") == num_swaps + len(PROMPTS)
    assert metric(daemon, "omniserve_host_attention_up", model="demo") == 1


def test_nothing_is_held_while_idle(daemon: RunningDaemon, channel: grpc.Channel) -> None:
    complete_all(channel, "batch")
    idle_status(daemon)
    assert metric(daemon, "omniserve_offloaded_requests", model="demo") == 0
    assert metric(daemon, "omniserve_lane_rows_ready", model="demo") == 0
    assert metric(daemon, "omniserve_host_queue_depth", model="demo") == 0
    assert metric(daemon, "omniserve_lane_residual_bytes", model="demo") == 0


def test_the_host_process_ends_with_a_killed_engine(daemon: RunningDaemon) -> None:
    (host,) = daemon.process.engine.children()
    daemon.process.engine.kill()
    daemon.process.wait_log("engine_spawned")
    host.wait(PATIENCE_S)
    assert not host.is_running()

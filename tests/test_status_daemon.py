"""What a real daemon says of itself."""

from typing import Any

import grpc
import pytest
from daemon_fixture import RunningDaemon

from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

PATIENCE_S = 60.0


@pytest.fixture
def admin(daemon: RunningDaemon) -> Any:
    with grpc.insecure_channel(daemon.admin_target) as channel:
        yield omniserve_pb2_grpc.AdminStub(channel)


@pytest.fixture
def inference(daemon: RunningDaemon) -> Any:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        yield omniserve_pb2_grpc.InferenceStub(channel)


def test_the_machine_and_every_layer(admin: Any, inference: Any) -> None:
    status = admin.GetStatus(pb.GetStatusRequest(), timeout=PATIENCE_S)
    (served,) = inference.ListModels(pb.ListModelsRequest(), timeout=PATIENCE_S).models
    (model,) = status.models
    assert model.kv_total_bytes > 0
    if model.HasField("piggyback"):
        rows = model.piggyback
        assert len(rows.rows_on_host) == len(rows.rows_ready) == served.num_layers
        assert 0 < status.host.num_host_cores < status.host.num_cores
    assert 0 < status.host.memory_used_bytes < status.host.memory_total_bytes
    assert status.reload_error == "" and not status.tenants


def test_a_request_is_seen_to_come_to_run_and_to_go(admin: Any, inference: Any) -> None:
    request = pb.GenerateRequest(
        model="demo",
        text="Once upon a time",
        tier="batch",
        request_id="watched",
        tenant="acme",
        sampling=pb.Sampling(ignore_eos=True),
    )
    call = inference.Generate(request, timeout=PATIENCE_S)
    next(call)
    rates = []
    watch = admin.WatchStatus(pb.WatchStatusRequest(interval_ms=100), timeout=PATIENCE_S)
    for status in watch:
        shown = [each for each in status.requests if each.request_id == "watched"]
        assert [each.phase for each in shown] == ["decoding"]
        assert (shown[0].tenant, shown[0].tier) == ("acme", "batch") and shown[0].output_tokens > 0
        rates.append(sum(tier.output_tokens_per_s for tier in status.tiers))
        running = {tier.tier: tier.num_running for tier in status.tiers}
        if rates[-1] > 0 and running["batch"]:
            break
    call.cancel()
    for status in watch:
        if not status.requests and not any(tier.num_running for tier in status.tiers):
            break
    watch.cancel()

"""A daemon with its real engine: late requests are refused, or served by the fallback."""

import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from daemon_process import DaemonProcess
from simulate_builders import make_profile

from omniserve.profiling.profile import save_profile
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

PATIENCE_S = 60.0
CONFIG = """\
listen: {{grpc: "127.0.0.1:0", http: "127.0.0.1:0"}}
device: {{kind: cpu, threads: 1}}
models:
  - {{name: demo, path: {checkpoint}, dtype: float32, device_kv_bytes: 4MiB,
     step_times: times.json}}
tiers:
  # No machine computes a prompt in a nanosecond.
  - {{name: strict, class: latency_sensitive, ttft_ms: 0.000001, tpot_ms: 500}}
  - {{name: lenient, class: latency_sensitive, ttft_ms: 0.000001, tpot_ms: 500, fallback: batch}}
  - {{name: open, class: latency_sensitive, ttft_ms: 0.000001, tpot_ms: 500, admission: false}}
  - {{name: long, class: latency_sensitive, ttft_ms: 60000, tpot_ms: 500, fallback: batch,
     demote_after_tokens: 4}}
  - {{name: batch, class: best_effort}}
"""


@pytest.fixture(scope="module")
def stub(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[omniserve_pb2_grpc.InferenceStub]:
    config = tmp_path_factory.mktemp("tiers") / "omniserve.yaml"
    save_profile(make_profile(), config.with_name("times.json"))
    config.write_text(CONFIG.format(checkpoint=tiny_checkpoint))
    with DaemonProcess("-m", "omniserve", "serve", str(config)) as process:
        address, _ = process.wait_ready()
        with grpc.insecure_channel(address) as channel:
            yield omniserve_pb2_grpc.InferenceStub(channel)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0, process.log


def complete(stub: omniserve_pb2_grpc.InferenceStub, tier: str, n: int = 1) -> pb.GenerateResult:
    sampling = pb.Sampling(temperature=0.0, max_tokens=8, ignore_eos=True, n=n)
    request = pb.GenerateRequest(model="demo", text="Hello", tier=tier, sampling=sampling)
    result = stub.Complete(request, timeout=PATIENCE_S)
    assert isinstance(result, pb.GenerateResult)
    return result


@pytest.mark.parametrize("n", [1, 3])
def test_late_requests_are_refused(stub: omniserve_pb2_grpc.InferenceStub, n: int) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        complete(stub, "strict", n)
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "tier 'strict' promises the first token within" in str(failed.value.details())


@pytest.mark.parametrize(
    ("tier", "served"),
    [("lenient", "batch"), ("open", "open"), ("long", "batch"), ("batch", "batch")],
)
def test_others_are_served_alike_by_the_tier_that_they_are_told(
    stub: omniserve_pb2_grpc.InferenceStub, tier: str, served: str
) -> None:
    result = complete(stub, tier, n=2)
    assert result.tier == served
    texts = {choice.text for choice in result.choices}
    assert texts == {complete(stub, "batch").choices[0].text}

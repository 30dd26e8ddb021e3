"""Asking a real daemon what became of requests, over gRPC and by the command."""

import json
from typing import Any

import grpc
import httpx
import pytest
from daemon_fixture import RunningDaemon
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from omniserve.cli import main
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

PATIENCE_S = 60.0
LIFE = ["received", "tokenised", "queued", "admitted", "computed", "first token"]


def complete(daemon: RunningDaemon, request_id: str, n: int = 1, max_tokens: int = 4) -> None:
    sampling = pb.Sampling(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, n=n)
    request = pb.GenerateRequest(
        model="demo", text="Once upon a time", sampling=sampling, request_id=request_id
    )
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        stub: Any = omniserve_pb2_grpc.InferenceStub(channel)
        stub.Complete(request, timeout=PATIENCE_S)


def explain(daemon: RunningDaemon, request_id: str) -> list[pb.TimelineEntry]:
    with grpc.insecure_channel(daemon.admin_target) as channel:
        stub: Any = omniserve_pb2_grpc.AdminStub(channel)
        answer = stub.Explain(pb.ExplainRequest(request_id=request_id), timeout=PATIENCE_S)
    return list(answer.timeline)


def test_the_life_of_a_request(daemon: RunningDaemon) -> None:
    complete(daemon, "explain-1")
    timeline = explain(daemon, "explain-1")
    events = [entry.event for entry in timeline]
    assert events[:6] == LIFE and set(events[6:]) == {"first token sent", "finished", "ended"}
    assert timeline[0].at_s == 0.0
    assert all(0.0 <= entry.at_s <= entry.last_s < PATIENCE_S for entry in timeline)
    by_event = {entry.event: entry for entry in timeline}
    assert by_event["finished"].detail == "4 tokens" and by_event["ended"].reason == "ok"
    assert by_event["queued"].sequence == 0 and by_event["received"].sequence == -1
    # A request that uses the id again is told of from then on.
    complete(daemon, "explain-1", max_tokens=2)
    details = {entry.event: entry.detail for entry in explain(daemon, "explain-1")}
    assert details["finished"] == "2 tokens"


def test_every_sequence_of_a_request(daemon: RunningDaemon) -> None:
    complete(daemon, "explain-n", n=3)
    finished = [each for each in explain(daemon, "explain-n") if each.event == "finished"]
    assert sorted(entry.sequence for entry in finished) == [0, 1, 2]


def test_the_id_of_an_http_answer(daemon: RunningDaemon) -> None:
    body = {"model": "demo", "prompt": "Hello", "max_tokens": 2}
    answer = httpx.post(f"{daemon.http_url}/v1/completions", json=body, timeout=PATIENCE_S)
    answer.raise_for_status()
    for request_id in (answer.json()["id"], answer.headers["x-request-id"]):
        assert [entry.event for entry in explain(daemon, request_id)][:6] == LIFE


def test_the_id_of_the_log(daemon: RunningDaemon) -> None:
    body = {"model": "demo", "prompt": "Hello", "max_tokens": 2}
    answer = httpx.post(f"{daemon.http_url}/v1/completions", json=body, timeout=PATIENCE_S)
    daemon.process.wait_log(f"request_id={answer.headers['x-request-id']} ")


def test_requests_that_are_not_known(daemon: RunningDaemon) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        explain(daemon, "explain-nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        explain(daemon, "")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_command_prints_a_table(
    daemon: RunningDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    complete(daemon, "explain-2", n=2)
    assert main(["explain", "explain-2", "--admin", daemon.admin_target]) == 0
    printed = capsys.readouterr()
    head, _, *rows = printed.out.splitlines()
    assert head.split() == ["after", "ms", "until", "ms", "times", "sequence", "event", "why"]
    assert rows[0].split() == ["0.0", "all", "received"]
    assert any(" 1 " in row and "finished" in row and "4 tokens" in row for row in rows)
    assert printed.err == "" and "\x1b" not in printed.out


def test_the_command_prints_json(daemon: RunningDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    complete(daemon, "explain-3")
    assert main(["explain", "explain-3", "--admin", daemon.admin_target, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["request_id"] == "explain-3"
    assert [entry["event"] for entry in told["timeline"]][:6] == LIFE


def test_the_command_says_what_is_wrong(
    daemon: RunningDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "explain-nobody", "--admin", daemon.admin_target]) == 1
    assert "nothing is known of request 'explain-nobody'" in capsys.readouterr().err
    assert main(["explain", "some", "--admin", "127.0.0.1:9"]) == 3
    assert "127.0.0.1:9 does not answer" in capsys.readouterr().err
    assert main(["explain", "some", "--admin", "nowhere"]) == 2
    assert "must be unix:/path or host:port" in capsys.readouterr().err


def test_the_id_that_comes_with_an_error(daemon: RunningDaemon) -> None:
    body = {"model": "demo", "prompt": "Hello", "service_tier": "nowhere"}
    answer = httpx.post(f"{daemon.http_url}/v1/completions", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 400
    last = explain(daemon, answer.headers["x-request-id"])[-1]
    assert (last.event, last.reason) == ("ended", "invalid")
    assert last.detail == answer.json()["error"]["message"]


@pytest.mark.parametrize(("sent", "told"), [("explain-bad", "explain-bad"), ("a\r\nb", None)])
def test_the_id_in_the_details_of_a_grpc_error(
    daemon: RunningDaemon, sent: str, told: str | None
) -> None:
    with grpc.insecure_channel(daemon.grpc_address) as channel:
        stub: Any = omniserve_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            request = pb.GenerateRequest(model="demo", text="x", tier="nowhere", request_id=sent)
            stub.Complete(request, timeout=PATIENCE_S)
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    assert status is not None and status.details[0].Unpack(info)
    assert info.metadata.get("request_id") == told

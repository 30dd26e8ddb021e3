"""Traces and the access log of the daemon as a real process."""

import json
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from daemon_process import PATIENCE_S, DaemonProcess
from trace_collector import attributes, grpc_collector, http_collector

SCRIPT = str(Path(__file__).parent / "scripted_daemon.py")
SECRET = "the quick brown fox"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}


def write_config(directory: Path, checkpoint: Path, tracing: str) -> Path:
    path = directory / "omniserve.yaml"
    path.write_text(
        "listen: {grpc: '127.0.0.1:0', http: '127.0.0.1:0'}\n"
        f"models: [{{name: echo, path: {checkpoint}}}]\n"
        "tiers: [{name: chat, class: latency_sensitive, ttft_ms: 500, tpot_ms: 100}]\n"
        f"tracing: {{{tracing}}}\n"
    )
    return path


def start(config: Path) -> DaemonProcess:
    return DaemonProcess(SCRIPT, str(config), "--", "--log-format", "json")


def ask(url: str, **fields: Any) -> httpx.Response:
    body = {"model": "echo", "prompt": SECRET, "max_tokens": 2} | fields
    return httpx.post(f"{url}/v1/completions", json=body, headers=HEADERS, timeout=PATIENCE_S)


def test_spans_arrive_and_the_log_names_their_trace(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with http_collector() as collector:
        tracing = f"endpoint: '{collector.endpoint}', protocol: http"
        with start(write_config(tmp_path, tiny_checkpoint, tracing)) as daemon:
            _, url = daemon.wait_ready()
            assert ask(url).is_success
            assert ask(url, temperature=-1).status_code == 400
            collector.wait_spans(2)
            daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0
        answered, refused = collector.spans
    assert {span.trace_id.hex() for span in (answered, refused)} == {TRACE_ID}
    assert attributes(answered)["gen_ai.usage.output_tokens"] == 2
    assert attributes(refused)["omniserve.outcome"] == "invalid"
    events = [event.name for event in answered.events]
    assert [events[0], events[-1]] == ["received", "ended"]
    assert SECRET.encode() not in collector.raw
    lines = [json.loads(line) for line in daemon.log.splitlines()]
    found = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in found] == ["200", "400"]
    assert {line["trace_id"] for line in found} == {TRACE_ID}
    assert SECRET not in daemon.log


def test_what_waits_is_sent_when_the_daemon_stops(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than the daemon gives it, for machines that are slow now and then.
    monkeypatch.setenv("SERVER_STOP_S", "30")
    with grpc_collector() as collector:
        config = write_config(tmp_path, tiny_checkpoint, f"endpoint: '{collector.endpoint}'")
        with start(config) as daemon:
            _, url = daemon.wait_ready()
            for _ in range(20):
                assert ask(url).is_success
            daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0
        assert len(collector.spans) == 20


def test_a_collector_that_hangs_does_not_hold_up_the_end(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        endpoint = f"http://127.0.0.1:{dead.getsockname()[1]}"
        tracing = f"endpoint: '{endpoint}', protocol: http"
        with start(write_config(tmp_path, tiny_checkpoint, tracing)) as daemon:
            _, url = daemon.wait_ready()
            assert ask(url).is_success
            daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0


def test_a_reload_says_that_traces_need_a_restart(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint, "endpoint: 'http://127.0.0.1:9'")
    with start(config) as daemon:
        daemon.wait_ready()
        write_config(tmp_path, tiny_checkpoint, "endpoint: 'http://127.0.0.1:99'")
        daemon.signal(signal.SIGHUP)
        daemon.wait_log('"keys": "tracing.endpoint"')
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0

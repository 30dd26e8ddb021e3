"""The daemon as a real process over a scripted engine: sockets, signals, exit statuses."""

import json
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from daemon_process import PATIENCE_S, DaemonProcess
from grpc_health.v1 import health_pb2, health_pb2_grpc

from omniserve.synthetic.create import write_checkpoint

SCRIPT = str(Path(__file__).parent / "scripted_daemon.py")
SLOW = ("--token-s", "0.05")
PROMPT = list(range(200))
LONG_PROMPT = 10 * PROMPT
"""Which takes the slow engine 100 s."""
SECRET = "the quick brown fox"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "echo", arch="qwen3", preset="tiny")


def free_port() -> int:
    """Of those that the kernel gives to nobody who does not ask for them."""
    lowest, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    while True:
        port = random.randrange(max(1024, lowest // 2), max(2048, lowest))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def write_config(
    directory: Path,
    checkpoint: Path,
    *,
    grpc_port: int = 0,
    http_port: int = 0,
    grace_s: float = 30,
    heartbeat_s: float = 30,
) -> str:
    path = directory / "omniserve.yaml"
    path.write_text(
        f"listen: {{grpc: '127.0.0.1:{grpc_port}', http: '127.0.0.1:{http_port}'}}\n"
        f"models: [{{name: echo, path: {checkpoint}}}]\n"
        "tiers:\n"
        "  - {name: chat, class: latency_sensitive, ttft_ms: 500, tpot_ms: 100}\n"
        f"daemon: {{shutdown_grace_s: {grace_s}, engine_heartbeat_s: {heartbeat_s}}}\n"
    )
    return str(path)


def make_daemon(config: str, *options: str) -> DaemonProcess:
    return DaemonProcess(SCRIPT, config, *options)


def completion(url: str, max_tokens: int = 5) -> httpx.Response:
    body = {"model": "echo", "prompt": PROMPT, "max_tokens": max_tokens}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE_S)


def stream_events(response: httpx.Response) -> Iterator[dict[str, object]]:
    for line in response.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def open_stream(client: httpx.Client, url: str, max_tokens: int) -> Iterator[dict[str, object]]:
    """Starts a streaming completion and returns its events once the first has come."""
    body = {"model": "echo", "prompt": LONG_PROMPT, "max_tokens": max_tokens, "stream": True}
    request = client.build_request("POST", f"{url}/v1/completions", json=body, timeout=PATIENCE_S)
    events = stream_events(client.send(request, stream=True))
    next(events)
    return events


def grpc_health(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        status: int = stub.Check(
            health_pb2.HealthCheckRequest(), timeout=PATIENCE_S, wait_for_ready=True
        ).status
        return status


def http_health(url: str) -> int:
    return httpx.get(f"{url}/health", timeout=PATIENCE_S).status_code


def wait_until_gone(process: psutil.Process) -> None:
    process.wait(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path
) -> Iterator[tuple[DaemonProcess, str, str]]:
    """One daemon for the tests that leave it running."""
    config = write_config(tmp_path_factory.mktemp("shared"), checkpoint)
    with make_daemon(config, *SLOW, "--", "--log-format", "json") as daemon:
        yield (daemon, *daemon.wait_ready())
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


def test_ready_means_that_requests_are_answered(shared: tuple[DaemonProcess, str, str]) -> None:
    _, address, url = shared
    assert grpc_health(address) == health_pb2.HealthCheckResponse.SERVING
    assert http_health(url) == 200
    answer = completion(url).json()
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["text"].split() == ["0", "1", "2", "3", "4"]


def test_logs_are_structured_and_hold_no_prompt(shared: tuple[DaemonProcess, str, str]) -> None:
    daemon, _, url = shared
    body: dict[str, object] = {"model": "echo", "prompt": SECRET, "max_tokens": 2}
    for temperature, status in ((0, 200), (-1, 400)):
        body["temperature"] = temperature
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE_S)
        assert answer.status_code == status
    daemon.wait_log('"outcome": "invalid"')
    events = [json.loads(line) for line in daemon.log.splitlines()]
    (piggybacking,) = (event for event in events if event["event"] == "piggybacking")
    assert piggybacking["models"] == "echo off (no tier is best_effort)"
    assert all({"time", "level", "event"} <= set(event) for event in events)
    done = next(event for event in events if event.get("outcome") == "ok")
    assert (done["model"], done["tier"]) == ("echo", "chat")
    assert done["e2e_ms"] >= done["ttft_ms"] > 0
    assert SECRET not in daemon.log


def test_a_killed_engine_fails_streams_and_comes_back(tmp_path: Path, checkpoint: Path) -> None:
    not_yet = tmp_path / "not-yet"
    config = write_config(tmp_path, checkpoint)
    options = (*SLOW, "--fail-if", str(not_yet))
    with make_daemon(config, *options) as daemon, httpx.Client() as client:
        address, url = daemon.wait_ready()
        events = open_stream(client, url, len(LONG_PROMPT))
        before = daemon.engine
        not_yet.write_text("it cannot come back yet")
        before.kill()
        last = list(events)[-1]
        assert "error" in last
        # Its end was noticed, not its silence.
        assert "said nothing" not in daemon.log
        assert (completion(url).status_code, http_health(url)) == (503, 503)
        assert grpc_health(address) == health_pb2.HealthCheckResponse.NOT_SERVING
        not_yet.unlink()
        wait_until_served(url)
        assert daemon.engine.pid != before.pid
        assert http_health(url) == 200
        assert grpc_health(address) == health_pb2.HealthCheckResponse.SERVING


def wait_until_served(url: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while (status := completion(url).status_code) != 200:
        assert status == 503
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_a_hanging_engine_is_replaced(tmp_path: Path, checkpoint: Path) -> None:
    with make_daemon(write_config(tmp_path, checkpoint, heartbeat_s=2)) as daemon:
        _, url = daemon.wait_ready()
        hung = daemon.engine
        hung.suspend()
        daemon.wait_log("said nothing for 2 s")
        wait_until_gone(hung)
        wait_until_served(url)


def test_sigterm_lets_running_requests_end_and_refuses_new_ones(
    tmp_path: Path, checkpoint: Path
) -> None:
    config = write_config(tmp_path, checkpoint, grace_s=300, heartbeat_s=300)
    with make_daemon(config, *SLOW) as daemon, httpx.Client() as client:
        address, url = daemon.wait_ready()
        engine = daemon.engine
        events = open_stream(client, url, 60)
        # The request runs for as long as anything is asked here.
        engine.suspend()
        daemon.signal(signal.SIGTERM)
        daemon.wait_log("draining")
        refused = completion(url)
        assert refused.status_code == 503
        assert grpc_health(address) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert http_health(url) == 503
        engine.resume()
        *_, last = events
        assert last["choices"][0]["finish_reason"] == "length"  # type: ignore[index]
        assert daemon.wait() == 0
        assert not engine.is_running()
        assert list(daemon.temp_dir.iterdir()) == []


def test_sigint_stops_an_idle_daemon(tmp_path: Path, checkpoint: Path) -> None:
    with make_daemon(write_config(tmp_path, checkpoint)) as daemon:
        daemon.wait_ready()
        daemon.signal(signal.SIGINT)
        assert daemon.wait() == 0
        assert "Traceback" not in daemon.log
        assert "forced" not in daemon.log


def test_the_grace_period_ends_requests_with_an_error(tmp_path: Path, checkpoint: Path) -> None:
    config = write_config(tmp_path, checkpoint, grace_s=0.3)
    with make_daemon(config, *SLOW) as daemon, httpx.Client() as client:
        _, url = daemon.wait_ready()
        events = open_stream(client, url, len(LONG_PROMPT))
        daemon.signal(signal.SIGTERM)
        assert "error" in list(events)[-1]
        assert daemon.wait() == 0
        assert "num_cut=1" in daemon.log


def test_a_second_signal_ends_at_once(tmp_path: Path, checkpoint: Path) -> None:
    config = write_config(tmp_path, checkpoint)
    with make_daemon(config, *SLOW) as daemon, httpx.Client() as client:
        _, url = daemon.wait_ready()
        engine = daemon.engine
        open_stream(client, url, len(LONG_PROMPT))
        daemon.signal(signal.SIGTERM)
        daemon.wait_log("draining")
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 128 + signal.SIGTERM
        wait_until_gone(engine)
        assert list(daemon.temp_dir.iterdir()) == []


def test_not_serving_while_the_engine_loads_and_stoppable(tmp_path: Path, checkpoint: Path) -> None:
    grpc_port, http_port = free_port(), free_port()
    config = write_config(tmp_path, checkpoint, grpc_port=grpc_port, http_port=http_port)
    with make_daemon(config, "--load-s", "600") as daemon:
        daemon.wait_log("engine_spawned")
        address = f"127.0.0.1:{grpc_port}"
        assert grpc_health(address) == health_pb2.HealthCheckResponse.NOT_SERVING
        url = f"http://127.0.0.1:{http_port}"
        wait_for_port(http_port)
        assert http_health(url) == 503
        assert completion(url).status_code == 503
        engine = daemon.engine
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert not engine.is_running()


def test_an_engine_that_cannot_load_ends_the_daemon(tmp_path: Path, checkpoint: Path) -> None:
    reason = tmp_path / "reason"
    reason.write_text("model echo: the weights are truncated")
    with make_daemon(write_config(tmp_path, checkpoint), "--fail-if", str(reason)) as daemon:
        assert daemon.wait() == 2
        assert daemon.log.splitlines()[-1] == "omniserve: model echo: the weights are truncated"
        assert list(daemon.temp_dir.iterdir()) == []


def test_a_vector_path_that_is_none_ends_the_daemon(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNISERVE_CPU_ISA", "avx1024")
    config = write_config(tmp_path, checkpoint)
    with DaemonProcess("-m", "omniserve", "serve", config) as daemon:
        assert daemon.wait() == 2
        assert "Traceback" not in daemon.log
        expected = "omniserve: OMNISERVE_CPU_ISA=avx1024: this CPU can take "
        assert daemon.log.splitlines()[-1].startswith(expected)


def test_an_engine_that_crashes_at_load_ends_the_daemon(tmp_path: Path, checkpoint: Path) -> None:
    crash = tmp_path / "crash"
    crash.touch()
    with make_daemon(write_config(tmp_path, checkpoint), "--crash-if", str(crash)) as daemon:
        assert daemon.wait() == 1
        assert daemon.log.splitlines()[-1].endswith("was ended by SIGSEGV")


def test_a_dead_background_task_ends_the_daemon(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREAK_SUPERVISION", "1")
    with make_daemon(write_config(tmp_path, checkpoint)) as daemon:
        daemon.wait_ready()
        daemon.engine.kill()
        assert daemon.wait() == 1
        assert "error daemon_failed" in daemon.log
        assert "RuntimeError: this supervision has a fault" in daemon.log
        assert list(daemon.temp_dir.iterdir()) == []


@pytest.mark.parametrize("key", ["grpc", "http"])
def test_a_port_in_use_is_found_before_anything_starts(
    tmp_path: Path, checkpoint: Path, key: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = write_config(
            tmp_path,
            checkpoint,
            grpc_port=port if key == "grpc" else 0,
            http_port=port if key == "http" else 0,
        )
        with make_daemon(config) as daemon:
            assert daemon.wait() == 2
            expected = (
                f"omniserve: listen.{key}: cannot listen on 127.0.0.1:{port}: Address already"
            )
            assert daemon.log.startswith(expected)
            assert list(daemon.temp_dir.iterdir()) == []


def test_a_missing_checkpoint_is_found_before_anything_starts(tmp_path: Path) -> None:
    with make_daemon(write_config(tmp_path, tmp_path / "nowhere")) as daemon:
        assert daemon.wait() == 2
        (line,) = daemon.log.splitlines()
        assert line.startswith("omniserve: model 'echo': ")
        assert "nowhere" in line


def test_the_engine_does_not_outlive_a_killed_daemon(tmp_path: Path, checkpoint: Path) -> None:
    with make_daemon(write_config(tmp_path, checkpoint)) as daemon:
        daemon.wait_ready()
        engine = daemon.engine
        daemon.signal(signal.SIGKILL)
        assert daemon.wait() == -signal.SIGKILL
        wait_until_gone(engine)


def wait_for_port(port: int) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

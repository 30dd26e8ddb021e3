"""The engine client against real engine processes that follow a script."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from omniserve.backoff import MAX_DELAY_S, Backoff
from omniserve.engine_client import EngineClient
from omniserve.engine_process_handle import remove_stale_directories
from omniserve.engine_supervision import EngineSupervision
from omniserve.errors import CheckpointError, EngineError, EngineUnavailable, InvalidRequest
from omniserve.requests import EngineRequest, RequestOutput, SamplingParams
from omniserve.settings import DeviceSettings, EngineSettings, ModelSettings

SCRIPT = str(Path(__file__).parent / "scripted_engine.py")
SETTINGS = EngineSettings(DeviceSettings(), (ModelSettings("echo", "/nowhere"),))
PATIENCE_S = 60.0
SHORT_HEARTBEAT_S = 3.0
"""And yet longer than an engine process waits for its turn on a busy machine."""


def make_request(request_id: str, num_tokens: int = 5) -> EngineRequest:
    prompt = tuple(range(num_tokens))
    return EngineRequest(request_id, "echo", prompt, SamplingParams(), "latency_sensitive", "chat")


@asynccontextmanager
async def running_client(
    *options: str,
    heartbeat_s: float = 30.0,
    load_s: float = 30.0,
    settings: EngineSettings = SETTINGS,
) -> AsyncIterator[EngineClient]:
    client = make_client(*options, heartbeat_s=heartbeat_s, load_s=load_s, settings=settings)
    try:
        await client.start()
        yield client
    finally:
        await client.stop(grace_s=5)


def make_client(
    *options: str,
    heartbeat_s: float = 30.0,
    load_s: float = 30.0,
    settings: EngineSettings = SETTINGS,
) -> EngineClient:
    command = (sys.executable, SCRIPT, *options)
    return EngineClient(settings, EngineSupervision(heartbeat_s, load_s, command))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


def running(client: EngineClient) -> dict[str, int] | None:
    stats = client.stats.get("echo")
    return stats.running if stats else None


class QueuedOutputs:
    """What a sink is told, in order."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[RequestOutput | Exception] = asyncio.Queue()

    def put(self, output: RequestOutput) -> None:
        self.queue.put_nowait(output)

    def fail(self, error: Exception) -> None:
        self.queue.put_nowait(error)


async def generate(
    client: EngineClient, request: EngineRequest
) -> AsyncGenerator[RequestOutput, None]:
    """All outputs of a request; closing earlier aborts it."""
    sink = QueuedOutputs()
    client.submit(request, sink)
    try:
        while True:
            told = await sink.queue.get()
            if isinstance(told, Exception):
                raise told
            yield told
            if told.finish_reason is not None:
                return
    finally:
        client.abort(request.request_id)


async def collect(client: EngineClient, request: EngineRequest) -> list[RequestOutput]:
    return [output async for output in generate(client, request)]


@pytest.fixture(autouse=True)
def private_temp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where clients put their sockets, so that a test sees what is left of them.

    Not `tmp_path` itself, whose name is too long for a socket; asked for all the same, because
    pytest makes its own directories on first use, which must not be in here.
    """
    with tempfile.TemporaryDirectory(prefix="t-") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield Path(directory)


@pytest.mark.asyncio
async def test_answers_concurrent_requests_and_leaves_nothing(private_temp_dir: Path) -> None:
    async with running_client() as client:
        assert client.state == "ready"
        assert client.device == "scripted"
        assert client.models["echo"].architecture == "EchoForCausalLM"
        requests = [make_request(f"r{number}", number + 1) for number in range(20)]
        answers = await asyncio.gather(*(collect(client, request) for request in requests))
        for request, outputs in zip(requests, answers, strict=True):
            tokens = [token for output in outputs for token in output.token_ids]
            assert tokens == list(request.prompt_token_ids)
            assert outputs[-1].finish_reason == "stop"
        assert client.num_in_flight == 0
        engine = psutil.Process(client.pid)
        (directory,) = private_temp_dir.iterdir()
        assert directory.stat().st_mode & 0o777 == 0o700
    assert not engine.is_running()
    assert list(private_temp_dir.iterdir()) == []


@pytest.mark.asyncio
async def test_closing_a_stream_early_aborts_it_in_the_engine() -> None:
    async with running_client("--token-s", "0.01") as client:
        stream = generate(client, make_request("long", 100_000))
        await anext(stream)
        await until(lambda: running(client) == {"chat": 1})
        await stream.aclose()
        await until(lambda: running(client) == {})
        assert client.num_in_flight == 0


@pytest.mark.asyncio
async def test_cancelling_the_consumer_aborts_too() -> None:
    async with running_client("--token-s", "0.01") as client:
        consumer = asyncio.create_task(collect(client, make_request("long", 100_000)))
        await until(lambda: running(client) == {"chat": 1})
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        await until(lambda: running(client) == {})


@pytest.mark.asyncio
async def test_an_id_in_use_is_refused_and_free_again_later() -> None:
    async with running_client("--token-s", "0.01") as client:
        stream = generate(client, make_request("same", 100_000))
        await anext(stream)
        with pytest.raises(InvalidRequest, match="'same' is in use"):
            await collect(client, make_request("same"))
        assert (await anext(stream)).token_ids == (1,)
        await stream.aclose()
        assert len(await collect(client, make_request("same"))) == 5


@pytest.mark.asyncio
async def test_a_killed_engine_fails_streams_at_once_and_comes_back(
    private_temp_dir: Path,
) -> None:
    states: list[str] = []
    async with running_client("--token-s", "0.01") as client:
        client.on_state_change(states.append)
        streams = [generate(client, make_request(f"r{number}", 10_000)) for number in range(8)]
        for stream in streams:
            await anext(stream)
        first_pid = client.pid
        assert first_pid is not None
        os.kill(first_pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(EngineUnavailable, match="try again"):
                async for _ in stream:
                    pass
        assert client.state == "restarting"
        with pytest.raises(EngineUnavailable, match="restarting"):
            await collect(client, make_request("meanwhile"))
        await until(lambda: client.ready)
        assert states == ["restarting", "ready"]
        assert client.num_restarts == 1
        assert client.pid != first_pid
        assert len(await collect(client, make_request("again"))) == 5


@pytest.mark.asyncio
async def test_a_hanging_engine_is_killed_and_replaced() -> None:
    async with running_client("--token-s", "0.01", heartbeat_s=SHORT_HEARTBEAT_S) as client:
        stream = generate(client, make_request("r", 10_000))
        await anext(stream)
        hung = psutil.Process(client.pid)
        hung.suspend()
        with pytest.raises(EngineUnavailable):
            async for _ in stream:
                pass
        await until(lambda: client.ready)
        assert not hung.is_running()
        assert len(await collect(client, make_request("again"))) == 5


@pytest.mark.asyncio
async def test_an_idle_engine_is_not_taken_for_a_hanging_one() -> None:
    async with running_client(heartbeat_s=SHORT_HEARTBEAT_S) as client:
        # The silence that would be too long has a quarter more.
        await asyncio.sleep(1.5 * SHORT_HEARTBEAT_S)
        assert client.num_restarts == 0
        assert client.ready


@pytest.mark.asyncio
async def test_a_failing_first_load_is_final(tmp_path: Path, private_temp_dir: Path) -> None:
    reason = tmp_path / "reason"
    reason.write_text("model echo: /nowhere holds no checkpoint")
    client = make_client("--fail-if", str(reason))
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        await client.start()
    assert client.state == "failed"
    await client.stop(grace_s=5)
    assert list(private_temp_dir.iterdir()) == []


@pytest.mark.asyncio
async def test_a_crashing_first_load_names_the_signal(tmp_path: Path) -> None:
    crash = tmp_path / "crash"
    crash.touch()
    client = make_client("--crash-if", str(crash))
    with pytest.raises(EngineError, match="SIGSEGV"):
        await client.start()
    await client.stop(grace_s=5)


@pytest.mark.asyncio
async def test_a_load_that_never_ends_is_given_up() -> None:
    client = make_client("--load-s", "600", heartbeat_s=0.1, load_s=0.3)
    with pytest.raises(EngineError, match=r"not ready after 0.3 s"):
        await client.start()
    await client.stop(grace_s=5)


@pytest.mark.asyncio
async def test_a_failing_reload_is_tried_again(tmp_path: Path) -> None:
    reason = tmp_path / "reason"
    async with running_client("--fail-if", str(reason)) as client:
        reason.write_text("not now")
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        await until(lambda: client.num_restarts == 2)
        assert client.state == "restarting"
        reason.unlink()
        await until(lambda: client.ready)
        assert len(await collect(client, make_request("again"))) == 5


@pytest.mark.asyncio
async def test_an_engine_that_cannot_be_spawned_is_an_error_at_first_and_tried_again_later(
    tmp_path: Path,
) -> None:
    script = tmp_path / "engine"
    client = EngineClient(SETTINGS, EngineSupervision(command=(str(script),)))
    with pytest.raises(EngineError, match="cannot start the engine process"):
        await client.start()
    await client.stop(grace_s=5)

    script.write_text(f"#!/bin/sh\nexec {sys.executable} {SCRIPT} $1\n")
    script.chmod(0o700)
    client = EngineClient(SETTINGS, EngineSupervision(command=(str(script),)))
    await client.start()
    script.chmod(0o600)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    await until(lambda: client.num_restarts == 2)
    assert client.state == "restarting"
    script.chmod(0o700)
    await until(lambda: client.ready)
    await client.stop(grace_s=5)


@pytest.mark.asyncio
async def test_stopping_while_the_engine_loads_does_not_wait_for_it() -> None:
    client = make_client("--load-s", "600")
    starting = asyncio.create_task(client.start())
    await until(lambda: client.pid is not None)
    engine = psutil.Process(client.pid)
    starting.cancel()
    async with asyncio.timeout(PATIENCE_S):
        await client.stop(grace_s=500)
    assert not engine.is_running()


@pytest.mark.asyncio
async def test_an_engine_that_does_not_stop_in_time_is_killed() -> None:
    client = make_client("--stop-s", "600")
    await client.start()
    engine = psutil.Process(client.pid)
    async with asyncio.timeout(PATIENCE_S):
        await client.stop(grace_s=0.1)
    assert not engine.is_running()


@pytest.mark.asyncio
async def test_stop_ends_open_streams() -> None:
    client = make_client("--token-s", "0.01")
    await client.start()
    stream = generate(client, make_request("r", 10_000))
    await anext(stream)
    await client.stop(grace_s=5)
    with pytest.raises(EngineUnavailable, match="stopping"):
        async for _ in stream:
            pass


@pytest.mark.asyncio
async def test_a_garbling_engine_is_replaced(tmp_path: Path) -> None:
    """A process that connects and speaks nonsense is given up like one that crashed."""
    script = tmp_path / "garbling.py"
    script.write_text(
        "import sys, time, zmq\n"
        "socket = zmq.Context().socket(zmq.PAIR)\n"
        "socket.connect(sys.argv[-1])\n"
        "socket.send(b'\\xc1')\n"
        "time.sleep(600)\n"
    )
    command = (sys.executable, str(script))
    client = EngineClient(SETTINGS, EngineSupervision(command=command))
    with pytest.raises(EngineError, match="unknown message"):
        await client.start()
    await client.stop(grace_s=5)


def test_the_engine_dies_with_a_killed_front(tmp_path: Path, private_temp_dir: Path) -> None:
    front = tmp_path / "front.py"
    front.write_text(
        "import asyncio, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_engine_client import make_client\n"
        "async def main():\n"
        "    client = make_client()\n"
        "    await client.start()\n"
        "    print(client.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    environment = os.environ | {
        "PYTHONPATH": str(Path(SCRIPT).parents[1]),
        "TMPDIR": str(private_temp_dir),
    }
    with subprocess.Popen(
        [sys.executable, str(front)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        engine = psutil.Process(int(process.stdout.readline()))
        process.kill()
    engine.wait(PATIENCE_S)


def test_sockets_of_dead_daemons_are_removed(private_temp_dir: Path) -> None:
    # One that no process ever has.
    ended = int(Path("/proc/sys/kernel/pid_max").read_text())
    stale, mine, foreign = (
        private_temp_dir / name
        for name in (f"omniserve-{ended}-x", f"omniserve-{os.getpid()}-x", "omniserve-demo-x")
    )
    for directory in (stale, mine, foreign):
        directory.mkdir()
    remove_stale_directories()
    assert sorted(private_temp_dir.iterdir()) == sorted([mine, foreign])


def test_backoff_doubles_up_to_its_limit_and_starts_afresh_after_health() -> None:
    backoff = Backoff()
    delays = [backoff.next_delay_s(1.0) for _ in range(8)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, MAX_DELAY_S, MAX_DELAY_S]
    assert backoff.next_delay_s(59.9) == MAX_DELAY_S
    assert backoff.next_delay_s(60.0) == 0.5
    assert backoff.next_delay_s(0.0) == 1.0


@pytest.mark.asyncio
async def test_the_engine_is_asked_about_requests() -> None:
    async with running_client("--token-s", "0.01") as client:
        streams = [generate(client, make_request(name, 10_000)) for name in ("a", "b")]
        for stream in streams:
            await anext(stream)
        answers = await asyncio.gather(*(client.explain(name) for name in ("b", "a", "nobody")))
        assert [[each.detail for each in answer] for answer in answers] == [["b"], ["a"], []]
        for stream in streams:
            await stream.aclose()


@pytest.mark.asyncio
async def test_an_engine_that_dies_answers_no_question() -> None:
    async with running_client() as client:
        asker = asyncio.create_task(client.explain("kept to itself"))
        await asyncio.sleep(0.05)
        assert not asker.done() and client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        with pytest.raises(EngineUnavailable, match="the engine was lost"):
            await asker
        with pytest.raises(EngineUnavailable, match="the engine is restarting"):
            await client.explain("a")
        await until(lambda: client.ready)
        assert await client.explain("a") == ()


@pytest.mark.asyncio
async def test_a_client_that_stops_leaves_no_question_open() -> None:
    async with running_client() as client:
        asker = asyncio.create_task(client.explain("kept to itself"))
        await asyncio.sleep(0.05)
        await client.stop(grace_s=5)
        with pytest.raises(EngineUnavailable, match="stopping"):
            await asker

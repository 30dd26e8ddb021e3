"""A machine in trouble: clocks that jump, disks that are full, processes that are stopped."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import grpc.aio
import httpx
import psutil
import pytest
import yaml
from daemon_process import PATIENCE_S, DaemonProcess
from fault_daemon import (
    FaultDaemon,
    completion,
    fault_daemon,
    make_request,
    wait_for,
    write_config,
)

from omniserve.atomic_file import write_text
from omniserve.v1 import omniserve_pb2_grpc

TROUBLED = str(Path(__file__).parent / "troubled_daemon.py")
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
SLOW = ("--token-s", "0.02")
NUM_STREAMS = 20
HEARTBEAT_S = 4.0
"""How long the engine may be silent in tests of that."""


@pytest.fixture
def config(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    return write_config(tmp_path, tiny_checkpoint)


@pytest.fixture
def watchful(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """Of a daemon that soon gives up an engine which is silent."""
    daemon = {"engine_heartbeat_s": HEARTBEAT_S, "shutdown_grace_s": 5}
    return write_config(tmp_path, tiny_checkpoint, daemon=daemon)


@contextlib.contextmanager
def troubled_daemon(config: Path, *settings: str) -> Iterator[FaultDaemon]:
    """Like `fault_daemon`, but for what its log is expected to hold."""
    with DaemonProcess(TROUBLED, *settings, "--", str(config), *SLOW) as process:
        grpc_address, url = process.wait_ready()
        admin = str(yaml.safe_load(config.read_text())["listen"]["admin"])
        yield FaultDaemon(process, grpc_address, url, admin)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0, process.log[-5000:]


async def stream_codes(
    daemon: FaultDaemon,
    num_tokens: int,
    num_streams: int,
    on_begin: Callable[[], None] = lambda: None,
) -> list[str]:
    """OK of those that got all their tokens; `on_begin` is told of each one's first."""

    async def one(stub: omniserve_pb2_grpc.InferenceStub) -> str:
        num_seen = 0
        try:
            async for chunk in stub.Generate(make_request(num_tokens, deadline_ms=600_000)):
                if not num_seen:
                    on_begin()
                num_seen += len(chunk.token_ids)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK" if num_seen == num_tokens else f"{num_seen} tokens"

    async with grpc.aio.insecure_channel(daemon.grpc_address) as channel:
        stub = omniserve_pb2_grpc.InferenceStub(channel)
        return await asyncio.gather(*(one(stub) for _ in range(num_streams)))


@pytest.mark.skipif(FAKETIME is None, reason="Debian's package faketime is not installed")
@pytest.mark.asyncio
async def test_jumps_of_the_clock_change_nothing(tmp_path: Path, config: Path) -> None:
    jump = tmp_path / "jump"
    jump.write_text("+0")
    settings = (
        f"LD_PRELOAD={FAKETIME}",
        f"FAKETIME_TIMESTAMP_FILE={jump}",
        *("FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"),
    )
    with troubled_daemon(config, *settings) as daemon:
        streams = asyncio.create_task(stream_codes(daemon, 100, NUM_STREAMS))
        for days in ("+3650d", "-3650d", "+1d", "+0"):
            # At once: half a file would end the process.
            write_text(jump, days)
            await asyncio.sleep(0.2)
            num_lines = daemon.process.log.count(" request ")
            answer = await asyncio.to_thread(completion, daemon.url, 2)
            assert answer.status_code == 200
            # It is told by the clock as it is now.
            await asyncio.to_thread(daemon.process.wait_log, " request ", num_lines + 1)
        assert await streams == ["OK"] * NUM_STREAMS
        await asyncio.to_thread(daemon.check_well)
        log = daemon.process.log
    years = {line[:4] for line in log.splitlines()}
    assert len(years) >= 3, "the clock did not jump"
    assert "engine_lost" not in log
    assert "Traceback" not in log


@pytest.mark.asyncio
async def test_an_engine_that_stalls_again_and_again_is_replaced(watchful: Path) -> None:
    with fault_daemon(watchful, *SLOW) as daemon:
        for _ in range(2):
            streams = asyncio.create_task(stream_codes(daemon, 2000, NUM_STREAMS))
            await asyncio.to_thread(wait_for, lambda: daemon.num_running == NUM_STREAMS)
            stalled = daemon.process.engine
            stalled.suspend()
            assert await streams == ["UNAVAILABLE"] * NUM_STREAMS
            await asyncio.to_thread(daemon.check_well)
            assert not stalled.is_running()
        assert daemon.status().num_engine_restarts == 2


@pytest.mark.asyncio
async def test_a_front_that_was_held_up_does_not_blame_the_engine(watchful: Path) -> None:
    """As on a machine that was suspended: longer than the engine may be silent."""
    with fault_daemon(watchful, *SLOW) as daemon:
        begun: list[None] = []
        asked = stream_codes(daemon, 200, NUM_STREAMS, lambda: begun.append(None))
        streams = asyncio.create_task(asked)
        while len(begun) < NUM_STREAMS:
            assert not streams.done()
            await asyncio.sleep(0.01)
        engine = daemon.process.engine
        daemon.front.suspend()
        time.sleep(HEARTBEAT_S + 1.0)
        daemon.front.resume()
        assert await streams == ["OK"] * NUM_STREAMS
        await asyncio.to_thread(daemon.check_well)
        assert daemon.process.engine == engine


def test_a_log_that_cannot_be_written_stops_nothing(config: Path) -> None:
    with troubled_daemon(config, "STDERR=/dev/full") as daemon:
        for _ in range(20):
            assert completion(daemon.url).status_code == 200
        daemon.process.signal(signal.SIGHUP)
        daemon.check_well()


def test_a_log_that_nobody_reads_any_more_stops_nothing(config: Path) -> None:
    reading, writing = os.pipe()
    path = f"/proc/{os.getpid()}/fd/{writing}"
    with troubled_daemon(config, f"STDERR={path}") as daemon:
        os.close(writing)
        os.close(reading)
        for _ in range(20):
            assert completion(daemon.url).status_code == 200
        daemon.check_well()


def fill_pipe(writing: int) -> None:
    os.set_blocking(writing, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writing, b"-" * 1000)


def test_a_log_that_nobody_reads_holds_up_nobody(config: Path) -> None:
    reading, writing = os.pipe()
    with troubled_daemon(config, f"STDERR=/proc/{os.getpid()}/fd/{writing}") as daemon:
        fill_pipe(writing)
        for _ in range(20):
            assert completion(daemon.url).status_code == 200
        daemon.check_well()
        log = b""
        while log.count(b" request ") < 20:
            log += os.read(reading, 1 << 16)
        # Nor does it hold up the end.
        fill_pipe(writing)
        assert completion(daemon.url).status_code == 200
    os.close(writing)
    os.close(reading)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = Path("/tmp") / f"d-{os.getpid()}"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=200", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        disk.rmdir()
        pytest.skip("only the superuser can mount a small file system, and not everywhere")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
    disk.rmdir()


def fill(ballast: Path) -> None:
    """Takes all that is left of its disk, in bytes and in files."""
    ballast.mkdir(exist_ok=True)
    chance = os.urandom(4).hex()
    with pytest.raises(OSError):
        for number in range(1000):
            (ballast / f"{chance}-{number}").write_bytes(bytes(4096))
    with pytest.raises(OSError):
        for number in range(1000):
            (ballast / f"{chance}-{number}-d").mkdir()


def test_a_full_disk_stops_nothing_and_delays_a_restart(config: Path, small_disk: Path) -> None:
    with troubled_daemon(config, f"TMPDIR={small_disk}") as daemon:
        ballast = small_disk / "ballast"
        fill(ballast)
        assert completion(daemon.url).status_code == 200
        daemon.process.engine.kill()

        def cannot_start() -> bool:
            # The engine that is gone has left a little room, maybe long enough for another one.
            fill(ballast)
            for engine in daemon.front.children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    engine.kill()
            return "cannot start the engine process" in daemon.process.log

        wait_for(cannot_start)
        assert httpx.get(f"{daemon.url}/health", timeout=PATIENCE_S).status_code == 503
        assert completion(daemon.url).status_code == 503
        subprocess.run(["rm", "-r", str(ballast)], check=True)
        daemon.check_well()
    assert "Traceback" not in daemon.process.log

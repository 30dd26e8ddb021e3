"""A run from the command line, cut short; and the server that stands in for a real one."""

import argparse
import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from load_builders import batch_stream, raw_server, read_request, response

from omniserve.bench.load.addresses import Addresses
from omniserve.bench.load.null_command import add_null_server_command
from omniserve.bench.load.null_server import Pace, serve_null
from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.session import Session
from omniserve.bench.load.streams import BacklogStream
from omniserve.bench.run_files import load_run
from omniserve.errors import ConfigError

NEVER = Pace(ttft_ms=3_600_000)


def untiered(concurrency: int) -> BacklogStream:
    stream = batch_stream(concurrency)
    return BacklogStream(stream.info, stream.lengths, concurrency)


async def terminate(task: "asyncio.Task[None] | asyncio.Task[bool]") -> None:
    """What Ctrl-C and SIGTERM end, without the process that runs this."""
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait([task], timeout=60)


@asynccontextmanager
async def asked_server(num_completions: int) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """It answers no completion; gives its URL, and what is set once so many are asked for."""
    num_asked, all_asked = 0, asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_asked
        while True:
            path, _ = await read_request(reader)
            if path == "/v1/models":
                models = {"data": [{"id": "demo", "max_model_len": 99}]}
                writer.write(response("200 OK", json.dumps(models).encode()))
            elif path == "/v1/completions":
                num_asked += 1
                if num_asked == num_completions:
                    all_asked.set()
            else:
                writer.write(response("404 Not Found", b""))

    async with raw_server(handle) as url:
        yield url, all_asked


@pytest.mark.asyncio
async def test_a_run_that_is_terminated_is_written(tmp_path: Path) -> None:
    options = LoadOptions(duration_s=600, warm_up_s=0, title="cut short")
    async with asked_server(3) as (url, all_asked):
        session = Session(Addresses(http=url), [untiered(3)], options, tmp_path, is_live=False)
        running = asyncio.create_task(session.run())
        await all_asked.wait()
        await terminate(running)
    assert running.cancelled()
    record = load_run(tmp_path)
    assert record.title == "cut short"
    assert 0 < record.duration_s < 600
    assert [request.outcome for request in record.requests] == ["cut_off"] * 3
    assert (tmp_path / "report.html").exists()


@pytest.mark.asyncio
async def test_a_server_that_answers_nobody_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve_null("127.0.0.1", 0, NEVER, ready.set_result))
    url = (await ready).rpartition(" ")[2]
    options = LoadOptions(duration_s=0.3, warm_up_s=0, drain_s=0)
    session = Session(Addresses(http=url), [untiered(2)], options, tmp_path, is_live=False)
    assert not await session.run()
    assert "the server answered nobody" in capsys.readouterr().out
    server.cancel()
    await asyncio.wait([server])


@pytest.mark.asyncio
async def test_a_run_that_is_terminated_while_it_warms_up_has_no_report(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("of an earlier run")
    options = LoadOptions(duration_s=600, warm_up_s=600)
    async with asked_server(3) as (url, all_asked):
        session = Session(Addresses(http=url), [untiered(3)], options, tmp_path, is_live=False)
        running = asyncio.create_task(session.run())
        await all_asked.wait()
        await terminate(running)
    assert running.cancelled()
    assert len(load_run(tmp_path).requests) == 3
    assert not (tmp_path / "report.html").exists()


@pytest.mark.asyncio
async def test_the_null_server_stops_when_it_is_told_to() -> None:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve_null("127.0.0.1", 0, Pace(), ready.set_result))
    assert (await ready).startswith("omniserve null server ready: http http://127.0.0.1:")
    await terminate(server)
    assert server.done()
    await server


def test_a_null_server_that_cannot_listen_says_where() -> None:
    parser = argparse.ArgumentParser()
    add_null_server_command(parser.add_subparsers())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        args = parser.parse_args(["null-server", "--listen", address])
        with pytest.raises(ConfigError, match=f"--listen {address}: .*in use"):
            args.handler(args)
    args = parser.parse_args(["null-server", "--listen", "8123"])
    with pytest.raises(ConfigError, match="--listen 8123: the port is not a number"):
        args.handler(args)

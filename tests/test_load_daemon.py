"""The load generator against the real server, and its command."""

import argparse
import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from daemon_fixture import RunningDaemon
from load_builders import batch_stream, chat_stream

from omniserve.bench.load.addresses import Addresses
from omniserve.bench.load.command import add_run_command
from omniserve.bench.load.options import LoadOptions
from omniserve.bench.load.run import run_load
from omniserve.bench.load.streams import Stream
from omniserve.bench.load.target import RequestFailed
from omniserve.bench.run_files import load_run
from omniserve.bench.run_record import RunRecord
from omniserve.errors import ConfigError

OPTIONS = LoadOptions(duration_s=1.0, warm_up_s=0.0, drain_s=60, status_interval_ms=100)
STREAMS: list[Stream] = [chat_stream([0.0, 0.01, 0.1, 0.2], tier="priority"), batch_stream(2)]


def addresses_of(daemon: RunningDaemon) -> Addresses:
    return Addresses(daemon.grpc_address, daemon.http_url)


async def measure(addresses: Addresses) -> RunRecord:
    target = addresses.open()
    try:
        return await run_load(target, STREAMS, OPTIONS)
    finally:
        await target.close()


def run_command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_run_command(parser.add_subparsers())
    args = parser.parse_args(["run", *arguments])
    status: int = args.handler(args)
    return status


@pytest.mark.parametrize("over", ["grpc", "http"])
def test_both_ways_of_one_server_tell_the_same(
    daemon: RunningDaemon, over: Literal["grpc", "http"]
) -> None:
    addresses = replace(addresses_of(daemon), over=over)
    record = asyncio.run(measure(addresses))
    assert record.target.startswith("OmniServe ")
    chats = [request for request in record.requests if request.stream == "chat"]
    assert [(request.outcome, request.error) for request in chats] == [("done", "")] * 4
    assert {len(request.token_times_s) for request in chats} == {3}
    assert "failed" not in {request.outcome for request in record.requests}
    # The server's first token is not later than its client's, nor its last.
    clock = next(clock for clock in record.server_clock if clock.stream == "chat")
    assert clock.num_requests == 4
    assert clock.e2e_mean_ms is not None
    ended_s = [request.ended_s - request.sent_s for request in chats if request.ended_s is not None]
    assert 0 < clock.e2e_mean_ms <= 1000 * sum(ended_s) / 4
    # On a slow machine the backlog may end before it has had an answer.
    answered = {request.stream for request in record.requests if request.token_times_s}
    assert {clock.stream for clock in record.server_clock} - {"batch"} == {"chat", ""}
    assert answered <= {clock.stream for clock in record.server_clock}
    assert record.num_layers
    assert record.samples
    assert all(0 <= sample.kv_used_bytes <= sample.kv_total_bytes for sample in record.samples)


def test_the_command_leaves_a_run_and_its_report(
    daemon: RunningDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run_command(
        *("--grpc", daemon.grpc_address, "--duration-s", "1", "--warm-up-s", "0.2"),
        *("--stream", "trace=sample:azure-conv,rate=5,max_prompt=20,max_output=5"),
        *("--backlog", "requests=2,prompt=10-20,output=3-6,tier=flex"),
        *("--out", str(tmp_path / "out"), "--title", "a first run"),
    )
    assert status == 0
    record = load_run(tmp_path / "out")
    assert record.title == "a first run"
    assert [stream.name for stream in record.streams] == ["chat", "batch"]
    # Those of the tier of the model's requests.
    assert (record.streams[0].ttft_ms, record.streams[0].tpot_ms) == (2000, 500)
    assert record.requests
    assert {"date", "command", "machine", "seed"} <= set(record.facts)
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    printed = capsys.readouterr().out
    assert "a first run" in printed
    assert str(tmp_path / "out" / "report.html") in printed.replace("\n", "")


def test_requests_that_the_server_refuses_as_wrong_are_failures(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    # HTTP alone does not tell of tiers, so the server has to.
    status = run_command(
        *("--http", daemon.http_url, "--duration-s", "1", "--warm-up-s", "0"),
        *("--backlog", "requests=1,prompt=10,output=3,tier=gold", "--out", str(tmp_path)),
    )
    assert status == 1
    errors = {request.error for request in load_run(tmp_path).requests}
    assert any("HTTP 400: tier: 'gold' is not served" in error for error in errors)


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestFailed, match="cannot ask the server what it serves: gRPC UNAVAIL"):
        run_command("--grpc", "127.0.0.1:1", "--out", str(tmp_path))
    with pytest.raises(RequestFailed, match=r"HTTP 127\.0\.0\.1:1: "):
        run_command("--http", "http://127.0.0.1:1", "--out", str(tmp_path))


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--out .*file/run: cannot be made"):
        run_command("--out", str(tmp_path / "file" / "run"))


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_command("--help")
    assert "--backlog" in capsys.readouterr().out

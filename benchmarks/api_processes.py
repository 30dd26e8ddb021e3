"""The processes that `api.py` measures, each with one core of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from api_client import MODEL, Wire

from omniserve.config_values import split_address

HERE = Path(__file__).resolve().parent
READY = re.compile(r"^omniserve ready: grpc (\S+), http http://(\S+), models ")
STOP_S = 15.0
_CONFIG = """\
listen: {{grpc: "127.0.0.1:0", http: "127.0.0.1:0", admin: "unix:{admin}"}}
models:
  - {{name: "{model}", path: {checkpoint}, step_times: none}}
tiers:
  - {{name: chat, class: latency_sensitive, ttft_ms: 60000, tpot_ms: 60000, admission: false}}
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A process and where it answers."""

    name: str
    addresses: dict[Wire, tuple[str, int]]
    process: psutil.Process
    feedback: int | None = None
    """What its engine reads, where it has one that waits for its client."""

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss_bytes(self) -> int:
        return int(self.process.memory_info().rss)


@contextmanager
def running_daemon(
    directory: Path, cpus: tuple[int, int], steps_ahead: int, log_path: Path
) -> Iterator[Server]:
    """A real daemon over the null engine. `cpus`: the daemon's and the engine's; -1: any."""
    checkpoint = directory / "checkpoint"
    make_model = ("model", "new", str(checkpoint), "--arch", "qwen3", "--preset", "tiny")
    subprocess.run(
        [sys.executable, "-m", "omniserve", *make_model], check=True, stdout=subprocess.DEVNULL
    )
    config = directory / "omniserve.yaml"
    admin = directory / "admin.sock"
    config.write_text(_CONFIG.format(admin=admin, model=MODEL, checkpoint=checkpoint))
    pipe = directory / "feedback"
    os.mkfifo(pipe)
    engine_options = ["--feedback", str(pipe), "--steps-ahead", str(steps_ahead)]
    if cpus[1] >= 0:
        engine_options += ["--cpu", str(cpus[1])]
    command = [str(HERE / "api_daemon.py"), str(cpus[0]), str(config), *engine_options]
    with (
        log_path.open("w") as log,
        python_process(command, log) as (process, first_line),
    ):
        found = READY.match(first_line)
        if found is None:
            raise RuntimeError(f"no daemon: {log_path.read_text()[-2000:]}")
        feedback = os.open(pipe, os.O_WRONLY)
        try:
            addresses: dict[Wire, tuple[str, int]] = {
                "grpc": split_address(found[1]),
                "http": split_address(found[2]),
            }
            yield Server("omniserve", addresses, psutil.Process(process.pid), feedback)
        finally:
            os.close(feedback)


@contextmanager
def running_raw_server(wire: Wire, cpu: int) -> Iterator[Server]:
    """The bare library that OmniServe serves this with."""
    command = [str(HERE / "api_raw_server.py"), wire, str(cpu)]
    with python_process(command, None) as (process, first_line):
        port = int(first_line)
        yield Server("bare", {wire: ("127.0.0.1", port)}, psutil.Process(process.pid))


@contextmanager
def python_process(
    arguments: list[str], log: IO[str] | None
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A process until the block ends, and the first line that it prints; `log` is its stderr."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().rstrip("\n")
    finally:
        _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    process.stdout.close()
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def cores() -> tuple[int, int]:
    """One for what is measured, another for everybody else; -1, -1 where there is but one."""
    available = sorted(os.sched_getaffinity(0))
    return (available[0], available[-1]) if len(available) > 1 else (-1, -1)

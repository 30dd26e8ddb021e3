"""`omniserve top`: what it shows, once, as JSON, and live on a terminal."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from daemon_fixture import RunningDaemon
from daemon_process import ROOT, DaemonProcess
from rich.console import Console
from status_builders import make_status

from omniserve.charts.text import format_age
from omniserve.cli import main
from omniserve.top.tables import sparks
from omniserve.top.view import View
from omniserve.v1 import omniserve_pb2 as pb
from omniserve.v1 import omniserve_pb2_grpc

PATIENCE_S = 60.0


def lines_of(status: pb.Status, view: View | None = None, **options: int) -> list[str]:
    console = Console(width=150, height=50, highlight=False)
    with console.capture() as captured:
        console.print((view or View()).picture(status, **options))
    return captured.get().splitlines()


def line_with(lines: list[str], *words: str) -> str:
    (line,) = [line for line in lines if all(word in line for word in words)]
    return line


def test_everything_has_its_line() -> None:
    lines = lines_of(make_status())
    assert line_with(lines, "OmniServe 1.2.3", "ready", "cpu", "up 1 h 2 min")
    assert line_with(lines, "cores", "50% of 2", "lent to the device")
    tier = line_with(lines, "interactive", "99.5 %")
    assert "50.0 %" in tier and "42.0" in tier and tier.rstrip().endswith("7")
    assert line_with(lines, "demo", "8 of 16 MiB", "3 of 9 MiB", "12.5")
    assert line_with(lines, "chat-1", "decoding", "2.5 s")
    assert line_with(lines, "1 min 5 s ago", "too late", "in 1.5 s")


def test_who_holds_how_much_of_a_kv_budget_has_its_table() -> None:
    status = make_status()
    assert not any("moves/s" in line for line in lines_of(status))
    share = pb.KvShareStatus(granted_bytes=12 << 20, cached_bytes=3 << 20, floor_bytes=4 << 20)
    share.in_bytes, share.out_bytes, share.moves_per_s = 90 << 20, 80 << 20, 2.5
    status.models[0].kv_share.CopyFrom(share)
    line = line_with(lines_of(status), "demo", "12 of 16 MiB", "8 MiB", "3 MiB", "4 MiB")
    assert line.split()[-1] == "2.5" and "90 MiB" in line and "80 MiB" in line
    status.models[0].piggyback.kv_share.granted_bytes = 5 << 20
    assert line_with(lines_of(status), "host KV it has") and line_with(
        lines_of(status), "demo", "5 of 9 MiB"
    )


def test_what_models_have_in_common_has_its_table_where_there_is_anything() -> None:
    status = make_status()
    alone = pb.WeightStatus(own_bytes=7 << 20)
    status.models[0].weights.CopyFrom(alone)
    status.models[0].joint_layers.CopyFrom(pb.JointLayersStatus())
    assert not any("with others" in line for line in lines_of(status))
    status.models[0].weights.shared_bytes, status.models[0].weights.saved_bytes = 64 << 20, 32 << 20
    joint = pb.JointLayersStatus(num_layers=1234, num_rows=5678, share=0.25)
    status.models[0].joint_layers.CopyFrom(joint)
    line = line_with(lines_of(status), "demo", "7 MiB", "64 MiB", "32 MiB", "1,234", "25.0 %")
    assert line.split()[-1] == "5,678"


def test_a_bare_status_is_shown_too() -> None:
    assert "failed" in lines_of(pb.Status(state="failed", version="1"))[0]


def test_what_the_server_says_cannot_command_the_terminal() -> None:
    refusal = pb.Refusal(reason="\x1b[2Jgone [red]not markup[/red]", tier="\x07")
    request = pb.RequestStatus(request_id="a\x1b]0;title\x07", phase="waiting")
    text = "\n".join(lines_of(make_status(refusals=[refusal], requests=[request])))
    assert "\x1b]" not in text and "\x1b[2J" not in text and "\x07" not in text
    assert "[red]not markup[/red]" in text


@pytest.mark.parametrize("num_lines", [12, 24, 50])
def test_it_fits_the_screen(num_lines: int) -> None:
    requests = [pb.RequestStatus(request_id=f"r{place}", phase="waiting") for place in range(200)]
    refusals = [pb.Refusal(reason=f"no {place}") for place in range(50)]
    tiers = list(make_status().tiers)[:1]
    status = make_status(tiers=tiers, requests=requests, refusals=refusals)
    lines = lines_of(status, num_lines=num_lines)
    assert len(lines) <= max(num_lines, 17)
    assert any("more" in line for line in lines)


def test_the_line_of_late_grows_with_every_look() -> None:
    view = View()
    for _ in range(3):
        lines = lines_of(make_status(), view)
    assert "███" in line_with(lines, "interactive", "99.5 %")
    assert "▁▁▁" in line_with(lines, "batch")


@pytest.mark.parametrize(
    ("values", "top", "shown"),
    [((0.0, 1.0), 1.0, "▁█"), ((5.0, 0.0), 10.0, "▅▁"), ((0.0,), 0.0, "▁")],
)
def test_sparks(values: tuple[float, ...], top: float, shown: str) -> None:
    assert sparks(values, top) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (12.0, "12 s"),
        (75.0, "1 min 15 s"),
        (7260.0, "2 h 1 min"),
        (9e4, "1 d 1 h"),
    ],
)
def test_ages(seconds: float, shown: str) -> None:
    assert format_age(seconds) == shown


def test_once(daemon: RunningDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--admin", daemon.admin_target]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ready" in lines[0] and line_with(lines, "interactive", "≤ 2 s")


def test_once_as_json(daemon: RunningDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--json", "--admin", daemon.admin_target]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    status = json.loads(line)
    assert status["state"] == "ready" and [tier["tier"] for tier in status["tiers"]] == [
        *("interactive", "batch")
    ]


def test_json_goes_on_a_line_at_a_time(daemon: RunningDaemon) -> None:
    command = ["top", "--json", "--interval-s", "0.1", "--admin", daemon.admin_target]
    with subprocess.Popen(
        [sys.executable, "-m", "omniserve", *command], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        uptimes = [json.loads(process.stdout.readline())["uptime_s"] for _ in range(3)]
        assert uptimes == sorted(set(uptimes))
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130


def test_nobody_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        for options in (["--once"], ["--json"]):
            assert main(["top", *options, "--admin", address]) == 3
            assert f"{address} does not answer" in capsys.readouterr().err


@dataclass
class Terminal:
    """The program's end of it is a terminal of 120 columns; this one is the user's."""

    process: "subprocess.Popen[bytes]"
    master: int
    shown: str = ""
    before: list[object] = field(default_factory=list)

    def wait_for(self, *words: str) -> None:
        """Until all of it was shown since the last call."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not all(word in self.shown for word in words):
            assert time.monotonic() < deadline_s, (words, self.process.poll(), self.shown[-3000:])
            if select.select([self.master], [], [], 0.5)[0]:
                self.shown += os.read(self.master, 65536).decode("utf-8", "replace")
        self.shown = ""

    def press(self, key: str) -> None:
        os.write(self.master, key.encode())

    def end(self) -> int:
        """The exit status; what is still shown is read, or the program could not end."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline_s:
            if select.select([self.master], [], [], 0.05)[0]:
                self.shown += os.read(self.master, 65536).decode("utf-8", "replace")
        return self.process.wait(0.1)


@contextmanager
def terminal(*command: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 140))
    before = termios.tcgetattr(slave)
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "omniserve", *command],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
    )
    try:
        yield Terminal(process, master, before=before)
        assert termios.tcgetattr(slave) == before, "the terminal is left as it was"
    finally:
        process.kill()
        process.wait()
        os.close(slave)
        os.close(master)


def test_live_until_q(daemon: RunningDaemon) -> None:
    with terminal("top", "--interval-s", "0.1", "--admin", daemon.admin_target) as screen:
        screen.wait_for("ready", "interactive", "q quits")
        with grpc.insecure_channel(daemon.grpc_address) as channel:
            stub: Any = omniserve_pb2_grpc.InferenceStub(channel)
            # As long as it can be: it has to be seen before it ends.
            sampling = pb.Sampling(ignore_eos=True)
            request = pb.GenerateRequest(
                model="demo", text="Hi", sampling=sampling, request_id="seen-live", tier="batch"
            )
            call = stub.Generate(request, timeout=PATIENCE_S)
            screen.wait_for("seen-live")
            call.cancel()
        screen.press("x")
        screen.wait_for("q quits")
        screen.press("q")
        assert screen.end() == 0


def test_a_daemon_that_goes_away_is_waited_for(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # A port would be free for others while the daemon is away. Short, because it holds a socket.
    directory = tmp_path_factory.mktemp("s")
    admin, config = f"unix:{directory}/admin.sock", directory / "omniserve.yaml"
    config.write_text(
        f'listen: {{grpc: "127.0.0.1:0", http: "127.0.0.1:0", admin: "{admin}"}}\n'
        f"models: [{{name: demo, path: {tiny_checkpoint}, step_times: none}}]\n"
        "tiers: [{name: batch, class: best_effort}]\n"
    )
    command = (str(Path(__file__).parent / "scripted_daemon.py"), str(config))
    with DaemonProcess(*command) as daemon:
        daemon.wait_ready()
        with terminal("top", "--interval-s", "0.1", "--admin", admin) as screen:
            screen.wait_for("ready", "batch")
            daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0, daemon.log
            screen.wait_for("trying again")
            with DaemonProcess(*command) as again:
                again.wait_ready()
                screen.wait_for("q quits", "ready")
                os.kill(screen.process.pid, signal.SIGINT)
                assert screen.end() == 130

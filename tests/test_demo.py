"""`omniserve demo` as a real process: against the real engine, and when things go wrong."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest
from daemon_fixture import config_text
from daemon_process import PATIENCE_S, DaemonProcess
from fault_daemon import wait_for

SCRIPTED_DAEMON = str(Path(__file__).parent / "scripted_daemon.py")
LIGHT_LOAD = ("--ls-rate", "4", "--be-concurrency", "2")


def write_config(directory: Path, checkpoint: Path) -> Path:
    path = directory / "demo.yaml"
    path.write_text(config_text(checkpoint))
    return path


def run_demo(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    report = directory / "out" / "demo.html"
    return subprocess.run(
        [sys.executable, "-m", "omniserve", "demo", "--report", str(report), *arguments],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
    )


def table_rows(output: str) -> dict[str, list[str]]:
    """The columns of the table at the end by tier."""
    table = output[output.rindex("tier  ") :]
    rows = [line.split() for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows if row and row[0] in ("interactive", "batch")}


def test_a_short_demo_serves_both_tiers_and_writes_the_report(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    config = write_config(tmp_path, tiny_checkpoint)
    done = run_demo(tmp_path, "--config", str(config), "--duration-s", "6", *LIGHT_LOAD)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\nready after [0-9.]+ s: grpc 127\.0\.0\.1:[0-9]+, http http", done.stdout)
    rows = table_rows(done.stdout)
    assert int(rows["interactive"][0]) > 0
    assert rows["interactive"][2] == rows["batch"][2] == "0"
    assert float(rows["interactive"][3]) > 0, "a time to the first token"
    assert float(rows["batch"][-1]) > 0, "tokens per second"
    page = ElementTree.parse(tmp_path / "out" / "demo.html")
    cells = ["".join(cell.itertext()) for cell in page.iter("td")]
    assert cells[0] == "interactive"
    assert cells[2] == rows["interactive"][0]
    assert cells[7] == rows["interactive"][3]
    assert len(list(page.iter("svg"))) == 6
    log = (tmp_path / "out" / "demo.log").read_text()
    assert "stopped" in log.splitlines()[-1]
    assert "desk of a railway station" not in log


def wait_for_line(process: DaemonProcess, part: str) -> None:
    assert process.process.stdout is not None
    for line in process.process.stdout:
        if part in line:
            return
    raise AssertionError(f"{part!r} was never said; the log says: {process.log}")


def processes_of(demo: DaemonProcess) -> list[psutil.Process]:
    """All that runs with the demo's own directory for temporary files."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(demo.temp_dir):
                found.append(process)
    return found


@pytest.mark.parametrize(
    ("moment", "signum", "status"),
    [("starting the daemon;", signal.SIGTERM, 143), ("s of traffic", signal.SIGINT, 130)],
)
def test_an_interrupted_demo_leaves_nothing_behind(
    tmp_path: Path, tiny_checkpoint: Path, moment: str, signum: signal.Signals, status: int
) -> None:
    config = write_config(tmp_path, tiny_checkpoint)
    arguments = ("--config", str(config), "--report", str(tmp_path / "demo.html"), *LIGHT_LOAD)
    with DaemonProcess("-m", "omniserve", "demo", *arguments) as demo:
        wait_for_line(demo, moment)
        demo.signal(signum)
        assert demo.wait() == status
        assert "Traceback" not in demo.log
        # The kernel ends its engine, which may be dying still.
        _, alive = psutil.wait_procs(processes_of(demo), timeout=PATIENCE_S)
        assert alive == []
        assert list(demo.temp_dir.glob("omniserve*")) == []
    assert not (tmp_path / "demo.html").exists()


def test_a_killed_demo_leaves_no_process_behind(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint)
    arguments = ("--config", str(config), "--report", str(tmp_path / "demo.html"), *LIGHT_LOAD)
    with DaemonProcess("-m", "omniserve", "demo", *arguments) as demo:
        wait_for_line(demo, "s of traffic")
        others = [each for each in processes_of(demo) if each.pid != demo.process.pid]
        demo.signal(signal.SIGKILL)
        assert demo.wait() == -signal.SIGKILL
        _, alive = psutil.wait_procs(others, timeout=PATIENCE_S)
        assert alive == []


def test_a_daemon_that_dies_ends_the_demo(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint)
    arguments = ("--config", str(config), "--report", str(tmp_path / "demo.html"), *LIGHT_LOAD)
    with DaemonProcess("-m", "omniserve", "demo", *arguments) as demo:
        wait_for_line(demo, "s of traffic")
        # The demo, its daemon, the engine and host attention.
        wait_for(lambda: len(processes_of(demo)) == 4)
        (daemon,) = psutil.Process(demo.process.pid).children()
        daemon.kill()
        assert demo.wait() == 1
        assert "omniserve: the daemon was ended by signal 9" in demo.log
        assert "Traceback" not in demo.log


def test_failed_requests_make_the_exit_status_1(tmp_path: Path, tiny_checkpoint: Path) -> None:
    config = write_config(tmp_path, tiny_checkpoint)
    # Enough for any of the chats and for none of the documents.
    config.write_text(config.read_text().replace("16MiB", "16MiB, max_model_len: 300"))
    with DaemonProcess(SCRIPTED_DAEMON, str(config)) as daemon:
        grpc_address, http_url = daemon.wait_ready()
        addresses = (grpc_address, http_url.removeprefix("http://"))
        done = run_demo(tmp_path, "--attach", *addresses, "--duration-s", "6", *LIGHT_LOAD)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0, "a daemon that was there before is left running"
    assert done.returncode == 1, done.stdout + done.stderr
    rows = table_rows(done.stdout)
    assert rows["interactive"][1:3] == ["0", "0"]
    cut_off = re.search(r"^batch: ([0-9]+) of [0-9]+ requests cut off", done.stdout, re.MULTILINE)
    num_cut_off = 0 if cut_off is None else int(cut_off[1])
    assert int(rows["batch"][0]) - num_cut_off == int(rows["batch"][2]) > 0
    assert re.search(r"^failed [0-9]+x: batch: HTTP 400: prompt", done.stdout, re.MULTILINE)
    page = (tmp_path / "out" / "demo.html").read_text()
    assert f"Failed requests: {rows['batch'][2]}" in page
    assert "HTTP 400" in page


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--config", "nowhere.yaml"], 2, "omniserve: cannot read nowhere.yaml"),
        (["--duration-s", "0"], 2, "'0' is not allowed; allowed: 1 to 86400 seconds"),
        (["--be-concurrency", "-1"], 2, "allowed: a whole number from 0 to 1024"),
        (["--ls-rate", "nan"], 2, "allowed: 0.01 to 1000 requests per second"),
        (
            ["--attach", "127.0.0.1:1", "http://127.0.0.1:2"],
            2,
            "--attach http://127.0.0.1:2: the host",
        ),
        (["--model", "other"], 2, "--model other: is not in the configuration; it has demo"),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], status: int, said: str, tmp_path: Path
) -> None:
    done = run_demo(tmp_path, *arguments)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_listens_where_it_is_to_attach(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_demo(tmp_path, "--attach", address, address)
    assert done.returncode == 1
    assert "omniserve: cannot ask the daemon what it serves: gRPC UNAVAILABLE" in done.stderr


def test_a_checkpoint_that_cannot_be_served_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = write_config(tmp_path, tmp_path / "empty")
    done = run_demo(tmp_path, "--config", str(config))
    assert done.returncode == 1
    assert "omniserve: the daemon ended with status 2" in done.stderr
    assert "config.json" in done.stderr

"""Daemons that find out themselves what their steps take."""

import signal
from pathlib import Path

import pytest
from daemon_fixture import config_text
from daemon_process import DaemonProcess

from omniserve.cache_directory import VARIABLE

MEASURING = "measuring_step_times model=demo at_most_s"


@pytest.fixture
def config(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """One thread, short prompts, nobody on the host: nothing here is about how well it measures."""
    text = config_text(tiny_checkpoint, "{enabled: false}")
    text = text.replace("step_times: none", "step_times: auto").replace("threads: 2", "threads: 1")
    text = text.replace("16MiB", "16MiB, max_model_len: 512")
    path = tmp_path / "omniserve.yaml"
    path.write_text(text)
    return path


def serve(config: Path) -> DaemonProcess:
    return DaemonProcess("-m", "omniserve", "serve", str(config))


def test_the_first_start_measures_and_the_next_one_does_not(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    logs = []
    for _ in range(2):
        with serve(config) as daemon:
            daemon.wait_ready()
            daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0
            logs.append(daemon.log)
    (profile,) = (tmp_path / "cache" / "profiles").iterdir()
    assert MEASURING in logs[0]
    assert "step_times_measured model=demo took_s=" in logs[0]
    assert MEASURING not in logs[1]
    assert f"step_times_kept model=demo path={profile}" in logs[1]


def test_what_cannot_be_kept_is_known_to_the_next_engine_of_the_same_daemon(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    with serve(config) as daemon:
        daemon.wait_ready()
        assert "profile_not_kept" in daemon.log
        daemon.engine.kill()
        daemon.wait_log("engine_ready", times=2)
        assert daemon.log.count(MEASURING) == 1
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


def test_a_daemon_that_is_told_to_stop_does_not_measure_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    with serve(config) as daemon:
        daemon.wait_log(MEASURING)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert "step_times_measured" not in daemon.log
        assert list(daemon.temp_dir.glob("omniserve*")) == []
    assert not (tmp_path / "cache" / "profiles").exists()

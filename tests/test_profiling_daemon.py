"""Daemons that find out themselves what their steps take."""

import signal
from pathlib import Path

import pytest
from daemon_fixture import config_text
from daemon_process import DaemonProcess

from omniserve.cache_directory import VARIABLE

MEASURING = "measuring_step_times model=demo at_most_s"
MEASURED = "step_times_measured model=demo took_s="
CUT_SHORT = "measuring_cut_short"


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

    def log_of_a_start() -> str:
        with serve(config) as daemon:
            daemon.wait_ready()
            daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0
        return daemon.log

    for _ in range(5):
        first = log_of_a_start()
        assert MEASURING in first
        assert MEASURED in first
        # On a machine that is busy: what is not whole is not kept.
        if CUT_SHORT not in first:
            break
    (profile,) = (tmp_path / "cache" / "profiles").iterdir()
    second = log_of_a_start()
    assert MEASURING not in second
    assert f"step_times_kept model=demo path={profile}" in second


def test_what_cannot_be_kept_is_known_to_the_next_engine_of_the_same_daemon(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    with serve(config) as daemon:
        daemon.wait_ready()
        # By then all that the engine said before is there to be read.
        daemon.wait_log("engine_ready")
        assert "profile_not_kept" in daemon.log or CUT_SHORT in daemon.log
        daemon.engine.kill()
        daemon.wait_log("engine_ready", times=2)
        assert daemon.log.count(MEASURING) == 1
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


def test_a_daemon_that_is_told_to_stop_does_not_measure_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        cache = tmp_path / f"cache-{number}"
        monkeypatch.setenv(VARIABLE, str(cache))
        with serve(config) as daemon:
            daemon.wait_log(MEASURING)
            daemon.signal(signal.SIGTERM)
            assert daemon.wait() == 0
            assert list(daemon.temp_dir.glob("omniserve*")) == []
        # Otherwise it was told so too late, by a process that was held up itself.
        if MEASURED not in daemon.log:
            break
    assert MEASURED not in daemon.log
    assert not (cache / "profiles").exists()

"""The unit under a real systemd: Debian 12, booted in a directory. `make test-systemd` runs it."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from systemd_root import (
    UNITS,
    boot,
    debian_root,
    missing_prerequisite,
    write_environment,
    write_test_unit,
)

pytestmark = [
    pytest.mark.skipif(
        "OMNISERVE_TEST_SYSTEMD" not in os.environ, reason="`make test-systemd` runs these"
    ),
    # The root may have to be made, and kernels to be compiled in it.
    pytest.mark.timeout(3000),
]

ROOT = Path(__file__).resolve().parents[1]
BOOT_LIMIT_S = 1800.0
GRACE_S = 3.0
CONFIG = """\
device: {kind: cpu}
models:
  - {name: demo, path: /srv/models/tiny, dtype: float32, device_kv_bytes: 64MiB}
tiers:
  - {name: interactive, class: latency_sensitive, ttft_ms: 2000, tpot_ms: 500, percentile: 99}
  - {name: batch, class: best_effort}
daemon: {shutdown_grace_s: 3, engine_heartbeat_s: 3600}
"""
Facts = dict[str, Any]
Trial = Callable[[str], Facts]


@pytest.fixture(scope="module")
def trial(tiny_checkpoint: Path) -> Iterator[Trial]:
    """What a trial of the driver wrote down."""
    problem = missing_prerequisite()
    if problem:
        pytest.fail(problem)
    kept = Path(os.environ.get("OMNISERVE_SYSTEMD_ROOT") or ROOT / "out/systemd").absolute()
    root = debian_root(kept)
    results = kept / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        _boot_with_driver(root, Path(scratch), tiny_checkpoint, results, kept / "boot.log")

    def read(name: str) -> Facts:
        file = results / f"{name}.json"
        assert file.exists(), f"the trial {name} did not come to an end: see {kept / 'boot.log'}"
        facts: Facts = json.loads(file.read_text())
        assert "error" not in facts, facts["error"] + facts["journal"]
        return facts

    yield read


def _boot_with_driver(
    root: Path, scratch: Path, checkpoint: Path, results: Path, log: Path
) -> None:
    # Services run as users of their own.
    scratch.chmod(0o755)
    given = scratch / "given"
    given.mkdir()
    (given / "omniserve.yaml").write_text(CONFIG)
    _write_certificates(given)
    models = scratch / "models"
    shutil.copytree(checkpoint, models / "tiny")
    source = scratch / "source"
    source.mkdir()
    for package in ("omniserve", "scheduler", "cpu_attn"):
        (source / package).mkdir()
    packages = Path(pytest.__file__).parents[1]
    command = "/opt/omniserve/bin/python3 /opt/tests/systemd_driver.py /opt/results"
    read_only = {
        write_environment(scratch / "environment"): "/opt/omniserve",
        write_test_unit(scratch / "units", command): UNITS,
        packages: "/opt/packages",
        source: "/opt/source",
        **{ROOT / each.name: f"/opt/source/{each.name}" for each in source.iterdir()},
        ROOT / "tests": "/opt/tests",
        given: "/opt/given",
        models: "/srv/models",
    }
    boot(root, read_only, {results: "/opt/results"}, log, BOOT_LIMIT_S)


def _write_certificates(directory: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(directory / "authority"))
    certificate.private_key_pem.write_to_path(str(directory / "tls-key"))
    for pem in certificate.cert_chain_pems:
        pem.write_to_path(str(directory / "tls-certificate"), append=True)


def num_restarts(shown: dict[str, str]) -> int:
    return int(shown["NRestarts"])


def test_installs_a_unit_that_systemd_finds_right_and_tight(trial: Trial) -> None:
    facts = trial("install")
    assert facts["status"] == 0, facts["said"]
    assert "/etc/systemd/system/omniserve.service: wrote" in facts["said"]
    assert (facts["verify_status"], facts["verify_said"]) == (0, "")
    assert facts["security_status"] == 0, facts["security_said"]


def test_started_means_ready(trial: Trial) -> None:
    facts = trial("start")
    assert facts["status"] == 0, facts["said"] + facts["journal"]
    shown = facts["show"]
    assert (shown["ActiveState"], shown["SubState"]) == ("active", "running")
    assert shown["StatusText"].startswith("serving demo: ")
    assert facts["health"] == 200
    assert facts["num_tokens"] == 5


def test_it_runs_with_nothing_that_it_does_not_need(trial: Trial) -> None:
    facts = trial("start")
    assert facts["uid"] > 0
    assert facts["capabilities"] == 0
    assert (facts["seccomp"], facts["no_new_privileges"]) == ("2", "1")
    assert facts["affinity"] == [[0], [0]]
    assert (facts["admin_mode"], facts["admin_directory_mode"]) == ("600", "700")
    assert "NOTIFY_SOCKET" not in facts["environment"]


def test_what_it_compiled_and_measured_is_kept(trial: Trial) -> None:
    kept = trial("start")["kept"]
    assert any(name.startswith("kernels-") for name in kept), kept
    assert any(not name.startswith("kernels-") for name in kept), kept


def test_installed_again_it_starts_with_the_new_unit(trial: Trial) -> None:
    facts = trial("start_again")
    assert facts["status"] == 0
    assert "replaced" in facts["said"]
    assert facts["affinity"] == facts["cores"]
    assert facts["num_tokens"] == 5


def test_a_good_file_is_taken_over(trial: Trial) -> None:
    facts = trial("reload")
    assert facts["good"] == 0, facts["good_said"] + facts["journal"]
    assert "tiers_reloaded" in facts["journal"]
    assert "ttft_ms 2000 -> 1999" in facts["journal"]
    assert "refused" not in facts["good_show"]["StatusText"]


def test_a_bad_file_fails_the_reload_and_nothing_else(trial: Trial) -> None:
    facts = trial("reload")
    assert facts["bad"] != 0
    assert facts["bad_show"]["ActiveState"] == "active"
    assert facts["bad_show"]["StatusText"].endswith("; the changed file was refused")
    assert "tiers[0].ttft_ms" in facts["journal"]
    assert facts["num_tokens"] == 5
    assert facts["same_process"]


def test_the_watchdog_spares_the_idle_and_the_busy(trial: Trial) -> None:
    facts = trial("watchdog_spares")
    assert facts["num_tokens"] > 0
    for moment in ("idle", "busy"):
        assert facts[moment]["MainPID"] == facts["before"]["MainPID"]
        assert num_restarts(facts[moment]) == num_restarts(facts["before"])


def test_an_engine_that_completes_no_step_has_the_daemon_restarted(trial: Trial) -> None:
    facts = trial("stalled_engine")
    assert num_restarts(facts["after"]) == num_restarts(facts["before"]) + 1
    assert "engine_stalled" in facts["journal"]
    assert "Watchdog timeout" in facts["journal"]
    assert facts["stream"]["end"] != "done"
    assert not facts["engine_is_alive"]
    assert facts["num_tokens"] == 5


def test_a_daemon_that_hangs_is_restarted(trial: Trial) -> None:
    facts = trial("hung_daemon")
    assert num_restarts(facts["after"]) == num_restarts(facts["before"]) + 1
    assert not facts["engine_is_alive"]
    assert facts["num_tokens"] == 5


def test_a_killed_daemon_is_restarted(trial: Trial) -> None:
    facts = trial("killed_daemon")
    assert num_restarts(facts["after"]) == num_restarts(facts["before"]) + 1
    assert not facts["engine_is_alive"]
    assert facts["num_tokens"] == 5


def test_a_killed_engine_is_not_the_service_managers_affair(trial: Trial) -> None:
    facts = trial("killed_engine")
    assert facts["after"]["MainPID"] == facts["before"]["MainPID"]
    assert num_restarts(facts["after"]) == num_restarts(facts["before"])
    assert facts["num_tokens"] == 5


def test_a_stop_lets_streams_end_and_ends_the_rest_in_time(trial: Trial) -> None:
    facts = trial("stop")
    assert facts["status"] == 0
    assert (facts["show"]["ActiveState"], facts["show"]["Result"]) == ("inactive", "success")
    assert facts["show"]["ExecMainStatus"] == "0"
    assert facts["short"] == {"end": "done", "num_tokens": 40}
    ends = [stream["end"] for stream in facts["long"]]
    assert set(ends) <= {"done", "error"}
    assert "error" in ends
    assert "num_cut=" in facts["journal"]
    assert GRACE_S <= facts["seconds"] < GRACE_S + 17
    assert facts["alive"] == []


def test_a_file_that_cannot_be_used_is_not_tried_again(trial: Trial) -> None:
    facts = trial("bad_file")
    assert facts["show"]["ActiveState"] == "failed"
    assert facts["show"]["ExecMainStatus"] == "2"
    assert "nonsense" in facts["journal"]
    assert num_restarts(facts["show"]) == 0


def test_credentials_are_for_the_service_alone(trial: Trial) -> None:
    facts = trial("credentials")
    assert facts["status"] == 0, facts["journal"]
    assert facts["health"] == 200
    expected = ["omniserve.tls-certificate", "omniserve.tls-key", "omniserve.yaml"]
    assert facts["names"] == expected


def test_uninstalls_itself(trial: Trial) -> None:
    facts = trial("uninstall")
    assert facts["status"] == 0, facts["said"]
    assert not facts["known"]

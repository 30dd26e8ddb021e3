"""What is tried inside the booted system: `systemd_driver.py RESULTS` writes a file per trial.

The trials build on each other, in this order. They only look and write down; the tests that read
the files judge.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from systemd_service import (
    CONFIG,
    UNIT,
    URL,
    Stream,
    complete,
    drop_in,
    engine_pid,
    engine_pids,
    is_alive,
    is_restarted,
    journal,
    main_pid,
    process_facts,
    run,
    show,
    systemctl,
    until,
    write_config,
)

OMNISERVE = "/opt/omniserve/bin/omniserve"
GIVEN = Path("/opt/given")
"""The configuration, and certificates."""
CREDENTIALS = Path("/etc/credstore")
WATCHDOG = "[Service]\nWatchdogSec=6\n"
Facts = dict[str, Any]


def install() -> Facts:
    write_config((GIVEN / "omniserve.yaml").read_text())
    installed = run(OMNISERVE, "install-service", "--cpus", "0")
    systemctl("daemon-reload")
    verified = run("systemd-analyze", "verify", "--man=no", UNIT)
    judged = run("systemd-analyze", "security", "--no-pager", "--threshold=20", UNIT)
    return {
        "status": installed.returncode,
        "said": installed.stdout + installed.stderr,
        "verify_status": verified.returncode,
        "verify_said": verified.stdout + verified.stderr,
        "security_status": judged.returncode,
        "security_said": judged.stdout.splitlines()[-1:],
    }


def start() -> Facts:
    started = systemctl("start", UNIT)
    shown = show()
    pid, engine = main_pid(), engine_pid()
    facts = process_facts(pid)
    socket = Path("/run/omniserve/admin.sock")
    return {
        "status": started.returncode,
        "said": started.stderr,
        "show": shown,
        "uid": int(facts["Uid"].split()[0]),
        "capabilities": int(facts["CapBnd"], 16),
        "seccomp": facts["Seccomp"],
        "no_new_privileges": facts["NoNewPrivs"],
        "affinity": [sorted(os.sched_getaffinity(each)) for each in (pid, engine)],
        "health": httpx.get(f"{URL}/health").status_code,
        "num_tokens": complete(),
        "admin_mode": f"{socket.stat().st_mode & 0o777:o}",
        "admin_directory_mode": f"{socket.parent.stat().st_mode & 0o777:o}",
        "kept": sorted(path.name for path in Path("/var/cache/omniserve/").iterdir()),
        "environment": Path(f"/proc/{engine}/environ").read_text().replace("\0", "\n"),
        "journal": journal(),
    }


def start_again() -> Facts:
    """Without CPUs of its own, and with what the first start left in its cache."""
    installed = run(OMNISERVE, "install-service")
    systemctl("daemon-reload")
    restarted = systemctl("restart", UNIT)
    return {
        "said": installed.stdout,
        "status": restarted.returncode,
        # Of the daemon: the engine gives cores to host attention.
        "affinity": sorted(os.sched_getaffinity(main_pid())),
        "cores": sorted(os.sched_getaffinity(0)),
        "num_tokens": complete(),
    }


def reload() -> Facts:
    pid, good = main_pid(), CONFIG.read_text()
    write_config(good.replace("ttft_ms: 2000", "ttft_ms: 1999"))
    taken = systemctl("reload", UNIT)
    seen = {"good": taken.returncode, "good_said": taken.stderr, "good_show": show()}
    write_config(good.replace("ttft_ms: 2000", "ttft_ms: soon"))
    refused = systemctl("reload", UNIT)
    until(lambda: "refused" in show()["StatusText"], "a status that tells of the refusal")
    seen |= {"bad": refused.returncode, "bad_said": refused.stderr, "bad_show": show()}
    seen["num_tokens"] = complete()
    write_config(good)
    systemctl("reload", UNIT)
    until(lambda: "refused" not in show()["StatusText"], "a status without the refusal")
    return seen | {"same_process": main_pid() == pid, "journal": journal()}


def watchdog_spares() -> Facts:
    """Idle, then at work, for several times the watchdog's patience each."""
    with drop_in("test.conf", WATCHDOG):
        systemctl("restart", UNIT)
        before = show()
        time.sleep(15)
        idle = show()
        end_s, num_tokens = time.monotonic() + 15, 0
        while time.monotonic() < end_s:
            num_tokens += complete(200)
        return {"before": before, "idle": idle, "busy": show(), "num_tokens": num_tokens}


def stalled_engine() -> Facts:
    """The engine freezes with a request; the daemon's own watch over it is not to come first."""
    with drop_in("test.conf", WATCHDOG):
        systemctl("restart", UNIT)
        before, engine = show(), engine_pid()
        stream = Stream(4000)
        os.kill(engine, signal.SIGSTOP)
        until(lambda: is_restarted(before), "a restart")
        return {
            "before": before,
            "after": show(),
            "stream": stream.wait(),
            "engine_is_alive": is_alive(engine),
            "num_tokens": complete(),
            "journal": journal(),
        }


def hung_daemon() -> Facts:
    with drop_in("test.conf", WATCHDOG):
        systemctl("restart", UNIT)
        before, engine = show(), engine_pid()
        os.kill(main_pid(), signal.SIGSTOP)
        until(lambda: is_restarted(before), "a restart")
        return {
            "before": before,
            "after": show(),
            "engine_is_alive": is_alive(engine),
            "num_tokens": complete(),
        }


def killed_daemon() -> Facts:
    systemctl("restart", UNIT)
    before, engine = show(), engine_pid()
    os.kill(main_pid(), signal.SIGKILL)
    until(lambda: is_restarted(before), "a restart")
    return {
        "before": before,
        "after": show(),
        "engine_is_alive": is_alive(engine),
        "num_tokens": complete(),
    }


def killed_engine() -> Facts:
    """Is the daemon's own affair."""
    before, engine = show(), engine_pid()
    os.kill(engine, signal.SIGKILL)
    until(lambda: engine_pids() not in ([], [engine]), "another engine")
    until(lambda: httpx.get(f"{URL}/health").status_code == 200, "health")
    return {"before": before, "after": show(), "num_tokens": complete()}


def stop() -> Facts:
    """One stream can end within the grace period of 3 s; the many cannot."""
    systemctl("restart", UNIT)
    pids = [main_pid(), engine_pid()]
    # Less than the grace period: the daemon has to ask for more.
    with drop_in("test.conf", "[Service]\nTimeoutStopSec=2\n"):
        long = [Stream(4000, tier="batch") for _ in range(8)]
        short = Stream(40)
        started_s = time.monotonic()
        stopped = systemctl("stop", UNIT)
        took_s = time.monotonic() - started_s
    return {
        "status": stopped.returncode,
        "seconds": took_s,
        "show": show(),
        "short": short.wait(),
        "long": [stream.wait() for stream in long],
        "alive": [pid for pid in pids if is_alive(pid)],
        "journal": journal(),
    }


def bad_file() -> Facts:
    good = CONFIG.read_text()
    write_config(good + "nonsense: 1\n")
    systemctl("start", UNIT)
    time.sleep(5)
    shown = show()
    write_config(good)
    systemctl("reset-failed", UNIT)
    return {"show": shown, "journal": journal()}


def credentials() -> Facts:
    """The key and the whole configuration are for root alone, and get in as credentials."""
    CREDENTIALS.mkdir(mode=0o700, exist_ok=True)
    for kind in ("tls-certificate", "tls-key"):
        file = CREDENTIALS / f"omniserve.{kind}"
        file.write_bytes((GIVEN / kind).read_bytes())
        file.chmod(0o600)
    secret = CREDENTIALS / "omniserve.yaml"
    tls = "{certificate: credential:omniserve.tls-certificate, key: credential:omniserve.tls-key}"
    secret.write_text(f"{CONFIG.read_text()}tls: {tls}\n")
    secret.chmod(0o600)
    lines = ("[Service]", "LoadCredential=omniserve.yaml", "ExecStart=")
    start_line = f"ExecStart={OMNISERVE} serve %d/omniserve.yaml"
    with drop_in("credentials.conf", "\n".join((*lines, start_line, ""))):
        started = systemctl("start", UNIT)
        facts: Facts = {"status": started.returncode, "show": show(), "journal": journal()}
        url = "https://127.0.0.1:8000/health"
        facts["health"] = httpx.get(url, verify=str(GIVEN / "authority")).status_code
        seen = Path(f"/proc/{main_pid()}/root/run/credentials/{UNIT}")
        facts["names"] = sorted(path.name for path in seen.iterdir())
        systemctl("stop", UNIT)
    return facts


def uninstall() -> Facts:
    systemctl("enable", UNIT)
    done = run(OMNISERVE, "install-service", "--uninstall")
    systemctl("daemon-reload")
    return {
        "status": done.returncode,
        "said": done.stdout + done.stderr,
        "known": systemctl("cat", UNIT).returncode == 0,
    }


TRIALS: tuple[Callable[[], Facts], ...] = (
    *(install, start, start_again, reload, watchdog_spares, stalled_engine, hung_daemon),
    *(killed_daemon, killed_engine, stop, bad_file, credentials, uninstall),
)


def main(results: Path) -> None:
    for trial in TRIALS:
        started_s = time.monotonic()
        try:
            facts = trial()
        except Exception:
            facts = {"error": traceback.format_exc(), "journal": journal()}
        facts["took_s"] = time.monotonic() - started_s
        (results / f"{trial.__name__}.json").write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

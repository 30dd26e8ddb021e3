"""The service as a test inside the booted system handles it. Standard library and httpx only."""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

UNIT = "omniserve.service"
CONFIG = Path("/etc/omniserve/omniserve.yaml")
DROP_INS = Path(f"/etc/systemd/system/{UNIT}.d")
URL = "http://127.0.0.1:8000"
PATIENCE_S = 180.0
PROMPT = list(range(5, 25))


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S * 2, check=False
    )


def systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("systemctl", *arguments)


def show() -> dict[str, str]:
    names = (
        *("ActiveState", "SubState", "Result", "NRestarts", "MainPID", "StatusText"),
        *("ExecMainStatus", "ExecMainCode"),
    )
    lines = systemctl("show", UNIT, f"--property={','.join(names)}").stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def main_pid() -> int:
    return int(show()["MainPID"])


def engine_pids() -> list[int]:
    """Of the service: one, or none while the daemon starts it."""
    return [pid for pid in children(main_pid()) if "omniserve.engine.process" in arguments(pid)]


def engine_pid() -> int:
    (pid,) = engine_pids()
    return pid


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def arguments(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def process_facts(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def journal(unit: str = UNIT) -> str:
    return run("journalctl", "--no-pager", "-o", "short-monotonic", "-u", unit).stdout


def until(condition: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError(f"{what}: not after {PATIENCE_S:g} s; {show()}")
        time.sleep(0.1)


def write_config(text: str) -> None:
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(text)


@contextmanager
def drop_in(name: str, text: str) -> Iterator[None]:
    """In force for services started in the block."""
    path = DROP_INS / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    systemctl("daemon-reload")
    try:
        yield
    finally:
        path.unlink()
        systemctl("daemon-reload")


def is_restarted(before: dict[str, str]) -> bool:
    """Under another process, and ready."""
    now = show()
    is_other = now["MainPID"] not in ("0", before["MainPID"])
    return is_other and now["ActiveState"] == "active"


def complete(max_tokens: int = 5) -> int:
    """The number of tokens of an answer."""
    body = {"model": "demo", "prompt": PROMPT, "max_tokens": max_tokens, "ignore_eos": True}
    answer = httpx.post(f"{URL}/v1/completions", json=body, timeout=PATIENCE_S)
    answer.raise_for_status()
    return int(answer.json()["usage"]["completion_tokens"])


class Stream:
    """A long answer that is read in the background."""

    def __init__(self, max_tokens: int, tier: str = "interactive") -> None:
        self._body = {
            **{"model": "demo", "prompt": PROMPT, "max_tokens": max_tokens},
            **{"ignore_eos": True, "stream": True, "service_tier": tier},
            "stream_options": {"include_usage": True},
        }
        self.num_events = 0
        self.num_tokens = 0
        """Known at a good end alone."""
        self.end = ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        until(lambda: bool(self.num_events or self.end), "a first token")

    def wait(self) -> dict[str, Any]:
        """How it ended."""
        self._thread.join(timeout=PATIENCE_S)
        return {"end": self.end, "num_tokens": self.num_tokens}

    def _read(self) -> None:
        try:
            with httpx.stream(
                "POST", f"{URL}/v1/completions", json=self._body, timeout=PATIENCE_S
            ) as answer:
                for line in answer.iter_lines():
                    if line == "data: [DONE]":
                        self.end = self.end or "done"
                    elif line.startswith("data: ") and '"error"' in line:
                        self.end = "error"
                    elif line.startswith("data: "):
                        self.num_events += 1
                        usage = json.loads(line.removeprefix("data: ")).get("usage") or {}
                        self.num_tokens = usage.get("completion_tokens", 0)
            self.end = self.end or "cut"
        except httpx.HTTPError as error:
            self.end = self.end or type(error).__name__

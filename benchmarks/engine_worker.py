"""The parent's side of a worker process: commands out, results in, processor time used."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from machine import busy_seconds

_TICKS = os.sysconf("SC_CLK_TCK")


class WorkerDied(Exception):
    """The worker's process ended; the message names its log."""


class Worker:
    """One engine, loaded, in a process of its own."""

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        settings: dict[str, Any],
        log_path: Path,
    ) -> None:
        self._log_path = log_path
        with log_path.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **environment},
            )
        try:
            self.info: dict[str, str] = self.ask(settings)
        except WorkerDied:
            self.close()
            raise

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            status = self._process.wait()
            raise WorkerDied(f"worker ended with status {status}, see {self._log_path}")
        result: dict[str, Any] = json.loads(answer)
        return result

    def cpu_seconds(self) -> float:
        """Processor time of the process so far, all threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Meter:
    """Processor time, in cores, taken between its creation and `read`."""

    def __init__(self, active: Worker, idle: list[Worker]) -> None:
        self._active, self._idle = active, idle
        self._start = self._snapshot()

    def _snapshot(self) -> tuple[float, float, float, float]:
        idle = sum(worker.cpu_seconds() for worker in self._idle)
        return time.perf_counter(), busy_seconds(), self._active.cpu_seconds(), idle

    def read(self) -> dict[str, float]:
        """Cores used by the measured worker, by the waiting ones and by the rest of the machine."""
        now, busy, active, idle = (
            after - before for after, before in zip(self._snapshot(), self._start, strict=True)
        )
        others = max(0.0, busy - active - idle)
        return {"active": active / now, "waiting": idle / now, "others": others / now}

"""Starts daemons as real processes and watches what they say and leave behind."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

READY = re.compile(r"^omniserve ready: grpc (\S+), http (https?://\S+), models (.+)$")
PATIENCE_S = 120.0
ROOT = Path(__file__).parents[1]


class DaemonProcess:
    """A daemon in the foreground of nobody; leaving the context kills what still runs of it."""

    def __init__(self, *command: str) -> None:
        # Short, because it has to hold sockets; of its own, to see what is left in it.
        self._directory = tempfile.TemporaryDirectory(prefix="t-", dir="/tmp")
        self.temp_dir = Path(self._directory.name)
        environment = os.environ | {
            "TMPDIR": self._directory.name,
            "PYTHONPATH": str(ROOT),
        }
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._log_lines: list[str] = []
        self._log_changed = threading.Condition()
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
        self.wait()
        self._directory.cleanup()

    def wait_ready(self) -> tuple[str, str]:
        """The addresses of the ready line, which has to be the first line on stdout."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().rstrip("\n")
        found = READY.match(line)
        assert found, f"{line!r} is no ready line; the log says: {self.log}"
        return found[1], found[2]

    def wait_log(self, part: str, times: int = 1) -> None:
        """Waits until the log holds `part`, so many times."""
        with self._log_changed:
            found = self._log_changed.wait_for(
                lambda: self.log.count(part) >= times, timeout=PATIENCE_S
            )
        assert found, f"{part!r} is not in the log: {self.log}"

    def wait(self) -> int:
        """The exit status, once every line of the log is read."""
        status = self.process.wait(timeout=PATIENCE_S)
        self._reader.join(timeout=PATIENCE_S)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return status

    def signal(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    @property
    def log(self) -> str:
        return "".join(self._log_lines)

    @property
    def engine(self) -> psutil.Process:
        (engine,) = psutil.Process(self.process.pid).children()
        return engine

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._log_changed:
                self._log_lines.append(line)
                self._log_changed.notify_all()

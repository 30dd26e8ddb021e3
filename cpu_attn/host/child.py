"""One run of the host attention process, seen from its parent. Nothing here waits, but `end`."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Pipe
from pathlib import Path

import cpu_attn
from cpu_attn.host.errors import HostAttentionDown
from cpu_attn.host.handshake import READY, STOP, Start
from cpu_attn.host.settings import HostModel, HostSettings

_REAP_S = 10.0


class HostChild:
    """Starts the process when made; its workers serve once `ready`."""

    def __init__(self, settings: HostSettings, models: Sequence[HostModel], memory_fd: int) -> None:
        self.ready = False
        self.last_words = ""
        """Why it could not start, where it said so."""
        self._connection, theirs = Pipe()
        fds = {theirs.fileno(), memory_fd, *(model.pool.fd for model in models)}
        # -P and the package's own place: whatever the working directory holds is not imported.
        command = [sys.executable, "-P", "-m", "cpu_attn.host.process", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=sorted(fds), env=_environment(), stdin=subprocess.DEVNULL
            )
        # Its start takes seconds of computing, not to be had at the cost of whoever started it.
        # Where the system refuses, the child will say so of its workers.
        with suppress(OSError):
            os.sched_setaffinity(self.pid, settings.cores)
        self._send(Start(os.getpid(), memory_fd, settings, tuple(models)))

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit status once it is gone for good, all threads with it; None before."""
        status = self._process.poll()
        # After that, so that the words of one that is gone have all been said.
        if not self.ready:
            self._listen()
        return status

    def kill(self) -> None:
        """Without waiting for the end. Works on a stopped process too."""
        self._process.kill()

    def end(self, grace_s: float) -> None:
        """Asks it to end, and kills it after `grace_s`; returns when it is gone.

        Raises HostAttentionDown where the machine does not let it go: its memory is not safe then.
        """
        if not self._connection.closed:
            # Said, for closing alone goes unnoticed while another process has a copy of this end.
            self._send(STOP)
            self._connection.close()
        try:
            self._process.wait(grace_s)
            return
        except subprocess.TimeoutExpired:
            self._process.kill()
        try:
            self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired as error:
            raise HostAttentionDown(f"process {self.pid} was killed and does not end") from error

    def _send(self, message: object) -> None:
        try:
            self._connection.send(message)
        except OSError:
            # It is dead already, which `poll` will find.
            return

    def _listen(self) -> None:
        try:
            if not self._connection.closed and self._connection.poll():
                words = self._connection.recv()
                self.ready = words == READY
                self.last_words = "" if self.ready else str(words)
        except (EOFError, OSError):
            return


def describe_exit(status: int) -> str:
    """`signal SIGKILL` or `exit status 1`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    package_root = str(Path(cpu_attn.__file__).parents[1])
    path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = os.pathsep.join([package_root, path] if path else [package_root])
    # Its threads are the workers; a BLAS would bring more that nobody uses.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    return environment

"""What befalls the host attention process: it is stopped, goes on, is killed."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cpu_attn.host import HostAttention

_MOMENT_S = 0.005


class HostTroubles:
    """Stops and kills at the steps of a run that were drawn before it."""

    def __init__(self, host: HostAttention, rng: random.Random, *, may_kill: bool) -> None:
        self._host = host
        self._stop_at: int | None = None
        self._kill_at: int | None = None
        # Steps are short while all work is on a host that stands still: some milliseconds.
        self._num_stopped_steps = rng.choice([5, 50, 300])
        self._stopped_pid: int | None = None
        if rng.random() < 0.7 or not may_kill:
            self._stop_at = rng.randint(0, 60)
        if may_kill and (self._stop_at is None or rng.random() < 0.5):
            self._kill_at = rng.randint(0, 60)

    @property
    def kills(self) -> bool:
        """Whether it kills; of a run that ends before, it does not."""
        return self._kill_at is not None

    def before_step(self, step: int) -> None:
        if self._stop_at is not None:
            if step == self._stop_at:
                self._stopped_pid = self._host.pid
                send(self._stopped_pid, signal.SIGSTOP)
            elif step == self._stop_at + self._num_stopped_steps:
                self.end()
        if step == self._kill_at:
            send(self._host.pid, signal.SIGKILL)

    def end(self) -> None:
        """Lets a stopped process go on."""
        send(self._stopped_pid, signal.SIGCONT)
        self._stopped_pid = None


def send(pid: int | None, signal_number: int) -> None:
    """Signals a process that may be gone."""
    if pid is not None:
        try:
            os.kill(pid, signal_number)
        except ProcessLookupError:
            pass


@contextmanager
def stopped(pid: int) -> Iterator["StoppedHost"]:
    """The process stands still but where it is let run."""
    send(pid, signal.SIGSTOP)
    try:
        yield StoppedHost(pid)
    finally:
        send(pid, signal.SIGCONT)


class StoppedHost:
    def __init__(self, pid: int) -> None:
        self._pid = pid

    @contextmanager
    def running(self) -> Iterator[None]:
        """For a moment, and for what is done meanwhile."""
        send(self._pid, signal.SIGCONT)
        time.sleep(_MOMENT_S)
        try:
            yield
        finally:
            send(self._pid, signal.SIGSTOP)

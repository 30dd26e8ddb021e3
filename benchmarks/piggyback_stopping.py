"""A host attention process that runs for a part of the time only."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

_PERIOD_S = 0.1


@contextmanager
def slowed_host(share: float) -> Iterator[None]:
    """Stops and continues the host attention process of this one, so that it runs for `share`."""
    if share >= 1.0:
        yield
        return
    (host,) = [
        child
        for child in psutil.Process().children()
        if "cpu_attn.host.process" in " ".join(child.cmdline())
    ]
    done = threading.Event()

    def slow_down() -> None:
        while not done.is_set():
            os.kill(host.pid, signal.SIGSTOP)
            done.wait(_PERIOD_S * (1 - share))
            os.kill(host.pid, signal.SIGCONT)
            done.wait(_PERIOD_S * share)

    thread = threading.Thread(target=slow_down)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(ProcessLookupError):
            os.kill(host.pid, signal.SIGCONT)

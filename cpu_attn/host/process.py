"""The host attention process: `python -m cpu_attn.host.process FD`, started by HostAttention.

FD is one end of a connection: the parent sends a Start, the child answers READY or why it cannot.
The main thread then waits for the connection's end and does nothing else; workers hold no lock of
the interpreter.
"""

import ctypes
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from cpu_attn.host import worker
from cpu_attn.host.handshake import READY, Start
from cpu_attn.host.ring import request_stop
from cpu_attn.host.slots import HostMemory
from cpu_attn.host.tables import WorkerTables

_PR_SET_PDEATHSIG = 1
_CACHE_LINE = 64


def main() -> int:
    """Serves until the parent closes the connection or dies."""
    # Ctrl-C in a terminal reaches every process in it; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(int(sys.argv[1])) as connection:
        try:
            start = connection.recv()
            _die_with(start.parent_pid)
            _serve(start, connection)
        except (EOFError, BrokenPipeError):
            # The parent has gone, or does not want it any more.
            return 0
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
            raise
    return 0


def _die_with(parent_pid: int) -> None:
    """A stopped process does not see its connection end, but this ends it too."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise EOFError("the parent is gone")


def _serve(start: Start, connection: Connection) -> None:
    settings = start.settings
    memory = HostMemory.attach(start.memory_fd, start.models, settings.num_slots)
    tables = WorkerTables(start.models, memory, num_workers=len(settings.cores))
    spin_ns = int(settings.spin_s * 1e9)
    workers = [_Worker(core, memory, tables, spin_ns) for core in settings.cores]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.wait_until_pinned()
    connection.send(READY)
    try:
        connection.recv()
    except (EOFError, OSError):
        pass
    request_stop(memory.control)
    for thread in workers:
        thread.join()


class _Worker(threading.Thread):
    """One worker on one core, with its scratch."""

    def __init__(self, core: int, memory: HostMemory, tables: WorkerTables, spin_ns: int) -> None:
        super().__init__(name=f"host-attention-{core}", daemon=True)
        self._core = core
        self._memory = memory
        self._tables = tables
        self._spin_ns = spin_ns
        self._scratch = _aligned_words(worker.SCRATCH_WORDS)
        self._pinned = threading.Event()
        self._error: OSError | None = None

    def wait_until_pinned(self) -> None:
        """Raises ValueError where the core is not this process's to use."""
        self._pinned.wait()
        if self._error is not None:
            raise ValueError(f"cores: {self._core} cannot be used: {self._error.strerror}")

    def run(self) -> None:
        try:
            # 0 is the calling thread.
            os.sched_setaffinity(0, {self._core})
        except OSError as error:
            self._error = error
            return
        finally:
            self._pinned.set()
        worker.serve(
            self._memory.control,
            self._memory.cells,
            self._memory.mask,
            self._tables.models,
            self._tables.layers,
            self._scratch,
            self._spin_ns,
        )


def _aligned_words(count: int) -> NDArray[np.int64]:
    """Zeros that share no cache line with anybody."""
    words = np.zeros(count + 2 * _CACHE_LINE // 8, dtype=np.int64)
    skip = -words.ctypes.data % _CACHE_LINE // 8
    return words[skip : skip + count]


if __name__ == "__main__":
    sys.exit(main())

"""The host attention process: `python -m cpu_attn.host.process FD`, started by HostAttention.

FD is one end of a channel: the parent sends a Start and the models that are there, the child
answers Ready or why it cannot. The main thread then takes models that come and lets go of those
that leave, and does nothing else; workers hold no lock of the interpreter, so they go on meanwhile.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from cpu_attn.host import worker
from cpu_attn.host.channel import Channel
from cpu_attn.host.handshake import AddModel, CannotStart, ModelAdded, Ready, RemoveModel, Start
from cpu_attn.host.ring import request_stop
from cpu_attn.host.settings import HostSettings
from cpu_attn.host.slots import ModelMemory, RingMemory
from cpu_attn.host.tables import WorkerTables

_PR_SET_PDEATHSIG = 1
_CACHE_LINE = 64
_COMPILER_NICENESS = 10
"""Against a worker on the same core the main thread gets about a tenth: compiling a kernel takes
tens of seconds, in which tasks of other models go on almost undisturbed."""


def main() -> int:
    """Serves until the parent closes the channel or dies."""
    # Ctrl-C in a terminal reaches every process in it; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Channel(socket.socket(fileno=int(sys.argv[1]))) as channel:
        try:
            start, (ring_fd,) = _receive(channel)
            assert isinstance(start, Start)
            _die_with(start.parent_pid)
            _serve(start, ring_fd, channel)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            # The parent has gone, or does not want it any more.
            return 0
        except Exception as error:
            with suppress(OSError):
                channel.send(CannotStart(f"{type(error).__name__}: {error}"), waits=True)
            raise
    return 0


def _receive(channel: Channel) -> tuple[object, list[int]]:
    received = channel.receive(waits=True)
    assert received is not None
    return received


def _die_with(parent_pid: int) -> None:
    """A stopped process does not see its channel end, but this ends it too."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise EOFError("the parent is gone")


def _serve(start: Start, ring_fd: int, channel: Channel) -> None:
    settings = start.settings
    ring = RingMemory.attach(ring_fd, settings.num_slots)
    tables = WorkerTables(num_workers=len(settings.cores))
    for _ in range(start.num_models):
        _take(channel, tables, settings)
    spin_ns = int(settings.spin_s * 1e9)
    workers = [_Worker(core, ring, tables, spin_ns) for core in settings.cores]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.wait_until_pinned()
    channel.send(Ready(), waits=True)
    with suppress(OSError):
        # Of this thread alone. A kernel compiled by now was waited for, from now on others work.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _COMPILER_NICENESS)
    with suppress(EOFError, OSError):
        while _take(channel, tables, settings):
            pass
    request_stop(ring.control)
    for thread in workers:
        thread.join()


def _take(channel: Channel, tables: WorkerTables, settings: HostSettings) -> bool:
    """Does what the next message says; False where that is to stop."""
    message, fds = _receive(channel)
    if isinstance(message, AddModel):
        channel.send(ModelAdded(message.serial, _add(message, fds, tables, settings)), waits=True)
        return True
    if isinstance(message, RemoveModel):
        # It is not there where it could not be added.
        if message.index in tables:
            tables.remove(message.index)
        return True
    return False


def _add(message: AddModel, fds: list[int], tables: WorkerTables, settings: HostSettings) -> str:
    """Why the model cannot be served, or nothing."""
    slots_fd, pool_fd = fds
    try:
        try:
            memory = ModelMemory.attach(slots_fd, message.model, settings.num_slots)
        except BaseException:
            os.close(pool_fd)
            raise
        tables.add(message.index, message.model, memory, pool_fd)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


class _Worker(threading.Thread):
    """One worker on one core, with its scratch."""

    def __init__(self, core: int, ring: RingMemory, tables: WorkerTables, spin_ns: int) -> None:
        super().__init__(name=f"host-attention-{core}", daemon=True)
        self._core = core
        self._ring = ring
        self._models = tables.models
        self._spin_ns = spin_ns
        self._scratch = _aligned_words(worker.SCRATCH_WORDS)
        tables.scratches.append(self._scratch)
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
            self._ring.control,
            self._ring.cells,
            self._ring.mask,
            self._models,
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

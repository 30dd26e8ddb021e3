"""Holds processes of servers, and our own threads, to cores."""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

import psutil

from omniserve.bench.colocate.frames import Frame
from omniserve.errors import OmniServeError


def pin(process_id: int, cores: Collection[int], but: Collection[int] = ()) -> None:
    """Every thread of a process, and those that it starts from now on.

    A thread that may use nothing but cores of `but` has been pinned by its owner, and stays.
    """
    with contextlib.suppress(FileNotFoundError):
        for thread in Path(f"/proc/{process_id}/task").iterdir():
            # Threads end while we look.
            with contextlib.suppress(ProcessLookupError):
                if not os.sched_getaffinity(int(thread.name)) <= set(but):
                    os.sched_setaffinity(int(thread.name), cores)


def pin_server(
    frame: Frame,
    processes: Collection[psutil.Process],
    computing: str,
    compute_cores: Collection[int],
) -> None:
    """On an emulated accelerator: who computes to its cores, all others to the host's.

    Who computes is told by a part of its name or command line. Raises OmniServeError where nobody
    is it: the server would compute on the wrong cores, unnoticed.
    """
    if not frame.is_emulated:
        return
    has_computing = False
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            words = " ".join([process.name(), *process.cmdline()])
            is_computing = computing in words
            pin(process.pid, compute_cores if is_computing else frame.host_cores, frame.host_cores)
            has_computing |= is_computing
    if not has_computing:
        raise OmniServeError(f"no process of the server is called {computing!r}: nothing to pin")


def used_seconds(processes: Collection[psutil.Process]) -> float:
    """Processor time of processes since they started; nothing of those that have ended."""
    total_s = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total_s += times.user + times.system
    return total_s

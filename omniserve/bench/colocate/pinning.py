"""Holds processes of servers, and our own threads, to cores."""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

import psutil

from omniserve.bench.colocate.frames import Frame


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

    Who computes is told by a part of its name or command line.
    """
    if not frame.is_emulated:
        return
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            words = " ".join([process.name(), *process.cmdline()])
            cores = compute_cores if computing in words else frame.host_cores
            pin(process.pid, cores, but=frame.host_cores)


def used_seconds(processes: Collection[psutil.Process]) -> float:
    """Processor time of processes since they started; nothing of those that have ended."""
    total_s = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total_s += times.user + times.system
    return total_s

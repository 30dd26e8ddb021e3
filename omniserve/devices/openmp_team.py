"""Running a C callback on the very threads that torch's own operators run on.

torch's pool spins between operators, so a second pool would fight it for the same cores. GNU OpenMP
starts a parallel region with one exported call, which any address can be given to.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch


def _loaded_libgomp() -> ctypes.CDLL | None:
    """The OpenMP runtime that this process already uses, not another copy of it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if "libgomp" in Path(path).name:
            library = ctypes.CDLL(path)
            if hasattr(library, "GOMP_parallel"):
                return library
    return None


def compute_alone() -> None:
    """What the calling thread computes from now on takes no other threads; others keep theirs.

    torch.set_num_threads would change what threads to come begin with.
    """
    # Asked for once, so that torch does not set it anew at the first operator.
    torch.get_num_threads()
    library = _loaded_libgomp()
    if library is not None and hasattr(library, "omp_set_num_threads"):
        library.omp_set_num_threads(1)


class OpenMpTeam:
    """The threads of torch's pool; without GNU OpenMP, the calling thread alone."""

    def __init__(self) -> None:
        library = _loaded_libgomp()
        self._parallel: Any = None
        if library is not None:
            self._parallel = library.GOMP_parallel
            self._parallel.argtypes = (
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_uint,
                ctypes.c_uint,
            )
            self._parallel.restype = None

    def run(self, callback_address: int, task_address: int) -> bool:
        """Runs a callback once on each thread and waits; False if there is no one to share with."""
        num_threads = torch.get_num_threads()
        if self._parallel is None or num_threads == 1:
            return False
        self._parallel(callback_address, task_address, num_threads, 0)
        return True


class TeamKernel:
    """A compiled callback `void (*)(int64_t *task)`; tasks are kept alive by who runs them."""

    def __init__(self, team: OpenMpTeam, callback: Any) -> None:
        self._team = team
        # Kept alive here: what is called knows its address only.
        self._callback = callback
        self._callback_address: int = callback.address
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(callback.address)

    def run(self, task_address: int, *, alone: bool = False) -> None:
        """Runs a task, on the calling thread only where it is too small to share."""
        if alone or not self._team.run(self._callback_address, task_address):
            self._call(task_address)

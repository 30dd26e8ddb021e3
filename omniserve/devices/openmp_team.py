"""Running a C callback on the very threads that torch's own operators run on.

torch's pool spins between operators, so a second pool would fight it for the same cores. GNU OpenMP
starts a parallel region with one exported call, which any address can be given to.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

Callback = Callable[..., None]


def _loaded_libgomp() -> ctypes.CDLL | None:
    """The OpenMP runtime that this process already uses, not another copy of it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if "libgomp" in Path(path).name:
            library = ctypes.CDLL(path)
            if hasattr(library, "GOMP_parallel"):
                return library
    return None


class OpenMpTeam:
    """Calls `callback(argument)` once on every torch thread, and returns when all have."""

    def __init__(self) -> None:
        library = _loaded_libgomp()
        self._parallel = None
        if library is not None:
            self._parallel = library.GOMP_parallel
            self._parallel.argtypes = (
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_uint,
                ctypes.c_uint,
            )
            self._parallel.restype = None

    def run(self, callback_address: int, argument_address: int) -> None:
        """Both are plain addresses: a C function `void (*)(void *)` and what it is given."""
        num_threads = torch.get_num_threads()
        if self._parallel is None or num_threads == 1:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(callback_address)(argument_address)
        else:
            self._parallel(callback_address, argument_address, num_threads, 0)

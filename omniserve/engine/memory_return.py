"""Giving the memory of a model back while other models run."""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import torch

_NICENESS = 10
_PAUSE_S = 200e-6
"""After each layer, and each piece of the host's pool, for page faults of the step loop: they wait
while the kernel unmaps. Python's lock is held for neither."""


class Remains(Protocol):
    """Of a model that is not served any more, or never was."""

    def take_apart(self) -> Iterator[None]:
        """Drops what is large, piece by piece."""
        ...


class MemoryReturn:
    """A thread that drops what is left of a model, and has the allocators let go of it."""

    def __init__(self, left: Remains | None) -> None:
        """None: of a load that came to nothing. The caller keeps no reference."""
        self._left = left
        self._thread = threading.Thread(target=self._run, name="memory-return", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        left, self._left = self._left, None
        if left is not None:
            for _ in left.take_apart():
                time.sleep(_PAUSE_S)
        del left
        if torch.accelerator.is_available():
            torch.accelerator.memory.empty_cache()
        _trim()


def _trim() -> None:
    """Has malloc give free pages back; another libc has no such call, and needs none."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

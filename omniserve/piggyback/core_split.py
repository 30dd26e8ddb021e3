"""Which cores the device computes on, where it is the CPU and shares them with host attention."""

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import torch

_QUIET_S = 0.5
"""So long nobody must have been offloaded before the device takes the host's cores back."""


class CoreSplit:
    """With nothing on the host the device has all its threads; else the host's cores are its own.

    A polling host worker on a core that torch's threads also use stalls their barriers. To change
    the number of threads takes about half a millisecond, so it changes on transitions only.
    """

    def __init__(
        self, host_cores: Sequence[int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Of the calling thread, which is the one that computes."""
        self._all_cores = os.sched_getaffinity(0)
        self._device_cores = self._all_cores - set(host_cores)
        self._all_threads = torch.get_num_threads()
        self.num_shared_threads = min(self._all_threads, len(self._device_cores))
        """Threads of the device while the host is active."""
        self._clock = clock
        self._is_split = False
        self._active_s = 0.0
        if not self.costs_device_threads:
            # Nothing to give back ever, so nothing to change ever.
            self.split()

    @property
    def costs_device_threads(self) -> bool:
        """Whether host attention takes cores that the device would use."""
        return self.num_shared_threads < self._all_threads

    @property
    def is_split(self) -> bool:
        """Whether the host has its cores."""
        return self._is_split

    def update(self, host_active: bool) -> None:
        """To be called once a step."""
        if not self.costs_device_threads or not (host_active or self._is_split):
            return
        now_s = self._clock()
        if host_active:
            self._active_s = now_s
            if not self._is_split:
                self.split()
        elif now_s - self._active_s >= _QUIET_S:
            self.unite()

    def split(self) -> None:
        """Takes the host's cores from the device."""
        self._is_split = True
        _move_compute_threads(self._device_cores)
        torch.set_num_threads(self.num_shared_threads)

    def unite(self) -> None:
        """Gives them back."""
        self._is_split = False
        _move_compute_threads(self._all_cores)
        torch.set_num_threads(self._all_threads)


def _move_compute_threads(cores: Collection[int]) -> None:
    """The calling thread, and all that Python did not start: OpenMP's, which keep what they have.

    Those to come inherit it from the calling thread.
    """
    elsewhere = {thread.native_id for thread in threading.enumerate()} - {threading.get_native_id()}
    for name in os.listdir("/proc/self/task"):
        thread_id = int(name)
        if thread_id not in elsewhere:
            # It may have ended meanwhile.
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread_id, cores)

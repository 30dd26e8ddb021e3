"""Which cores the device computes on, where it is the CPU and shares them with host attention."""

import os
import threading
from collections.abc import Collection, Sequence
from contextlib import suppress

import torch


class CoreSplit:
    """Either the device has all its threads, or the host's cores are the host's own.

    A polling host worker on a core that torch's threads also use stalls their barriers. To change
    the number of threads takes about half a millisecond, so it changes on transitions only.
    """

    def __init__(self, host_cores: Sequence[int]) -> None:
        """Of the calling thread, which is the one that computes."""
        self._all_cores = os.sched_getaffinity(0)
        self._device_cores = self._all_cores - set(host_cores)
        self._all_threads = torch.get_num_threads()
        self.num_shared_threads = min(self._all_threads, len(self._device_cores))
        """Threads of the device while the host is active."""
        self._is_split = False
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

    def update(self, *, is_split: bool) -> None:
        """Makes it so, where it is not so yet and makes a difference."""
        if self.costs_device_threads and is_split != self._is_split:
            self.split() if is_split else self.unite()

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

"""Work that an accelerator does beside its compute stream, and how far it has got."""

from collections.abc import Callable
from typing import Protocol

import torch


class Mark(Protocol):
    """A point in a stream; `torch.Event` is one."""

    def query(self) -> bool:
        """Whether the device has got there; never waits."""


class SideStream(Protocol):
    """Runs what it is given in that order, beside the compute stream."""

    def enqueue(self, work: Callable[[], object]) -> Mark:
        """Queues what `work` launches behind all that the compute stream was given so far.

        Comes back at once; the mark is where the work ends. What the work reads must stay as it is
        until then, tensors that were allocated outside of it must be kept alive.
        """

    def drain(self) -> None:
        """Returns when all of it is done."""


class AcceleratorStream:
    """A stream of torch.accelerator's device."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.Stream(device=device)

    def enqueue(self, work: Callable[[], object]) -> torch.Event:
        self._stream.wait_stream(torch.accelerator.current_stream(self._stream.device))
        with self._stream:
            work()
        return self._stream.record_event()

    def drain(self) -> None:
        self._stream.synchronize()

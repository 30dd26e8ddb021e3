"""How far layers of steps that may have to stop are queued ahead on an accelerator.

Launching a layer takes less time than running it, so a host that never waits queues whole steps
within milliseconds, and whoever comes then stands behind them all. One event is recorded behind
each layer and polled: while one layer runs one more may be queued, so that the device never idles.

Unproven on hardware: no CUDA and no Ascend machine has run this module.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch

_POLL_S = 20e-6
_MOST_QUEUED = 1


class Mark(Protocol):
    """Stands in a device's queue behind what was queued before it."""

    def query(self) -> bool:
        """Whether the device has come to it; never waits."""


class LayerQueue:
    """The layers of one device that may not be done yet; one stream, so they end in order."""

    def __init__(self, mark: Callable[[], Mark]) -> None:
        """`mark` puts a new mark at the end of the device's queue."""
        self._mark = mark
        self._marks: deque[Mark] = deque()

    def note(self) -> None:
        """A layer was queued."""
        self._marks.append(self._mark())

    def await_room(self) -> None:
        """Returns once no more than one layer waits for the device, or runs as the last one."""
        self._await(_MOST_QUEUED)

    def await_all(self) -> None:
        """Returns once the device has run all layers."""
        self._await(0)

    def _await(self, most: int) -> None:
        while len(self._marks) > most:
            if self._marks[0].query():
                self._marks.popleft()
            else:
                time.sleep(_POLL_S)


def layer_queue_for(device: torch.device) -> LayerQueue | None:
    """None for a CPU device: a layer is done when the call returns."""
    if device.type == "cpu":
        return None

    def mark() -> Mark:
        event = torch.Event(device=device)
        event.record()
        return event

    return LayerQueue(mark)

"""Bringing sampled tokens to the host without waiting for work that was queued behind them."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

_POLL_S = 20e-6


class HostCopy:
    """A copy to the host that is under way; on a CPU device there is nothing to copy."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.Event | None = None
        self._tensor = tensor
        if tensor.device.type != "cpu":
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            # Waiting for the stream would also wait for the step that is queued behind this one.
            self._event = torch.Event(device=tensor.device)
            self._event.record()

    def wait(self, meanwhile: Callable[[], None]) -> list[int]:
        """The values, once they have arrived; `meanwhile` is called until then."""
        while self._event is not None and not self._event.query():
            meanwhile()
            time.sleep(_POLL_S)
        values: list[int] = self._tensor.tolist()
        return values

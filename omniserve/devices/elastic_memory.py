"""Device memory that is reserved in whole and backed where it is in use."""

import math
import mmap
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

_MAP_NORESERVE = 0x4000
"""Linux on all machines that torch runs on; `mmap` names it from Python 3.13 on."""


class ElasticMemory(Protocol):
    """A reservation of a fixed size; what was given back is there again once it is reserved."""

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The whole of it, or its beginning."""
        ...

    def reserve(self, start: int, stop: int) -> None:
        """Bytes `start` to `stop`, of whole pages, are going to be used.

        Raises OSError where the device has no memory for them; then nothing has changed.
        """
        ...

    def keep(self, start: int, stop: int) -> None:
        """They are going to be used as long as there is this memory, and stay if they are given
        back. Raises OSError."""
        ...

    def give_back(self, start: int, stop: int) -> None:
        """They take no memory any more, and what they held is lost. Work that the device has still
        to do may use them."""
        ...

    def close(self) -> None:
        """Nobody uses its tensors any more."""
        ...


class HostPages:
    """Of a CPU device: an anonymous mapping, whose pages exist from their first use on."""

    page_bytes = mmap.PAGESIZE

    def __init__(self, num_bytes: int) -> None:
        """Raises OSError where the machine cannot map so much."""
        self.num_bytes = num_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._map = mmap.mmap(-1, num_bytes, flags=flags)
        try:
            # Of a huge page that is given back in part the kernel frees nothing for long.
            self._map.madvise(mmap.MADV_NOHUGEPAGE)
        except OSError:
            # A kernel without huge pages knows no such advice.
            return

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """It keeps the mapping alive."""
        return torch.frombuffer(self._map, dtype=dtype, count=math.prod(shape)).view(*shape)

    def reserve(self, start: int, stop: int) -> None:
        """Nothing to do: pages come by themselves."""

    def keep(self, start: int, stop: int) -> None:
        """Nothing to do either: they are not given back."""

    def close(self) -> None:
        """The mapping goes with the tensors."""

    def give_back(self, start: int, stop: int) -> None:
        self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)

"""Elastic memory of a device whose driver keeps addresses and memory apart."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor

from omniserve.devices.device_pages import DevicePages, Mark

_PAGES_AT_ONCE = 64
"""Closing holds others up no longer than for so many."""


class VirtualMemory:
    """An `ElasticMemory`: a range of addresses, behind which there are pages where it is in use.

    Reserving and giving back twice is harmless. A thread at a time.
    """

    def __init__(
        self,
        pages: DevicePages,
        num_bytes: int,
        mark: Callable[[], Mark],
        as_bytes: Callable[["VirtualMemory"], Tensor],
    ) -> None:
        """`mark` puts one at the end of the compute stream; `as_bytes` makes a tensor of uint8 that
        is all of this memory, and keeps it alive.

        Raises DriverError.
        """
        self._range = _Range(pages, num_bytes, mark)
        self._as_bytes = as_bytes
        # Where nobody closes it, as after a load that failed.
        self._abandon = weakref.finalize(self, pages.abandon, self._range.close)
        self._abandon.atexit = False

    @property
    def address(self) -> int:
        return self._range.address

    @property
    def num_bytes(self) -> int:
        return self._range.num_bytes

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """It keeps the addresses. Raises OutOfDeviceMemory where not one page is left."""
        with_page = self._range.with_first_page(lambda: self._as_bytes(self))
        return with_page[: prod(shape) * dtype.itemsize].view(dtype).view(*shape)

    def reserve(self, start: int, stop: int) -> None:
        """Raises DriverError, and then there is no more behind them than before."""
        self._range.reserve(start, stop)

    def keep(self, start: int, stop: int) -> None:
        """Raises OutOfDeviceMemory, DriverError."""
        self._range.keep(start, stop)

    def give_back(self, start: int, stop: int) -> None:
        self._range.give_back(start, stop)

    def close(self) -> None:
        self._abandon.detach()
        self._range.close()


class _Range:
    """What `VirtualMemory` has, for as long as that is there and until it is closed."""

    def __init__(self, pages: DevicePages, num_bytes: int, mark: Callable[[], Mark]) -> None:
        self._pages = pages
        self._page_bytes = pages.page_bytes
        self.num_bytes = -(-num_bytes // self._page_bytes) * self._page_bytes
        self._mark = mark
        self._in_use: set[int] = set()
        """Addresses of pages; those that are kept are there as well."""
        self._kept: set[int] = set()
        self._is_open = True
        self.address = pages.driver.reserve_addresses(self.num_bytes)

    def reserve(self, start: int, stop: int) -> None:
        wanted = [each for each in self._addresses(start, stop) if each not in self._in_use]
        if wanted:
            self._pages.back(wanted)
            self._in_use.update(wanted)

    def keep(self, start: int, stop: int) -> None:
        kept = [each for each in self._addresses(start, stop) if each not in self._kept]
        self._pages.create(len(kept))
        try:
            self.reserve(start, stop)
        except OSError:
            self._pages.release(len(kept))
            raise
        self._kept.update(kept)

    def give_back(self, start: int, stop: int) -> None:
        given = [
            each
            for each in self._addresses(start, stop)
            if each in self._in_use and each not in self._kept
        ]
        if given:
            self._pages.give_back(given, self._mark())
            self._in_use.difference_update(given)

    def with_first_page(self, make: Callable[[], Tensor]) -> Tensor:
        """What `make` makes while there is memory behind the first address: torch asks the driver
        whose it is."""
        self._pages.create(1)
        try:
            was_in_use = self.address in self._in_use
            self.reserve(0, self._page_bytes)
            try:
                return make()
            finally:
                if not was_in_use:
                    self.give_back(0, self._page_bytes)
        finally:
            self._pages.release(1)

    def close(self) -> None:
        """Waits for the device. Doing it again is harmless."""
        if not self._is_open:
            return
        self._is_open = False
        mark = self._mark()
        mark.synchronize()
        for some in self._pieces():
            self._pages.give_back([each for each in some if each in self._in_use], mark)
            self._pages.unmap(some)
        self._pages.driver.free_addresses(self.address, self.num_bytes)
        self._pages.release(len(self._kept))
        self._in_use.clear()
        self._kept.clear()

    def _pieces(self) -> Iterator[range]:
        stride = _PAGES_AT_ONCE * self._page_bytes
        for start in range(0, self.num_bytes, stride):
            yield self._addresses(start, min(start + stride, self.num_bytes))

    def _addresses(self, start: int, stop: int) -> range:
        assert start % self._page_bytes == 0 == stop % self._page_bytes, "parts of pages"
        assert 0 <= start <= stop <= self.num_bytes, "beyond the range"
        return range(self.address + start, self.address + stop, self._page_bytes)

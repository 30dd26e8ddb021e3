"""Pages of device memory that ranges of addresses have in turn.

As in vAttention (Prabhu et al., ASPLOS 2025, section 6) creating and unmapping is kept out of the
way of steps: pages are created once, and one that was given back stays where it is until another
address needs it, so that taking it back costs nothing.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from omniserve.devices.memory_driver import MemoryDriver, OutOfDeviceMemory

_UNMAPS_AT_ONCE = 16
"""A call may take tens of microseconds, and a step waits for it."""


class Mark(Protocol):
    """Stands in the compute stream behind what was launched before it; `torch.Event` is one."""

    def query(self) -> bool:
        """Whether the device has come to it; never waits."""

    def synchronize(self) -> None:
        """Returns when it has."""


@dataclass(slots=True, eq=False)
class _Page:
    handle: int
    address: int | None = None
    """Where it is mapped."""
    mark: Mark | None = None
    """Behind its last use there; None while it is in use, and before its first one."""


class _Book:
    """Everything that the driver has given and not got back yet."""

    def __init__(self, driver: MemoryDriver) -> None:
        self.driver = driver
        self.page_bytes = driver.page_bytes()
        self.lock = threading.Lock()
        self.free: dict[_Page, None] = {}
        """Those that nobody uses, given back longest ago first."""
        self.at: dict[int, _Page] = {}
        """By address: those that are in use there, or free and nowhere else since."""
        self.leaving: dict[int, Mark] = {}
        """Addresses still mapped to a page that is used elsewhere, until the mark is passed."""

    def unmap(self, address: int) -> None:
        self.driver.unmap(address, self.page_bytes)

    def take_from(self, address: int) -> None:
        """Unmaps a free page, or what is left there of one; waits for the device."""
        if address in self.leaving:
            self.leaving[address].synchronize()
            self.unmap(address)
            del self.leaving[address]
        elif address in self.at:
            page = self.at[address]
            assert page in self.free and page.mark is not None, f"{page} is in use"
            page.mark.synchronize()
            self.unmap(address)
            del self.at[address]
            page.address = page.mark = None

    def release_free(self, num_pages: int) -> None:
        for page in tuple(self.free)[:num_pages]:
            if page.address is not None:
                self.take_from(page.address)
            self.driver.release(page.handle)
            del self.free[page]

    def close(self) -> None:
        with self.lock:
            self.release_free(len(self.free))


class DevicePages:
    """All pages of a device, for all ranges of addresses; in any thread.

    A page that is given back may be in use elsewhere before the device has come so far: what uses
    it is launched on one stream, or waits for that. Its old address is unmapped only when nothing
    that was launched can use it.
    """

    def __init__(self, driver: MemoryDriver) -> None:
        """Raises DriverError."""
        self._book = _Book(driver)
        self._abandoned: deque[Callable[[], None]] = deque()
        # Once neither the device that has them nor any range is left.
        weakref.finalize(self, self._book.close).atexit = False

    @property
    def driver(self) -> MemoryDriver:
        return self._book.driver

    @property
    def page_bytes(self) -> int:
        return self._book.page_bytes

    @property
    def num_free(self) -> int:
        return len(self._book.free)

    def abandon(self, close: Callable[[], None]) -> None:
        """`close` gives back what a range has that nobody closed; it is called when pages are asked
        for, as this may come at any time."""
        self._abandoned.append(close)

    def create(self, num_pages: int) -> None:
        """Has so many pages more; all of them or none. Raises OutOfDeviceMemory, DriverError."""
        self._settle()
        book = self._book
        with book.lock:
            created: list[_Page] = []
            try:
                for _ in range(num_pages):
                    created.append(_Page(book.driver.create(book.page_bytes)))
            except OSError:
                for page in created:
                    book.driver.release(page.handle)
                raise
            # New ones first: they need not be unmapped anywhere.
            book.free = {**dict.fromkeys(created), **book.free}

    def release(self, num_pages: int) -> None:
        """Has so many free pages less."""
        with self._book.lock:
            assert num_pages <= len(self._book.free), "pages are in use"
            self._book.release_free(num_pages)

    def back(self, addresses: Sequence[int]) -> None:
        """Puts a free page behind each of these ascending addresses, of which none has one.

        Raises DriverError, and OutOfDeviceMemory where too few are free; then none has one.
        """
        self._settle()
        book = self._book
        with book.lock:
            self._unmap_passed()
            returned: dict[int, Mark] = {}
            mapped: list[int] = []
            try:
                # First those that are where they are wanted: others might take them.
                for address in addresses:
                    if address in book.at:
                        returned[address] = self._take_back(book.at[address])
                for address in addresses:
                    if address not in returned:
                        self._map(address)
                        mapped.append(address)
                for start, stop in _runs(mapped, book.page_bytes):
                    book.driver.allow_access(start, stop - start)
            except OSError:
                self._undo(returned, mapped)
                raise

    def give_back(self, addresses: Iterable[int], mark: Mark) -> None:
        """Their pages are free; `mark` stands behind all that uses them there."""
        book = self._book
        with book.lock:
            for address in addresses:
                page = book.at[address]
                assert page not in book.free, f"{page} is given back twice"
                page.mark = mark
                book.free[page] = None
            self._unmap_passed()

    def unmap(self, addresses: Iterable[int]) -> None:
        """Leaves nothing mapped there, and waits for the device; no page is in use there."""
        with self._book.lock:
            for address in addresses:
                self._book.take_from(address)

    def _settle(self) -> None:
        while self._abandoned:
            self._abandoned.popleft()()

    def _take_back(self, page: _Page) -> Mark:
        assert page in self._book.free and page.mark is not None, f"{page} is in use"
        del self._book.free[page]
        mark, page.mark = page.mark, None
        return mark

    def _map(self, address: int) -> None:
        book = self._book
        book.take_from(address)
        page = next(iter(book.free), None)
        if page is None:
            raise OutOfDeviceMemory("all pages are in use")
        book.driver.map(address, book.page_bytes, page.handle)
        del book.free[page]
        if page.address is not None:
            assert page.mark is not None
            del book.at[page.address]
            book.leaving[page.address] = page.mark
        page.address, page.mark = address, None
        book.at[address] = page

    def _undo(self, returned: Mapping[int, Mark], mapped: Iterable[int]) -> None:
        book = self._book
        for address in mapped:
            page = book.at.pop(address)
            book.unmap(address)
            page.address = None
            book.free[page] = None
        for address, mark in returned.items():
            page = book.at[address]
            page.mark = mark
            book.free[page] = None

    def _unmap_passed(self) -> None:
        leaving = self._book.leaving
        for address, mark in tuple(islice(leaving.items(), _UNMAPS_AT_ONCE)):
            if not mark.query():
                # One stream: those that came later are hardly passed.
                return
            self._book.unmap(address)
            del leaving[address]


def _runs(addresses: Sequence[int], page_bytes: int) -> Iterator[tuple[int, int]]:
    """Where neighbouring pages begin, and where they end; `addresses` ascend."""
    start = stop = None
    for address in addresses:
        if address != stop:
            if start is not None and stop is not None:
                yield start, stop
            start = address
        stop = address + page_bytes
    if start is not None and stop is not None:
        yield start, stop

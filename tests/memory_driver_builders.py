"""A driver of virtual memory that keeps strict books, and a device that does work later."""

import ctypes
import itertools
import mmap
import os
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from omniserve.devices.memory_driver import OutOfDeviceMemory
from omniserve.devices.virtual_memory import VirtualMemory

PAGE_BYTES = 4096


@dataclass
class BookDriver:
    """Refuses what a real one refuses or leaves undefined; every call is counted."""

    num_pages: int = 1 << 20
    """That there are."""
    reservations: dict[int, int] = field(default_factory=dict)
    handles: set[int] = field(default_factory=set)
    """Created and not released."""
    mappings: dict[int, int] = field(default_factory=dict)
    """Handle by address."""
    accessible: set[int] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    fails_at: int | None = None
    """Of the calls that need memory, counted from now on, the one that finds none."""

    def __post_init__(self) -> None:
        self._new_handles = itertools.count(1000)
        self._next_address = 1 << 32

    @property
    def num_backed(self) -> int:
        """Pages of memory that are taken: a mapping keeps a released one."""
        return len(self.handles | set(self.mappings.values()))

    @property
    def is_empty(self) -> bool:
        return not (self.reservations or self.handles or self.mappings or self.accessible)

    def page_bytes(self) -> int:
        return PAGE_BYTES

    def reserve_addresses(self, num_bytes: int) -> int:
        self._note("reserve")
        assert num_bytes > 0 and num_bytes % PAGE_BYTES == 0
        address = self._place(num_bytes)
        self.reservations[address] = num_bytes
        return address

    def free_addresses(self, address: int, num_bytes: int) -> None:
        self._note("free")
        assert self.reservations.pop(address) == num_bytes, "not what was reserved"
        assert not any(address <= each < address + num_bytes for each in self.mappings), "mapped"

    def create(self, num_bytes: int) -> int:
        self._note("create")
        assert num_bytes == PAGE_BYTES
        if self.num_backed == self.num_pages:
            raise OutOfDeviceMemory("the book is full")
        handle = next(self._new_handles)
        self.handles.add(handle)
        return handle

    def release(self, handle: int) -> None:
        self._note("release")
        self.handles.remove(handle)

    def map(self, address: int, num_bytes: int, handle: int) -> None:
        self._note("map")
        assert num_bytes == PAGE_BYTES and address % PAGE_BYTES == 0
        assert handle in self.handles, "released"
        assert address not in self.mappings, "mapped twice"
        assert any(
            start <= address and address + num_bytes <= start + size
            for start, size in self.reservations.items()
        ), "not reserved"
        self.mappings[address] = handle

    def allow_access(self, address: int, num_bytes: int) -> None:
        self._note("access")
        for each in range(address, address + num_bytes, PAGE_BYTES):
            assert each in self.mappings, "not mapped"
            self.accessible.add(each)

    def unmap(self, address: int, num_bytes: int) -> None:
        self._note("unmap")
        assert num_bytes == PAGE_BYTES
        del self.mappings[address]
        self.accessible.discard(address)

    def _place(self, num_bytes: int) -> int:
        address = self._next_address
        # Never the same again, and never side by side.
        self._next_address += num_bytes + PAGE_BYTES
        return address

    def _note(self, call: str) -> None:
        if self.fails_at is not None and call in ("create", "map", "access"):
            if self.fails_at == 0:
                self.fails_at = None
                raise OutOfDeviceMemory(call)
            self.fails_at -= 1
        self.calls.append(call)


class HostDriver(BookDriver):
    """One whose addresses are this process's own: whoever touches what is not mapped, crashes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._file = os.memfd_create("pages")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p

    def _place(self, num_bytes: int) -> int:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return self._map_there(0, num_bytes, 0, flags, -1, 0)

    def free_addresses(self, address: int, num_bytes: int) -> None:
        super().free_addresses(address, num_bytes)
        assert self._libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes)) == 0

    def create(self, num_bytes: int) -> int:
        handle = super().create(num_bytes)
        os.ftruncate(self._file, (handle + 1) * PAGE_BYTES)
        # What a block holds from before is not to be trusted.
        os.pwrite(self._file, b"\xff" * PAGE_BYTES, handle * PAGE_BYTES)
        return handle

    def allow_access(self, address: int, num_bytes: int) -> None:
        super().allow_access(address, num_bytes)
        for each in range(address, address + num_bytes, PAGE_BYTES):
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            flags, start = mmap.MAP_SHARED | 0x10, self.mappings[each] * PAGE_BYTES
            self._map_there(each, PAGE_BYTES, protection, flags, self._file, start)

    def unmap(self, address: int, num_bytes: int) -> None:
        super().unmap(address, num_bytes)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
        self._map_there(address, num_bytes, 0, flags, -1, 0)

    def _map_there(
        self, address: int, num_bytes: int, protection: int, flags: int, file: int, start: int
    ) -> int:
        found: int = self._libc.mmap(
            ctypes.c_void_p(address),
            ctypes.c_size_t(num_bytes),
            protection,
            flags,
            file,
            ctypes.c_long(start),
        )
        assert found != ctypes.c_void_p(-1).value, os.strerror(ctypes.get_errno())
        return found


@dataclass(frozen=True)
class _Work:
    address: int
    writes: int | None
    """None: it reads..."""
    expects: int | None = None
    """...and finds this."""


@dataclass(eq=False)
class LateMark:
    """Of a `LateDevice`."""

    device: "LateDevice"
    place: int
    num_waits: int = 0

    def query(self) -> bool:
        return self.device.num_done >= self.place

    def synchronize(self) -> None:
        self.num_waits += 1
        self.device.run(self.place - self.device.num_done)


class LateDevice:
    """Does what was launched in order and when it is told, by the addresses as they are then."""

    def __init__(self, driver: BookDriver) -> None:
        self.driver = driver
        self.num_done = 0
        self.marks: list[LateMark] = []
        self._queued: deque[_Work] = deque()
        self._num_launched = 0
        self._contents: dict[int, int] = {}
        """By handle."""

    def write(self, address: int, value: int) -> None:
        self._launch(_Work(address, value))

    def read(self, address: int, expected: int) -> None:
        self._launch(_Work(address, None, expected))

    def mark(self) -> LateMark:
        mark = LateMark(self, self._num_launched)
        self.marks.append(mark)
        return mark

    def run(self, num_works: int | None = None) -> None:
        while self._queued and num_works != 0:
            work = self._queued.popleft()
            assert work.address in self.driver.accessible, "illegal memory access"
            handle = self.driver.mappings[work.address]
            if work.writes is not None:
                self._contents[handle] = work.writes
            else:
                assert self._contents.get(handle) == work.expects, "others wrote there"
            self.num_done += 1
            if num_works is not None:
                num_works -= 1

    def _launch(self, work: _Work) -> None:
        self._queued.append(work)
        self._num_launched += 1


class PassedMark:
    """Of a device that is always done."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""


def host_bytes(memory: VirtualMemory) -> Tensor:
    """The memory of a `HostDriver` as torch has it."""
    array = (ctypes.c_uint8 * memory.num_bytes).from_address(memory.address)
    array.memory = memory  # type: ignore[attr-defined]
    return torch.frombuffer(array, dtype=torch.uint8)

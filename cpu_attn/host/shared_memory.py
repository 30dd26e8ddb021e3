"""Memory that another process can map by its descriptor; a page exists once it is touched."""

import ctypes
import fcntl
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

_HUGE_PAGE_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_MADVISE = ctypes.CDLL(None, use_errno=True).madvise
"""Other threads run Python meanwhile: `mmap.madvise` holds the lock, for seconds where it frees
gigabytes."""
_MADVISE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def huge_page_bytes(settings: Path = _HUGE_PAGE_SETTINGS) -> int | None:
    """Size of the huge pages that the kernel gives to shared memory on request, None without."""
    try:
        num_bytes = int((settings / "hpage_pmd_size").read_text())
        common = _chosen(settings / "shmem_enabled")
    except (OSError, ValueError):
        return None
    if common in ("deny", "force"):
        return num_bytes if common == "force" else None
    try:
        of_size = _chosen(settings / f"hugepages-{num_bytes // 1024}kB" / "shmem_enabled")
    except OSError:
        # Kernels before 6.11 have the common setting alone.
        of_size = "inherit"
    chosen = common if of_size == "inherit" else of_size
    return num_bytes if chosen in ("always", "within_size", "advise") else None


def _chosen(setting: Path) -> str:
    """The bracketed word of such a file: `always [madvise] never`."""
    _, _, rest = setting.read_text().partition("[")
    return rest.partition("]")[0]


class SharedMemory:
    """A mapped memfd of fixed size, zeros at first, for this process and whom it gives `fd` to."""

    def __init__(self, fd: int, num_bytes: int, huge_pages: bool) -> None:
        """Takes `fd` over; `create` and `attach` are the ways in."""
        self.num_bytes = num_bytes
        self.fd = fd
        self._close_fd = weakref.finalize(self, os.close, fd)
        self._map = mmap.mmap(fd, num_bytes)
        self.huge_page_bytes = self._ask_for_huge_pages() if huge_pages else None
        """Size of the huge pages that the kernel was willing to use, None where it is not."""
        self.address: int = self.array(np.uint8, (num_bytes,)).ctypes.data

    @classmethod
    def create(cls, name: str, num_bytes: int, *, huge_pages: bool = False) -> Self:
        """New memory, shown as `memfd:name` in /proc.

        Raises OSError where the machine cannot map so much.
        """
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, num_bytes)
            # A peer that could cut it short would kill whoever touches the rest.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except OSError:
            os.close(fd)
            raise
        return cls(fd, num_bytes, huge_pages)

    @classmethod
    def attach(cls, fd: int, num_bytes: int, *, huge_pages: bool = False) -> Self:
        """Memory that another process made; `fd` is closed with it, and where this raises.

        Raises ValueError where it has another size, OSError where it cannot be mapped.
        """
        actual = os.fstat(fd).st_size
        if actual != num_bytes:
            os.close(fd)
            raise ValueError(f"num_bytes {num_bytes}: the memory has {actual} bytes")
        return cls(fd, num_bytes, huge_pages)

    def __repr__(self) -> str:
        return f"SharedMemory({self.num_bytes} bytes, {self.resident_bytes} resident)"

    @property
    def closed(self) -> bool:
        return not self._close_fd.alive

    @property
    def resident_bytes(self) -> int:
        """Memory that it takes, in this process and all others together."""
        return 0 if self.closed else os.fstat(self.fd).st_blocks * 512

    def array(
        self,
        dtype: DTypeLike,
        shape: Sequence[int],
        *,
        offset_bytes: int = 0,
        strides: Sequence[int] | None = None,
    ) -> NDArray[Any]:
        """A view of it; `strides` in bytes, C-contiguous without."""
        # Of these ways only frombuffer keeps the map from being closed under the array.
        buffer = np.frombuffer(self._map, np.uint8)
        return np.ndarray(shape, dtype, buffer=buffer, offset=offset_bytes, strides=strides)

    def give_back(self, start: int, stop: int) -> None:
        """The whole pages between two offsets take no memory any more, and read as zeros.

        Of huge pages too only whole ones: cut up they would have to be collected again.
        """
        page_bytes = self.huge_page_bytes or mmap.PAGESIZE
        first = -(-start // page_bytes) * page_bytes
        # What lies behind the end in the last page is nobody's.
        end = stop if stop == self.num_bytes else stop // page_bytes * page_bytes
        if first < end:
            self._remove(first, end - first)

    def _remove(self, start: int, num_bytes: int) -> None:
        # While there is a view nobody can unmap it; a map that is closed already has none.
        with memoryview(self._map):
            if _MADVISE(self.address + start, num_bytes, mmap.MADV_REMOVE):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Unmaps it and closes `fd`; while arrays of it live the mapping stays for them."""
        self._close_fd()
        self.fd = -1
        try:
            self._map.close()
        except BufferError:
            # Unmapping under an array would end the process at its next use.
            return

    def _ask_for_huge_pages(self) -> int | None:
        try:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            return None
        return huge_page_bytes()

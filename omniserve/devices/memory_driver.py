"""What virtual memory of a device needs of its driver, and how that fails."""

from typing import Protocol


class DriverError(OSError):
    """A call of the driver failed."""


class OutOfDeviceMemory(DriverError):
    """The device has not so much memory free."""


class MemoryDriver(Protocol):
    """Addresses and memory apart from each other; all in whole pages.

    Everything raises DriverError, and OutOfDeviceMemory where it is that.
    """

    def page_bytes(self) -> int:
        """The least that can be mapped; addresses and sizes are multiples of it."""
        ...

    def reserve_addresses(self, num_bytes: int) -> int:
        """Where addresses begin behind which there is no memory yet."""
        ...

    def free_addresses(self, address: int, num_bytes: int) -> None:
        """A whole reservation, in which nothing is mapped."""
        ...

    def create(self, num_bytes: int) -> int:
        """A handle of memory that has no address yet."""
        ...

    def release(self, handle: int) -> None:
        """Its memory is free once it is mapped nowhere."""
        ...

    def map(self, address: int, num_bytes: int, handle: int) -> None:
        """All memory of the handle, also where it has other addresses; nobody has access yet."""
        ...

    def allow_access(self, address: int, num_bytes: int) -> None:
        """The device may read and write there; all of it is mapped."""
        ...

    def unmap(self, address: int, num_bytes: int) -> None:
        """What one `map` mapped; nothing that was launched uses it any more."""
        ...

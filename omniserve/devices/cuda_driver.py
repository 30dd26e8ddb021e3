"""The virtual memory calls of the CUDA driver (its manual, section "Virtual Memory Management").

Unproven on hardware: no CUDA machine has run this module. What is built on it is proven with a
driver that keeps strict books instead (tests/test_virtual_memory.py).
"""

import ctypes
from ctypes import byref
from typing import Any

from omniserve.devices.memory_driver import DriverError, OutOfDeviceMemory

_SUCCESS = 0
_OUT_OF_MEMORY = 2
_HAS_VIRTUAL_MEMORY = 102
"""CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED"""
_PINNED_ALLOCATION = 1
_ON_DEVICE = 1
_READ_AND_WRITE = 3
_MINIMUM_GRANULARITY = 0


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _AllocationFlags(ctypes.Structure):
    _fields_ = (
        ("compression_type", ctypes.c_ubyte),
        ("gpu_direct_rdma_capable", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class _AllocationProperties(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("requested_handle_types", ctypes.c_int),
        ("location", _Location),
        ("win32_handle_meta_data", ctypes.c_void_p),
        ("flags", _AllocationFlags),
    )


class _Access(ctypes.Structure):
    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


class CudaDriver:
    """Memory of one device; a `MemoryDriver`. The runtime must have begun to use the device."""

    def __init__(self, device_index: int, library: Any = None) -> None:
        """`library`: libcuda, which is opened where it is not given.

        Raises OSError where there is no driver, or it or the device has no virtual memory.
        """
        self._library: Any = ctypes.CDLL("libcuda.so.1") if library is None else library
        device, has_it = ctypes.c_int(), ctypes.c_int()
        self._call("cuDeviceGet", byref(device), ctypes.c_int(device_index))
        self._call("cuDeviceGetAttribute", byref(has_it), ctypes.c_int(_HAS_VIRTUAL_MEMORY), device)
        if not has_it.value:
            raise DriverError("the device has no virtual memory management")
        location = _Location(_ON_DEVICE, device.value)
        self._properties = _AllocationProperties(type=_PINNED_ALLOCATION, location=location)
        self._access = _Access(location, _READ_AND_WRITE)

    def page_bytes(self) -> int:
        granularity = ctypes.c_size_t()
        self._call(
            "cuMemGetAllocationGranularity",
            byref(granularity),
            byref(self._properties),
            ctypes.c_int(_MINIMUM_GRANULARITY),
        )
        return granularity.value

    def reserve_addresses(self, num_bytes: int) -> int:
        address = ctypes.c_uint64()
        self._call(
            "cuMemAddressReserve",
            byref(address),
            ctypes.c_size_t(num_bytes),
            ctypes.c_size_t(0),
            ctypes.c_uint64(0),
            ctypes.c_uint64(0),
        )
        return address.value

    def free_addresses(self, address: int, num_bytes: int) -> None:
        self._call("cuMemAddressFree", ctypes.c_uint64(address), ctypes.c_size_t(num_bytes))

    def create(self, num_bytes: int) -> int:
        handle = ctypes.c_uint64()
        self._call(
            "cuMemCreate",
            byref(handle),
            ctypes.c_size_t(num_bytes),
            byref(self._properties),
            ctypes.c_uint64(0),
        )
        return handle.value

    def release(self, handle: int) -> None:
        self._call("cuMemRelease", ctypes.c_uint64(handle))

    def map(self, address: int, num_bytes: int, handle: int) -> None:
        self._call(
            "cuMemMap",
            ctypes.c_uint64(address),
            ctypes.c_size_t(num_bytes),
            ctypes.c_size_t(0),
            ctypes.c_uint64(handle),
            ctypes.c_uint64(0),
        )

    def allow_access(self, address: int, num_bytes: int) -> None:
        self._call(
            "cuMemSetAccess",
            ctypes.c_uint64(address),
            ctypes.c_size_t(num_bytes),
            byref(self._access),
            ctypes.c_size_t(1),
        )

    def unmap(self, address: int, num_bytes: int) -> None:
        self._call("cuMemUnmap", ctypes.c_uint64(address), ctypes.c_size_t(num_bytes))

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise DriverError(f"the driver has no {name}") from None
        error = function(*arguments)
        if error == _OUT_OF_MEMORY:
            raise OutOfDeviceMemory(f"{name}: the device has no memory left")
        if error != _SUCCESS:
            raise DriverError(f"{name}: error {error}")

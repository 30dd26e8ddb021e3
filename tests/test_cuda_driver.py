"""What the driver of CUDA is called with, and its errors; and on a device, that memory moves."""

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from omniserve.devices import cuda_memory
from omniserve.devices.cuda_driver import CudaDriver
from omniserve.devices.cuda_memory import open_memory, open_pages
from omniserve.devices.device import Device
from omniserve.devices.memory_driver import DriverError, OutOfDeviceMemory
from omniserve.errors import ConfigError

GRANULARITY = 2 << 20


class Library:
    """Notes the values that it is called with; what is asked for comes out of `answers`."""

    def __init__(self, **answers: int) -> None:
        self.answers = {"cuDeviceGet": 0, "cuDeviceGetAttribute": 1, **answers}
        self.calls: list[tuple[str, list[Any]]] = []
        self.errors: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        def called(*arguments: Any) -> int:
            values = [getattr(each, "value", each) for each in arguments]
            self.calls.append((name, values))
            if name in self.answers and name not in self.errors:
                arguments[0]._obj.value = self.answers[name]
            return self.errors.get(name, 0)

        return called

    def last(self) -> tuple[str, list[Any]]:
        return self.calls[-1]


def test_structures_are_laid_out_as_the_driver_reads_them() -> None:
    """64-bit machines; cuda.h has the same."""
    from omniserve.devices import cuda_driver

    assert ctypes.sizeof(cuda_driver._AllocationProperties) == 32
    assert cuda_driver._AllocationProperties.location.offset == 8
    assert cuda_driver._AllocationProperties.win32_handle_meta_data.offset == 16
    assert ctypes.sizeof(cuda_driver._Access) == 12


def test_calls_carry_addresses_sizes_and_handles() -> None:
    address, handle = 0x7F00_0000_0000, (1 << 40) + 5
    library = Library(
        cuMemGetAllocationGranularity=GRANULARITY, cuMemAddressReserve=address, cuMemCreate=handle
    )
    driver = CudaDriver(0, library)
    assert driver.page_bytes() == GRANULARITY
    assert driver.reserve_addresses(6 * GRANULARITY) == address
    assert library.last()[1][1:] == [6 * GRANULARITY, 0, 0, 0]
    assert driver.create(GRANULARITY) == handle
    properties = library.last()[1][2]._obj
    assert (properties.type, properties.location.type, properties.location.id) == (1, 1, 0)
    assert properties.requested_handle_types == 0
    driver.map(address, GRANULARITY, handle)
    assert library.last() == ("cuMemMap", [address, GRANULARITY, 0, handle, 0])
    driver.allow_access(address, GRANULARITY)
    name, (start, size, access, count) = library.last()
    assert (name, start, size, count) == ("cuMemSetAccess", address, GRANULARITY, 1)
    assert (access._obj.location.type, access._obj.flags) == (1, 3)
    driver.unmap(address, GRANULARITY)
    assert library.last() == ("cuMemUnmap", [address, GRANULARITY])
    driver.release(handle)
    assert library.last() == ("cuMemRelease", [handle])
    driver.free_addresses(address, 6 * GRANULARITY)
    assert library.last() == ("cuMemAddressFree", [address, 6 * GRANULARITY])


def test_errors_say_which_call_and_memory_that_is_short_is_told_apart() -> None:
    library = Library(cuMemCreate=1)
    driver = CudaDriver(0, library)
    library.errors = {"cuMemCreate": 2, "cuMemMap": 1}
    with pytest.raises(OutOfDeviceMemory, match="cuMemCreate"):
        driver.create(GRANULARITY)
    with pytest.raises(DriverError, match="^cuMemMap: error 1$") as caught:
        driver.map(1, GRANULARITY, 2)
    assert not isinstance(caught.value, OutOfDeviceMemory)


def test_a_device_without_virtual_memory_and_a_driver_without_the_calls_are_told() -> None:
    with pytest.raises(DriverError, match="the device has no virtual memory management"):
        CudaDriver(0, Library(cuDeviceGetAttribute=0))
    with pytest.raises(DriverError, match="the driver has no cuDeviceGet"):
        CudaDriver(0, SimpleNamespace())


def test_an_accelerator_without_shared_pages_refuses_the_key() -> None:
    with pytest.raises(ConfigError, match=r"^device\.kv_bytes: memory of a npu device cannot move"):
        Device(SimpleNamespace(type="npu"), "npu", 2).elastic_page_bytes()  # type: ignore[arg-type]


@pytest.mark.parametrize("call", ["cuMemGetAllocationGranularity", "cuMemCreate"])
def test_a_driver_that_fails_at_the_start_is_told_with_the_key(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(cuMemGetAllocationGranularity=GRANULARITY, cuMemCreate=1)
    library.errors = {call: 801}
    monkeypatch.setattr(cuda_memory, "CudaDriver", lambda index: CudaDriver(index, library))
    with pytest.raises(ConfigError, match=rf"^device\.kv_bytes: .* \({call}: error 801\)"):
        open_pages(8 * GRANULARITY, torch.device("cpu"))


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_memory_moves_on_a_device() -> None:
    device = torch.device("cuda", 0)
    num_bytes = 8 * GRANULARITY
    pages = open_pages(num_bytes, device)
    assert pages.page_bytes % (1 << 16) == 0
    num_pages = num_bytes // pages.page_bytes
    one, two = (open_memory(pages, num_bytes, device) for _ in range(2))
    shape = (num_bytes // 2,)
    first, second = (memory.tensor(shape, torch.bfloat16) for memory in (one, two))
    assert first.data_ptr() == one.address and first.device == device
    one.reserve(0, num_bytes)
    first.fill_(3.0)
    total = first.sum(dtype=torch.float32)
    one.give_back(0, num_bytes)
    two.reserve(0, num_bytes)
    second.fill_(5.0)
    assert float(total) == 3.0 * shape[0], "in the order of the stream"
    assert float(second.sum(dtype=torch.float32)) == 5.0 * shape[0]
    with pytest.raises(OutOfDeviceMemory):
        one.reserve(0, pages.page_bytes)
    one.close()
    two.close()
    assert pages.num_free == num_pages


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_more_than_a_device_has_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"^device\.kv_bytes: the cuda device cannot allocate"):
        open_pages(1 << 50, torch.device("cuda", 0))

"""KV memory of a CUDA device that moves between models.

Unproven on hardware: no CUDA machine has run this module.
"""

from typing import Any

import torch
from torch import Tensor

from omniserve.devices.cuda_driver import CudaDriver
from omniserve.devices.device_pages import DevicePages
from omniserve.devices.memory_driver import OutOfDeviceMemory
from omniserve.devices.virtual_memory import VirtualMemory
from omniserve.errors import ConfigError


def open_pages(num_bytes: int, device: torch.device) -> DevicePages:
    """All memory that models' KV will have, so that nobody else takes it.

    Raises:
        ConfigError: there is not so much, or the driver cannot move it between models.
    """
    # The driver's calls need the context that torch makes.
    torch.empty(1, device=device)
    try:
        pages = DevicePages(CudaDriver(device.index or 0))
        pages.create(num_bytes // pages.page_bytes)
    except OutOfDeviceMemory as error:
        free_bytes, _ = torch.cuda.mem_get_info(device)
        raise ConfigError(
            f"device.kv_bytes: the cuda device cannot allocate {num_bytes} bytes, "
            f"{free_bytes} are free; give less"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"device.kv_bytes: memory of this cuda device cannot move between models ({error}); "
            "leave it out and give every model its device_kv_bytes"
        ) from error
    return pages


def open_memory(pages: DevicePages, num_bytes: int, device: torch.device) -> VirtualMemory:
    """A part of it, as much as `num_bytes` at most. Raises DriverError."""

    def mark() -> torch.Event:
        event = torch.Event(device=device)
        event.record()
        return event

    return VirtualMemory(pages, num_bytes, mark, lambda memory: _as_bytes(memory, device))


def _as_bytes(memory: VirtualMemory, device: torch.device) -> Tensor:
    return torch.as_tensor(_CudaArray(memory), device=device)


class _CudaArray:
    """How torch takes memory that is not its own; it keeps this object with the tensor."""

    def __init__(self, memory: VirtualMemory) -> None:
        self._memory = memory

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": (self._memory.num_bytes,),
            "typestr": "|u1",
            "data": (self._memory.address, False),
            "strides": None,
            "version": 3,
        }

"""Page-locked host memory: what an accelerator copies from and to without making anyone wait."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor


class PinnedRegion(Protocol):
    """Memory that was mapped by somebody else and is page-locked until `close`."""

    def close(self) -> None:
        """Nothing may copy there any more. Doing it again is harmless."""


def pin(address: int, num_bytes: int, device: torch.device) -> PinnedRegion:
    """Page-locks mapped memory for copies of a CUDA or NPU device; all its pages are taken now.

    While it is pinned no page of it may be given back to the system. Raises OSError where the
    device's runtime refuses.
    """
    if device.type == "cuda":
        return _CudaRegion(address, num_bytes)
    if device.type == "npu":
        from omniserve.devices.npu import NpuRegion

        return NpuRegion(address, num_bytes)
    raise AssertionError(f"{device} copies from any memory")


class _CudaRegion:
    def __init__(self, address: int, num_bytes: int) -> None:
        self._address: int | None = address
        runtime: Any = torch.cuda.cudart()
        error = runtime.cudaHostRegister(address, num_bytes, 0)
        if int(error):
            raise OSError(f"cudaHostRegister of {num_bytes} bytes: {error}")

    def close(self) -> None:
        if self._address is not None:
            runtime: Any = torch.cuda.cudart()
            torch.cuda.check_error(runtime.cudaHostUnregister(self._address))
            self._address = None


def empty_pinned(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """New host memory for copies of `device`; from torch's cache, so it costs little each time.

    It may be dropped while a `non_blocking` copy uses it.
    """
    return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type != "cpu")


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A new tensor of `device`, by way of pinned memory; of a CPU device the same memory.

    From other memory the copy would wait for all that was queued on the stream before it.
    """
    source = torch.from_numpy(array)
    if device.type == "cpu":
        return source
    staged = empty_pinned(source.shape, source.dtype, device).copy_(source)
    return staged.to(device, non_blocking=True)

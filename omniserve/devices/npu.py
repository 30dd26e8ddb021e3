"""What Ascend needs beyond torch.accelerator. Unproven: no Ascend machine has run this."""

import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import Any

from omniserve.errors import ConfigError

_ACL_HOST_REGISTER_MAPPED = 0


def load() -> None:
    """Imports torch_npu, which registers the `npu` device with torch.

    Raises:
        ConfigError: torch_npu is not installed.
    """
    try:
        import torch_npu  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "device.kind: 'npu' needs torch_npu; install omniserve with its npu extra"
        ) from error


def graphs() -> tuple[ModuleType, Callable[[], Any]]:
    """The module that has graphs in CUDA's fashion, and their class.

    Only operators of CANN's aclnn kind can be recorded, and attention whose lengths torch_npu
    takes from the host cannot.
    """
    import torch_npu

    return torch_npu.npu, torch_npu.npu.NPUGraph


class NpuRegion:
    """Mapped host memory that is page-locked for copies until `close`."""

    def __init__(self, address: int, num_bytes: int) -> None:
        """`address` is that of a page.

        Raises OSError where CANN is not there or refuses.
        """
        self._address: int | None = address
        self._runtime = ctypes.CDLL("libascendcl.so")
        # CANN gives the address that device kernels would use; copies take the host's.
        device_address = ctypes.c_void_p()
        error = self._runtime.aclrtHostRegister(
            ctypes.c_void_p(address),
            ctypes.c_uint64(num_bytes),
            ctypes.c_int(_ACL_HOST_REGISTER_MAPPED),
            ctypes.byref(device_address),
        )
        if error:
            raise OSError(f"aclrtHostRegister of {num_bytes} bytes: error {error}")

    def close(self) -> None:
        """Nothing may copy there any more. Doing it again is harmless."""
        if self._address is not None:
            error = self._runtime.aclrtHostUnregister(ctypes.c_void_p(self._address))
            self._address = None
            if error:
                raise OSError(f"aclrtHostUnregister: error {error}")

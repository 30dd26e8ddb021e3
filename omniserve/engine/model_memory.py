"""Whether a model fits into the memory that is free, asked before anything of it is read."""

import torch

from omniserve.errors import ConfigError
from omniserve.memory_limit import available_bytes
from omniserve.models.linear import can_pack
from omniserve.models.loading import DTYPES, OpenedModel
from omniserve.models.weight_store import WeightStore
from omniserve.settings import ModelSettings


def dtype_of(settings: ModelSettings) -> torch.dtype:
    """Raises ConfigError for a name that is none."""
    dtype = DTYPES.get(settings.dtype)
    if dtype is None:
        raise ConfigError(
            f"models.{settings.name}.dtype: {settings.dtype!r}; allowed: {', '.join(DTYPES)}"
        )
    return dtype


def require_memory(
    settings: ModelSettings, opened: OpenedModel, device: torch.device, store: WeightStore
) -> None:
    """Raises ConfigError where the weights cannot fit, however much of them is in `store` already.

    How much that is shows only as they are read: `require_room` is asked then. Of KV only what is
    in use takes memory of a CPU device, so it is not counted here.
    """
    dtype = dtype_of(settings)
    needed = opened.memory_bytes(dtype, can_pack(device, dtype))
    free = free_bytes(device)
    if needed - store.num_bytes > free:
        raise ConfigError(
            f"models.{settings.name}: its weights take {needed / 1e9:.2f} GB in {settings.dtype}, "
            f"and {free / 1e9:.2f} GB of the {device.type} device's memory are free for it"
        )


def require_room(settings: ModelSettings, device: torch.device, num_bytes: int) -> None:
    """Raises ConfigError where the device has no room for one more weight, of so many bytes."""
    free = free_bytes(device)
    if num_bytes > free:
        raise ConfigError(
            f"models.{settings.name}: beside what is read of it, {free / 1e9:.2f} GB of the "
            f"{device.type} device's memory are free for it, and its next weight, which no other "
            f"model has, takes {num_bytes / 1e9:.2f} GB"
        )


def free_bytes(device: torch.device) -> int:
    """Of the memory that a device computes in, what this process can have now; on a CPU device
    within the limits of its control groups."""
    if device.type == "cpu":
        return available_bytes()
    free: int = torch.accelerator.get_memory_info(device)[0]
    return free

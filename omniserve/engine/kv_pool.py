"""The device's KV memory: one tensor under a byte limit."""

import torch
from torch import Tensor

from omniserve.errors import ConfigError
from omniserve.models.decoder import DecoderModel
from omniserve.settings import ModelSettings


class DeviceKvPool:
    """`cache` [layers, blocks, 2, num_kv_heads, block_size, head_dim]; the 2 is keys, values."""

    def __init__(self, cache: Tensor) -> None:
        self.cache = cache

    @property
    def num_blocks(self) -> int:
        return self.cache.shape[1]

    @property
    def num_bytes(self) -> int:
        return self.cache.numel() * self.cache.element_size()

    @property
    def block_bytes(self) -> int:
        return self.num_bytes // self.num_blocks


def kv_bytes_per_token(
    num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> int:
    """Bytes of keys and values that one token holds in all layers."""
    return 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize


def allocate_kv_pool(
    settings: ModelSettings, model: DecoderModel, num_blocks: int, device: torch.device
) -> DeviceKvPool:
    """Allocates the pool; on a CPU device pages are touched only when they are first used.

    Raises:
        ConfigError: the device has no room for it.
    """
    shape = (
        model.num_layers,
        num_blocks,
        2,
        model.num_kv_heads,
        settings.block_size,
        model.head_dim,
    )
    try:
        cache = torch.empty(shape, dtype=model.dtype, device=device)
    except RuntimeError as error:
        raise ConfigError(
            f"models.{settings.name}.device_kv_bytes: the {device.type} device cannot allocate "
            f"{settings.device_kv_bytes} bytes; give less"
        ) from error
    return DeviceKvPool(cache)

"""The device's KV memory: one tensor under a byte limit."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cpu_attn.host.kv_arena import consecutive_runs
from omniserve.devices.device import Device
from omniserve.devices.elastic_memory import ElasticMemory
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

    def reserve(self, extents: Sequence[int]) -> None:
        """Blocks of these extents are going to be used; without extents it has them all."""

    def give_back(self, extents: Sequence[int]) -> None:
        """Nobody reads or writes their blocks any more."""

    def give_back_all(self) -> None:
        """No block is in use."""

    def close(self) -> None:
        """Nobody reads or writes the cache any more."""


class ElasticKvPool(DeviceKvPool):
    """One whose memory comes and goes by extents, each so many blocks of every layer."""

    def __init__(
        self, memory: ElasticMemory, cache: Tensor, extent_blocks: int, num_extents: int
    ) -> None:
        """`cache` begins where `memory` begins, and has a multiple of `extent_blocks` blocks;
        an extent fills whole pages in every layer. The first `num_extents` come and go, those
        behind them stay. Raises OSError where there is no memory for these.
        """
        super().__init__(cache)
        self._memory = memory
        self._extent_bytes = self.block_bytes // len(cache) * extent_blocks
        """In one layer."""
        self._num_extents = num_extents
        for start, stop in self._runs(range(num_extents, self.num_blocks // extent_blocks)):
            memory.keep(start, stop)

    def reserve(self, extents: Sequence[int]) -> None:
        """Raises OSError where the device has no memory for them; then it has none of them."""
        try:
            for start, stop in self._runs(extents):
                self._memory.reserve(start, stop)
        except OSError:
            self.give_back(extents)
            raise

    def give_back(self, extents: Sequence[int]) -> None:
        for start, stop in self._runs(extents):
            self._memory.give_back(start, stop)

    def give_back_all(self) -> None:
        self.give_back(range(self._num_extents))

    def close(self) -> None:
        self._memory.close()

    def _runs(self, extents: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Bytes from, bytes to, of neighbouring extents together, in every layer."""
        ordered = sorted(extents)
        runs = [
            (ordered[start], ordered[stop - 1] + 1) for start, stop in consecutive_runs(ordered)
        ]
        layer_bytes = self.num_bytes // len(self.cache)
        for layer in range(len(self.cache)):
            for first, end in runs:
                start = layer * layer_bytes
                yield start + first * self._extent_bytes, start + end * self._extent_bytes


def kv_bytes_per_token(
    num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> int:
    """Bytes of keys and values that one token holds in all layers."""
    return 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize


def allocate_kv_pool(
    settings: ModelSettings,
    model: DecoderModel,
    num_blocks: int,
    num_scratch_blocks: int,
    device: Device,
    extent_blocks: int | None = None,
) -> DeviceKvPool:
    """Allocates the pool; on a CPU device pages are touched only when they are first used.

    Scratch blocks come behind the others. With `extent_blocks`, of which `num_blocks` is a
    multiple, it is an elastic pool; its scratch blocks are always there.

    Raises:
        ConfigError: the device has no room for it.
    """
    at_once = extent_blocks or 1
    shape = (
        model.num_layers,
        -(-(num_blocks + num_scratch_blocks) // at_once) * at_once,
        2,
        model.num_kv_heads,
        settings.block_size,
        model.head_dim,
    )
    try:
        if extent_blocks is None:
            return DeviceKvPool(torch.empty(shape, dtype=model.dtype, device=device.torch_device))
        memory = device.elastic_memory(math.prod(shape) * model.dtype.itemsize)
        cache = memory.tensor(shape, model.dtype)
        return ElasticKvPool(memory, cache, extent_blocks, num_blocks // extent_blocks)
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"models.{settings.name}.device_kv_bytes: the {device.torch_device.type} device cannot "
            f"allocate {settings.device_kv_bytes} bytes; give less"
        ) from error

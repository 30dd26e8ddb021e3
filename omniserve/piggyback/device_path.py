"""How KV and lane rows move between a device and the host: by its kind."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpu_attn.host import HostAttention, HostKvPool
from omniserve.devices.pinned import pin
from omniserve.devices.side_stream import AcceleratorStream
from omniserve.piggyback.accelerator_block_copier import AcceleratorBlockCopier
from omniserve.piggyback.accelerator_exchange import AcceleratorExchange
from omniserve.piggyback.cpu_block_copier import CpuBlockCopier
from omniserve.piggyback.kv_swapper import KvSwapper
from omniserve.piggyback.lane_exchange import LaneExchange, SharedMemoryExchange


def open_swapper(cache: Tensor, host_pool: HostKvPool, cores: Sequence[int]) -> KvSwapper:
    """For a device cache [layers, blocks, 2, num_kv_heads, block_size, head_dim].

    cores: the host's. On an accelerator all memory of the pool is taken at once and page-locked.
    Raises OSError where that, or running on these cores, is not possible.
    """
    if cache.device.type == "cpu":
        return KvSwapper(CpuBlockCopier(cache, host_pool, cores))
    pinned = pin(host_pool.address, host_pool.num_bytes, cache.device)
    stream = AcceleratorStream(cache.device)
    return KvSwapper(AcceleratorBlockCopier(cache, host_pool, stream, pinned))


def open_exchange(
    host: HostAttention,
    model: int,
    hidden_size: int,
    dtype: torch.dtype,
    device: torch.device,
    lose: Callable[[NDArray[np.int64]], None],
) -> LaneExchange:
    """`model` is its index in `host`; `lose` is told the lanes that nobody will attend to."""
    if device.type == "cpu":
        return SharedMemoryExchange(host, model, hidden_size, dtype)
    # Of its own: behind a request's KV these rows would come late.
    stream = AcceleratorStream(device)
    return AcceleratorExchange(host, model, hidden_size, dtype, device, stream, lose)

"""Copies between a CPU device's KV cache and the host's pool."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cpu_attn.block_copy import copy_to_block_major, copy_to_layer_major
from cpu_attn.host import HostKvPool
from omniserve.piggyback.kv_swapper import BlockIds


class CpuBlockCopier:
    """One thread on the host's cores, which needs none of torch's own."""

    def __init__(self, cache: Tensor, host_pool: HostKvPool, cores: Sequence[int]) -> None:
        """`cache` [layers, blocks, 2, num_kv_heads, block_size, head_dim] as the pool's layout.

        Raises OSError where this process may use none of the cores.
        """
        # Elements do not matter to a copy, and numpy has no bfloat16.
        self._by_layer: NDArray[np.int64] = cache.view(torch.int64).flatten(2).numpy()
        self._by_block = host_pool.words
        self.num_device_blocks = cache.shape[1]
        self.num_host_blocks = host_pool.num_blocks
        self.block_bytes = host_pool.layout.block_bytes
        num_layers, _, num_words = self._by_layer.shape
        assert self._by_block.shape[1:] == (num_layers, num_words)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-swapper")
        # 0 is the calling thread.
        self._thread.submit(os.sched_setaffinity, 0, cores).result()

    def copy_out(self, device_ids: BlockIds, host_ids: BlockIds) -> "_ThreadCopy":
        return _ThreadCopy(
            self._thread.submit(
                copy_to_block_major, self._by_layer, device_ids, self._by_block, host_ids
            )
        )

    def copy_in(self, device_ids: BlockIds, host_ids: BlockIds) -> "_ThreadCopy":
        return _ThreadCopy(
            self._thread.submit(
                copy_to_layer_major, self._by_layer, device_ids, self._by_block, host_ids
            )
        )

    def close(self) -> None:
        self._thread.shutdown()


class _ThreadCopy:
    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def has_landed(self) -> bool:
        if not self._future.done():
            return False
        self._future.result()
        return True
